defmodule Snakepit.Isolation.LongCalls do
  @moduledoc false
  # The calls that a worker says it works on, seen at each tick: since when, and whether it is time to say that one goes on. A
  # call begins between two ticks, so its time is known to a tick and never too long. A worker that lies is believed its own executors, no more.

  @first 1_000

  # What is known of each call that goes on, by its number: when it was first seen, and after how long it is to be told of next; ms.
  @type t :: %{non_neg_integer() => {since :: integer(), next :: pos_integer()}}

  @doc "What is known now, and the calls that are to be told of: after 1, 2, 4, 8 ... seconds."
  @spec look(t(), [non_neg_integer() | nil], integer()) :: {t(), [{call :: non_neg_integer(), ms :: pos_integer()}]}
  def look(before, executors, now) do
    known = for call <- executors, call != nil, into: %{}, do: {call, Map.get(before, call, {now, @first})}
    due = for {call, {since, next}} <- known, now - since >= next, do: {call, now - since}
    {Enum.reduce(due, known, fn {call, ms}, known -> Map.update!(known, call, &told(&1, ms)) end), due}
  end

  # The first doubling that is still to come: ticks are late on a busy machine.
  defp told({since, next}, ms) when next <= ms, do: told({since, 2 * next}, ms)
  defp told(known, _ms), do: known

  @doc "Since when each of them is known to go on."
  @spec since(t()) :: %{non_neg_integer() => integer()}
  def since(calls), do: Map.new(calls, fn {call, {since, _next}} -> {call, since} end)

  @doc "How long the oldest of those that still go on has done so; nil if none does."
  @spec longest(%{non_neg_integer() => integer()}, [non_neg_integer() | nil], integer()) :: non_neg_integer() | nil
  def longest(since, executors, now) do
    case for(call <- executors, call != nil, do: now - Map.get(since, call, now)) do
      [] -> nil
      times -> Enum.max(times)
    end
  end
end
