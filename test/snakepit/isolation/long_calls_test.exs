defmodule Snakepit.Isolation.LongCallsTest do
  use ExUnit.Case, async: true

  alias Snakepit.Isolation.LongCalls

  # What is told of at each time, of executors that show the same calls all along.
  defp told(executors, times) do
    {told, _} =
      Enum.flat_map_reduce(times, %{}, fn now, calls ->
        {calls, due} = LongCalls.look(calls, executors, now)
        {due, calls}
      end)

    told
  end

  test "a call is told of after 1, 2, 4, 8 seconds" do
    assert told([7], Enum.map(0..16, &(&1 * 1_000))) == for(s <- [1, 2, 4, 8, 16], do: {7, s * 1_000})
    assert told([nil, 3], [0, 999]) == []
  end

  test "late ticks tell of it once" do
    assert told([7], [0, 9_500, 10_500, 15_999, 16_000]) == [{7, 9_500}, {7, 16_000}]
  end

  test "what has ended is forgotten, and a number that comes again is another call" do
    {calls, []} = LongCalls.look(%{}, [1, 2, nil], 0)
    {calls, [{2, 5_000}]} = LongCalls.look(calls, [2, 3], 5_000)
    assert LongCalls.since(calls) == %{2 => 0, 3 => 5_000}
    {calls, []} = LongCalls.look(calls, [1, nil], 6_000)
    assert LongCalls.since(calls) == %{1 => 6_000}
  end

  test "the longest of those that go on" do
    since = %{1 => 100, 2 => 400}
    assert LongCalls.longest(since, [nil, nil], 500) == nil
    assert LongCalls.longest(since, [2, nil], 500) == 100
    assert LongCalls.longest(since, [1, 2], 500) == 400
    # Begun since the last look.
    assert LongCalls.longest(since, [9], 500) == 0
  end
end
