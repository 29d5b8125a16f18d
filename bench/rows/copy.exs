defmodule Bench.Rows.Copy do
  # Bytes in and out by copying, against the copy alone. A read makes a new binary, so what it is held against makes one
  # too; beside it stands the same in a program without a VM, whose memory is fresh from the kernel.

  alias Bench.{Measure, Peer, Regions, Report, Text}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "write and read"

  @large 64 * 1024 * 1024
  @small 16 * 1024
  @share 0.9

  def run(context) do
    for kind <- [:anonymous, :named],
        {size, bar} <- [{@large, {:rate_at_least, @share}}, {@small, nil}],
        row <- rows(context, kind, size, bar),
        do: row
  end

  defp rows(context, kind, size, bar) do
    {count, batch} = if size == @large, do: {3, 1}, else: {20, context.runs.(500)}
    data = :binary.copy(<<7>>, size)
    region = Regions.allocate(size, if(kind == :named, do: [named: true], else: []))
    # Its pages are there from here on, as the floor's are.
    :ok = Shm.write(region, 0, data)
    {command, write, read, alone} = floors(kind)
    {again, done} = floor_of_read(kind, data)

    figures =
      Measure.interleave(
        %{
          write: fn -> Measure.batch(count, batch, fn -> :ok = Shm.write(region, 0, data) end) end,
          write_floor: fn -> Peer.run(context.peer, [command, "in", size, count, batch]) end,
          read: fn -> Measure.batch(count, batch, fn -> {:ok, _} = Shm.read(region, 0, size) end) end,
          read_floor: fn -> Measure.batch(count, batch, again) end,
          read_alone: fn -> Peer.run(context.peer, [command, "out", size, count, batch]) end
        },
        context.rounds
      )

    done.()
    Shm.free!(region)
    text = "#{Text.bytes(size)}, #{kind}"

    for {name, ours, what, other, bar} <- [
          {"write #{text}", :write, write, :write_floor, bar},
          {"read #{text}", :read, read, :read_floor, bar},
          {"read #{text}", :read, alone, :read_alone, nil}
        ] do
      row = %{group: title(), name: name, ours: figures[ours], against: {what, figures[other]}, bar: bar, bytes: size}
      Report.row(row)
    end
  end

  defp floors(:anonymous), do: {"memcpy", "memcpy", ":binary.copy/1", "memcpy to memory just got"}
  defp floors(:named), do: {"file", "pwrite", ":file.pread/3, raw", "pread to memory just got"}

  defp floor_of_read(:anonymous, data), do: {fn -> :binary.copy(data) end, fn -> :ok end}

  defp floor_of_read(:named, data) do
    path = "/dev/shm/bench_#{System.pid()}"
    File.write!(path, data)
    {:ok, file} = :file.open(path, [:raw, :read, :binary])
    File.rm!(path)
    size = byte_size(data)
    {fn -> {:ok, _} = :file.pread(file, 0, size) end, fn -> :file.close(file) end}
  end
end
