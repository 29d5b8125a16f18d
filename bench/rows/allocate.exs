defmodule Bench.Rows.Allocate do
  # Making a region and giving it back, against the same system calls alone.

  alias Bench.{Measure, Peer, Regions, Report}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "allocate and free"

  @small 4096
  @large 64 * 1024 * 1024
  @few 10
  @many 10_000
  @times 2.0
  # What "flat" means between few and many.
  @flat 1.25

  @floor "its system calls alone"

  def run(context) do
    first = live(context, @few)
    {few, few_row} = small(context, "4 KiB, #{@few} regions live", {:at_most, @times})
    large = large(context)

    if context.open_files >= 12_000 do
      more = live(context, @many - @few)
      {many, many_row} = small(context, "4 KiB, 10,000 regions live", {:at_most, @times})
      flat = row("4 KiB, 10,000 against #{@few} live", many, {"with #{@few} live", few}, {:at_most, @flat})
      for region <- more ++ first, do: Shm.free!(region)
      [few_row, many_row, flat | large]
    else
      Report.notice("10,000 live regions need 12,000 open files; #{context.open_files} are allowed here: left out")

      for region <- first, do: Shm.free!(region)
      [few_row | large]
    end
  end

  # As many more regions, here and in the other program.
  defp live(context, count) do
    Peer.run(context.peer, ["hold", if(count == @few, do: @few, else: @many), @small])
    for _ <- 1..count, do: Regions.allocate(@small)
  end

  defp small(context, name, bar) do
    count = context.runs.(400)

    figures =
      Measure.interleave(
        %{
          ours: fn -> Measure.each(count, fn -> cycle(@small) end) end,
          floor: fn -> Peer.run(context.peer, ["segment", @small, count]) end
        },
        context.rounds
      )

    {figures.ours, row(name, figures.ours, {@floor, figures.floor}, bar)}
  end

  # From 1 MiB on a thread gives the memory back: once as the caller sees it, once until it has.
  defp large(context) do
    figures =
      Measure.interleave(
        %{
          caller: fn ->
            for _ <- 1..3 do
              [ns] = Measure.each(1, fn -> cycle(@large) end)
              Regions.settle()
              ns
            end
          end,
          whole: fn ->
            Measure.each(3, fn ->
              cycle(@large)
              Regions.settle()
            end)
          end,
          floor: fn -> Peer.run(context.peer, ["segment", @large, 3]) end
        },
        context.rounds
      )

    against = {@floor, figures.floor}

    [
      row("64 MiB, as the caller sees it", figures.caller, against, nil),
      row("64 MiB, until the memory is back", figures.whole, against, nil)
    ]
  end

  defp cycle(size), do: size |> Regions.allocate() |> Shm.free!()

  defp row(name, ours, against, bar),
    do: Report.row(%{group: title(), name: name, ours: ours, against: against, bar: bar})
end
