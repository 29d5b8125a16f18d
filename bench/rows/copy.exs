defmodule Bench.Rows.Copy do
  # Bytes in and out by copying, against the copy alone.

  alias Bench.{Measure, Peer, Report}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "write and read"

  @large 64 * 1024 * 1024
  @small 16 * 1024

  def run(context) do
    for {kind, options} <- [{"anonymous", []}, {"named", [named: true]}],
        {size, bar} <- [{@large, {:rate_at_least, 0.9}}, {@small, nil}],
        row <- rows(context, kind, options, size, bar),
        do: row
  end

  defp rows(context, kind, options, size, bar) do
    {count, batch} = if size == @large, do: {3, 1}, else: {20, context.runs.(500)}
    data = :binary.copy(<<7>>, size)
    region = Shm.allocate!(size, [instance: context.instance] ++ options)
    # Its pages are there from here on, as the floor's are.
    :ok = Shm.write(region, 0, data)
    floor = if kind == "named", do: "file", else: "memcpy"

    figures =
      Measure.interleave(
        %{
          write: fn -> Measure.batch(count, batch, fn -> :ok = Shm.write(region, 0, data) end) end,
          write_floor: fn -> Peer.run(context.peer, [floor, "in", size, count, batch]) end,
          read: fn -> Measure.batch(count, batch, fn -> {:ok, _} = Shm.read(region, 0, size) end) end,
          read_floor: fn -> Peer.run(context.peer, [floor, "out", size, count, batch]) end
        },
        context.rounds
      )

    Shm.free!(region)
    {write, read} = if kind == "named", do: {"pwrite", "pread, fresh memory"}, else: {"memcpy", "memcpy, fresh memory"}
    text = "#{Bench.Text.bytes(size)}, #{kind}"
    common = %{group: title(), bar: bar, bytes: size}

    [
      Report.row(
        Map.merge(common, %{name: "write #{text}", ours: figures.write, against: {write, figures.write_floor}})
      ),
      Report.row(Map.merge(common, %{name: "read #{text}", ours: figures.read, against: {read, figures.read_floor}}))
    ]
  end
end
