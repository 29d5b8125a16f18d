defmodule Snakepit.Isolation.Info do
  @moduledoc false
  # What info/1 answers: rows of the workers, numbers of the native pool, and what each worker says of itself.

  alias Snakepit.Isolation.{Library, LongCalls}
  alias Snakepit.Isolation.Worker.Health
  alias Snakepit.Native

  @spec describe(Library.t(), pos_integer() | nil) :: map()
  def describe(%Library{} = library, warden) do
    rows = Library.rows(library.table)
    pool = Native.pool_info(library.native)
    in_flight = Map.new(pool.in_flight)
    entries = Library.entries(library.table)
    entry = Enum.find(entries, &(&1.number == library.number))
    loaded = (entry && entry.loaded) || %{missing: [], nif_version: nil}

    %{
      id: library.id,
      name: library.name,
      path: library.path,
      module: library.module,
      functions: library.functions,
      nif_version: loaded.nif_version,
      missing: loaded.missing,
      with: for(%{id: id, state: :ready, number: number} <- entries, number != library.number, do: id),
      state: state(rows),
      error: Enum.find_value(rows, & &1.error),
      calls: pool.calls,
      in_flight: in_flight |> Map.values() |> Enum.sum(),
      waiting: pool.waiting,
      atoms: library.table |> Library.lookup(:atoms) |> Native.atoms_used(),
      warden: warden,
      workers: Enum.map(rows, &worker(&1, Map.get(in_flight, &1.position - 1, 0), library.memory))
    }
  end

  defp state(rows) do
    case Enum.frequencies_by(rows, & &1.state) do
      %{ready: ready} when ready == length(rows) -> :ready
      %{ready: _} -> :degraded
      %{failed: failed} when failed == length(rows) -> :failed
      _ -> :restarting
    end
  end

  defp worker(row, in_flight, limit) do
    status = if row.native, do: Native.worker_status(row.native), else: %{}
    executors = status[:executors] || []

    %{
      position: row.position,
      state: row.state,
      os_pid: row.os_pid,
      uptime: System.convert_time_unit(System.monotonic_time() - row.since, :native, :millisecond),
      restarts: row.restarts,
      hung: row.hung,
      last_exit: row.last_exit,
      calls: row.calls + Map.get(status, :calls, 0),
      in_flight: in_flight,
      executing: Enum.count(executors, & &1),
      longest_call: LongCalls.longest(row.calls_since, executors, System.monotonic_time(:millisecond)),
      hung_calls: length(status[:orphans] || []),
      heartbeat_age: Health.heartbeat_age(status),
      resident: status[:status][:resident],
      memory: %{limit: limit, used: used(row.os_pid)},
      objects: status[:status][:objects]
    }
  end

  # As the kernel counts it against the limit.
  defp used(nil), do: nil

  defp used(os_pid) do
    with {:ok, text} <- File.read("/proc/#{os_pid}/status"),
         [_, kilobytes] <- Regex.run(~r/^VmData:\s+(\d+) kB$/m, text),
         do: String.to_integer(kilobytes) * 1_024,
         else: (_gone -> nil)
  end
end
