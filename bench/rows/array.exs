defmodule Bench.Rows.Array do
  # From Elixir to a NumPy array in another process.

  alias Bench.{Measure, Python, Regions, Report, Text}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "Elixir to NumPy"

  @sizes [4096, 1024 * 1024, 64 * 1024 * 1024, 1024 * 1024 * 1024]
  @within 1_000_000

  def run(context) do
    Python.with_worker(context.worker, fn worker ->
      anchor = Regions.sealed(4096)
      Python.call(worker, op: "keep", handle: Regions.json(anchor))
      rows = @sizes |> Enum.filter(&(&1 <= context.largest)) |> Enum.flat_map(&rows(context, worker, &1))
      Python.stop(worker)
      Shm.free!(anchor)
      rows
    end)
  end

  defp rows(context, worker, size) do
    region = Regions.sealed(size)
    handle = Regions.json(region)
    count = context.runs.(100)

    attached =
      Measure.interleave(
        %{
          first: fn -> Python.nanoseconds(Python.call(worker, op: "first", handle: handle, count: count)) end,
          port: fn -> Enum.concat(for _ <- 1..count, do: there(worker, region)) end
        },
        context.rounds
      )

    Shm.free!(region)
    text = Text.bytes(size)
    row = &Map.merge(%{group: title(), bytes: size}, &1)

    [
      Report.row(
        row.(%{name: "#{text}: handle to array[0], in Python", ours: attached.first, bar: {:within, @within}})
      ),
      Report.row(row.(%{name: "#{text}: sealed region to array[0], by a Port", ours: attached.port}))
      | moved(context, worker, size, row)
    ]
  end

  # A binary in Elixir, and its first byte out of an array in Python: by us, through the Port, through a file.
  defp moved(context, worker, size, row) do
    data = :binary.copy(<<7>>, size)
    file = "/dev/shm/bench_#{System.pid()}"
    count = size |> div(65_536) |> max(1) |> then(&max(div(context.runs.(50), &1), 1))

    figures =
      try do
        Measure.interleave(
          %{
            ours: fn -> Enum.concat(for _ <- 1..count, do: put(worker, data)) end,
            port: fn -> Measure.each(count, fn -> through_port(worker, data) end) end,
            file: fn -> Measure.each(count, fn -> through_file(worker, file, data) end) end
          },
          if(size > 64 * 1024 * 1024, do: min(context.rounds, 3), else: context.rounds)
        )
      after
        File.rm(file)
      end

    name = "#{Text.bytes(size)}: binary in Elixir to array[0]"

    [
      Report.row(row.(%{name: name, ours: figures.ours, against: {"the bytes through the Port", figures.port}})),
      Report.row(row.(%{name: name, ours: figures.ours, against: {"a file in /dev/shm", figures.file}}))
    ]
  end

  defp there(worker, region) do
    [ns] = Measure.each(1, fn -> seven(Python.call(worker, op: "open", handle: Regions.json(region))) end)
    Python.call(worker, op: "close")
    [ns]
  end

  defp put(worker, data) do
    start = Measure.now()
    region = Regions.put(data)
    seven(Python.call(worker, op: "open", handle: Regions.json(region)))
    took = Measure.now() - start
    Python.call(worker, op: "close")
    Shm.free!(region)
    Regions.settle()
    [took]
  end

  defp through_port(worker, data) do
    Python.send_frame(worker, "op=bytes\nlength=#{byte_size(data)}")
    Python.send_frame(worker, data)
    seven(Python.answer(worker))
  end

  defp through_file(worker, file, data) do
    File.write!(file, data)
    seven(Python.call(worker, op: "file", path: file))
  end

  defp seven(%{"first" => "7"}), do: :ok
end
