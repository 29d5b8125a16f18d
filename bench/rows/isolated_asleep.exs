defmodule Bench.Rows.IsolatedAsleep do
  # The first call after a pause: the worker sleeps, and so does the Port's program.

  alias Bench.{Isolated, Measure, Peer, Report}
  alias Snakepit.Isolation

  def title, do: "isolated call of a sleeping worker"

  # Milliseconds, and what there is to hold.
  @gaps [{1, nil}, {5, {:at_most, 1.25}}, {20, nil}]

  def run(context) do
    port = Peer.echo()

    rows =
      Isolated.with_library(:adder, [workers: 1], fn lib ->
        for {gap, bar} <- @gaps, row <- rows(context, lib, port, gap, bar), do: row
      end)

    Port.close(port)
    rows
  end

  defp rows(context, lib, port, gap, bar) do
    count = context.runs.(200)
    data = :erlang.term_to_binary([1, 2])

    figures =
      Measure.interleave(
        %{
          isolated: fn -> Measure.asleep(count, gap, fn -> {:ok, 3} = Isolation.call(lib, :add, [1, 2]) end) end,
          port: fn ->
            Measure.asleep(count, gap, fn -> [1, 2] = port |> Peer.echo(data) |> :erlang.binary_to_term() end)
          end,
          event: fn -> Peer.run(context.peer, ["event", count, gap * 1_000_000]) end
        },
        rounds(context)
      )

    name = "add(1, 2), #{gap} ms after the last"
    row = &Report.row(Map.put(&1, :group, title()))

    [
      row.(%{name: name, ours: figures.isolated, against: {"an eventfd, pinned", figures.event}, bar: bar}),
      row.(%{name: name, ours: figures.isolated, against: {"a Port, echo in C", figures.port}}),
      row.(%{name: "  a Port, echo in C", ours: figures.port}),
      row.(%{name: "  an eventfd to and fro, pinned", ours: figures.event})
    ]
  end

  # Most of it is sleep.
  defp rounds(context), do: min(context.rounds, 5)
end
