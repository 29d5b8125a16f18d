defmodule Bench.Rows.Allocate do
  # Making a region and giving it back, against the same system calls alone.

  alias Bench.{Measure, Peer, Regions, Report}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "allocate and free"

  @small 4096
  @large 64 * 1024 * 1024
  # What "flat" means between 10 and 10,000 live regions.
  @flat 1.25

  def run(context) do
    first = for _ <- 1..10, do: Regions.allocate(@small)
    Peer.run(context.peer, ["hold", 10, @small])
    few = small(context, "4 KiB, 10 regions live")
    large = large(context)

    if context.open_files >= 12_000 do
      more = for _ <- 1..9_990, do: Regions.allocate(@small)
      Peer.run(context.peer, ["hold", 10_000, @small])
      many = small(context, "4 KiB, 10,000 regions live")
      flat = Report.row(row("4 KiB, 10,000 against 10 live", many.ours, {"with 10 live", few.ours}, {:at_most, @flat}))
      Peer.run(context.peer, ["hold", 0, @small])
      for region <- more ++ first, do: Shm.free!(region)
      [few | large] ++ [many, flat]
    else
      Report.notice(
        "10,000 live regions need 12,000 open files; the hard limit here is #{context.open_files}: left out"
      )

      for region <- first, do: Shm.free!(region)
      [few | large]
    end
  end

  defp small(context, name) do
    count = context.runs.(400)

    figures =
      Measure.interleave(
        %{
          ours: fn -> Measure.each(count, fn -> cycle(@small) end) end,
          floor: fn -> Peer.run(context.peer, ["segment", @small, count]) end
        },
        context.rounds
      )

    Report.row(row(name, figures.ours, {"its system calls alone", figures.floor}, {:at_most, 2.0}))
  end

  # Giving back is the reaper's from 1 MiB on: once as the caller sees it, once until the memory is back.
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

    against = {"its system calls alone", figures.floor}

    [
      Report.row(row("64 MiB, as the caller sees it", figures.caller, against, nil)),
      Report.row(row("64 MiB, until the memory is back", figures.whole, against, nil))
    ]
  end

  defp cycle(size), do: size |> Regions.allocate() |> Shm.free!()

  defp row(name, ours, against, bar), do: %{group: title(), name: name, ours: ours, against: against, bar: bar}
end
