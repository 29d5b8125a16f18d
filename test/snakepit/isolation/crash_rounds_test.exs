defmodule Snakepit.Isolation.CrashRoundsTest do
  # A library that crashes all the time, behind a module that knows nothing of us: whoever called it dies of the exception, and is started
  # again by his supervisor; his next call works; whoever else calls notices nothing; and nothing is left of any of it.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.DropInFixture

  @moduletag timeout: 180_000

  @rounds 1_000
  @workers 16
  @callers 6
  @bystanders 3
  # What the allocators of a VM hold more or less from one time to the next. (A ring for each crash would be many times as much.)
  @noise 16 * 1_048_576

  setup do
    level = Logger.level()
    # A report for each of them.
    Logger.configure(level: :none)
    on_exit(fn -> Logger.configure(level: level) end)
  end

  test "#{@rounds} crashes under load" do
    module = DropInFixture.erlang()

    # Each crash is one too many for somebody's patience; here it is not the question. After a second without one, the next restart is immediate again.
    :ok = Isolation.isolate(module, sandbox: :none, workers: @workers, max_restarts: :infinity, max_seconds: 1)
    test = self()
    bystanders = for _ <- 1..@bystanders, do: spawn_link(fn -> call_on(module, test, 0) end)

    # What is there once, and what is loaded when it is needed for the first time, is there after the first half.
    quiet(module)
    crash(module, div(@rounds, 2))
    half = quiet(module)
    crash(module, div(@rounds, 2))
    whole = quiet(module)

    assert restarts(module) == @rounds
    assert whole.held == half.held
    assert whole.memory < half.memory + @noise
    assert whole.resident < half.resident + @noise

    for pid <- bystanders, do: send(pid, :stop)
    for pid <- bystanders, do: assert_receive({^pid, calls} when calls > 0, 20_000)
    assert_no_messages()
  end

  # ── Those who crash ───────────────────────────────────────────────────────────────────────────────────────────

  defp crash(module, rounds) do
    left = :atomics.new(1, [])
    :atomics.put(left, 1, rounds)
    test = self()

    callers =
      for n <- 1..@callers do
        %{
          id: n,
          start: {Task, :start_link, [fn -> call_until_it_crashes(module, left, test, n) end]},
          restart: :transient
        }
      end

    {:ok, supervisor} = Supervisor.start_link(callers, strategy: :one_for_one, max_restarts: rounds, max_seconds: 3_600)
    for n <- 1..@callers, do: assert_receive({:done, ^n}, 120_000)
    Supervisor.stop(supervisor)
  end

  # He dies with the exception, so that his supervisor starts another; the last ones find that there is nothing left to do.
  defp call_until_it_crashes(module, left, test, n) do
    3 = module.add(1, 2)
    if :atomics.sub_get(left, 1, 1) >= 0, do: module.crash(), else: send(test, {:done, n})
  rescue
    error in Error ->
      %{reason: :crashed, signal: :SIGSEGV, function: {:crash, 0}, details: %{because: :exited}} = error
      [{^module, :crash, 0, _} | _] = __STACKTRACE__
      reraise error, __STACKTRACE__
  end

  # ── Those who only call ───────────────────────────────────────────────────────────────────────────────────────

  # One call at a time runs in a worker, so that no call of theirs runs when it crashes; those that wait there go to another one.
  defp call_on(module, test, calls) do
    receive do
      :stop -> send(test, {self(), calls})
    after
      0 ->
        ^calls = module.add(calls, 0)
        {:library, [^calls]} = module.whisper([calls])
        call_on(module, test, calls + 1)
    end
  end

  # ── What is left ──────────────────────────────────────────────────────────────────────────────────────────────

  defp restarts(module), do: Enum.sum(for worker <- info!(module).workers, do: worker.restarts)

  # When all workers are in service.
  defp quiet(module) do
    ready(module)
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)

    %{
      held: eventually(fn -> settled(held()) end),
      memory: :erlang.memory(:total),
      resident: resident()
    }
  end

  # The same twice: what has ended has gone.
  defp settled(held) do
    receive do
    after
      20 -> if held() == held, do: held
    end
  end

  defp held do
    warden = Warden.os_pid()

    %{
      processes: length(Process.list()),
      ports: length(Port.list()),
      tables: length(:ets.all()),
      atoms: :erlang.system_info(:atom_count),
      terms: :persistent_term.info().count,
      descriptors: open_descriptors(),
      mappings: "/proc/self/maps" |> File.stream!() |> Enum.count(&(&1 =~ "memfd")),
      workers: length(children(warden)),
      warden: length(File.ls!("/proc/#{warden}/fd"))
    }
  end

  # Bytes.
  defp resident do
    [_, pages | _] = "/proc/self/statm" |> File.read!() |> String.split(" ")
    String.to_integer(pages) * 4096
  end
end
