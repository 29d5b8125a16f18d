defmodule Snakepit.Isolation.DifferentialTest do
  # The same library in this VM and isolated: the same calls have the same results. The VM is the reference.
  use Snakepit.IsolationCase, async: false

  @runs 1_000
  @int64 [0, 1, -1, 255, -256, 2_147_483_647, -2_147_483_649, 9_223_372_036_854_775_807, -9_223_372_036_854_775_808]

  # ── Terms ─────────────────────────────────────────────────────────────────────────────────────────────────────

  test "any term that goes there comes back as it was" do
    library = load!(:adder)
    vm = NativeFixture.load_into_vm(:adder)

    same? = fn term ->
      answer = Isolation.call(library, :echo, [term])
      # Bit by bit: `==` does not tell 0.0 from -0.0, nor 1 from 1.0 in OTP 25.
      same? = match?({:ok, _}, answer) and bytes(elem(answer, 1)) == bytes(vm.echo(term))
      unless same?, do: IO.inspect({term, answer}, label: "counterexample", limit: :infinity)
      same?
    end

    property = :proper.forall(terms(), same?)
    assert :proper.quickcheck(property, [:quiet, numtests: @runs, max_size: 18])
    for term <- [List.duplicate(nil, 100_000), nested(10_000), large_map()], do: assert(same?.(term))
  end

  defp bytes(term), do: :erlang.term_to_binary(term, [:deterministic])

  defp terms do
    leaf = leaf()
    :proper_types.sized(fn size -> term(size, leaf) end)
  end

  defp term(0, leaf), do: leaf

  defp term(size, leaf) do
    smaller = :proper_types.lazy(fn -> term(div(size, 3), leaf) end)
    list = :proper_types.list(smaller)

    :proper_types.frequency([
      {3, leaf},
      {2, list},
      {1, bind(list, &List.to_tuple/1)},
      {1, bind(:proper_types.list({smaller, smaller}), &Map.new/1)},
      {1, bind({list, leaf}, fn {list, tail} -> improper(list, tail) end)}
    ])
  end

  # What PropEr's ?LET is.
  defp bind(type, make), do: :proper_types.bind(type, make, false)

  defp improper(list, tail), do: Enum.reduce(list, tail, &[&1 | &2])

  defp leaf do
    big = bind({:proper_types.range(0, 700), :proper_types.integer()}, fn {n, i} -> Bitwise.bsl(i, n) end)

    :proper_types.oneof([
      :proper_types.integer(),
      :proper_types.oneof(
        @int64 ++ [Bitwise.bsl(1, 59), -Bitwise.bsl(1, 59) - 1, Bitwise.bsl(1, 64), 1 - Bitwise.bsl(1, 2048)]
      ),
      big,
      :proper_types.float(),
      :proper_types.oneof([0.0, -0.0, 1.0e308, 5.0e-324]),
      :proper_types.binary(),
      :proper_types.bitstring(),
      :proper_types.oneof([nil, true, false, :"", :ö, :日本, :"with a space", String.to_atom(String.duplicate("é", 255))]),
      :proper_types.oneof(names())
    ])
  end

  # Whatever names something of this VM.
  defp names do
    [port | _] = Port.list()
    x = make_ref()
    [self(), Process.whereis(:init), port, x, make_ref(), fn -> x end, fn a, b -> {a, b, x} end, &:lists.map/2]
  end

  defp nested(depth), do: Enum.reduce(1..depth, :end, fn i, term -> if rem(i, 2) == 0, do: [term], else: {i, term} end)
  defp large_map, do: Map.new(1..20_000, &{{&1, "key #{&1}"}, [&1, 1.0 * &1]})

  # ── C ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  test "a library in C does the same" do
    library = load!(:adder)
    vm = NativeFixture.load_into_vm(:adder)
    for {function, arguments} <- calls(), do: assert_same(library, vm, function, arguments)
  end

  defp calls do
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
      sum: [""],
      sum: [["io", ["data" | "!"], 300 |> rem(256)]],
      sum: [[1, 2, 300]],
      sum: [:atom],
      size: [<<1::3>>],
      size: ["four"],
      copy: [""],
      copy: [:binary.copy("ab", 50_000)],
      sleep: [1],
      spin: [10],
      cell_get: [:no_cell],
      cell_get: [make_ref()]
    ] ++ for(a <- @int64, b <- @int64, do: {:add, [a, b]})
  end

  # ── Rust ──────────────────────────────────────────────────────────────────────────────────────────────────────

  for version <- [:rustler_current, :rustler_older] do
    test "a library in Rust does the same: #{version}" do
      library = load!(unquote(version))
      vm = NativeFixture.load_into_vm(:rustler_current)
      named = %{__struct__: Snakepit.Fixture.Named, name: "n", values: [1, 2, 3]}

      for {function, arguments} <- [
            add: [1, 2],
            add: [9_223_372_036_854_775_807, 1],
            add: [:a, 1],
            echo: [{self(), [%{1 => "one"}]}],
            reverse: ["日本語 and ascii"],
            reverse: [<<255>>],
            upcase: ["shout"],
            upcase: [:binary.copy("shout", 20_000)],
            count: [~w(a b a c a b)],
            count: [[]],
            count: [[1]],
            mirror: [%{x: 1.0, y: 2.5}],
            mirror: [%{x: 1.0}],
            total: [named],
            total: [%{named | values: [:a]}],
            fail: [],
            panics: [],
            dirty: [1_000]
          ],
          do: assert_same(library, vm, function, arguments)

      assert {:ok, counter} = Isolation.call(library, :counter_new, [40])
      assert {:ok, {:ok, 42}} = Isolation.call(library, :counter_add, [counter, 2])
      assert {:ok, {:ok, 41}} = Isolation.call(library, :counter_add, [counter, -1])
    end
  end

  # ── Somebody else's ───────────────────────────────────────────────────────────────────────────────────────────

  test "jiffy does the same" do
    {:ok, library} = Isolation.load({:jiffy, "priv/jiffy"}, sandbox: :none)

    for text <- [
          ~s({"a": [1, 2.5, -3e10, true, false, null, "text"], "b": {}, "": []}),
          ~s("日本 \\u00e9 \\ud83d\\ude00"),
          ~s([1, 2, 3] trailing),
          ~s({"unfinished": ),
          ~s([9007199254740993, 1e400]),
          "",
          "[" <> Enum.map_join(1..20_000, ",", &~s({"id": #{&1}, "name": "number #{&1}"})) <> "]"
        ],
        options <- [[], [:return_maps], [:return_maps, :use_nil], [:return_trailer, :copy_strings]] do
      isolated = Isolation.call(library, :nif_decode_init, [text, options])
      # The module around it makes errors and large numbers of some of the answers.
      case isolated do
        {:ok, {:error, reason}} -> assert {:raised, reason} == here(:jiffy, :decode, [text, options])
        {:ok, {:partial, _}} -> :ok
        {:ok, term} -> assert {:ok, term} == here(:jiffy, :decode, [text, options])
      end
    end

    for term <- [
          %{"a" => [1, 2.5, true, nil, :atom, "é\n\"\\"]},
          {[{"order", 1}, {"kept", 2}]},
          for(i <- 1..5_000, do: %{"id" => i, "x" => i / 3}),
          <<255>>,
          {:no, :json}
        ],
        options <- [[], [:uescape], [:pretty]] do
      case Isolation.call(library, :nif_encode_init, [term, options]) do
        {:ok, {:error, reason}} ->
          assert {:raised, reason} == here(:jiffy, :encode, [term, options])

        {:ok, {:partial, _}} ->
          :ok

        {:ok, reversed} ->
          {:ok, text} = here(:jiffy, :encode, [term, options])
          assert IO.iodata_to_binary(Enum.reverse(reversed)) == IO.iodata_to_binary(text)
      end
    end
  end

  test "OTP's own asn1rt_nif does the same" do
    {:ok, library} = Isolation.load({:asn1, "priv/lib/asn1rt_nif"}, load_info: 1, sandbox: :none)

    der = :public_key.der_encode(:RSAPrivateKey, :public_key.generate_key({:rsa, 512, 65_537}))
    tlv = :asn1rt_nif.decode_ber_tlv(der)
    assert {:ok, ^tlv} = Isolation.call(library, :decode_ber_tlv_raw, [der])
    {value, ""} = tlv

    for argument <- [value, {1, "x"}, {2, [{1, "x"}, {2, ["y"]}]}, :nonsense],
        do: assert_same(library, :asn1rt_nif, :encode_ber_tlv, [argument])

    assert {:ok, {:error, _}} = Isolation.call(library, :decode_ber_tlv_raw, [binary_part(der, 0, 20)])
  end

  # ── Here and there ────────────────────────────────────────────────────────────────────────────────────────────

  defp assert_same(library, vm, function, arguments) do
    isolated =
      case Isolation.call(library, function, arguments) do
        {:error, %Error{reason: :raised, exception: reason}} -> {:raised, reason}
        other -> other
      end

    assert isolated == here(vm, function, arguments), "#{function}(#{inspect(arguments, limit: 5)})"
  end

  defp here(module, function, arguments) do
    {:ok, apply(module, function, arguments)}
  catch
    :error, reason -> {:raised, reason}
  end
end
