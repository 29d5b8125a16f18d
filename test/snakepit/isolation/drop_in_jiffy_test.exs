defmodule Snakepit.Isolation.DropInJiffyTest do
  # Debian's unmodified jiffy, its public functions: isolated here, and in a VM that never isolates anything.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.DropInFixture

  @moduletag timeout: 120_000

  if match?({:error, _}, :code.lib_dir(:jiffy)), do: @moduletag(skip: "there is no jiffy (Debian: erlang-jiffy)")

  setup do
    {:ok, peer, _node} =
      :peer.start_link(%{
        connection: :standard_io,
        args: ['-pa', :code.lib_dir(:snakepit_shm, :ebin), :code.lib_dir(:elixir, :ebin)]
      })

    {:module, :jiffy} = :peer.call(peer, :code, :ensure_loaded, [:jiffy])

    on_exit(fn ->
      if Isolation.DropIn.fetch(:jiffy), do: :ok = Isolation.restore(:jiffy)
    end)

    :code.purge(:jiffy)
    assert :ok = Isolation.isolate(:jiffy, sandbox: :none, workers: 2)
    %{peer: peer}
  end

  @documents [
    ~s({"a": [1, 2.5, -3e10, true, false, null, "text"], "b": {}, "": []}),
    ~s("日本 \\u00e9 \\ud83d\\ude00"),
    ~s([1, 2, 3] trailing),
    ~s({"unfinished": ),
    ~s([123456789012345678901234567890, 9007199254740993, 1e400]),
    ~s([9007199254740993, 12345678901234567890]),
    ~s({"a": 1, "a": 2}),
    "",
    "nul",
    <<?", 255, ?">>
  ]

  @terms [
    %{"a" => [1, 2.5, true, nil, :atom, "é\n\"\\"]},
    {[{"order", 1}, {"kept", 2}]},
    {[{:order, 12_345_678_901_234_567_890}, {"kept", 1.0e300}]},
    [{:json, ~s({"given": true})}, 1.0e-300, 0.1],
    <<255>>,
    <<"bad ", 255, " bytes">>,
    {:no, :json},
    [1 | 2],
    %{1 => 2}
  ]

  test "decode", %{peer: peer} do
    for document <- [large_document() | @documents],
        options <- [
          [],
          [:return_maps],
          [:return_maps, :use_nil],
          [:return_trailer, :copy_strings],
          [{:null_term, :none}]
        ],
        do: assert_same(peer, :decode, [document, options])

    assert_same(peer, :decode, [["[1,", [?2 | "]"]]])
    assert_same(peer, :decode, [:nonsense])
    assert_same(peer, :decode, ["1", [:no_option]])
  end

  test "encode", %{peer: peer} do
    terms = [for(i <- 1..5_000, do: %{"id" => i, "x" => i / 3, "big" => Bitwise.bsl(i, 80)}) | @terms]

    for term <- terms,
        options <- [[], [:uescape], [:pretty], [:force_utf8], [:use_nil], [:escape_forward_slashes]],
        do: assert_same(peer, :encode, [term, options])
  end

  test "there and back", %{peer: peer} do
    for document <- @documents,
        {:ok, term} <- [DropInFixture.outcome(:jiffy, :decode, [document])],
        do: assert_same(peer, :encode, [term])
  end

  # Encoded in parts: jiffy schedules itself again and again.
  defp large_document, do: "[" <> Enum.map_join(1..20_000, ",", &~s({"id": #{&1}, "name": "number #{&1}"})) <> "]"

  defp assert_same(peer, function, arguments) do
    there = :peer.call(peer, DropInFixture, :outcome, [:jiffy, function, arguments], 60_000)
    assert DropInFixture.outcome(:jiffy, function, arguments) == there, "#{function}(#{inspect(arguments, limit: 5)})"
  end
end
