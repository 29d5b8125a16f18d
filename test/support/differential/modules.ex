defmodule Snakepit.Differential.Modules do
  @moduledoc false
  # Which calls of which modules are compared, a VM on one side, the module isolated on the other: the public functions of modules
  # that somebody else wrote, and modules over our own fixtures, whose calls are those of `Libraries`.

  import Snakepit.Differential.Terms

  alias Snakepit.Differential
  alias Snakepit.Differential.{CryptoModule, Libraries}
  alias Snakepit.NativeFixture

  @written_by_others [:jiffy, :asn1rt_nif, :crypto]

  @spec names() :: [atom()]
  def names, do: @written_by_others ++ fixtures()

  @spec fixtures() :: [atom()]
  def fixtures, do: [:adder, :cpp] ++ NativeFixture.rustlers()

  @spec calls(atom()) :: Differential.library()
  def calls(:crypto), do: CryptoModule.calls()

  def calls(:jiffy) do
    decoding = [
      [],
      [:return_maps],
      [:return_maps, :use_nil],
      [:return_trailer, :copy_strings],
      [:dedupe_keys, {:null_term, :none}],
      [:no_option]
    ]

    encoding = [
      [],
      [:uescape],
      [:pretty],
      [:force_utf8],
      [:escape_forward_slashes],
      [:use_nil],
      [:no_option],
      :nonsense
    ]

    documents = [
      ~s({"a": [1, 2.5, -3e10, true, false, null, "text"], "b": {}, "": []}),
      ~s([1, 2, 3] trailing),
      ~s({"a": 1, "a": 2}),
      ~s([123456789012345678901234567890, 9007199254740993, 1e400]),
      ["[1,", [?2 | "]"]],
      ~s("日本 \\u00e9 \\ud83d\\ude00"),
      # In parts: jiffy schedules itself again and again.
      "[" <> Enum.map_join(1..20_000, ",", &~s({"id": #{&1}, "name": "number #{&1}"})) <> "]",
      :nonsense
    ]

    terms = [
      for(i <- 1..5_000, do: %{"id" => i, "x" => i / 3, "big" => Bitwise.bsl(i, 80)}),
      {[{:order, 12_345_678_901_234_567_890}, {"kept", 1.0e300}]},
      [{:json, ~s({"given": true})}, 1.0e-300, 0.1],
      <<"bad ", 255, " bytes">>,
      {:no, :json},
      %{1 => 2},
      [1 | 2]
    ]

    %{
      module: :jiffy,
      calls:
        for(text <- documents, options <- decoding, do: {:decode, [text, options]}) ++
          for(term <- terms, options <- encoding, do: {:encode, [term, options]}) ++
          for(text <- documents, do: {:decode, [text]}) ++ for(term <- terms, do: {:encode, [term]}),
      any: [
        decode: [json(), one_of(decoding)],
        decode: [or_other(data())],
        encode: [ejson(), one_of(encoding)],
        encode: [any()]
      ]
    }
  end

  def calls(:asn1rt_nif) do
    der = :public_key.der_encode(:RSAPrivateKey, :public_key.generate_key({:rsa, 512, 65_537}))
    {tlv, ""} = :asn1rt_nif.decode_ber_tlv(der)

    %{
      module: :asn1rt_nif,
      calls: [
        decode_ber_tlv: [der],
        decode_ber_tlv: [:no_binary],
        encode_ber_tlv: [tlv],
        encode_ber_tlv: [:nonsense],
        encode_per_complete: [[]],
        encode_per_complete: [:nonsense],
        encode_per_complete: [[1 | :improper]]
      ],
      any: [
        decode_ber_tlv: [Libraries.damaged(der)],
        decode_ber_tlv: [or_other(binary())],
        encode_ber_tlv: [or_other(Libraries.tlv())],
        # Of its small language, what the library reads within its bounds: a bit, the end of a byte, some bits, some bytes.
        encode_per_complete: [
          list(
            one_of([
              range(0, 2),
              bind({range(1, 8), range(0, 1)}, fn {bits, value} -> <<10, bits, value>> end),
              bind(binary(), &<<20, byte_size(&1), &1::binary>>)
            ])
          )
        ]
      ]
    }
  end

  def calls(fixture), do: fixture |> Libraries.library() |> Map.drop([:path])
end
