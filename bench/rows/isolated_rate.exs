defmodule Bench.Rows.IsolatedRate do
  # How many calls a second: by one, 8 and 64 callers, and in batches. As time a call: the time of all by their number.

  alias Bench.{Isolated, Measure, Report, Text}
  alias Snakepit.Isolation

  def title, do: "isolated calls together"

  @callers [1, 8, 64]
  @workers [1, 2]
  @batch 1_000
  # A million a second.
  @within 1_000

  def run(context) do
    for workers <- @workers, row <- with_workers(context, workers), do: row
  end

  defp with_workers(context, workers) do
    calls = context.runs.(64_000)

    Isolated.with_library(:adder, [workers: workers, slots: 256], fn lib ->
      single = for callers <- @callers, into: %{}, do: {callers, fn -> {:means, [together(lib, callers, calls)]} end}

      batch = List.duplicate([1, 2], @batch)

      batched = fn ->
        Measure.batch(max(div(calls, @batch), 1), 1, fn ->
          {:ok, [{:ok, 3} | _]} = Isolation.call_many(lib, :add, batch)
        end)
        |> each()
      end

      figures = Measure.interleave(Map.put(single, :batch, batched), context.rounds)
      text = if workers == 1, do: "1 worker", else: "#{workers} workers"
      bar = if workers == 1, do: {:within, @within}

      rows = for callers <- @callers, do: row("#{text}, #{callers(callers)}", figures[callers], nil)
      rows ++ [row("#{text}, call_many/3 of #{Text.count(@batch)}", figures.batch, bar)]
    end)
  end

  defp each({:means, samples}), do: {:means, for(ns <- samples, do: ns / @batch)}

  # Nanoseconds a call.
  defp together(lib, callers, calls) do
    start = Measure.now()

    callers
    |> share(calls)
    |> Enum.map(fn count -> Task.async(fn -> repeat(count, lib) end) end)
    |> Task.await_many(:infinity)

    (Measure.now() - start) / calls
  end

  defp share(callers, calls), do: List.duplicate(max(div(calls, callers), 1), callers)

  defp repeat(0, _lib), do: :ok

  defp repeat(n, lib) do
    {:ok, 3} = Isolation.call(lib, :add, [1, 2])
    repeat(n - 1, lib)
  end

  defp callers(1), do: "1 caller"
  defp callers(n), do: "#{n} callers"

  defp row(name, ours, bar) do
    rate = Text.count(round(1_000_000_000 / ours.p50))
    Report.row(%{group: title(), name: "#{name}: #{rate}/s", ours: ours, bar: bar})
  end
end
