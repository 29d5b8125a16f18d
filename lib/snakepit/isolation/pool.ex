defmodule Snakepit.Isolation.Pool do
  @moduledoc false
  # Who waits for a worker of one library: the caller of load/2 for all of them to have loaded, callers for one to be
  # ready again. Choosing a worker is the native pool's business and needs no process. What it knows of the workers it
  # reads from their rows, so it can be killed at any time; those who wait ask again.

  use GenServer

  require Logger

  alias Snakepit.Isolation.{Directory, Error, Library}

  @courtesy 5_000

  @spec start_link(Library.shared()) :: GenServer.on_start()
  def start_link(shared), do: GenServer.start_link(__MODULE__, shared)

  @doc "Waits until every worker has loaded the library, or one has failed to."
  @spec loaded(:ets.tid() | pid()) :: {:ok, Library.t()} | :gone | {:error, Error.t()}
  def loaded(pool) when is_pid(pool) do
    GenServer.call(pool, :loaded, :infinity)
  catch
    :exit, _ -> :gone
  end

  def loaded(nil), do: :gone
  def loaded(table), do: ask(table, :loaded, :infinity)

  @doc "The last child of a library in a supervision tree: its start waits for the library and is what may fail."
  @spec gate(Library.shared()) :: :ignore | {:error, Error.t()}
  def gate(shared) do
    with {:ok, _library} <- loaded(shared.table), do: :ignore
  end

  @doc "Waits until a worker is in service. `:gone`: the library has been unloaded."
  @spec await(Library.t(), timeout()) :: :ready | :timeout | :gone | {:error, Error.t()}
  def await(%Library{table: table}, timeout), do: ask(table, {:await, deadline(timeout)}, timeout)

  @doc "A worker's row has changed."
  @spec changed(:ets.tid()) :: :ok
  def changed(table) do
    with pid when is_pid(pid) <- Library.lookup(table, :pool), do: send(pid, :changed)
    :ok
  end

  defp ask(table, question, timeout), do: ask_until(table, question, deadline(timeout))

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp ask_until(table, question, deadline) do
    left = if deadline == :infinity, do: :infinity, else: max(deadline - System.monotonic_time(:millisecond), 0)

    case Library.lookup(table, :pool) do
      nil -> :gone
      pid -> GenServer.call(pid, question, left)
    end
  catch
    :exit, {:timeout, _} ->
      :timeout

    # It has been killed and is being started again, or the library is being unloaded: then the table goes.
    :exit, _ ->
      receive do
      after
        1 -> ask_until(table, question, deadline)
      end
  end

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def init(shared) do
    Process.flag(:trap_exit, true)
    :ets.insert(shared.table, {:pool, self()})
    # A library that could not be loaded again after its supervisor was killed, or whose loader died early.
    if shared.mode == :on_demand, do: Process.send_after(self(), :wanted?, shared.options.load_timeout + @courtesy)
    {:ok, look(%{shared: shared, library: nil, taken: false, loaders: %{}, waiting: [], count: 0})}
  end

  @impl true
  def handle_call(:loaded, {pid, _} = from, state) do
    loaders = Map.put(state.loaders, Process.monitor(pid), from)
    {:noreply, settle(%{state | loaders: loaders})}
  end

  def handle_call({:await, deadline}, from, state) do
    case service(rows(state)) do
      :ready -> {:reply, :ready, state}
      {:failed, error} -> {:reply, {:error, error}, state}
      :starting -> wait(%{state | waiting: [{deadline, from} | state.waiting], count: state.count + 1})
    end
  end

  @impl true
  def handle_info(:changed, state) do
    state = state |> look() |> settle() |> wake()

    case {state.shared.mode, state.library, service(rows(state))} do
      # Whoever supervises the library decides what comes next.
      {:supervised, %Library{}, {:failed, error}} -> {:stop, {:shutdown, error}, state}
      _ -> {:noreply, state}
    end
  end

  # (Others go on in its processes when it has been unloaded.)
  def handle_info(:wanted?, %{library: nil, loaders: loaders} = state) when loaders == %{} do
    if Library.entry(state.shared.table, 0),
      do: {:stop, {:shutdown, :unwanted}, state},
      else: {:noreply, state}
  end

  # Whoever wanted the library has gone before it was there.
  def handle_info({:DOWN, monitor, :process, _, _}, state) do
    case Map.pop(state.loaders, monitor) do
      {nil, _} ->
        {:noreply, state}

      {_, loaders} when state.library == nil and state.shared.mode == :on_demand and loaders == %{} ->
        {:stop, {:shutdown, :unwanted}, %{state | loaders: loaders}}

      {_, loaders} ->
        {:noreply, %{state | loaders: loaders}}
    end
  end

  def handle_info({:EXIT, _, reason}, state), do: {:stop, reason, state}
  def handle_info(_late_answer, state), do: {:noreply, state}

  @impl true
  def terminate(reason, %{shared: shared, waiting: waiting}) do
    # A crash of this process is none of the library.
    if reason in [:normal, :shutdown] or match?({:shutdown, _}, reason) do
      for entry <- Library.entries(shared.table), do: Directory.delete(entry, shared.supervisor)
      for {_, from} <- waiting, do: GenServer.reply(from, :gone)
    end
  end

  # Those whose deadline has passed are no longer there; they are looked for when there seem to be too many.
  defp wait(%{count: count, shared: %{options: %{max_waiting: limit}}} = state) when count <= limit,
    do: {:noreply, state}

  defp wait(%{waiting: [one | others], shared: shared} = state) do
    now = System.monotonic_time(:millisecond)
    others = Enum.filter(others, fn {deadline, _from} -> deadline > now end)

    if length(others) < shared.options.max_waiting,
      do: {:noreply, %{state | waiting: [one | others], count: length(others) + 1}},
      else: {:reply, {:error, too_many(shared)}, %{state | waiting: others, count: length(others)}}
  end

  # ── What the rows say ─────────────────────────────────────────────────────────────────────────────────────────

  # The library is there when all its workers have loaded it for the first time.
  defp look(%{library: nil, shared: shared} = state) do
    rows = rows(state)

    entry = Library.entry(shared.table, 0)

    if entry != nil and length(rows) == shared.options.workers and Enum.all?(rows, & &1.loaded) do
      loaded = entry.loaded || hd(rows).loaded
      library = Library.describe(shared, entry, loaded)

      case Directory.put(library, shared.supervisor) do
        :ok ->
          Library.put_entry(shared.table, %{entry | library: library, loaded: loaded})
          # Once for a library, not for each of its Pools.
          if :ets.insert_new(shared.table, {:warned, true}), do: warn(library, loaded.missing)
          %{state | library: library, taken: false}

        {:error, :taken} ->
          %{state | taken: true}
      end
    else
      state
    end
  end

  # The house has been built anew, and its directory with it: then all workers were started again, which brings us here.
  defp look(%{library: library, shared: shared} = state) do
    if Directory.started?() and Directory.fetch(library.id) == :error do
      for %{library: %Library{} = library} <- Library.entries(shared.table),
          do: Directory.put(library, shared.supervisor)
    end

    state
  end

  defp settle(%{loaders: loaders} = state) when loaders == %{}, do: state

  defp settle(state) do
    failed = Enum.find_value(rows(state), & &1.error)

    answer =
      cond do
        state.library -> {:ok, state.library}
        failed -> {:error, failed}
        state.taken -> {:error, taken(state.shared)}
        # The rows may say more by now than when they were looked at: that is told next.
        true -> nil
      end

    if answer do
      for {monitor, from} <- state.loaders do
        Process.demonitor(monitor, [:flush])
        GenServer.reply(from, answer)
      end

      %{state | loaders: %{}}
    else
      state
    end
  end

  defp wake(%{waiting: []} = state), do: state

  defp wake(state) do
    answer =
      case service(rows(state)) do
        :ready -> :ready
        {:failed, error} -> {:error, error}
        :starting -> nil
      end

    if answer do
      for {_, from} <- state.waiting, do: GenServer.reply(from, answer)
      %{state | waiting: [], count: 0}
    else
      state
    end
  end

  defp service(rows) do
    cond do
      Enum.any?(rows, &(&1.state == :ready)) -> :ready
      rows != [] and Enum.all?(rows, &(&1.state == :failed)) -> {:failed, hd(rows).error}
      true -> :starting
    end
  end

  defp rows(state), do: Library.rows(state.shared.table)

  defp warn(_library, []), do: :ok

  defp warn(library, missing) do
    Logger.warning(
      "#{inspect(library)} uses #{Enum.join(missing, ", ")}, which isolated libraries cannot call yet: " <>
        "a call that does is an error"
    )
  end

  defp too_many(%{id: id, options: %{max_waiting: limit}}),
    do: Error.new(:overloaded, id, nil, %{because: :waiting, limit: limit})

  defp taken(%{id: id, options: %{name: name}}),
    do: Error.new(:not_loaded, id, nil, %{because: :name_taken, name: name})
end
