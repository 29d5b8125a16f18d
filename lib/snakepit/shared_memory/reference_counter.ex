defmodule Snakepit.SharedMemory.ReferenceCounter do
  @moduledoc """
  Who holds which region.

  A reference is a row `{region, holder}`; the count is the number of rows, so nothing can be counted twice or lost. A
  holder is a process (of any node), a `reference()` of the caller's own (released by hand only), or a peer's session. A process that dies
  lets go of everything; a node that cannot be reached is not a death: its processes keep their references until it is
  back or `reconnect_grace` has passed.
  """

  use GenServer

  require Snakepit.SharedMemory.Fault

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Call, Error, Fault, Instance, Manager, Registry}

  @type region_id :: String.t()
  @type process_ref :: pid() | reference() | {:peer, String.t()}

  # ── By ids and maps ──────────────────────────────────────────────────────────────────────────────────────

  @doc "Adds the reference of `holder`, and gives the count. One holder counts once."
  @spec increment(region_id(), process_ref()) :: {:ok, pos_integer()} | {:error, Error.t()}
  def increment(region_id, holder), do: change(:increment, region_id, holder)

  @doc "Removes the reference of `holder`, and gives the count."
  @spec decrement(region_id(), process_ref()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def decrement(region_id, holder), do: change(:decrement, region_id, holder)

  @doc "How many hold the region."
  @spec get_count(region_id()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def get_count(region_id) do
    with {:ok, instance, _} <- Registry.locate(region_id, :get_count),
         do: {:ok, Registry.holder_count(instance, region_id)}
  end

  @doc "Who holds the region."
  @spec get_references(region_id()) :: {:ok, [process_ref()]} | {:error, Error.t()}
  def get_references(region_id) do
    with {:ok, instance, _} <- Registry.locate(region_id, :get_references),
         do: {:ok, Registry.holders(instance, region_id)}
  end

  defp change(operation, region_id, holder) do
    with :ok <- check_holder(operation, holder),
         {:ok, instance, _} <- Registry.locate(region_id, operation),
         :ok <- check_session(operation, instance, holder),
         do: Call.call(instance, :reference_counter, {operation, region_id, holder}, operation)
  end

  defp check_holder(_operation, holder) when is_pid(holder) or is_reference(holder), do: :ok
  defp check_holder(_operation, {:peer, session}) when is_binary(session), do: :ok

  defp check_holder(operation, other) do
    details = %{key: :holder, expected: "a pid or a reference", got: other}
    {:error, Error.new(:invalid_argument, operation, nil, details)}
  end

  defp check_session(:increment, instance, {:peer, session}) do
    if :ets.member(instance.tables.sessions, session),
      do: :ok,
      else: {:error, Error.new(:unknown_session, :increment)}
  end

  defp check_session(_operation, _instance, _holder), do: :ok

  # ── For the modules of the instance ───────────────────────────────────────────────────────────────────────────

  @doc false
  def start_link(instance),
    do: GenServer.start_link(__MODULE__, instance, name: Instance.child(instance, :reference_counter))

  @doc false
  # Lets go of everything that a peer's session holds.
  @spec drop_holder(Instance.t(), process_ref()) :: :ok | {:error, Error.t()}
  def drop_holder(instance, holder), do: Call.call(instance, :reference_counter, {:drop, holder}, :release)

  @doc false
  @spec move(Instance.t(), region_id(), process_ref(), process_ref()) :: :ok
  def move(instance, id, from, to) do
    watch(instance, to)
    Registry.put_holder(instance, id, to)
    Registry.delete_holder(instance, id, from)
  end

  @doc false
  # A row was put in by somebody else.
  @spec watch(Instance.t(), process_ref()) :: :ok
  def watch(instance, holder), do: Call.cast(instance, :reference_counter, {:watch, holder})

  @doc false
  # The region is gone.
  @spec forget(Instance.t(), region_id()) :: :ok
  def forget(instance, id), do: Call.cast(instance, :reference_counter, {:forget, id})

  @doc false
  # Removes rows of regions and sessions that are gone.
  @spec sweep(Instance.t()) :: :ok
  def sweep(instance), do: Call.cast(instance, :reference_counter, :sweep)

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  # monitors  pid => monitor
  # lost      pid => timer: processes of a node that cannot be reached
  @impl true
  def init(instance) do
    :ok = :net_kernel.monitor_nodes(true, node_type: :all)
    state = sweep_rows(%{instance: instance, monitors: %{}, lost: %{}})

    # A row that went just before the crash may have been the last of its region.
    for id <- Registry.ids(instance), do: Manager.evaluate(instance, id)
    {:ok, state}
  end

  @impl true
  # Everything here can be done twice.
  def handle_call({:again, request}, from, state), do: handle_call(request, from, state)

  def handle_call({:increment, id, holder}, _from, state) do
    Fault.point(:increment, state.instance.name)

    with {:ok, {_, :live, segment, _, _, _, _}} <- Registry.fetch(state.instance, id),
         Registry.put_holder(state.instance, id, holder),
         Fault.point(:incremented, state.instance.name),
         # The Manager removes the row and then looks for holders: one of us sees the other.
         {:ok, _} <- Registry.fetch(state.instance, id) do
      Native.segment_touch(segment)
      {:reply, {:ok, Registry.holder_count(state.instance, id)}, monitor(state, holder)}
    else
      _ ->
        Registry.delete_holder(state.instance, id, holder)
        {:reply, {:error, Error.new(:region_not_found, :increment, id)}, state}
    end
  end

  def handle_call({:decrement, id, holder}, _from, state) do
    Fault.point(:decrement, state.instance.name)

    case Registry.fetch(state.instance, id) do
      {:ok, {_, :live, _, _, _, _, _}} ->
        state = release(state, id, holder)
        {:reply, {:ok, Registry.holder_count(state.instance, id)}, state}

      _ ->
        {:reply, {:error, Error.new(:region_not_found, :decrement, id)}, state}
    end
  end

  def handle_call({:drop, holder}, _from, state), do: {:reply, :ok, drop(state, holder)}

  @impl true
  def handle_cast({:watch, holder}, state), do: {:noreply, monitor(state, holder)}

  def handle_cast({:forget, id}, state) do
    state =
      Enum.reduce(Registry.holders(state.instance, id), state, fn holder, state ->
        Registry.delete_holder(state.instance, id, holder)
        with {:peer, session} <- holder, do: :ets.delete(state.instance.tables.grants, {session, id})
        unmonitor(state, holder)
      end)

    {:noreply, state}
  end

  def handle_cast(:sweep, state), do: {:noreply, sweep_rows(state)}

  @impl true
  def handle_info({:DOWN, _monitor, :process, pid, :noconnection}, state) do
    timer = Process.send_after(self(), {:give_up, pid}, state.instance.config.reconnect_grace)
    {:noreply, %{state | monitors: Map.delete(state.monitors, pid), lost: Map.put(state.lost, pid, timer)}}
  end

  def handle_info({:DOWN, _monitor, :process, pid, _reason}, state) do
    {:noreply, drop(%{state | monitors: Map.delete(state.monitors, pid)}, pid)}
  end

  def handle_info({:nodeup, node, _info}, state) do
    # The monitor answers at once for those that died while nobody saw it.
    back = for {pid, timer} <- state.lost, node(pid) == node, do: {pid, timer}
    for {_, timer} <- back, do: Process.cancel_timer(timer)
    state = %{state | lost: Map.drop(state.lost, Enum.map(back, &elem(&1, 0)))}
    {:noreply, Enum.reduce(back, state, fn {pid, _}, state -> monitor(state, pid) end)}
  end

  def handle_info({:give_up, pid}, %{lost: lost} = state) when is_map_key(lost, pid),
    do: {:noreply, drop(%{state | lost: Map.delete(lost, pid)}, pid)}

  def handle_info(_, state), do: {:noreply, state}

  # ── Rows ──────────────────────────────────────────────────────────────────────────────────────────────────────

  defp drop(state, holder) do
    state.instance
    |> Registry.held_by(holder)
    |> Enum.reduce(state, &release(&2, &1, holder))
    |> unmonitor(holder)
  end

  defp release(state, id, holder) do
    # The quiet time of its timeout starts now.
    with {:ok, segment} <- Registry.segment(state.instance, id), do: Native.segment_touch(segment)
    Registry.delete_holder(state.instance, id, holder)
    Fault.point(:released, state.instance.name)
    Manager.evaluate(state.instance, id)
    unmonitor(state, holder)
  end

  defp sweep_rows(%{instance: %{tables: tables}} = state) do
    for {{id, holder}} <- :ets.tab2list(tables.holders), gone?(tables, id, holder) do
      Registry.delete_holder(state.instance, id, holder)
      Manager.evaluate(state.instance, id)
    end

    for {{holder, id}} <- :ets.tab2list(tables.held),
        not :ets.member(tables.holders, {id, holder}),
        do: :ets.delete(tables.held, {holder, id})

    # Whoever has a row is watched, whatever came between the row and us.
    tables.holders
    |> :ets.select([{{{:_, :"$1"}}, [], [:"$1"]}])
    |> Enum.uniq()
    |> Enum.reduce(state, &monitor(&2, &1))
  end

  defp gone?(tables, id, {:peer, session}),
    do: not :ets.member(tables.regions, id) or not :ets.member(tables.sessions, session)

  defp gone?(tables, id, _holder), do: not :ets.member(tables.regions, id)

  # ── Monitors ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp monitor(state, pid) when is_pid(pid) and not is_map_key(state.monitors, pid),
    do: %{state | monitors: Map.put(state.monitors, pid, Process.monitor(pid))}

  defp monitor(state, _holder), do: state

  # The monitor goes with the last row.
  defp unmonitor(state, pid) when is_pid(pid) do
    with {:ok, monitor} <- Map.fetch(state.monitors, pid),
         [] <- Registry.held_by(state.instance, pid) do
      Process.demonitor(monitor, [:flush])
      %{state | monitors: Map.delete(state.monitors, pid)}
    else
      _ -> state
    end
  end

  defp unmonitor(state, _holder), do: state
end
