defmodule Bench.Rows.Holder do
  # A Python process that holds a region is killed: how soon are its references gone?

  alias Bench.{Measure, Peer, Python, Regions, Report}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "a killed holder"

  @deadline 10_000

  def run(context) do
    region = Regions.sealed(4096)
    json = Regions.json(region)
    deaths = for _ <- 1..context.runs.(50), do: death(context, region, json)
    Shm.free!(region)
    {gone, ended} = Enum.unzip(deaths)

    [
      Report.row(%{
        group: title(),
        name: "SIGKILL to its references gone",
        ours: Measure.figure_of(gone),
        against: {"until the process has ended", Measure.figure_of(ended)}
      })
    ]
  end

  defp death(context, region, json) do
    Python.with_worker(context.holder, fn worker ->
      Python.call(worker, op: "hold", handle: json)
      {:ok, %{reference_count: 1}} = Shm.info(region)
      # The peer is asked and goes to work; meanwhile this process looks. Both read the same clock.
      Port.command(context.peer, "kill #{worker.os_pid}\n")
      seen = until_gone(region, clock() + @deadline * 1_000_000)
      [sent, ended] = Peer.numbers(context.peer)
      Python.await_killed(worker)
      {seen - sent, ended - sent}
    end)
  end

  defp until_gone(region, deadline) do
    {:ok, %{reference_count: count}} = Shm.info(region)
    now = clock()

    cond do
      count == 0 -> now
      now > deadline -> raise "the references of a killed holder are still there"
      true -> :erlang.yield() && until_gone(region, deadline)
    end
  end

  defp clock, do: :os.perf_counter(:nanosecond)
end
