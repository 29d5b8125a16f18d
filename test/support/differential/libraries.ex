defmodule Snakepit.Differential.Libraries do
  @moduledoc false
  # Which calls of which libraries are compared. A new library is a clause of `library/1` and a name in `names/0`.

  import Snakepit.Differential.Terms

  alias Snakepit.Differential.Crypto
  alias Snakepit.{Differential, EspressoFixture, NativeFixture}

  @spec names() :: [atom()]
  def names, do: [:adder, :cpp, :jiffy, :asn1rt_nif, :crypto, :espresso] ++ NativeFixture.rustlers()

  @spec library(atom()) :: Differential.library()
  def library(:adder) do
    %{
      path: :adder,
      load_info: 42,
      calls:
        [
          add: ["a", 1],
          add: [1.0, 1],
          add: [9_223_372_036_854_775_808, 1],
          load_info: [],
          raise: [:reason],
          raise: [{"a term", [1.5, %{}]}],
          raise_and_return: [:stays],
          badarg: [],
          reschedule: [0, :kept],
          reschedule: [100, {"kept", 1}],
          reschedule: [:not_a_number, 1],
          fill: [0, 0],
          fill: [64, 7],
          fill: [100_000, 255],
          fill: [-1, 0],
          sleep: [1],
          spin: [10],
          cell_get: [:no_cell],
          cell_get: [make_ref()]
        ] ++ for(a <- int64(), b <- int64(), do: {:add, [a, b]}),
      any: [
        add: [or_other(one_of(int64())), or_other(:proper_types.integer())],
        echo: [any()],
        raise: [any()],
        reschedule: [range(0, 50), any()],
        sum: [or_other(iodata())],
        size: [or_other(data())],
        copy: [or_other(data())],
        fill: [range(0, 70_000), range(0, 255)],
        cell_get: [any()]
      ],
      scripts: [
        fn call ->
          {:ok, cell} = call.(:cell_new, [7])
          {:ok, 7} = call.(:cell_get, [cell])
          {:ok, other} = call.(:cell_new, [1])
          call.(:echo, [[cell, %{other => cell}]])
          {:ok, [{same, _, _}]} = call.(:echo, [[{cell, 1, other}]])
          {:ok, 7} = call.(:cell_get, [same])
          {:raised, :error, {same}} = call.(:raise, [{cell}])
          {:ok, :ok} = call.(:cell_put, [same, -8])
          call.(:cell_put, [other, :no_number])
          {:ok, -8} = call.(:cell_get, [cell])
          call.(:cells, [])
        end
      ],
      may_fail: [:raise, :raise_and_return, :badarg]
    }
  end

  def library(:cpp) do
    words = list(one_of([text(), one_of(~w(a b c))]))

    %{
      path: :cpp,
      calls: [open: ["/nowhere/nothing"], open: [""], open: [:no_text]],
      any: [
        # std::exception of different kinds, caught inside, one of them ours.
        parse: [or_other(one_of([bind(:proper_types.integer(), &Integer.to_string/1), text(), "99999999999999999999"]))],
        raise_through: [range(0, 40), text()],
        count: [or_other(words)],
        sort: [list(:proper_types.integer())],
        repeat: [any(), range(0, 20)],
        with_atom: [any(), one_of(for(n <- [0, 1, 255, 256], do: String.duplicate("a", n)))]
      ],
      scripts: [
        fn call ->
          {:ok, table} = call.(:table_new, [])
          for {key, value} <- [b: 2, a: 1, c: 3, a: 4], do: call.(:table_put, [table, "#{key}", value])
          {:ok, 4} = call.(:table_get, [table, "a"])
          call.(:table_get, [table, "nothing"])
          {:ok, [{"a", 4}, {"b", 2}, {"c", 3}]} = call.(:table_list, [table])
          {:ok, 1} = call.(:tables, [])
          call.(:table_get, [:no_table, "a"])
        end
      ],
      may_fail: [:raise_through]
    }
  end

  def library(:jiffy) do
    decode = one_of([[], [:return_maps], [:return_maps, :use_nil], [:return_trailer, :copy_strings], [:dedupe_keys]])
    encode = one_of([[], [:uescape], [:pretty], [:force_utf8], [:escape_forward_slashes], [:use_nil]])

    documents = [
      ~s({"a": [1, 2.5, -3e10, true, false, null, "text"], "b": {}, "": []}),
      ~s([1, 2, 3] trailing),
      "[" <> Enum.map_join(1..20_000, ",", &~s({"id": #{&1}, "name": "number #{&1}"})) <> "]"
    ]

    %{
      path: {:jiffy, "priv/jiffy"},
      calls:
        for(text <- documents, options <- [[], [:return_maps]], do: {:nif_decode_init, [text, options]}) ++
          [
            nif_encode_init: [for(i <- 1..5_000, do: %{"id" => i, "x" => i / 3}), []],
            nif_encode_init: [<<255>>, []],
            nif_decode_init: ["1", [:no_option]]
          ],
      any: [
        nif_decode_init: [json(), decode],
        nif_decode_init: [data(), decode],
        nif_encode_init: [ejson(), encode]
      ]
    }
  end

  def library(:asn1rt_nif) do
    der = :public_key.der_encode(:RSAPrivateKey, :public_key.generate_key({:rsa, 512, 65_537}))
    {tlv, ""} = :asn1rt_nif.decode_ber_tlv(der)

    %{
      path: {:asn1, "priv/lib/asn1rt_nif"},
      load_info: 1,
      calls: [decode_ber_tlv_raw: [der], encode_ber_tlv: [tlv], encode_ber_tlv: [:nonsense]],
      any: [decode_ber_tlv_raw: [damaged(der)], decode_ber_tlv_raw: [binary()], encode_ber_tlv: [or_other(tlv())]]
    }
  end

  def library(:crypto), do: Crypto.library()

  def library(:espresso) do
    bits = fn characters, count -> :proper_types.vector(count, one_of(characters)) end

    pla =
      bind({list({bits.([?0, ?1, ?-], 5), bits.([?0, ?1, ?-], 2)}), one_of(~w(f fd))}, fn {cubes, type} ->
        IO.iodata_to_binary([".i 5\n.o 2\n.type #{type}\n", for({i, o} <- cubes, do: [i, " ", o, "\n"]), ".e\n"])
      end)

    %{
      path: :espresso,
      calls: for(example <- EspressoFixture.examples(), do: {:minimize, [example]}) ++ [minimize: [:no_text]],
      any: [minimize: [pla]]
    }
  end

  def library(rustler) do
    named = fn values ->
      bind({text(), values}, fn {n, v} -> %{__struct__: Snakepit.Fixture.Named, name: n, values: v} end)
    end

    point = one_of([:proper_types.float(), :proper_types.integer()])

    %{
      path: rustler,
      calls: [add: [9_223_372_036_854_775_807, 1], fail: [], panics: [], dirty: [1_000], count: [[1]]],
      any: [
        add: [or_other(one_of(int64())), :proper_types.integer()],
        echo: [any()],
        reverse: [or_other(one_of([text(), binary()]))],
        upcase: [or_other(data())],
        count: [list(one_of(~w(a b c d e)))],
        mirror: [bind({point, point}, fn {x, y} -> %{x: x, y: y} end)],
        mirror: [any()],
        total: [named.(list(range(-1_000, 1_000)))],
        total: [named.(list(leaf()))]
      ],
      scripts: [
        fn call ->
          {:ok, counter} = call.(:counter_new, [40])
          {:ok, {:ok, 42}} = call.(:counter_add, [counter, 2])
          {:ok, {:ok, 41}} = call.(:counter_add, [counter, -1])
          call.(:counter_add, [counter, :one])
          call.(:counter_add, [:no_counter, 1])
        end
      ],
      may_fail: [:fail, :panics]
    }
  end

  @doc "A DER encoding, with a byte changed and cut short."
  @spec damaged(binary()) :: :proper_types.type()
  def damaged(der) do
    bind({range(0, byte_size(der) - 1), range(0, 255), range(0, byte_size(der))}, fn {at, byte, length} ->
      <<start::binary-size(at), _, rest::binary>> = der
      binary_part(<<start::binary, byte, rest::binary>>, 0, length)
    end)
  end

  @doc "What is to be encoded."
  @spec tlv() :: :proper_types.type()
  def tlv, do: :proper_types.sized(&tlv/1)
  defp tag, do: one_of([range(0, 40), range(0, 0x3FFFF)])
  defp tlv(0), do: {tag(), binary()}

  defp tlv(size) do
    smaller = :proper_types.lazy(fn -> tlv(div(size, 2)) end)
    one_of([tlv(0), {tag(), list(smaller)}])
  end
end
