defmodule Bench.Rows.Record do
  # What is known of one region of many.

  alias Bench.{Measure, Regions, Report}
  alias Snakepit.SharedMemory, as: Shm
  alias Snakepit.SharedMemory.{Manager, Registry}

  def title, do: "information"

  @size 4096

  def run(context) do
    count = if context.open_files >= 12_000, do: 10_000, else: div(context.open_files, 2)
    if count < 10_000, do: Report.notice("only #{count} regions: more need more open files")
    regions = for _ <- 1..count, do: Regions.allocate(@size, dtype: "float32", shape: [1024])

    # In no order, so that neither side finds the next one in the cache.
    :rand.seed(:exsss, {1, 2, 3})
    ids = regions |> Enum.map(& &1.id) |> Enum.shuffle()
    table = :ets.new(:bare, [:set, :public, read_concurrency: true, write_concurrency: true])

    for id <- ids do
      {:ok, record} = Registry.record(id)
      :ets.insert(table, {id, record})
    end

    [same | _] = ids
    batch = context.runs.(20_000)

    figures =
      Measure.interleave(
        %{
          again: fn -> Measure.batch(1, batch, fn -> Registry.record(same) end) end,
          lookup_again: fn -> Measure.batch(1, batch, fn -> :ets.lookup(table, same) end) end,
          record: fn -> Measure.over(ids, &Registry.record/1) end,
          lookup: fn -> Measure.over(ids, &:ets.lookup(table, &1)) end,
          info: fn -> Measure.over(ids, &Manager.get_region_info/1) end
        },
        context.runs.(5) * context.rounds
      )

    :ets.delete(table)
    for region <- regions, do: Shm.free!(region)
    of = "of one of #{Bench.Text.count(count)} regions"
    lookup = {"ETS lookup of {id, record}", figures.lookup}

    again = {"ETS lookup of {id, record}", figures.lookup_again}

    for {name, ours, against, bar} <- [
          {"stored record #{of}", figures.record, lookup, {:at_most, 3.0}},
          {"the same, of one and the same", figures.again, again, {:at_most, 3.0}},
          {"get_region_info/1 #{of}", figures.info, lookup, nil}
        ],
        do: Report.row(%{group: title(), name: name, ours: ours, against: against, bar: bar})
  end
end
