defmodule Snakepit.SharedMemory.Manager do
  @moduledoc """
  Who owns which region, how many there may be, and when one goes.

  Allocation is *reserve* (the Manager checks the limits, monitors the owner and writes a row), *create* (the caller
  makes the segment), *commit* (the caller completes the row). Freeing closes the segment, which hands large memory to
  the reaper, and removes the row last, so that a crash in between is made good by doing it again. What it knows besides
  the rows (owners' monitors) it derives from them when it is restarted, and undoes reservations of callers that have
  died.

  A process that the Manager monitors already makes and frees regions of its own without asking: whatever it leaves
  behind, the Manager finds at its end.

  These functions speak ids and maps; `Snakepit.SharedMemory` is the face with structs and keywords. They work on the default instance, or on `instance: name` in the options.
  """

  use GenServer

  require Snakepit.SharedMemory.Fault

  alias Snakepit.Native

  alias Snakepit.SharedMemory.{
    Allocation,
    Call,
    Error,
    Fault,
    Instance,
    Janitor,
    ReferenceCounter,
    Region,
    Registry,
    Stats,
    Telemetry,
    Waiters
  }

  @type region_id :: String.t()
  @type region_size :: pos_integer()
  @type permission_set :: Region.permission_set()
  @type region_options :: map() | keyword()
  @type region_info :: %{
          id: region_id(),
          name: String.t() | nil,
          size: region_size(),
          state: :allocated | :sealed | :invalid,
          created_at: DateTime.t(),
          last_accessed: DateTime.t(),
          access_count: non_neg_integer(),
          reference_count: non_neg_integer(),
          references: [Registry.holder()],
          generation: non_neg_integer(),
          owner_pid: pid() | nil,
          owner: Registry.owner(),
          cleanup_policy: Region.cleanup_policy(),
          timeout: timeout(),
          access_mode: :read_only | :read_write,
          peers: :read_only | :read_write,
          permissions: permission_set(),
          security_level: :standard,
          dtype: String.t() | nil,
          shape: [non_neg_integer()] | nil,
          huge_pages: boolean(),
          zero_copy: boolean(),
          instance: atom(),
          platform_handle: map(),
          metadata: map()
        }

  # ── By ids and maps ──────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Makes a region of `size` bytes, owned by the caller, and gives its id. Options as for
  `Snakepit.SharedMemory.allocate/2`, as a map or keywords.
  """
  @spec allocate_region(region_size(), region_options()) :: {:ok, region_id()} | {:error, Error.t()}
  def allocate_region(size, options \\ %{}) do
    with {:ok, options} <- keywords(options, :allocate),
         {:ok, region} <- Allocation.allocate(size, options),
         do: {:ok, region.id}
  end

  @doc """
  Takes a reference for the calling process and gives the region as a value. `access_mode: :read_only` gives one that
  refuses writes.
  """
  @spec map_region(region_id(), region_options()) :: {:ok, Region.t()} | {:error, Error.t()}
  def map_region(region_id, options \\ %{}) do
    with {:ok, options} <- keywords(options, :map),
         {:ok, mode} <- map_mode(options),
         {:ok, instance, _row} <- Registry.locate(region_id, :map) do
      Telemetry.measure(instance, :map, region_id, 0, fn ->
        with {:ok, _count} <- ReferenceCounter.increment(region_id, self()),
             {:ok, instance, row} <- Registry.locate(region_id, :map) do
          Native.segment_touch(elem(row, 2))
          {:ok, Registry.region_of(instance, row, mode: Allocation.strictest([mode, mode_for(row, self())]))}
        end
      end)
    end
  end

  @doc "Gives back the calling process's reference."
  @spec unmap_region(region_id()) :: :ok | {:error, Error.t()}
  def unmap_region(region_id) do
    with {:ok, _count} <- ReferenceCounter.decrement(region_id, self()), do: :ok
  end

  @doc "Frees the region now, whoever owns or holds it. Views that exist keep their memory."
  @spec deallocate_region(region_id()) :: :ok | {:error, Error.t()}
  def deallocate_region(region_id) do
    with {:ok, instance, row} <- Registry.locate(region_id, :free), do: free(instance, row)
  end

  @doc "All there is to know of a region."
  @spec get_region_info(region_id()) :: {:ok, region_info()} | {:error, Error.t()}
  def get_region_info(region_id) do
    with {:ok, instance, row} <- Registry.locate(region_id, :info), do: {:ok, describe(instance, row)}
  end

  @doc """
  The regions of the instance, as `t:region_info/0`. `filter` picks by equality on keys of the info
  (`%{owner_pid: self()}`, `%{state: :sealed}`), and by `min_size:` and `max_size:`.
  """
  @spec list_regions(map() | keyword()) :: {:ok, [region_info()]} | {:error, Error.t()}
  def list_regions(filter \\ %{}) do
    with {:ok, filter} <- keywords(filter, :list),
         {name, filter} = Keyword.pop(filter, :instance, Instance.default()),
         :ok <- check_filter(filter),
         {:ok, instance} <- Instance.fetch(name, :list) do
      infos =
        for row <- Registry.rows(instance),
            elem(row, 1) == :live,
            info = describe(instance, row),
            matches?(info, filter),
            do: info

      {:ok, Enum.sort_by(infos, & &1.id)}
    end
  end

  @doc "Frees what has expired or is orphaned; see `Snakepit.SharedMemory.Janitor.cleanup_regions/1`."
  @spec cleanup_regions(map() | keyword()) :: {:ok, map()} | {:error, Error.t()}
  defdelegate cleanup_regions(options \\ %{}), to: Janitor

  defp keywords(options, operation) do
    cond do
      is_map(options) and not is_struct(options) -> keywords(Map.to_list(options), operation)
      is_list(options) and Keyword.keyword?(options) -> {:ok, options}
      true -> bad(operation, :options, "a map or keyword list with atom keys", options)
    end
  end

  defp map_mode(options) do
    case Keyword.split(options, [:access_mode]) do
      {_, [{key, value} | _]} -> bad(:map, key, "no such option; :access_mode is the one there is", value)
      {[access_mode: mode], []} when mode in [:read_only, :read_write] -> {:ok, mode}
      {[access_mode: other], []} -> bad(:map, :access_mode, ":read_only or :read_write", other)
      {[], []} -> {:ok, :read_write}
    end
  end

  defp bad(operation, key, expected, got),
    do: {:error, Error.new(:invalid_option, operation, nil, %{key: key, expected: expected, got: got})}

  @doc false
  # access_mode: :read_only leaves writing to the owner.
  def mode_for({_, _, _, owner, _, _, %{access_mode: :read_only}}, pid) when owner != pid, do: :read_only
  def mode_for(_row, _pid), do: :read_write

  @filter_keys [:id, :name, :size, :state, :owner_pid, :owner, :cleanup_policy, :access_mode, :peers, :dtype, :shape] ++
                 [:min_size, :max_size, :reference_count, :instance, :metadata]
  defp check_filter(filter) do
    case Keyword.keys(filter) -- @filter_keys do
      [] -> :ok
      [key | _] -> bad(:list, key, "one of #{Enum.map_join(@filter_keys, ", ", &inspect/1)}", filter[key])
    end
  end

  defp matches?(info, filter) do
    Enum.all?(filter, fn
      {:min_size, n} -> info.size >= n
      {:max_size, n} -> info.size <= n
      {key, value} -> Map.fetch!(info, key) == value
    end)
  end

  @doc false
  @spec describe(Instance.t(), Registry.row()) :: region_info()
  def describe(instance, {id, :live, segment, owner, _caller, _charge, record}) do
    native = Native.segment_info(segment)
    holders = Registry.holders(instance, id)

    %{
      id: id,
      name: record.name,
      size: record.size,
      state: if(native.state == :closed, do: :invalid, else: native.state),
      created_at: DateTime.from_unix!(record.created_at, :microsecond),
      last_accessed: DateTime.from_unix!(max(native.last_access * 1000, record.created_at), :microsecond),
      access_count: native.access_count,
      reference_count: length(holders),
      references: holders,
      generation: native.generation,
      owner_pid: if(is_pid(owner), do: owner),
      owner: owner,
      cleanup_policy: record.cleanup_policy,
      timeout: record.timeout,
      access_mode: record.access_mode,
      peers: record.peers,
      permissions: record.permissions,
      security_level: record.security_level,
      dtype: record.dtype,
      shape: record.shape,
      huge_pages: native.huge_pages,
      zero_copy: native.zero_copy,
      instance: instance.name,
      platform_handle: %{type: if(record.name, do: :posix_shm, else: :memfd), path: record.path, length: native.length},
      metadata: record.metadata
    }
  end

  # ── For the modules of the instance ───────────────────────────────────────────────────────────────────────────

  @doc false
  def start_link(instance),
    do: GenServer.start_link(__MODULE__, instance, name: Instance.child(instance, :manager))

  @doc false
  # The row, the monitors and the charge of `bytes`. The caller chooses the id, so that asking again after a crash of
  # the Manager finds the same row.
  @spec reserve(Instance.t(), String.t(), map(), Registry.owner(), pos_integer()) ::
          {:ok, Native.charge()} | {:error, Error.t()}
  def reserve(instance, id, record, owner, bytes) do
    with {:error, error} <- Call.call(instance, :manager, {:reserve, self(), id, record, owner, bytes}, :allocate) do
      # The answer may have been lost, not the row.
      abort(instance, id)
      {:error, error}
    end
  end

  @doc false
  @spec abort(Instance.t(), String.t()) :: :ok
  def abort(instance, id), do: Call.cast(instance, :manager, {:abort, id})

  @doc false
  @spec free(Instance.t(), Registry.row()) :: :ok | {:error, Error.t()}
  def free(instance, {id, _, _, _, _, _, %{size: size}} = row) do
    Telemetry.measure(instance, :free, id, size, fn ->
      with :ask <- free_own(instance, row), do: Call.call(instance, :manager, {:free, id}, :free)
    end)
  end

  # The owner does it itself: it is monitored, so what it does not get to do, the Manager does. Not for files, which may
  # lie on a disk.
  defp free_own(instance, {id, :live, _, owner, _, _, %{name: nil}} = row) when owner == self() do
    Fault.point(:free_own, instance.name)
    if dissolve(instance, row), do: :ok, else: {:error, Error.new(:region_not_found, :free, id)}
  rescue
    # The instance has just ended; asking says so.
    ArgumentError -> :ask
  end

  defp free_own(_instance, _row), do: :ask

  @doc false
  @spec transfer(Instance.t(), String.t(), pid(), pid() | :none) :: :ok | {:error, Error.t()}
  def transfer(instance, id, from, to), do: Call.call(instance, :manager, {:transfer, id, from, to}, :transfer)

  @doc false
  # Puts a named region of an earlier VM, opened by the Janitor, into service.
  @spec adopt(Instance.t(), Registry.row()) :: :ok | {:error, Error.t()}
  def adopt(instance, row), do: Call.call(instance, :manager, {:adopt, row}, :adopt)

  @doc false
  # Somebody has let go: perhaps nothing keeps the region any more.
  @spec evaluate(Instance.t(), String.t()) :: :ok
  def evaluate(instance, id), do: Call.cast(instance, :manager, {:evaluate, id})

  @doc false
  # A peer's session has ended; what it allocated goes, or gets its time of grace.
  @spec owner_gone(Instance.t(), {:peer, String.t()}) :: :ok | {:error, Error.t()}
  def owner_gone(instance, owner), do: Call.call(instance, :manager, {:owner_gone, owner}, :free)

  @doc false
  # Frees what has not been used for its timeout, and judges everything again: what a killed process did not get to do.
  @spec sweep(Instance.t()) :: {:ok, [String.t()]} | {:error, Error.t()}
  def sweep(instance), do: Call.call(instance, :manager, :sweep, :cleanup)

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  # owners    pid => monitor; what they own stands in a table, off this process's heap
  # creators  id => monitor, and monitor => id: of callers that create for somebody else
  @impl true
  def init(instance) do
    {:ok, restore(%{instance: instance, owners: %{}, creators: %{}})}
  end

  # Reads the rows again. Monitors of the dead fire at once.
  defp restore(state) do
    # First of all those who make regions without asking, and do so now.
    state = Enum.reduce(:ets.tab2list(state.instance.tables.watched), state, fn {pid}, state -> monitor(state, pid) end)
    state = restore_index(state)

    state =
      Enum.reduce(Registry.rows(state.instance), state, fn {id, status, _, owner, caller, _, _}, state ->
        state = if status == :reserved and caller != owner, do: guard(state, caller, id), else: state

        case owner do
          pid when is_pid(pid) ->
            watch(state, pid, id)

          {:grace, deadline} ->
            remind(state, id, deadline)

          {:peer, session} ->
            if known_session?(state, session), do: watch(state, owner, id), else: orphan(state, id, owner)

          # Orphaned, and perhaps not yet freed, when the crash came.
          :dead ->
            judge(state, id)

          :none ->
            state
        end
      end)

    restore_names(state.instance)
    ReferenceCounter.sweep(state.instance)
    state
  end

  # A crash may have left entries without a row. Of a process that makes regions without asking the row may be about to
  # come: its entries are looked through at its end.
  defp restore_index(%{instance: %{tables: tables, config: config} = instance} = state) do
    Enum.reduce(:ets.tab2list(tables.owned), state, fn {{owner, id}}, state ->
      case Registry.fetch(instance, id) do
        {:ok, {_, _, _, ^owner, _, _, _}} ->
          state

        :error when is_pid(owner) and config.max_regions_per_process == :infinity ->
          monitor(state, owner)

        :error ->
          farewell(instance, id, owner)
          state

        {:ok, _} ->
          unwatch(state, owner, id)
      end
    end)
  end

  # A crash may have come between a row and its name.
  defp restore_names(%{tables: tables} = instance) do
    for {name, id} <- :ets.tab2list(tables.names),
        not :ets.member(tables.regions, id),
        do: :ets.delete(tables.names, name)

    for {id, _, _, _, _, _, %{name: name}} <- Registry.rows(instance), name, do: :ets.insert(tables.names, {name, id})
  end

  defp known_session?(state, session), do: :ets.member(state.instance.tables.sessions, session)

  @impl true
  # Asked again after a crash: the first time may have done it.
  def handle_call({:again, {:free, id} = request}, from, state) do
    if :ets.member(state.instance.tables.regions, id), do: handle_call(request, from, state), else: {:reply, :ok, state}
  end

  # Done, but perhaps not to the end.
  def handle_call({:again, {:transfer, id, from, to} = request}, caller, state) do
    with {:ok, {_, :live, _, ^to, _, _, _} = row} <- Registry.fetch(state.instance, id) do
      move_reference(state, row, from, to)
      {:reply, :ok, state}
    else
      _ -> handle_call(request, caller, state)
    end
  end

  def handle_call({:again, request}, from, state), do: handle_call(request, from, state)

  def handle_call({:reserve, caller, id, record, owner, bytes}, _from, state) do
    Fault.point(:reserve, state.instance.name)

    # Asked again after a crash?
    if :ets.member(state.instance.tables.regions, id) do
      {:ok, {_, :reserved, _, _, ^caller, charge, _}} = Registry.fetch(state.instance, id)
      {:reply, {:ok, charge}, state}
    else
      make_row(state, caller, id, record, owner, bytes)
    end
  end

  def handle_call({:free, id}, _from, state) do
    Fault.point(:free, state.instance.name)

    case Registry.fetch(state.instance, id) do
      {:ok, {_, :live, _, _, _, _, _} = row} -> {:reply, :ok, close(state, row)}
      _ -> {:reply, {:error, Error.new(:region_not_found, :free, id)}, state}
    end
  end

  def handle_call({:transfer, id, from, to}, _from, state) do
    case Registry.fetch(state.instance, id) do
      {:ok, {_, :live, _, owner, _, _, _}} when owner == to ->
        {:reply, :ok, state}

      {:ok, {_, :live, _, owner, _, _, _} = row} when owner == from or not is_pid(owner) ->
        with :ok <- alive(to, id),
             :ok <- check_owner(state, to) do
          Registry.put_owner(state.instance, id, to)
          state = unwatch(state, owner, id)
          state = watch(state, to, id)
          move_reference(state, row, from, to)
          {:reply, :ok, state}
        else
          {:error, error} -> {:reply, {:error, error}, state}
        end

      {:ok, {_, :live, _, owner, _, _, _}} ->
        {:reply, {:error, Error.new(:not_owner, :transfer, id, %{owner: owner})}, state}

      _ ->
        {:reply, {:error, Error.new(:region_not_found, :transfer, id)}, state}
    end
  end

  def handle_call({:adopt, {id, :live, _, _, _, _, record} = row}, _from, state) do
    tables = state.instance.tables

    # A copy of what is in service has its id too.
    with false <- :ets.member(tables.regions, id) or :ets.member(tables.names, record.name),
         :ok <- claim(state.instance, row) do
      :ets.insert(tables.names, {record.name, id})
      {:reply, :ok, state}
    else
      true -> {:reply, {:error, Error.new(:exists, :adopt, id, %{name: record.name})}, state}
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  def handle_call({:owner_gone, owner}, _from, state) do
    {:reply, :ok, Enum.reduce(Registry.owned_by(state.instance, owner), state, &orphan(&2, &1, owner))}
  end

  def handle_call(:sweep, _from, state) do
    {gone, state} =
      Enum.reduce(Registry.rows(state.instance), {[], state}, fn row, {gone, state} ->
        case fate(state, with_known_owner(state, row)) do
          {:free, cause} -> {[elem(row, 0) | gone], reclaim(state, row, cause)}
          :keep -> {gone, state}
        end
      end)

    {:reply, {:ok, Enum.reverse(gone)}, state}
  end

  # A session that ended while nobody could be told.
  defp with_known_owner(state, {_, :live, _, {:peer, session}, _, _, _} = row) do
    if known_session?(state, session), do: row, else: put_elem(row, 3, :dead)
  end

  defp with_known_owner(_state, row), do: row

  @impl true
  def handle_cast({:evaluate, id}, state), do: {:noreply, judge(state, id)}

  def handle_cast({:abort, id}, state) do
    case Registry.fetch(state.instance, id) do
      {:ok, {_, :reserved, _, _, _, _, _} = row} -> {:noreply, close(state, row)}
      _ -> {:noreply, state}
    end
  end

  @impl true
  def handle_info({:DOWN, monitor, :process, pid, _reason}, state) do
    case state do
      %{owners: %{^pid => ^monitor}} ->
        ids = Registry.owned_by(state.instance, pid)
        state = Enum.reduce(ids, state, &orphan(&2, &1, pid))
        :ets.delete(state.instance.tables.watched, pid)
        {:noreply, %{state | owners: Map.delete(state.owners, pid)}}

      %{creators: %{^monitor => id}} ->
        state = %{state | creators: Map.drop(state.creators, [monitor, id])}
        {:noreply, judge(state, id)}

      _ ->
        {:noreply, state}
    end
  end

  def handle_info({:judge, id}, state), do: {:noreply, judge(state, id)}
  def handle_info(_, state), do: {:noreply, state}

  # ── Making a row ──────────────────────────────────────────────────────────────────────────────────────────────

  defp make_row(%{instance: instance} = state, caller, id, record, owner, bytes) do
    with :ok <- check_owner(state, owner),
         :ok <- check_name(instance, record),
         {:ok, charge} <- charge(instance, bytes),
         :ok <- claim(instance, {id, :reserved, nil, owner, caller, charge, record}) do
      if record.name, do: :ets.insert(instance.tables.names, {record.name, id})
      if record.cleanup_policy == :reference_counted, do: first_reference(instance, id, owner, caller)
      Fault.point(:reserved, instance.name)
      state = watch(state, owner, id)
      state = if owner == caller, do: state, else: guard(state, caller, id)
      {:reply, {:ok, charge}, state}
    else
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  # A reference-counted region starts with one: its owner's, or where it has none its maker's.
  defp first_reference(instance, id, owner, caller) do
    holder = if owner == :none, do: caller, else: owner
    ReferenceCounter.watch(instance, holder)
    Registry.put_holder(instance, id, holder)
  end

  # ── Limits ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp claim(%{config: %{max_regions: limit}} = instance, {_, _, _, _, _, charge, _} = row) do
    if Registry.claim(instance, row, limit) do
      :ok
    else
      if charge, do: Native.charge_release(charge)
      {:error, Error.new(:region_limit_exceeded, :allocate, nil, %{count: Registry.count(instance), limit: limit})}
    end
  end

  defp check_owner(%{instance: %{config: %{max_regions_per_process: :infinity}}}, _owner), do: :ok
  defp check_owner(_state, :none), do: :ok

  # A peer's session counts like a process.
  defp check_owner(%{instance: %{config: %{max_regions_per_process: limit}} = instance}, owner) do
    count = Registry.owned_count(instance, owner)

    if count >= limit do
      details = %{owner: owner, count: count, limit: limit}
      {:error, Error.new(:process_region_limit_exceeded, :allocate, nil, details)}
    else
      :ok
    end
  end

  defp check_name(_instance, %{name: nil}), do: :ok

  defp check_name(instance, %{name: name}) do
    if :ets.member(instance.tables.names, name),
      do: {:error, Error.new(:exists, :allocate, nil, %{name: name})},
      else: :ok
  end

  defp charge(instance, bytes) do
    limit = instance.config.max_total_memory

    with {:error, _} = error <- Native.charge(instance.budget, bytes, limit),
         do: Error.from_native(error, :allocate, nil)
  end

  defp alive(:none, _id), do: :ok

  defp alive(pid, id) do
    if Process.alive?(pid), do: :ok, else: {:error, Error.new(:owner_down, :transfer, id, %{owner: pid})}
  end

  # The first reference of a reference-counted region goes with its owner.
  defp move_reference(_state, _row, same, same), do: :ok

  defp move_reference(state, {id, _, _, _, _, _, %{cleanup_policy: :reference_counted}}, from, to) when is_pid(to) do
    if Registry.holds?(state.instance, id, from), do: ReferenceCounter.move(state.instance, id, from, to)
  end

  defp move_reference(_state, _row, _from, _to), do: :ok

  # ── What becomes of a region ──────────────────────────────────────────────────────────────────────────────────

  # The one place that decides. A region stays while its owner lives or somebody holds it; `:manual` stays anyhow.
  defp fate(_state, {_, :reserved, _, owner, caller, _, _}) do
    if Process.alive?(caller) and (not is_pid(owner) or Process.alive?(owner)), do: :keep, else: {:free, :uncommitted}
  end

  defp fate(_state, {_, _, _, _, _, _, %{cleanup_policy: :manual}}), do: :keep

  defp fate(state, {id, :live, segment, owner, _, _, record}) do
    cond do
      Registry.held?(state.instance, id) -> :keep
      record.cleanup_policy == :reference_counted -> {:free, :unreferenced}
      owner == :dead -> {:free, :owner_down}
      expired?(segment, record.timeout) -> {:free, :expired}
      true -> grace(owner)
    end
  end

  defp grace({:grace, deadline}) do
    if System.monotonic_time(:millisecond) >= deadline, do: {:free, :owner_down}, else: :keep
  end

  defp grace(_owner), do: :keep

  defp expired?(_segment, :infinity), do: false
  defp expired?(segment, timeout), do: Native.segment_idle(segment) >= timeout

  defp judge(state, id) do
    with {:ok, row} <- Registry.fetch(state.instance, id),
         {:free, cause} <- fate(state, row) do
      reclaim(state, row, cause)
    else
      _ -> state
    end
  end

  # The owner has gone: a process, or a peer's session.
  defp orphan(state, id, owner) do
    case Registry.fetch(state.instance, id) do
      {:ok, {_, :reserved, _, _, _, _, _} = row} ->
        reclaim(state, row, :uncommitted)

      {:ok, {_, :live, segment, ^owner, _, _, _} = row} ->
        case Native.segment_info(segment).state do
          # It was freeing it.
          :closed -> close(state, row)
          native -> state |> bereave(id, owner, native) |> unwatch(owner, id) |> judge(id)
        end

      # It was making or freeing it.
      :error ->
        farewell(state.instance, id, owner)
        state

      # It has given it away.
      {:ok, _} ->
        unwatch(state, owner, id)
    end
  end

  defp bereave(state, id, owner, _native) when is_pid(owner) do
    Registry.put_owner(state.instance, id, :dead)
    state
  end

  # Result of a peer: sealed, it waits a while for somebody to attach it.
  defp bereave(state, id, _session, native) do
    grace = if native == :sealed, do: state.instance.config.grace_period, else: 0
    deadline = System.monotonic_time(:millisecond) + grace
    Registry.put_owner(state.instance, id, {:grace, deadline})
    remind(state, id, deadline)
  end

  defp remind(state, id, deadline) do
    Process.send_after(self(), {:judge, id}, deadline, abs: true)
    state
  end

  defp reclaim(state, {id, _, _, _, _, _, record} = row, cause) do
    state = close(state, row)
    Telemetry.execute(state.instance, :reclaim, %{bytes: record.size}, %{region_id: id, cause: cause})
    state
  end

  defp close(state, {id, _, _, _, _, _, _} = row) do
    dissolve(state.instance, row)
    unguard(state, id)
  end

  # The memory first, the row last: killed in between, this is done again. Closing hands large memory to the reaper.
  # Whether it was we who did it: a region's owner and the Manager can come at the same time.
  defp dissolve(%{tables: tables} = instance, {id, _, segment, owner, _caller, charge, record}) do
    if segment, do: Allocation.close(segment, record)
    if charge, do: Native.charge_release(charge)
    if record.name, do: :ets.delete_object(tables.names, {record.name, id})
    Fault.point(:closed, instance.name)
    taken = :ets.take(tables.regions, id)
    Fault.point(:taken, instance.name)

    case taken do
      # Its maker has completed the row while we looked at it.
      [{_, :live, late, _, _, _, _}] when segment == nil -> Allocation.close(late, record)
      _ -> :ok
    end

    if taken != [], do: Stats.gone(instance.stats)
    farewell(instance, id, owner)
    taken != []
  end

  # What is left to do when the row has gone. The index last: by it the Manager finds what its owner did not get to do.
  defp farewell(instance, id, owner) do
    # A reference that is just being added is seen here, or sees that the row is gone.
    if Registry.held?(instance, id), do: ReferenceCounter.forget(instance, id)
    Waiters.notify(instance, id)
    Fault.point(:forgotten, instance.name)
    Registry.unindex(instance, owner, id)
  end

  # ── Monitors ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp watch(state, :none, _id), do: state

  defp watch(state, owner, id) do
    Registry.index(state.instance, owner, id)
    # Its owner may be freeing it: one of us sees that the entry has to go.
    unless :ets.member(state.instance.tables.regions, id), do: Registry.unindex(state.instance, owner, id)
    # Of sessions the broker tells.
    if is_pid(owner), do: monitor(state, owner), else: state
  end

  # It stays until its process ends: who has owned one will own another.
  defp monitor(state, owner) when is_map_key(state.owners, owner), do: state

  defp monitor(state, owner) do
    state = %{state | owners: Map.put(state.owners, owner, Process.monitor(owner))}
    :ets.insert(state.instance.tables.watched, {owner})
    state
  end

  # A caller that is not the owner: only until it commits, but it does not say when that is.
  defp guard(state, caller, id) do
    monitor = Process.monitor(caller)
    %{state | creators: Map.merge(state.creators, %{id => monitor, monitor => id})}
  end

  defp unguard(state, id) do
    case Map.pop(state.creators, id) do
      {nil, _} ->
        state

      {monitor, creators} ->
        Process.demonitor(monitor, [:flush])
        %{state | creators: Map.delete(creators, monitor)}
    end
  end

  defp unwatch(state, owner, id) do
    Registry.unindex(state.instance, owner, id)
    state
  end
end
