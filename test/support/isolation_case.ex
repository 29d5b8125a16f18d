defmodule Snakepit.IsolationCase do
  @moduledoc false
  # Isolated libraries for one test, which leave nothing behind: no process, no descriptor, no message.

  use ExUnit.CaseTemplate

  import Snakepit.ShmCase, only: [eventually: 1, eventually: 2]

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{Library, Warden}
  alias Snakepit.NativeFixture

  using do
    quote do
      import Snakepit.IsolationCase
      import Snakepit.ShmCase, only: [eventually: 1, eventually: 2, temporary_directory: 1, kill: 1]

      alias Snakepit.{Isolation, Native, NativeFixture, SubVm}
      alias Snakepit.Isolation.{Error, Library, Warden}
    end
  end

  setup_all do
    # The warden, and what the runtime keeps for the first of a kind, are there before anything is counted.
    {:ok, library} = Isolation.load(NativeFixture.path(:adder), sandbox: :none)
    :ok = Isolation.unload(library)
  end

  setup do
    before = open_descriptors()

    on_exit(fn ->
      for library <- Isolation.list(), do: Isolation.unload(library)
      eventually(fn -> children(Warden.os_pid()) == [] end)

      eventually(fn ->
        for pid <- Process.list(), do: :erlang.garbage_collect(pid)
        open_descriptors() <= before
      end)
    end)
  end

  @doc "A fixture, loaded; unloaded when the test has ended."
  def load!(fixture, options \\ []) do
    {:ok, library} = Isolation.load(NativeFixture.path(fixture), [sandbox: :none] ++ options)
    library
  end

  @doc "The error of a load that fails."
  def refused(fixture, options \\ []) do
    {:error, %Isolation.Error{} = error} = Isolation.load(NativeFixture.path(fixture), [sandbox: :none] ++ options)
    error
  end

  def info!(library) do
    {:ok, info} = Isolation.info(library)
    info
  end

  @doc "The worker at a position, as info/1 shows it."
  def worker(library, position \\ 1), do: Enum.at(info!(library).workers, position - 1)

  def os_pid(library, position \\ 1), do: worker(library, position).os_pid

  @doc "The process of a position that is none of those, once it is in service."
  def successor(library, old, position \\ 1) do
    eventually(fn ->
      case worker(library, position) do
        %{state: :ready, os_pid: os_pid} when os_pid != old -> os_pid
        _ -> nil
      end
    end)
  end

  @doc "Waits until all workers are in service."
  def ready(library), do: eventually(fn -> info!(library).state == :ready end)

  @doc "Our process of a position."
  def server(%Library{table: table}, position \\ 1) do
    native = Library.lookup(table, {:worker, position}).native
    Library.lookup(table, {:native, native})
  end

  @doc "Waits until so many calls are with the workers."
  def in_flight(library, count), do: eventually(fn -> info!(library).in_flight == count end)

  @doc "Waits until the library's functions are being executed so many times."
  def begun(library, count),
    do: eventually(fn -> Enum.sum(for worker <- info!(library).workers, do: worker.executing) == count end)

  # ── Processes ─────────────────────────────────────────────────────────────────────────────────────────────────

  def signal(os_pid, signal \\ "KILL") do
    {_, 0} = System.cmd("kill", ["-#{signal}", "#{os_pid}"])
    :ok
  end

  @doc "Whether the process runs; one that waits to be reaped does not."
  def alive?(os_pid) when is_integer(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> hd(fields(stat)) not in ["Z", "X"]
      {:error, _} -> false
    end
  end

  def gone(os_pids), do: eventually(fn -> not Enum.any?(List.wrap(os_pids), &alive?/1) end, 10_000)

  @doc "The living children of a process."
  def children(nil), do: []

  def children(os_pid) do
    for name <- File.ls!("/proc"),
        {child, ""} <- [Integer.parse(name)],
        {:ok, stat} <- [File.read("/proc/#{child}/stat")],
        [state, parent | _] = fields(stat),
        parent == "#{os_pid}" and state not in ["Z", "X"],
        do: child
  end

  # Those behind the name, which may hold anything: state, parent, process group, ...
  defp fields(stat), do: stat |> String.split(") ") |> List.last() |> String.split(" ")

  def process_group(os_pid) do
    [_state, _parent, group | _] = fields(File.read!("/proc/#{os_pid}/stat"))
    group
  end

  def open_descriptors, do: length(File.ls!("/proc/self/fd"))

  # ── Messages ──────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "Nothing has come that is not taken."
  def assert_no_messages, do: ExUnit.Assertions.assert(Process.info(self(), :messages) == {:messages, []})

  @doc "A process that makes the call and sends `{pid, result}`."
  def call_in_process(library, function, arguments, options \\ []) do
    test = self()
    spawn(fn -> send(test, {self(), Isolation.call(library, function, arguments, options)}) end)
  end

  def result_of(pid) do
    receive do
      {^pid, result} -> result
    after
      20_000 -> raise "no result"
    end
  end
end
