defmodule Bench.Rows.IsolatedPayload do
  # A binary there and back, against the same through a Port.

  alias Bench.{Isolated, Measure, Peer, Report, Text}
  alias Snakepit.Isolation

  def title, do: "isolated call with a payload"

  @kib 1024
  @sizes [64, @kib, 16 * @kib, 64 * @kib, 256 * @kib, @kib * @kib, 4 * @kib * @kib, 16 * @kib * @kib]

  def run(context) do
    port = Peer.echo()

    rows =
      Isolated.with_library(:adder, [workers: 1], fn lib ->
        Enum.flat_map(@sizes, &rows(context, lib, port, &1))
      end)

    Port.close(port)
    rows
  end

  defp rows(context, lib, port, size) do
    data = :crypto.strong_rand_bytes(size)
    # 64 MiB a round, and no more than a thousand.
    count = context.runs.(min(1_000, max(4, div(64 * @kib * @kib, size))))

    # Compared once; the runs look at the size only.
    {:ok, ^data} = Isolation.call(lib, :echo, [data])
    ^data = Peer.echo(port, data)

    figures =
      Measure.interleave(
        %{
          echo: fn ->
            Measure.alone(count, 0, fn -> {:ok, <<_::binary-size(size)>>} = Isolation.call(lib, :echo, [data]) end)
          end,
          in: fn -> Measure.alone(count, 0, fn -> {:ok, ^size} = Isolation.call(lib, :size, [data]) end) end,
          out: fn ->
            Measure.alone(count, 0, fn -> {:ok, <<_::binary-size(size)>>} = Isolation.call(lib, :fill, [size, 7]) end)
          end,
          port: fn -> Measure.alone(count, 0, fn -> <<_::binary-size(size)>> = Peer.echo(port, data) end) end
        },
        context.rounds
      )

    text = Text.bytes(size)
    row = &Report.row(Map.merge(%{group: title(), bytes: size}, &1))

    [
      row.(%{name: "#{text} there and back", ours: figures.echo, against: {"a Port, echo in C", figures.port}}),
      row.(%{name: "  there, and its size back", ours: figures.in}),
      row.(%{name: "  filled by the library, and back", ours: figures.out})
    ]
  end
end
