defmodule Snakepit.SharedMemory.Allocation do
  @moduledoc false
  # Making a region: options checked, then reserve (Manager), create (here, in the caller), commit (the row).

  require Snakepit.SharedMemory.Fault

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{DType, Error, Fault, Instance, Manager, Platform, Region, Registry, Stats, Telemetry}

  @header 4096
  # Up to here the system calls and page faults of a segment take some tens of microseconds: no dirty scheduler.
  @small 256 * 1024
  # What the header page has room for.
  @metadata_limit 3072
  # A hundred years.
  @longest_timeout 3_155_760_000_000
  # A frame that tells of it must still be JSON of bounded depth.
  @metadata_depth 32
  # How long memory that is being unmapped is waited for before an allocation is refused.
  @closing_patience 1_000

  @keys [:owner, :timeout, :cleanup_policy, :security_level, :access_mode, :peers, :permissions, :metadata] ++
          [:named, :dtype, :shape, :huge_pages, :reserve]

  @default_permissions %{owner: :read_write, group: :none, other: :none}

  # The record of a region that nobody wanted anything special of.
  @plain %{
    size: nil,
    name: nil,
    path: nil,
    dtype: nil,
    shape: nil,
    owner: nil,
    cleanup_policy: :automatic,
    timeout: :infinity,
    access_mode: :read_write,
    peers: :read_only,
    permissions: @default_permissions,
    security_level: :standard,
    metadata: %{},
    metadata_json: "{}",
    huge_pages: :no,
    reserve: true,
    created_at: nil
  }

  @spec allocate(term(), keyword(), atom()) :: {:ok, Region.t()} | {:error, Error.t()}
  def allocate(size, options, operation \\ :allocate) do
    with {:ok, name} <- instance_name(options, operation),
         {:ok, instance} <- Instance.fetch(name, operation) do
      Telemetry.measure(instance, :allocate, nil, if(is_integer(size), do: size, else: 0), fn ->
        with {:ok, record, owner} <- check(instance, size, Keyword.delete(options, :instance), operation),
             do: make(instance, record, owner, operation)
      end)
    end
  end

  @doc "The strictest of several ways to say who may write."
  @spec strictest([:read_only | :read_write]) :: :read_only | :read_write
  def strictest(modes), do: if(:read_only in modes, do: :read_only, else: :read_write)

  # ── Reserve, create, commit ───────────────────────────────────────────────────────────────────────────────────

  defp make(instance, record, owner, operation) do
    id = Instance.new_id(instance, record.created_at)
    record = named(record, instance, id)

    with :ask <- make_own(instance, id, record, owner, operation),
         do: make_asked(instance, id, record, owner, operation)
  end

  # For itself, by a process whose end the Manager will hear of: nothing has to be asked or reserved. Until the row is
  # there nobody knows of the region, and the garbage collector closes what a killed caller leaves. A refusal is the
  # Manager's to give: it sees who is first.
  defp make_own(%{config: %{max_regions_per_process: :infinity} = config} = instance, id, record, owner, operation)
       when owner == self() and record.name == nil and record.cleanup_policy != :reference_counted do
    if Registry.watched?(instance, owner) do
      Fault.point(:create, instance.name)
      account = {instance.budget, bytes(instance, record), config.max_total_memory}

      case native_create(account, spec(instance, id, record)) do
        {:ok, segment} ->
          Fault.point(:created, instance.name)
          publish(instance, {id, :live, segment, owner, owner, nil, record}, operation)

        {:error, {:memory_limit_exceeded, _}} ->
          :ask

        failure ->
          refused(failure, operation, id, record)
      end
    else
      :ask
    end
  end

  defp make_own(_instance, _id, _record, _owner, _operation), do: :ask

  defp publish(%{config: config} = instance, {id, _, segment, _, _, _, record} = row, operation) do
    if Registry.claim(instance, row, config.max_regions) do
      made(instance, id, record)
    else
      close(segment, record)
      :ask
    end
  rescue
    # The instance has just ended.
    ArgumentError ->
      close(segment, record)
      {:error, Error.new(:not_started, operation, nil, %{instance: instance.name})}
  end

  defp make_asked(instance, id, record, owner, operation) do
    with {:ok, charge} <- reserve(instance, id, record, owner) do
      try do
        create(instance, id, record, charge, operation)
      catch
        kind, reason ->
          Manager.abort(instance, id)
          :erlang.raise(kind, reason, __STACKTRACE__)
      end
    end
  end

  # Memory that the reaper is about to give back is not a reason to refuse.
  defp reserve(instance, id, record, owner) do
    bytes = bytes(instance, record)

    with {:error, %Error{reason: :memory_limit_exceeded, details: %{closing: closing}}} when closing > 0 <-
           Manager.reserve(instance, id, record, owner, bytes) do
      Native.reaper_flush_dirty(@closing_patience)
      Manager.reserve(instance, id, record, owner, bytes)
    end
  end

  # In whole pages, huge ones where they are asked for.
  defp bytes(instance, %{size: size, huge_pages: huge}) do
    page = if huge == :no, do: instance.page, else: max(Native.machine().huge_page_size, instance.page)
    div(@header + size + page - 1, page) * page
  end

  defp create(instance, id, record, charge, operation) do
    Fault.point(:create, instance.name)

    case native_create(charge, spec(instance, id, record)) do
      {:ok, segment} ->
        Fault.point(:created, instance.name)
        commit(instance, id, record, segment, operation)

      failure ->
        # Undone by the Manager meanwhile, and the charge with it?
        undone? = Registry.fetch(instance, id) == :error
        Manager.abort(instance, id)
        if undone?, do: owner_down(operation, id, record), else: refused(failure, operation, id, record)
    end
  end

  defp commit(instance, id, record, segment, operation) do
    if Registry.commit(instance, id, segment) do
      made(instance, id, record)
    else
      close(segment, record)
      owner_down(operation, id, record)
    end
  end

  defp made(instance, id, record) do
    Stats.made(instance.stats)
    Fault.point(:committed, instance.name)
    {:ok, Registry.to_region(instance, id, record)}
  end

  @doc "Gives up a segment: a named one on a dirty scheduler, for a file may lie on a disk."
  @spec close(Native.segment(), map()) :: :ok
  def close(segment, %{name: nil}), do: Native.segment_close(segment, false)
  def close(segment, _record), do: Native.segment_close_dirty(segment, true)

  defp refused({:error, {reason, details}}, operation, id, record),
    do: Error.from_native({:error, {reason, Map.put(details, :name, record.name)}}, operation, id)

  defp owner_down(operation, id, record), do: {:error, Error.new(:owner_down, operation, id, %{owner: record.owner})}

  defp native_create(account, %{size: size, name: nil, huge_pages: :no} = spec) when size <= @small,
    do: Native.segment_create(account, spec)

  defp native_create(account, spec), do: Native.segment_create_dirty(account, spec)

  # Taken apart at once: field by field, each costs a search through the map.
  defp spec(%{key: key, config: config}, id, record) do
    %{max_mappings: mapping_limit, descriptor_reserve: descriptor_reserve} = config

    %{
      size: size,
      path: path,
      name: name,
      access_mode: access_mode,
      permissions: permissions,
      peers: peers,
      huge_pages: huge_pages,
      reserve: reserve,
      cleanup_policy: cleanup_policy,
      timeout: timeout,
      dtype: dtype,
      shape: shape,
      metadata_json: metadata
    } = record

    %{
      id: id,
      instance: key,
      size: size,
      name: path,
      label: name,
      access_read_only: access_mode == :read_only,
      owner_read_only: permissions.owner == :read_only,
      mode: mode_bits(permissions),
      peers_write: peers == :read_write,
      huge_pages: huge_pages,
      reserve: reserve,
      cleanup_policy: cleanup_policy,
      timeout: if(timeout == :infinity, do: nil, else: timeout),
      dtype: dtype,
      shape: shape,
      metadata: metadata,
      mapping_limit: mapping_limit,
      descriptor_reserve: descriptor_reserve
    }
  end

  defp named(%{name: nil} = record, _instance, _id), do: record
  defp named(%{name: true} = record, instance, id), do: named(%{record | name: id}, instance, id)

  defp named(%{name: name} = record, instance, _id),
    do: %{record | path: Platform.named_path(instance.config.shm_path, name)}

  # ── Options ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp instance_name(options, operation) do
    if Keyword.keyword?(options),
      do: {:ok, Keyword.get(options, :instance, Instance.default())},
      else: bad(operation, :options, "a keyword list", options)
  end

  # Without options there is nothing to check but the size.
  defp check(%{config: config}, size, [], operation) do
    with :ok <- check_size(size, config, operation) do
      huge = if config.use_hugepages, do: :prefer, else: :no
      now = System.system_time(:microsecond)
      timeout = config.default_timeout
      {:ok, %{@plain | size: size, owner: self(), timeout: timeout, huge_pages: huge, created_at: now}, self()}
    end
  end

  defp check(instance, size, options, operation) do
    config = instance.config
    options = Map.new(options)
    get = &Map.get(options, &1, &2)

    with :ok <- known(options, operation),
         :ok <- check_size(size, config, operation),
         {:ok, {dtype, shape}} <- DType.check(get.(:dtype, nil), get.(:shape, nil), size, operation),
         {:ok, name} <- check_named(get.(:named, nil), operation),
         {:ok, owner} <- check_owner(get.(:owner, self()), operation),
         {:ok, policy} <- check_policy(get.(:cleanup_policy, if(name, do: :manual, else: :automatic)), operation),
         {:ok, timeout} <- check_timeout(options, policy, config, operation),
         :ok <- check_security(get.(:security_level, config.security_level), operation),
         {:ok, access} <- one_of(:access_mode, get.(:access_mode, :read_write), [:read_only, :read_write], operation),
         {:ok, peers} <- one_of(:peers, get.(:peers, :read_only), [:read_only, :read_write], operation),
         {:ok, permissions} <- check_permissions(get.(:permissions, %{}), name, operation),
         {:ok, metadata, json} <- check_metadata(get.(:metadata, %{}), operation),
         {:ok, huge} <- check_huge(options, name, peers, config, operation),
         {:ok, reserve} <- one_of(:reserve, get.(:reserve, true), [true, false], operation) do
      record = %{
        @plain
        | size: size,
          name: name,
          dtype: dtype,
          shape: shape,
          owner: owner,
          cleanup_policy: policy,
          timeout: timeout,
          access_mode: access,
          peers: strictest([peers, access, permissions.owner]),
          permissions: permissions,
          metadata: metadata,
          metadata_json: json,
          huge_pages: huge,
          reserve: reserve,
          created_at: System.system_time(:microsecond)
      }

      {:ok, record, owner}
    end
  end

  defp known(options, operation) do
    case Map.keys(options) -- @keys do
      [] ->
        :ok

      [key | _] ->
        bad(operation, key, "one of #{Enum.map_join([:instance | @keys], ", ", &inspect/1)}", Map.fetch!(options, key))
    end
  end

  defp check_size(size, _config, operation) when not is_integer(size) or size <= 0,
    do: {:error, Error.new(:invalid_size, operation, nil, %{got: size})}

  defp check_size(size, %{max_region_size: limit}, operation) when size > limit,
    do: {:error, Error.new(:size_exceeds_limit, operation, nil, %{asked: size, limit: limit})}

  defp check_size(_size, _config, _operation), do: :ok

  defp check_named(name, _operation) when name in [nil, false], do: {:ok, nil}
  defp check_named(true, _operation), do: {:ok, true}

  defp check_named(name, operation) do
    if is_binary(name) and name =~ ~r/\A[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,199}\z/,
      do: {:ok, name},
      else: bad(operation, :named, "true, or 1 to 200 letters, digits, _, -, . (not first)", name)
  end

  defp check_owner(:none, _operation), do: {:ok, :none}
  defp check_owner({:peer, _} = session, _operation), do: {:ok, session}
  defp check_owner(pid, _operation) when is_pid(pid) and node(pid) == node(), do: {:ok, pid}
  defp check_owner(other, operation), do: bad(operation, :owner, "a local pid or :none", other)

  defp check_policy(policy, operation),
    do: one_of(:cleanup_policy, policy, [:automatic, :manual, :reference_counted], operation)

  defp check_timeout(%{timeout: timeout}, :manual, _config, operation) when timeout != :infinity,
    do: bad(operation, :timeout, ":infinity beside cleanup_policy: :manual (which frees by hand only)", timeout)

  defp check_timeout(_options, :manual, _config, _operation), do: {:ok, :infinity}

  defp check_timeout(options, _policy, config, operation) do
    case Map.get(options, :timeout, config.default_timeout) do
      :infinity -> {:ok, :infinity}
      ms when ms in 1..@longest_timeout -> {:ok, ms}
      other -> bad(operation, :timeout, "1 to #{@longest_timeout} milliseconds, or :infinity", other)
    end
  end

  defp check_security(:standard, _operation), do: :ok

  defp check_security(level, operation) when level in [:high, :maximum] do
    what = "security_level: #{inspect(level)} asks for encryption, which this version does not have"
    {:error, Error.new(:not_supported, operation, nil, %{what: what, remedy: "Pass security_level: :standard."})}
  end

  defp check_security(other, operation), do: bad(operation, :security_level, ":standard, :high or :maximum", other)

  defp check_permissions(given, name, operation) do
    with true <- (is_map(given) and not is_struct(given)) or (is_list(given) and Keyword.keyword?(given)),
         permissions = Map.merge(@default_permissions, Map.new(given)),
         3 <- map_size(permissions),
         true <- permissions.owner in [:read_write, :read_only],
         true <- permissions.group in [:read_write, :read_only, :none],
         true <- permissions.other in [:read_write, :read_only, :none] do
      if name == nil and (permissions.group != :none or permissions.other != :none) do
        bad(operation, :permissions, "group: and other: only beside named: (anonymous memory is this user's)", given)
      else
        {:ok, permissions}
      end
    else
      _ ->
        expected = "a map of owner: (:read_write, :read_only), group: and other: (these or :none)"
        bad(operation, :permissions, expected, given)
    end
  end

  # The VM itself must reach what it owns; owner: :read_only binds the peers.
  defp mode_bits(%{group: group, other: other}), do: 0o600 + bits(group) * 8 + bits(other)
  defp bits(:read_write), do: 6
  defp bits(:read_only), do: 4
  defp bits(:none), do: 0

  defp check_metadata(metadata, operation) do
    with true <- is_map(metadata) and not is_struct(metadata),
         true <- depth(metadata) <= @metadata_depth,
         {:ok, json} when byte_size(json) <= @metadata_limit <- Native.json_encode(metadata),
         {:ok, plain} <- Native.json_decode(json) do
      {:ok, plain, json}
    else
      {:ok, json} ->
        bad(operation, :metadata, "at most #{@metadata_limit} bytes of JSON", "#{byte_size(json)} bytes")

      _ ->
        bad(operation, :metadata, "a map of what JSON knows, at most #{@metadata_depth} levels deep", metadata)
    end
  end

  defp depth(map) when is_map(map) and not is_struct(map), do: 1 + deepest(Map.values(map))
  defp depth(list) when is_list(list), do: if(List.improper?(list), do: 0, else: 1 + deepest(list))
  defp depth(_), do: 0

  defp deepest(terms), do: terms |> Enum.map(&depth/1) |> Enum.max(fn -> 0 end)

  defp check_huge(%{huge_pages: value}, name, peers, _config, operation) do
    cond do
      value not in [true, false, :prefer] ->
        bad(operation, :huge_pages, "true, false or :prefer", value)

      value == false ->
        {:ok, :no}

      name != nil ->
        bad(operation, :huge_pages, "false beside named:", value)

      peers == :read_write ->
        bad(operation, :huge_pages, "false beside peers: :read_write (a peer could make the VM fault)", value)

      true ->
        {:ok, if(value == true, do: :require, else: :prefer)}
    end
  end

  # Asked for by configuration: where it can be, and otherwise normal pages (info/1 says which).
  defp check_huge(_options, nil, :read_only, %{use_hugepages: true}, _operation), do: {:ok, :prefer}
  defp check_huge(_options, _name, _peers, _config, _operation), do: {:ok, :no}

  defp one_of(key, value, allowed, operation) do
    if value in allowed,
      do: {:ok, value},
      else: bad(operation, key, allowed |> Enum.map_join(" or ", &inspect/1), value)
  end

  defp bad(operation, key, expected, got),
    do: {:error, Error.new(:invalid_option, operation, nil, %{key: key, expected: expected, got: got})}
end
