defmodule Snakepit.Isolation.Roster do
  @moduledoc false
  # Which libraries the workers of one pool have: the one that they were started for, and those that were loaded `with:` it or in
  # place of it. Adds and removes them, one after the other. An entry of the library's table is the truth of each; what it finds there
  # that is still being loaded when it is started again, nobody waits for any more.
  #
  #     :loading ──every worker has it──▶ :ready ──remove/1──▶ gone
  #         └──one has not, or nobody waits──▶ gone
  #
  # Workers are told by messages, `{Roster, :load | :unload, number}`, and say what came of it in their rows.

  use GenServer

  alias Snakepit.Isolation.{Directory, Error, Fit, Library, Options}
  alias Snakepit.Native

  # Numbers as the worker takes them: at most so many libraries at a time, each at the remainder of its number.
  @places 256
  @numbers 1_048_576
  # Unload callbacks are waited for so long.
  @farewell 500

  @type entry :: %{
          number: Native.library_number(),
          id: String.t() | atom(),
          options: Options.t(),
          fits: Fit.t() | nil,
          replaces: Native.library_number() | nil,
          native: Native.pool(),
          state: :loading | :ready,
          library: Library.t() | nil,
          loaded: map() | nil
        }

  @spec start_link(Library.shared()) :: GenServer.on_start()
  def start_link(shared), do: GenServer.start_link(__MODULE__, shared)

  @doc "Loads a library into all workers of another one; in place of `old`, if that is still there. `:gone`: the other one is not."
  @spec add(Library.t(), String.t() | atom(), Options.t(), Library.t() | nil) ::
          {:ok, Library.t()} | :gone | {:error, Error.t()}
  def add(%Library{table: table}, id, options, old \\ nil) do
    case Library.lookup(table, :roster) do
      nil -> :gone
      pid -> GenServer.call(pid, {:add, id, options, old && old.number}, :infinity)
    end
  catch
    :exit, _ -> {:error, Error.new(:not_loaded, id, nil, %{because: :start, message: "who loads it was ended"})}
  end

  @doc """
  Unloads a library from all workers. When this returns, nobody can call it, and its unload callbacks have run, unless calls or objects of
  it are still there. `:last`: there is no other one, and the pool is to be ended; `:supervised`: so it is by who supervises it.
  """
  @spec remove(Library.t()) :: :ok | :last | :supervised | :gone
  def remove(%Library{table: table, number: number}) do
    case Library.lookup(table, :roster) do
      nil -> :gone
      pid -> GenServer.call(pid, {:remove, number}, :infinity)
    end
  catch
    # It was killed, after it had begun to, or before: then the library is still there.
    :exit, _ -> if Library.entry(table, number), do: :gone, else: :ok
  end

  @doc "Numbers of those that a worker has to load, in their order: not those that it could not, and of which that is not known yet."
  @spec wanted(:ets.tid(), %{Native.library_number() => term()}) :: [Native.library_number()]
  def wanted(table, said),
    do: for(%{number: number} <- Library.entries(table), not is_map_key(said, number), do: number)

  @doc "A worker's row says something new of its libraries."
  @spec changed(:ets.tid()) :: :ok
  def changed(table), do: tell(table, :changed)

  @doc "Nothing of the library runs in the calling worker any more."
  @spec unloaded(:ets.tid(), Native.library_number()) :: :ok
  def unloaded(table, number), do: tell(table, {:unloaded, number, self()})

  defp tell(table, message) do
    with pid when is_pid(pid) <- Library.lookup(table, :roster), do: send(pid, message)
    :ok
  end

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def init(shared) do
    :ets.insert(shared.table, {:roster, self()})
    for %{state: :loading} = entry <- Library.entries(shared.table), do: drop(shared, entry)
    {:ok, %{shared: shared, adding: %{}, removing: %{}}}
  end

  @impl true
  def handle_call({:add, id, options, replaces}, {pid, _} = from, %{shared: shared} = state) do
    entries = Library.entries(shared.table)
    replaces = if Enum.any?(entries, &(&1.number == replaces)), do: replaces

    cond do
      Enum.any?(entries, &(&1.id == id and &1.number != replaces)) ->
        {:reply, {:error, Error.new(:not_loaded, id, nil, %{because: :name_taken, name: id})}, state}

      number = free(shared.table, entries) ->
        {:ok, native} = Native.pool_beside(shared.native, number)

        entry = Library.new_entry(number, id, options, native)
        Library.put_entry(shared.table, %{entry | replaces: replaces, state: :loading})
        for worker <- workers(shared), do: send(worker, {__MODULE__, :load, number})
        adding = Map.put(state.adding, number, {from, Process.monitor(pid)})
        {:noreply, look(%{state | adding: adding})}

      true ->
        message = "there are #{length(entries)} libraries in its process, or there have been very many"
        {:reply, {:error, Error.new(:not_loaded, id, nil, %{because: :start, message: message})}, state}
    end
  end

  def handle_call({:remove, number}, from, %{shared: shared} = state) do
    entries = Library.entries(shared.table)
    entry = Enum.find(entries, &(&1.number == number))

    cond do
      entry == nil -> {:reply, :gone, state}
      number == 0 and shared.mode == :supervised -> {:reply, :supervised, state}
      length(entries) == 1 -> {:reply, :last, state}
      true -> {:noreply, removing(state, entry, from)}
    end
  end

  @impl true
  def handle_info(:changed, state), do: {:noreply, look(state)}

  def handle_info({:unloaded, number, worker}, state) do
    case state.removing do
      %{^number => {from, workers}} -> {:noreply, removed(state, number, from, List.delete(workers, worker))}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:farewell, number}, state) do
    case state.removing do
      %{^number => {from, _workers}} -> {:noreply, removed(state, number, from, [])}
      _ -> {:noreply, state}
    end
  end

  # Whoever wanted it has gone.
  def handle_info({:DOWN, monitor, :process, _, _}, %{shared: shared, adding: adding} = state) do
    case Enum.find(adding, fn {_, {_from, found}} -> found == monitor end) do
      {number, _} ->
        drop(shared, Library.entry(shared.table, number))
        {:noreply, %{state | adding: Map.delete(adding, number)}}

      nil ->
        {:noreply, state}
    end
  end

  def handle_info(_late, state), do: {:noreply, state}

  # ── Adding ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp free(table, entries) do
    taken = MapSet.new(entries, &rem(&1.number, @places))
    next = Library.lookup(table, :next_library) || 1
    number = if MapSet.size(taken) < @places, do: Enum.find(next..(next + @places), &(rem(&1, @places) not in taken))

    if number && number < @numbers do
      :ets.insert(table, {:next_library, number + 1})
      number
    end
  end

  defp look(%{adding: adding} = state), do: Enum.reduce(Map.keys(adding), state, &look(&2, &1))

  defp look(%{shared: shared} = state, number) do
    {lost, serving} = shared.table |> Library.rows() |> Enum.split_with(&(&1.state == :failed))
    said = for row <- serving, do: row.libraries[number]
    entry = Library.entry(shared.table, number)

    cond do
      error = Enum.find_value(said, &if(match?({:error, _}, &1), do: elem(&1, 1))) ->
        added(state, entry, {:error, error})

      serving == [] ->
        added(state, entry, {:error, hd(lost).error})

      Enum.all?(said, &match?({:ok, _}, &1)) ->
        added(state, entry, ready(shared, entry, hd(said)))

      true ->
        state
    end
  end

  defp ready(shared, entry, {:ok, loaded}) do
    library = Library.describe(shared, entry, loaded)

    with :ok <- Directory.put(library, shared.supervisor) do
      Library.put_entry(shared.table, %{entry | state: :ready, library: library, loaded: loaded})
      {:ok, library}
    else
      {:error, :taken} ->
        {:error, Error.new(:not_loaded, entry.id, nil, %{because: :name_taken, name: entry.options.name})}
    end
  end

  defp added(%{shared: shared, adding: adding} = state, entry, result) do
    {{from, monitor}, adding} = Map.pop!(adding, entry.number)
    Process.demonitor(monitor, [:flush])
    if match?({:error, _}, result), do: drop(shared, entry)
    GenServer.reply(from, result)
    %{state | adding: adding}
  end

  # ── Removing ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp drop(shared, %{number: number} = entry) do
    Library.delete_entry(shared.table, number)
    if entry.library, do: Directory.remove(entry.library)
    # One that it was to replace has its name again.
    before = Enum.find(Library.entries(shared.table), &(&1.id == entry.id and &1.library != nil))

    if before && entry.library && Directory.fetch(entry.id) == :error,
      do: Directory.put(before.library, shared.supervisor)

    Native.pool_close(entry.native)
    workers = workers(shared)
    for worker <- workers, do: send(worker, {__MODULE__, :unload, number})
    workers
  end

  defp removing(%{shared: shared} = state, entry, from) do
    workers = drop(shared, entry)
    Process.send_after(self(), {:farewell, entry.number}, @farewell)
    removed(state, entry.number, from, workers)
  end

  defp removed(state, number, from, []) do
    GenServer.reply(from, :ok)
    %{state | removing: Map.delete(state.removing, number)}
  end

  defp removed(state, number, from, workers), do: put_in(state.removing[number], {from, workers})

  # Those that have a process; one that is started later looks for itself.
  defp workers(%{table: table}), do: List.flatten(:ets.match(table, {{:native, :_}, :"$1"}))
end
