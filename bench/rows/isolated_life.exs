defmodule Bench.Rows.IsolatedLife do
  # A worker's life: how soon it serves, what it takes while it waits, and how soon its death is known and made good.

  alias Bench.{Isolated, Measure, Memory, Peer, Report}
  alias Snakepit.{Isolation, NativeFixture}
  alias Snakepit.Isolation.Error

  def title, do: "a worker's life"

  @ms 1_000_000
  @start {:within, 5 * @ms}
  @back {:within, 5 * @ms}
  @memory {:within, 3 * 1024 * 1024}
  @deadline 10_000

  def run(context) do
    # So that the warden is there: it is started once in a VM.
    Isolated.with_library(:adder, fn anchor ->
      start = Measure.figure_of(for _ <- 1..context.runs.(200), do: start())
      first = row(%{name: "load/2 and the first call/4", ours: start, bar: @start})
      memory = Measure.figure_of(for _ <- 1..context.runs.(20), do: memory())
      name = "private memory of an idle worker"
      second = row(%{name: name, ours: memory, bar: @memory, unit: :bytes})
      deaths = deaths(context)
      {:ok, 3} = Isolation.call(anchor, :add, [1, 2])
      [first, second | deaths]
    end)
  end

  defp start do
    start = Measure.now()
    lib = Isolated.load(:adder)
    {:ok, 3} = Isolation.call(lib, :add, [1, 2])
    took = Measure.now() - start
    :ok = Isolation.unload(lib)
    took
  end

  # After a call: what that has touched stays. The ring is shared with the VM, and the library is not the worker's.
  defp memory do
    Isolated.with_library(:adder, fn lib ->
      {:ok, os_pid} = Isolation.call(lib, :os_pid, [])
      Process.sleep(100)
      Memory.unique(os_pid, ["/memfd:", NativeFixture.path(:adder)])
    end)
  end

  # ── Death ─────────────────────────────────────────────────────────────────────────────────────────────────────

  # Each time another library: one whose workers keep crashing is made to wait.
  defp deaths(context) do
    count = context.runs.(200)
    killed = for _ <- 1..count, do: Isolated.with_library(:adder, &killed(context, &1))
    crashed = for _ <- 1..count, do: Isolated.with_library(:crasher, &crashed/1)
    [ended, told, served] = for i <- 0..2, do: Measure.figure_of(Enum.map(killed, &elem(&1, i)))

    [
      row(%{name: "SIGKILL to the caller's error", ours: told, against: {"until the process has ended", ended}}),
      row(%{name: "SIGKILL to the next call's answer", ours: served, bar: @back}),
      row(%{name: "a call that crashes: until its error", ours: Measure.figure_of(for {t, _} <- crashed, do: t)}),
      row(%{name: "and until the next call's answer", ours: Measure.figure_of(for {_, s} <- crashed, do: s)})
    ]
  end

  # {process ended, caller told, next call answered}, after the signal. The peer sends it; both read the same clock.
  defp killed(context, lib) do
    {:ok, os_pid} = Isolation.call(lib, :os_pid, [])
    parent = self()

    caller =
      spawn_link(fn ->
        {:error, %Error{reason: :crashed}} = Isolation.call(lib, :sleep_forever, [], timeout: @deadline)
        told = clock()
        {:ok, 3} = Isolation.call(lib, :add, [1, 2])
        send(parent, {self(), told, clock()})
      end)

    # A call that had not begun would go to the next worker.
    until_begun(lib)
    [sent, ended] = Peer.run(context.peer, ["kill", os_pid])

    receive do
      {^caller, told, served} -> {ended - sent, told - sent, served - sent}
    after
      @deadline -> raise "the caller of a killed worker has not been told"
    end
  end

  defp until_begun(lib) do
    case Isolation.info(lib) do
      {:ok, %{workers: [%{executing: 1}]}} -> :ok
      {:ok, _} -> Process.sleep(1) && until_begun(lib)
    end
  end

  defp crashed(lib) do
    {:ok, :ok} = Isolation.call(lib, :fine, [])
    start = Measure.now()
    {:error, %Error{reason: :crashed}} = Isolation.call(lib, :segv, [])
    told = Measure.now()
    {:ok, :ok} = Isolation.call(lib, :fine, [])
    {told - start, Measure.now() - start}
  end

  defp clock, do: :os.perf_counter(:nanosecond)

  defp row(row), do: Report.row(Map.put(row, :group, title()))
end
