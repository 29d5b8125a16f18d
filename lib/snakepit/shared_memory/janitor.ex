defmodule Snakepit.SharedMemory.Janitor do
  @moduledoc """
  Takes care of what nobody asks about: expiry, grace periods, rows of the dead, named objects of earlier VMs.

  At the start and at each `cleanup_interval` it looks at the objects under `shm_path` that have our prefix, reads their
  headers with `pread`, and decides by owner and policy:

  | maker (boot id, pid namespace, pid, start time) | `:manual` | other policies |
  |---|---|---|
  | this VM, an instance that has ended | adopted | removed |
  | ended, same pid namespace | adopted | removed |
  | of an earlier boot, same pid namespace number | adopted | removed |
  | of an earlier boot, another pid namespace | adopted | kept |
  | alive | kept | kept |
  | another pid namespace of this boot | kept | kept |

  Whoever serves an object holds a lock on it: what is locked is kept, whoever made it, so no two VMs serve one. Objects
  of another instance name, copies and renamed ones, and damaged ones, are kept and reported; what was being freed is removed.
  Adopted regions have no owner. One that was being written when its VM died is adopted as `:invalid`: it can be freed, and
  nobody reads it.
  """

  use GenServer

  require Logger

  alias Snakepit.Native

  alias Snakepit.SharedMemory.{
    Broker,
    Error,
    Instance,
    Manager,
    ReferenceCounter,
    Telemetry,
    Waiters
  }

  @prefix "snakepit_"
  @most_objects 10_000
  # Above this share of a limit the health check warns.
  @near 0.9

  @type report :: %{
          freed: [String.t()],
          adopted: [String.t()],
          removed: [String.t()],
          kept: [%{name: String.t(), why: atom()}]
        }

  @keys [:instance, :dry_run, :damaged]

  @doc """
  Does now what is otherwise done each `cleanup_interval`, and says what it did: ids freed, names adopted, removed and kept (with why).

    * `:instance` - default `Snakepit.SharedMemory`
    * `:dry_run` - `true` only reports what would become of named objects
    * `:damaged` - `true` also removes this user's damaged objects with our prefix
  """
  @spec cleanup_regions(map() | keyword()) :: {:ok, report()} | {:error, Error.t()}
  def cleanup_regions(options \\ %{}) do
    with {:ok, options} <- to_map(options),
         :ok <- check_options(options),
         {:ok, instance} <- Instance.fetch(Map.get(options, :instance, Instance.default()), :cleanup),
         do: clean(instance, Map.get(options, :dry_run, false), Map.get(options, :damaged, false))
  end

  defp to_map(options) do
    if (is_map(options) and not is_struct(options)) or (is_list(options) and Keyword.keyword?(options)) do
      {:ok, Map.new(options)}
    else
      details = %{key: :options, expected: "a map or keyword list", got: options}
      {:error, Error.new(:invalid_option, :cleanup, nil, details)}
    end
  end

  defp check_options(options) do
    bad =
      Enum.find(options, fn
        {:instance, _} -> false
        {key, value} -> key not in @keys or not is_boolean(value)
      end)

    case bad do
      nil ->
        :ok

      {key, value} ->
        expected = "true or false, and a key among #{Enum.map_join(@keys, ", ", &inspect/1)}"
        {:error, Error.new(:invalid_option, :cleanup, nil, %{key: key, expected: expected, got: value})}
    end
  end

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @doc false
  def start_link(instance),
    do: GenServer.start_link(__MODULE__, instance, name: Instance.child(instance, :janitor))

  @impl true
  def init(instance) do
    schedule(:health, instance.config.health_check_interval)
    {:ok, instance, {:continue, :tidy}}
  end

  @impl true
  def handle_continue(:tidy, instance), do: {:noreply, tidy(instance)}

  @impl true
  def handle_info(:tidy, instance), do: {:noreply, tidy(instance)}

  def handle_info(:health, instance) do
    health(instance)
    schedule(:health, instance.config.health_check_interval)
    {:noreply, instance}
  end

  def handle_info(_, instance), do: {:noreply, instance}

  defp schedule(_message, :infinity), do: :ok
  defp schedule(message, interval), do: Process.send_after(self(), message, interval)

  defp tidy(instance) do
    case clean(instance, false, false) do
      {:ok, report} -> log(instance, report)
      # The Manager is just being restarted; there is a next time.
      {:error, _} -> :ok
    end

    if instance.config.broker, do: Broker.look(instance)
    schedule(:tidy, instance.config.cleanup_interval)
    look_for_telemetry(instance)
  end

  # The host may have started :telemetry after us, or stopped it.
  defp look_for_telemetry(instance) do
    case Telemetry.available?(instance.config) do
      same when same == instance.telemetry ->
        instance

      other ->
        instance = %{instance | telemetry: other}
        Instance.put(instance)
        instance
    end
  end

  defp log(instance, report) do
    if report.adopted != [],
      do: Logger.info("#{inspect(instance.name)} adopted named regions: #{Enum.join(report.adopted, ", ")}")

    if report.removed != [],
      do: Logger.info("#{inspect(instance.name)} removed orphans: #{Enum.join(report.removed, ", ")}")
  end

  defp clean(instance, dry_run?, damaged?) do
    with {:ok, freed} <- if(dry_run?, do: {:ok, []}, else: Manager.sweep(instance)) do
      unless dry_run? do
        ReferenceCounter.sweep(instance)
        Waiters.sweep(instance)
      end

      {:ok, Map.put(named(instance, dry_run?, damaged?), :freed, freed)}
    end
  end

  # ── Named objects ─────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  What lies under `directory` with our prefix, without an instance: name, path, and header or error.
  """
  @spec scan(String.t()) :: [%{name: String.t(), path: String.t(), header: map() | nil, error: term()}]
  def scan(directory) do
    case File.ls(directory) do
      {:ok, files} ->
        # More than anybody has regions would be somebody else's doing, in a directory that is open to all.
        for(@prefix <> name = file <- files, do: {name, file})
        |> Enum.sort()
        |> Enum.take(@most_objects)
        |> Enum.map(fn {name, file} -> inspect_object(name, Path.join(directory, file)) end)

      {:error, _} ->
        []
    end
  end

  defp inspect_object(name, path) do
    case Native.header_read(path) do
      {:ok, header, _length} ->
        with {:ok, metadata} when is_map(metadata) <- Native.json_decode(header.metadata) do
          %{name: name, path: path, header: Map.put(header, :metadata_map, metadata), error: nil}
        else
          _ -> %{name: name, path: path, header: nil, error: {:corrupted, %{field: :metadata}}}
        end

      {:error, {reason, details}} ->
        %{name: name, path: path, header: nil, error: {reason, details}}
    end
  end

  defp named(instance, dry_run?, damaged?) do
    report = %{adopted: [], removed: [], kept: []}

    instance.config.shm_path
    |> scan()
    |> Enum.reject(&:ets.member(instance.tables.names, &1.name))
    |> Enum.reduce(report, fn object, report ->
      case decide(instance, object, damaged?) do
        {:keep, why} -> add(report, :kept, %{name: object.name, why: why})
        action when dry_run? -> add(report, result(action), object.name)
        action -> act(instance, object, action, report)
      end
    end)
    |> Map.new(fn {key, list} -> {key, Enum.reverse(list)} end)
  end

  defp add(report, key, item), do: Map.update!(report, key, &[item | &1])

  defp result(:adopt), do: :adopted
  defp result(_remove), do: :removed

  defp act(instance, object, :adopt, report) do
    case adopt(instance, object) do
      :ok ->
        add(report, :adopted, object.name)

      {:error, error} ->
        Logger.warning("#{inspect(instance.name)} cannot adopt #{object.path}: #{Exception.message(error)}")
        add(report, :kept, %{name: object.name, why: error.reason})
    end
  end

  defp act(_instance, object, :remove, report) do
    case Native.named_unlink(object.path, object.header.id) do
      :ok -> add(report, :removed, object.name)
      {:error, {reason, _}} -> add(report, :kept, %{name: object.name, why: reason})
    end
  end

  defp act(_instance, object, :remove_damaged, report) do
    case File.rm(object.path) do
      :ok -> add(report, :removed, object.name)
      {:error, reason} -> add(report, :kept, %{name: object.name, why: reason})
    end
  end

  defp decide(_instance, %{header: nil} = object, damaged?) do
    if damaged? and removable?(object), do: :remove_damaged, else: {:keep, reason(object.error)}
  end

  defp decide(%{key: key} = instance, %{name: name, path: path, header: %{instance: key, named: true} = header}, _) do
    cond do
      # Copied or renamed by hand: not ours to touch, and its id may be in service.
      header.label != name or :ets.member(instance.tables.regions, header.id) -> {:keep, :copy}
      not match?({:ok, %{key: ^key}}, Instance.of_id(header.id)) -> {:keep, :damaged}
      Native.named_served(path) -> {:keep, :in_use}
      true -> decide_by_life(life(header.identity), header)
    end
  end

  defp decide(_instance, _object, _damaged?), do: {:keep, :other_instance}

  defp decide_by_life(:alive, _header), do: {:keep, :alive}
  defp decide_by_life(:other_namespace, _header), do: {:keep, :other_namespace}
  # Its VM was killed between "freed" and the removal.
  defp decide_by_life(:dead, %{state: :freed}), do: :remove
  defp decide_by_life(_dead, %{cleanup_policy: :manual}), do: :adopt
  defp decide_by_life(:earlier_boot_elsewhere, _header), do: {:keep, :other_namespace}
  defp decide_by_life(:dead, _header), do: :remove

  defp reason({reason, _}), do: reason

  @doc false
  # Only what is damaged: an object that we may not read is somebody else's business.
  def removable?(%{error: {:corrupted, _}, path: path}) do
    case File.lstat(path) do
      {:ok, %{type: :regular, uid: uid}} -> uid == Native.effective_uid()
      _ -> false
    end
  end

  def removable?(_object), do: false

  @doc false
  # What has become of the process that made an object.
  @spec life({binary(), integer(), integer(), integer()}) :: :alive | :dead | :other_namespace | :earlier_boot_elsewhere
  def life({boot, namespace, pid, start_time}) do
    {own_boot, own_namespace, own_pid, own_start} = Native.identity()

    cond do
      boot != own_boot -> if(namespace == own_namespace, do: :dead, else: :earlier_boot_elsewhere)
      namespace != own_namespace -> :other_namespace
      # Of this VM, and no instance knows it: its instance has ended.
      {pid, start_time} == {own_pid, own_start} -> :dead
      Native.process_alive(pid, start_time) -> :alive
      true -> :dead
    end
  end

  defp adopt(instance, %{path: path, header: header} = object) do
    bytes = div(header.size + header.data_offset + instance.page - 1, instance.page) * instance.page

    with {:ok, charge} <- Native.charge(instance.budget, bytes, instance.config.max_total_memory) do
      case Native.segment_open_dirty(charge, path, instance.config.descriptor_reserve) do
        {:ok, segment, %{id: id}} when id == header.id ->
          row = {id, :live, segment, :none, self(), nil, record(object.name, path, header)}

          with {:error, _} = error <- Manager.adopt(instance, row) do
            Native.segment_close(segment, false)
            error
          end

        # Replaced since it was looked at.
        {:ok, segment, _other} ->
          Native.segment_close(segment, false)
          {:error, Error.new(:corrupted, :adopt, header.id, %{field: :id})}

        failure ->
          Native.charge_release(charge)
          Error.from_native(failure, :adopt, header.id)
      end
    else
      failure -> Error.from_native(failure, :adopt, header.id)
    end
  end

  defp record(name, path, header) do
    %{
      size: header.size,
      name: name,
      path: path,
      dtype: header.dtype,
      shape: header.shape,
      owner: :none,
      cleanup_policy: header.cleanup_policy,
      timeout: header.timeout || :infinity,
      access_mode: if(header.access_read_only, do: :read_only, else: :read_write),
      peers: if(header.peers_write, do: :read_write, else: :read_only),
      permissions: permissions(header),
      security_level: :standard,
      metadata: header.metadata_map,
      metadata_json: header.metadata,
      huge_pages: :no,
      reserve: true,
      created_at: header.created_at
    }
  end

  defp permissions(%{mode: mode, owner_read_only: read_only?}) do
    owner = if read_only?, do: :read_only, else: :read_write
    %{owner: owner, group: right(Bitwise.bsr(mode, 3)), other: right(mode)}
  end

  defp right(bits) do
    case Bitwise.band(bits, 0o6) do
      0o6 -> :read_write
      0o4 -> :read_only
      _ -> :none
    end
  end

  # ── Health ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp health(instance) do
    {bytes, _} = Native.budget_usage(instance.budget)
    live = Native.live()
    regions = :ets.info(instance.tables.regions, :size)

    uses = [
      max_regions: {regions, instance.config.max_regions},
      max_total_memory: {bytes, instance.config.max_total_memory},
      max_mappings: {live.mappings, instance.config.max_mappings},
      open_files: {live.descriptors, Native.machine().open_files - instance.config.descriptor_reserve}
    ]

    warnings = for {limit, {used, allowed}} <- uses, used > @near * allowed, do: limit
    for limit <- warnings, do: Logger.warning("#{inspect(instance.name)} has used #{inspect(uses[limit])} of #{limit}")
    measurements = %{regions: regions, bytes: bytes, mappings: live.mappings, descriptors: live.descriptors}
    Telemetry.execute(instance, :health, measurements, %{warnings: warnings})
  end
end
