defmodule Snakepit.Isolation.Worker.RestartsTest do
  use ExUnit.Case, async: true

  alias Snakepit.Isolation.Worker.Restarts

  @second System.convert_time_unit(1, :second, :native)

  # What follows each crash, at these seconds.
  defp after_crashes(seconds, options) do
    {what, _} =
      Enum.map_reduce(seconds, [], fn second, crashes ->
        {crashes, what} = Restarts.after_crash(crashes, Map.new(options), second * @second)
        {what, crashes}
      end)

    what
  end

  test "the first at once, the next ones after 1, 2, 4, ... and at most 100 ms" do
    delays =
      for {:again, delay} <- after_crashes(List.duplicate(1, 12), max_restarts: :infinity, max_seconds: 5), do: delay

    assert delays == [0, 1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100]
  end

  test "without a limit the pause stays what it is, however many there were" do
    crashes = List.duplicate(0, 10_000)
    assert {_, {:again, 100}} = Restarts.after_crash(crashes, %{max_restarts: :infinity, max_seconds: 5}, 1)
  end

  test "one more than are allowed within the time is the last" do
    assert [again: 0, again: 1, give_up: 3] = after_crashes([1, 2, 3], max_restarts: 2, max_seconds: 5)
    assert [give_up: 1] = after_crashes([1], max_restarts: 0, max_seconds: 5)
  end

  test "those that were longer ago do not count" do
    assert [again: 0, again: 1, again: 0, again: 1] = after_crashes([1, 2, 10, 11], max_restarts: 2, max_seconds: 5)
  end

  test "permanent always, temporary never, transient unless the library has ended its process in order" do
    for {restart, wanted} <- [
          permanent: [true, true, true],
          temporary: [false, false, false],
          transient: [false, true, true]
        ] do
      ends = [
        %{because: :exited, exit_code: 0},
        %{because: :exited, exit_code: 1},
        %{because: :hung, signal: :SIGKILL}
      ]

      assert Enum.map(ends, &Restarts.wanted?(restart, &1)) == wanted
    end
  end
end
