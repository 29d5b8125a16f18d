defmodule Bench.Rows.View do
  # A binary over the memory itself: the same time whatever the size.

  alias Bench.{Measure, Regions, Report, Text}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "view"

  @sizes [4096, 64 * 1024 * 1024, 1024 * 1024 * 1024]
  @within 1_000
  @flat 1.25

  def run(context) do
    sizes = Enum.filter(@sizes, &(&1 <= context.largest))
    regions = for size <- sizes, do: Regions.sealed(size)
    batch = context.runs.(2_000)

    subjects =
      for region <- regions, into: %{} do
        {region.size, fn -> Measure.batch(5, batch, fn -> {:ok, _} = Shm.view(region) end) end}
      end

    figures = Measure.interleave(subjects, context.rounds)
    for region <- regions, do: Shm.free!(region)

    rows =
      for size <- sizes do
        Report.row(%{group: title(), name: Text.bytes(size), ours: figures[size], bar: {:within, @within}, bytes: size})
      end

    # Large ones against each other: a view of more than the VM's binary heap has one garbage collection in it, whatever the size.
    [largest, next | _] = Enum.reverse(sizes)
    name = "#{Text.bytes(largest)} against #{Text.bytes(next)}"
    against = {"of #{Text.bytes(next)}", figures[next]}
    bar = if next > hd(sizes), do: {:at_most, @flat}
    flat = Report.row(%{group: title(), name: name, ours: figures[largest], against: against, bar: bar})
    rows ++ [flat]
  end
end
