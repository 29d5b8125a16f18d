defmodule Snakepit.SharedMemory do
  @moduledoc """
  Regions of shared memory: this VM and other processes of the machine work on the same bytes.

      alias Snakepit.SharedMemory, as: Shm

      {:ok, region} = Shm.put(data, dtype: "float32", shape: [1024, 1024])   # allocate, write, seal
      handle = Shm.handle(region)                                           # send it to a Python worker, as JSON
      {:ok, binary} = Shm.view(region)                                      # no copy, whatever the size
      :ok = Shm.free(region)

  ## A region's life

  `allocate/2` makes one that can be written; `seal/1` makes it immutable, which is what `view/1` needs. It goes when it
  is freed, when its owner dies and nobody holds it, or when it has not been used for its `timeout:`. A view keeps its
  memory for as long as the binary, or a part of it, is alive somewhere.

  ## Instances

  A default instance, `Snakepit.SharedMemory`, runs with the application. More can stand in a supervision tree:

      children = [{Snakepit.SharedMemory, name: :models, max_total_memory: 4_294_967_296}]
      Shm.put(data, instance: :models)

  Functions that take a region find its instance by themselves. The keys of the configuration are those of
  `Snakepit.SharedMemory.Config`.

  ## Errors

  `{:error, %Snakepit.SharedMemory.Error{}}` with a `reason` to match on and a message that says what to do; the
  functions with `!` raise it. An operation on a region of another node is `:remote_region` (`hold/1` and `release/1` work from
  any node).
  """

  use Supervisor

  alias Snakepit.Native

  alias Snakepit.SharedMemory.{
    Access,
    Allocation,
    Broker,
    Call,
    Config,
    DType,
    Error,
    Handle,
    Instance,
    Janitor,
    Manager,
    Platform,
    ReferenceCounter,
    Region,
    Registry,
    SecurityController,
    Stats,
    Telemetry
  }

  @type result(value) :: {:ok, value} | {:error, Error.t()}

  # A write or read that finds the region busy waits this long.
  @busy_timeout 5_000
  @chunk 65_536
  # What the VM's timers take.
  @longest_wait 4_294_967_295
  # A hundred years: what is longer is meant to be :infinity, and must still be a number for JSON.
  @longest_expiry 3_155_760_000_000
  # Processes are small and rows survive: a storm of crashes must not end the instance.
  @max_restarts 1_000
  @max_seconds 5

  # ── Starting ──────────────────────────────────────────────────────────────────────────────────────────────────

  @doc false
  def child_spec(options) do
    name = if Keyword.keyword?(options), do: Keyword.get(options, :name, __MODULE__), else: __MODULE__
    %{id: name, start: {__MODULE__, :start_link, [options]}, type: :supervisor, shutdown: :infinity}
  end

  @doc """
  Starts an instance. Options: `name:` (an atom, default `Snakepit.SharedMemory`) and the keys of the configuration,
  which win over the application's.
  """
  @spec start_link(keyword()) :: Supervisor.on_start() | {:error, Error.t()}
  def start_link(options \\ []) do
    with {:ok, options} <- start_options(options),
         {name, options} = Keyword.pop(options, :name, __MODULE__),
         {:ok, key} <- name_to_key(name),
         :ok <- loaded(),
         {:ok, given} <- Config.from_application(),
         {:ok, config} <- Config.load(Map.merge(given, Map.new(options))),
         {:ok, _implementation} <- Platform.get_implementation(Platform.detect_platform()),
         :ok <- not_another(name, key) do
      Supervisor.start_link(__MODULE__, {name, key, config}, name: name)
    end
  end

  defp start_options(options) do
    if Keyword.keyword?(options), do: {:ok, options}, else: invalid(:start, :options, "a keyword list", options)
  end

  defp name_to_key(name) do
    with :error <- Instance.key(name),
         do: invalid(:start, :name, "an atom of 1 to 32 letters, digits, _, -, .", name)
  end

  defp loaded do
    case Native.loaded() do
      :ok -> :ok
      {:error, _, _} -> {:error, not_loaded()}
    end
  end

  @doc false
  def not_loaded do
    {:error, kind, because} = Native.loaded()
    path = Native.library() <> ".so"
    Error.new(:not_loaded, :start, nil, %{path: path, kind: kind, because: because})
  end

  # `:"A.B"` and `A.B` would have the same ids.
  defp not_another(name, key) do
    case Instance.fetch_key(key) do
      {:ok, %{name: other}} when other != name ->
        if Process.whereis(other),
          do: invalid(:start, :name, "a name whose text no other instance has (#{inspect(other)} runs)", name),
          else: :ok

      _ ->
        :ok
    end
  end

  defp invalid(operation, key, expected, got),
    do: {:error, Error.new(:invalid_option, operation, nil, %{key: key, expected: expected, got: got})}

  @impl true
  def init({name, key, config}) do
    # The supervisor owns the tables: they outlive every process that works on them.
    tables = Registry.new()

    instance = %Instance{
      name: name,
      key: key,
      salt: Instance.new_salt(),
      children: Instance.children(name),
      config: config,
      tables: tables,
      budget: Native.budget_new(),
      stats: Stats.new(tables.errors),
      page: Native.machine().page_size,
      telemetry: Telemetry.available?(config),
      timed: config.performance_monitoring
    }

    Instance.put(instance)

    broker =
      if config.broker,
        do: [
          {DynamicSupervisor, name: Instance.child(name, :connections), strategy: :one_for_one},
          {Broker, instance}
        ],
        else: []

    children =
      [{SecurityController, instance}, {ReferenceCounter, instance}, {Manager, instance}] ++
        broker ++ [{Janitor, instance}]

    Supervisor.init(children, strategy: :one_for_one, max_restarts: @max_restarts, max_seconds: @max_seconds)
  end

  # ── Making regions ────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Makes a region of `size` bytes, zeroed, to be written.

  ## Options

    * `:owner` - a local pid (default: the caller) or `:none`. When the owner dies the region goes, unless somebody holds it
    * `:dtype`, `:shape` - how the bytes are read: a NumPy name (#{Enum.join(DType.names(), ", ")})
      and a list of dimensions whose product times the element size is `size`
    * `:peers` - what other processes may do: `:read_only` (default; the kernel holds them to it) or `:read_write` (they
      can store at any time; only `write/3` and Python's `writing()` are consistent with `read/3`)
    * `:access_mode` - `:read_only` leaves writing to the owner, here and in peers; default `:read_write`
    * `:cleanup_policy` - `:automatic` (default: goes with its owner, or when it expires), `:manual` (goes by `free/1` only; the
      default of named regions), `:reference_counted` (starts with one reference of its owner and goes with the last one)
    * `:timeout` - milliseconds without use after which it goes, while nobody holds it, or `:infinity`; default:
      `default_timeout` of the configuration. Looked at each `cleanup_interval`
    * `:named` - a name of letters, digits, `_`, `-`, `.`, or `true` for one made up: the region is a file under `shm_path` that other programs
      can open and that survives the VM. The VM never maps it (somebody could truncate it), so reading and writing cost a system call,
      and `view/1` copies
    * `:permissions` - `%{owner: :read_write, group: :none, other: :none}`: the mode of a named object; `owner: :read_only`
      keeps peers to reading
    * `:metadata` - a map of what JSON knows, at most 3,072 bytes as JSON; keys come back as strings
    * `:huge_pages` - `true` (or `:no_huge_pages`), `:prefer` (falls back to normal pages; `info/1` says which), default `false`, or `:prefer`
      when the configuration says `use_hugepages: true`
    * `:reserve` - `false` takes pages as they are touched instead of now: cheaper, but memory can run out later
    * `:security_level` - `:standard`
    * `:instance` - the instance to make it in
  """
  @spec allocate(pos_integer(), keyword()) :: result(Region.t())
  def allocate(size, options \\ []), do: Allocation.allocate(size, options)

  @doc """
  Makes a region that holds `data` (a binary or iodata), and seals it. Options as for `allocate/2`.
  """
  @spec put(iodata(), keyword()) :: result(Region.t())
  def put(data, options \\ []) do
    with {:ok, size} <- data_size(data),
         {:ok, region} <- Allocation.allocate(size, options, :put),
         do: fill_and_seal(region, data)
  end

  defp data_size(data) do
    {:ok, IO.iodata_length(data)}
  rescue
    ArgumentError -> invalid(:put, :data, "a binary or iodata", data)
  end

  @doc """
  Makes a sealed region of a file's contents, which do not pass through a process heap.

  Options as for `allocate/2`, and `file_offset:` (bytes to skip, default 0), `length:` (default: to the end), `seal:` (default `true`).
  """
  @spec from_file(Path.t(), keyword()) :: result(Region.t())
  def from_file(path, options \\ []) do
    with {:ok, options} <- keyword_list(options, :from_file),
         {own, options} = Keyword.split(options, [:file_offset, :length, :seal]),
         {:ok, path} <- path_text(path),
         {:ok, offset, length} <- file_range(path, own),
         {:ok, region} <- Allocation.allocate(length, options, :from_file) do
      file = {:file, path, offset, length}
      if Keyword.get(own, :seal, true), do: fill_and_seal(region, file), else: fill_only(region, file)
    end
  end

  defp keyword_list(options, operation) do
    if Keyword.keyword?(options), do: {:ok, options}, else: invalid(operation, :options, "a keyword list", options)
  end

  defp path_text(path) do
    {:ok, path |> IO.chardata_to_string() |> Path.expand()}
  rescue
    _ -> invalid(:from_file, :path, "a path", path)
  end

  defp file_range(path, options) do
    offset = Keyword.get(options, :file_offset, 0)
    seal = Keyword.get(options, :seal, true)

    with {:ok, %{size: size, type: :regular}} <- File.stat(path),
         {_, true} <- {:file_offset, is_integer(offset) and offset >= 0 and offset <= size},
         length = Keyword.get(options, :length, size - offset),
         {_, true} <- {:length, is_integer(length) and length > 0 and length <= size - offset},
         {_, true} <- {:seal, is_boolean(seal)} do
      {:ok, offset, length}
    else
      {:ok, %{type: type}} ->
        invalid(:from_file, :path, "a regular file", {type, path})

      {:error, :enoent} ->
        {:error, Error.new(:not_found, :from_file, nil, %{path: path})}

      {:error, reason} ->
        {:error, Error.new(:os_error, :from_file, nil, %{call: "stat #{path}", message: inspect(reason)})}

      {:seal, false} ->
        invalid(:from_file, :seal, "true or false", seal)

      {key, false} ->
        invalid(:from_file, key, "bytes inside the file", Keyword.get(options, key, :to_the_end))
    end
  end

  # Nothing is left of a region that could not be filled.
  defp fill_and_seal(region, contents) do
    with :ok <- Access.fill(region, contents),
         {:ok, sealed} <- Access.seal_filled(region) do
      {:ok, sealed}
    else
      error -> discard(region, error)
    end
  end

  defp fill_only(region, contents) do
    case Access.fill(region, contents) do
      :ok -> {:ok, region}
      error -> discard(region, error)
    end
  end

  defp discard(region, error) do
    free(region)
    error
  end

  # ── Reading and writing ───────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Writes iodata at `offset`, in bytes. Binaries inside it are not flattened first.

  `timeout:` (milliseconds, default #{@busy_timeout}) bounds the wait for a peer's `writing()` or another process's access; `:busy` past it.
  """
  @spec write(Region.t(), non_neg_integer(), iodata(), keyword()) :: :ok | {:error, Error.t()}
  def write(region, offset, iodata, options \\ []) do
    with {:ok, timeout} <- busy_timeout(options, :write), :ok <- is_region(region, :write) do
      Access.write(region, offset, iodata, timeout)
    end
  end

  @doc """
  A consistent copy of `length` bytes at `offset`: never the half of a `write/3` or of a peer's `writing()`.
  `timeout:` as for `write/4`.
  """
  @spec read(Region.t(), non_neg_integer(), non_neg_integer(), keyword()) :: result(binary())
  def read(region, offset, length, options \\ []) do
    with {:ok, timeout} <- busy_timeout(options, :read), :ok <- is_region(region, :read) do
      Access.read(region, offset, length, timeout)
    end
  end

  defp busy_timeout([], _operation), do: {:ok, @busy_timeout}

  defp busy_timeout(options, operation) do
    case options do
      [timeout: timeout] when timeout == :infinity or timeout in 0..@longest_wait -> {:ok, timeout}
      other -> invalid(operation, :timeout, "[timeout: milliseconds or :infinity]", other)
    end
  end

  defp is_region(%Region{}, _operation), do: :ok
  defp is_region(other, operation), do: bad_region(other, operation)

  defp bad_region(other, operation) do
    details = %{key: :region, expected: "a %Snakepit.SharedMemory.Region{}", got: other}
    {:error, Error.new(:invalid_argument, operation, nil, details)}
  end

  @doc """
  Makes the region immutable, for everybody and for good. `:busy` names the peers that still map it writable.
  """
  @spec seal(Region.t()) :: result(Region.t())
  def seal(%Region{} = region), do: Access.seal(region)
  def seal(other), do: bad_region(other, :seal)

  @doc """
  The region's bytes as a binary, without copying them, in constant time. Sealed regions only.

  The memory stays for as long as the binary or a part of it is alive, also after `free/1`. Of a named region it is a copy.
  """
  @spec view(Region.t()) :: result(binary())
  def view(%Region{size: size} = region), do: Access.view(region, 0, size)
  def view(other), do: bad_region(other, :view)

  @doc "The same of `length` bytes at `offset`."
  @spec view(Region.t(), non_neg_integer(), non_neg_integer()) :: result(binary())
  def view(%Region{} = region, offset, length), do: Access.view(region, offset, length)
  def view(other, _offset, _length), do: bad_region(other, :view)

  @doc """
  A stream of the region's bytes in binaries of `chunk_bytes` (default #{@chunk}, the last may be shorter): views of a
  sealed region, else a consistent copy of each part. Raises `Snakepit.SharedMemory.Error`.
  """
  @spec stream!(Region.t(), pos_integer()) :: Enumerable.t()
  def stream!(region, chunk_bytes \\ @chunk)

  def stream!(%Region{} = region, chunk_bytes) when is_integer(chunk_bytes) and chunk_bytes > 0 do
    part = fn offset, length ->
      case Access.view(region, offset, length) do
        {:error, %Error{reason: :not_sealed}} -> Access.read(region, offset, length, @busy_timeout)
        other -> other
      end
    end

    Stream.unfold(0, fn
      offset when offset >= region.size ->
        nil

      offset ->
        length = min(chunk_bytes, region.size - offset)
        {ok!(part.(offset, length)), offset + length}
    end)
  end

  def stream!(%Region{}, chunk_bytes), do: ok!(invalid(:stream, :chunk_bytes, "a positive integer", chunk_bytes))
  def stream!(other, _chunk_bytes), do: ok!(bad_region(other, :stream))

  @doc """
  Waits until somebody has completed a write: until the region's generation is over `generation`, which it gives.
  `info/1` tells the present one; a new region's is 0.
  """
  @spec wait(Region.t(), non_neg_integer(), timeout()) :: result(non_neg_integer())
  def wait(region, generation, timeout \\ 5_000)

  def wait(%Region{} = region, generation, timeout)
      when is_integer(generation) and generation >= 0 and
             (timeout == :infinity or timeout in 0..@longest_wait),
      do: Access.wait(region, generation, timeout)

  def wait(%Region{}, generation, timeout),
    do:
      invalid(
        :wait,
        :generation,
        "a non-negative integer, and a timeout in milliseconds or :infinity",
        {generation, timeout}
      )

  def wait(other, _generation, _timeout), do: bad_region(other, :wait)

  # ── Handles ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  What another process needs to attach the region: a map of JSON values (`Snakepit.SharedMemory.Handle`).

    * `:mode` - `:read_only`, or `:read_write` where the region's `peers:` allow it; default: what they allow
    * `:expires_in` - milliseconds after which it attaches nobody any more; default `:infinity`
  """
  @spec handle(Region.t(), keyword()) :: Handle.t() | {:error, Error.t()}
  def handle(region, options \\ []) do
    with :ok <- is_region(region, :handle),
         {:ok, mode, expires} <- handle_options(options),
         {:ok, instance, row} <- Registry.locate(region, :handle),
         :ok <- may_write(mode, region, row),
         {:ok, handle} <- SecurityController.handle(instance, row, [mode || :read_write, region.mode], expires),
         do: handle
  end

  defp handle_options(options) do
    with {:ok, options} <- keyword_list(options, :handle),
         [] <- Keyword.keys(options) -- [:mode, :expires_in],
         mode when mode in [nil, :read_only, :read_write] <- options[:mode] do
      case Keyword.get(options, :expires_in, :infinity) do
        :infinity -> {:ok, mode, nil}
        ms when ms in 1..@longest_expiry -> {:ok, mode, System.system_time(:millisecond) + ms}
        other -> invalid(:handle, :expires_in, "1 to #{@longest_expiry} milliseconds, or :infinity", other)
      end
    else
      {:error, _} = error -> error
      [key | _] -> invalid(:handle, key, ":mode or :expires_in", options[key])
      mode -> invalid(:handle, :mode, ":read_only or :read_write", mode)
    end
  end

  defp may_write(:read_write, %Region{id: id} = region, row) do
    if Allocation.strictest([SecurityController.allowed(row), region.mode]) == :read_only,
      do: {:error, Error.new(:read_only, :handle, id, %{because: "the region's peers may only read, or it is sealed"})},
      else: :ok
  end

  defp may_write(_mode, _region, _row), do: :ok

  @doc """
  The region of a handle (a map or JSON text) of this VM, held by the calling process: `release/1` lets go.

  A handle of another VM is `:foreign_handle`: its memory is reached with the Python client, or on its own VM.
  """
  @spec attach(Handle.t() | String.t()) :: result(Region.t())
  def attach(handle) do
    with {:ok, handle} <- Handle.parse(handle),
         {:ok, instance} <- own_instance(handle),
         {:ok, request} <- request(handle) do
      Telemetry.measure(instance, :map, request.id, 0, fn ->
        with {:ok, mode, row} <- SecurityController.authorize(instance, request),
             {:ok, _count} <- ReferenceCounter.increment(request.id, self()) do
          {:ok, Registry.region_of(instance, row, mode: Allocation.strictest([mode, Manager.mode_for(row, self())]))}
        end
      end)
    end
  end

  defp own_instance(%{"id" => id, "socket" => socket, "instance" => key}) do
    with {:ok, instance} <- Instance.of_id(id),
         true <- Process.whereis(instance.name) != nil,
         [{:socket, ^socket}] <- :ets.lookup(instance.tables.house, :socket) do
      {:ok, instance}
    else
      _ -> {:error, Error.new(:foreign_handle, :attach, id, %{instance: key})}
    end
  end

  defp request(handle) do
    {:ok,
     %{
       uid: Native.effective_uid(),
       id: handle["id"],
       token: handle["token"],
       mode: if(handle["mode"] == "read_write", do: :read_write, else: :read_only),
       expires: handle["expires"]
     }}
  end

  @doc """
  The named region of that name, held by the calling process. `instance:` says where to look.
  """
  @spec open(String.t(), keyword()) :: result(Region.t())
  def open(name, options \\ []) do
    with {:ok, options} <- keyword_list(options, :open),
         :ok <- only_instance(options, :open),
         :ok <- is_name(name),
         {:ok, instance} <- Instance.fetch(Keyword.get(options, :instance, __MODULE__), :open),
         [{_, id}] <- :ets.lookup(instance.tables.names, name) do
      Manager.map_region(id)
    else
      [] -> {:error, Error.new(:not_found, :open, nil, %{name: name})}
      error -> error
    end
  end

  defp only_instance(options, operation) do
    case Keyword.keys(options) -- [:instance] do
      [] -> :ok
      [key | _] -> invalid(operation, key, ":instance, the one option there is", options[key])
    end
  end

  defp is_name(name) when is_binary(name), do: :ok
  defp is_name(other), do: invalid(:open, :name, "the text given as named:", other)

  # ── Keeping and giving up ─────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Keeps the region alive until the calling process, of whatever node, releases it or dies. Holding twice is holding once.
  """
  @spec hold(Region.t()) :: :ok | {:error, Error.t()}
  def hold(region), do: change_hold(region, :increment, :hold)

  @doc "Gives up what `hold/1`, `attach/1` or `open/2` took. The last one to let go of an orphan frees it."
  @spec release(Region.t()) :: :ok | {:error, Error.t()}
  def release(region), do: change_hold(region, :decrement, :release)

  defp change_hold(%Region{node: node, id: id} = region, request, operation) when node != node() do
    result = Call.call(%{name: region.instance}, :reference_counter, {request, id, self()}, operation, node)
    with {:ok, _count} <- result, do: :ok
  end

  defp change_hold(%Region{id: id}, request, _operation) do
    with {:ok, _count} <- apply(ReferenceCounter, request, [id, self()]), do: :ok
  end

  defp change_hold(other, _request, operation), do: bad_region(other, operation)

  @doc """
  Makes another local process, or `:none`, the owner. Only the owner can; of a region that no process of this VM owns (`:none`,
  or a peer that made it) anybody can.
  """
  @spec transfer(Region.t(), pid() | :none) :: :ok | {:error, Error.t()}
  def transfer(%Region{} = region, to) when to == :none or (is_pid(to) and node(to) == node()) do
    with {:ok, instance, _row} <- Registry.locate(region, :transfer),
         do: Manager.transfer(instance, region.id, self(), to)
  end

  def transfer(%Region{}, to), do: invalid(:transfer, :to, "a local pid or :none", to)
  def transfer(other, _to), do: bad_region(other, :transfer)

  @doc "Frees the region now, whoever owns or holds it. Views that exist keep their memory."
  @spec free(Region.t()) :: :ok | {:error, Error.t()}
  def free(%Region{} = region) do
    with {:ok, instance, row} <- Access.row(region, :free), do: Manager.free(instance, row)
  end

  def free(other), do: bad_region(other, :free)

  # ── Looking ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "All there is to know of a region (`t:Snakepit.SharedMemory.Manager.region_info/0`)."
  @spec info(Region.t() | String.t()) :: result(Manager.region_info())
  def info(%Region{id: id, node: node}) when node == node(), do: Manager.get_region_info(id)
  def info(%Region{id: id, node: node}), do: {:error, Error.new(:remote_region, :info, id, %{node: node})}
  def info(id), do: Manager.get_region_info(id)

  @doc """
  The instance's regions, as infos, oldest first. `filter` as for `Snakepit.SharedMemory.Manager.list_regions/1`, and `instance:`.
  """
  @spec list(keyword() | map()) :: result([Manager.region_info()])
  def list(filter \\ []), do: Manager.list_regions(filter)

  @doc "Counts, bytes and times of an instance."
  @spec stats(atom()) :: result(Stats.t())
  def stats(name \\ __MODULE__) do
    with {:ok, instance} <- Instance.fetch(name, :stats) do
      times = Stats.times(instance.stats)
      {made, gone} = Stats.totals(instance.stats)
      {bytes, _charges} = Native.budget_usage(instance.budget)

      {:ok,
       %Stats{
         total_allocations: made,
         total_deallocations: gone,
         active_regions: :ets.info(instance.tables.regions, :size),
         total_memory_allocated: bytes,
         references: :ets.info(instance.tables.holders, :size),
         sessions: :ets.info(instance.tables.sessions, :size),
         operations: times,
         error_counts: Stats.errors(instance.stats),
         last_updated: DateTime.utc_now()
       }}
    end
  end

  @doc "The peers' sessions: `%{session:, name:, os_pid:, connection:, regions:}`."
  @spec sessions(atom()) :: result([map()])
  def sessions(name \\ __MODULE__) do
    with {:ok, instance} <- Instance.fetch(name, :sessions), do: {:ok, Broker.sessions(instance)}
  end

  @doc "Frees what has expired or is orphaned, now (`Snakepit.SharedMemory.Janitor.cleanup_regions/1`)."
  @spec cleanup(keyword() | map()) :: result(Janitor.report())
  def cleanup(options \\ []), do: Janitor.cleanup_regions(options)

  @doc "The NumPy name of the elements, or `nil`."
  @spec dtype(Region.t()) :: String.t() | nil
  def dtype(%Region{dtype: dtype}), do: dtype

  @doc "The dimensions, or `nil`."
  @spec shape(Region.t()) :: [non_neg_integer()] | nil
  def shape(%Region{shape: shape}), do: shape

  @doc """
  The element type as Nx names it, or `nil`.

      iex> {:ok, region} = Snakepit.SharedMemory.put(<<0::size(64)>>, dtype: "float32", shape: [2])
      iex> Snakepit.SharedMemory.nx_type(region)
      {:f, 32}
  """
  @spec nx_type(Region.t()) :: {atom(), pos_integer()} | nil
  def nx_type(%Region{dtype: nil}), do: nil
  def nx_type(%Region{dtype: dtype}), do: DType.nx_type(dtype)

  # ── The forms that raise ──────────────────────────────────────────────────────────────────────────────────────

  for {name, arguments} <- [
        allocate: [:size],
        allocate: [:size, :options],
        put: [:data],
        put: [:data, :options],
        from_file: [:path],
        from_file: [:path, :options],
        write: [:region, :offset, :iodata],
        write: [:region, :offset, :iodata, :options],
        read: [:region, :offset, :length],
        read: [:region, :offset, :length, :options],
        seal: [:region],
        view: [:region],
        view: [:region, :offset, :length],
        wait: [:region, :generation],
        wait: [:region, :generation, :timeout],
        handle: [:region],
        handle: [:region, :options],
        attach: [:handle],
        open: [:name],
        open: [:name, :options],
        hold: [:region],
        release: [:region],
        transfer: [:region, :to],
        free: [:region],
        info: [:region],
        list: [],
        list: [:filter],
        stats: [],
        stats: [:name],
        sessions: [],
        sessions: [:name],
        cleanup: [],
        cleanup: [:options]
      ] do
    variables = Enum.map(arguments, &Macro.var(&1, __MODULE__))

    @doc "`#{name}/#{length(arguments)}`, with the value alone; raises `Snakepit.SharedMemory.Error`."
    @spec unquote(:"#{name}!")(unquote_splicing(Enum.map(arguments, fn _ -> quote(do: term()) end))) :: term()
    def unquote(:"#{name}!")(unquote_splicing(variables)), do: ok!(unquote(name)(unquote_splicing(variables)))
  end

  defp ok!({:ok, value}), do: value
  defp ok!({:error, error}), do: raise(error)
  defp ok!(value), do: value
end
