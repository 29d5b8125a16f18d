defmodule Snakepit.Isolation.Worker.HealthTest do
  use ExUnit.Case, async: true

  alias Snakepit.Isolation.Worker.Health

  @well %{faulty: false, bell_closed: false, orphans: [], executors: [nil, nil], calls: 5, status: %{beat_age_ms: 10}}
  @options %{heartbeat_timeout: 2_000, timeout: 5_000}
  @tick 1_000

  # The last verdict of looks a tick apart, at these statuses.
  defp verdict(changes, options \\ @options, health \\ %Health{}) do
    {_, verdict} =
      changes
      |> Enum.with_index()
      |> Enum.reduce({health, nil}, fn {change, index}, {health, _} ->
        {health, _, verdict} = Health.look(health, Map.merge(@well, change), options, @tick, index * @tick)
        {health, verdict}
      end)

    verdict
  end

  test "a worker that works, or has nothing to do, is well" do
    assert verdict(List.duplicate(%{}, 10)) == :well
    assert verdict(List.duplicate(%{executors: [7, nil]}, 10)) == :well
  end

  test "one that was found lying" do
    assert verdict([%{faulty: true}]) == {:lies, "it has lied to a caller that is gone"}
  end

  test "a closed doorbell counts when it is seen twice in a row" do
    closed = %{bell_closed: true}
    assert verdict([closed]) == :well
    assert verdict([closed, %{}, closed]) == :well
    assert {:lies, _} = verdict([closed, closed])
  end

  test "no sign of life counts when it is missed twice in a row, unless nobody asks for one" do
    for silent <- [%{status: %{beat_age_ms: 2_001}}, %{status: %{beat_age_ms: nil}}, %{status: nil}] do
      assert verdict([silent]) == :well
      assert verdict([silent, %{}, silent]) == :well
      assert {:kill, :heartbeat, _} = verdict([silent, silent])
      assert verdict([silent, silent], %{@options | heartbeat_timeout: :infinity}) == :well
    end

    assert verdict(List.duplicate(%{status: %{beat_age_ms: 2_000}}, 3)) == :well
  end

  test "a call without a caller may go on for as long as one with a caller" do
    orphan = %{orphans: [3], executors: [3, nil]}
    assert verdict(List.duplicate(orphan, 6)) == :well
    assert {:hangs, _} = verdict(List.duplicate(orphan, 7))
    assert verdict(List.duplicate(orphan, 7), %{@options | timeout: :infinity}) == :well
    # Another one each time.
    assert verdict(for(n <- 1..10, do: %{orphans: [n]})) == :well
  end

  test "one that takes no calls although one waits is stuck; one that works or answers is not" do
    starved = Health.starved(%Health{}, @well, 0)
    assert verdict([%{}], @options, starved) == :well
    assert {:kill, :stuck, _} = verdict([%{}, %{}], @options, starved)
    assert verdict([%{}, %{calls: 6}], @options, starved) == :well
    assert verdict([%{}, %{executors: [nil, 9]}], @options, starved) == :well
    # It is judged by the first that waited, and once.
    assert Health.starved(starved, %{@well | calls: 6}, 500) == starved
    assert verdict([%{}, %{calls: 6}, %{calls: 6}], @options, starved) == :well
  end

  test "a heartbeat that cannot be read has no age" do
    assert Health.heartbeat_age(%{status: %{beat_age_ms: 3}}) == 3
    assert Health.heartbeat_age(%{status: nil}) == nil
  end
end
