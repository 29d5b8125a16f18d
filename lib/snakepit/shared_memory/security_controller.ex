defmodule Snakepit.SharedMemory.SecurityController do
  @moduledoc """
  Who may reach a region, and how. Every grant passes here.

  The process holds the instance's key, with which it signs handles. The key lies in a file of the broker's directory
  (0700), locked for this VM: so handles to named regions still hold after a restart, and two VMs never share a key or a
  socket. A second VM of the same user and instance name gets names with its process id in them.

  Decided at `:standard`: the same user, a token that fits, an expiry that has not passed, and the strictest of what
  the region, its `access_mode`, its `permissions` and the handle allow.
  """

  use GenServer

  require Logger

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Allocation, Call, Error, Handle, Instance, Registry}

  @key_bytes 32
  # sun_path has 108 bytes and ends with a zero.
  @socket_path_limit 107

  @type mode :: :read_only | :read_write
  @type request :: %{
          uid: non_neg_integer(),
          id: String.t(),
          token: String.t(),
          mode: mode(),
          expires: non_neg_integer() | nil
        }

  @doc "Whether the request is granted, and with which mode; the region it is for."
  @spec authorize(Instance.t(), request()) :: {:ok, mode(), Registry.row()} | {:error, Error.t()}
  def authorize(instance, request), do: Call.call(instance, :security_controller, {:authorize, request}, :attach)

  @doc false
  # Sees to it that the directory, the lock and the socket's path are (again) ours.
  @spec restore_place(Instance.t()) :: :ok | {:error, Error.t()}
  def restore_place(instance), do: Call.call(instance, :security_controller, :restore_place, :start)

  @doc "Signs a handle."
  @spec sign(Instance.t(), String.t(), mode(), non_neg_integer() | nil) :: {:ok, String.t()} | {:error, Error.t()}
  def sign(instance, id, mode, expires),
    do: Call.call(instance, :security_controller, {:sign, id, mode, expires}, :handle)

  @doc "A handle of the region, in the strictest of the given modes."
  @spec handle(Instance.t(), Registry.row(), [mode()], non_neg_integer() | nil) ::
          {:ok, Handle.t()} | {:error, Error.t()}
  def handle(instance, {id, _, _, _, _, _, record} = row, modes, expires) do
    mode = Allocation.strictest([allowed(row) | modes])

    with {:ok, socket} <- socket(instance, id),
         {:ok, token} <- sign(instance, id, mode, expires) do
      {:ok,
       %{
         "snakepit_shm" => Handle.version(),
         "id" => id,
         "instance" => instance.key,
         "socket" => socket,
         "token" => token,
         "mode" => Atom.to_string(mode),
         "expires" => expires,
         "size" => record.size,
         "dtype" => record.dtype,
         "shape" => record.shape,
         "metadata" => record.metadata
       }}
    end
  end

  @doc "What peers may do with a region at most."
  @spec allowed(Registry.row()) :: mode()
  def allowed({_, _, segment, _, _, _, record}) do
    if Native.segment_info(segment).state == :sealed, do: :read_only, else: record.peers
  end

  defp socket(instance, id) do
    case :ets.lookup(instance.tables.house, :socket) do
      [{:socket, path}] ->
        {:ok, path}

      [] ->
        because = "it runs with broker: false, and handles need the broker"
        {:error, Error.new(:not_started, :handle, id, %{instance: instance.name, because: because})}
    end
  end

  @doc false
  def start_link(instance),
    do: GenServer.start_link(__MODULE__, instance, name: Instance.child(instance, :security_controller))

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def init(instance) do
    # The key stays out of crash dumps and traces.
    Process.flag(:sensitive, true)
    Process.flag(:trap_exit, true)

    with {:ok, key} <- key(instance) do
      {:ok, %{instance: instance, key: key}}
    else
      {:error, error} -> {:stop, error}
    end
  end

  @impl true
  def handle_call({:again, request}, from, state), do: handle_call(request, from, state)

  def handle_call(:restore_place, _from, state), do: {:reply, restore(state), state}

  def handle_call({:sign, id, mode, expires}, _from, state),
    do: {:reply, {:ok, token(state.key, id, mode, expires)}, state}

  def handle_call({:authorize, request}, _from, state), do: {:reply, decide(state, request), state}

  @impl true
  # An orderly end leaves only the named regions that are kept by policy, and the key that their handles need.
  def terminate(:shutdown, %{instance: %{tables: tables} = instance}) do
    named =
      for {_, :live, segment, _, _, _, %{name: name} = record} <- Registry.rows(instance), name, do: {segment, record}

    {kept, going} = Enum.split_with(named, fn {_, record} -> record.cleanup_policy == :manual end)
    for {segment, _} <- going, do: Native.segment_close_dirty(segment, true)

    with [{:lock, descriptor, path, _inode}] <- :ets.lookup(tables.house, :lock) do
      if kept == [], do: File.rm(path)
      Native.descriptor_close(descriptor)
    end

    for {:directory, directory} <- :ets.lookup(tables.house, :directory), do: File.rmdir(directory)

    Instance.erase(instance)
  end

  def terminate(_reason, _state), do: :ok

  @doc false
  def format_status(status), do: Map.replace(status, :state, :hidden)

  # ── Decisions ─────────────────────────────────────────────────────────────────────────────────────────────────

  defp decide(state, %{id: id} = request) do
    own = Native.effective_uid()

    cond do
      request.uid != own ->
        refuse(:foreign_user, id, %{uid: request.uid, expected: own})

      # Whoever has no valid token learns nothing else of the region.
      not fits?(state.key, request) ->
        refuse(:bad_token, id, %{})

      request.expires != nil and request.expires <= System.system_time(:millisecond) ->
        refuse(:expired, id, %{expires: DateTime.from_unix!(request.expires, :millisecond)})

      true ->
        case Registry.fetch(state.instance, id) do
          {:ok, {_, :live, _, _, _, _, _} = row} -> {:ok, Allocation.strictest([request.mode, allowed(row)]), row}
          _ -> refuse(:region_not_found, id, %{})
        end
    end
  end

  defp fits?(key, %{id: id, token: token, mode: mode, expires: expires}) do
    expected = token(key, id, mode, expires)
    byte_size(token) == byte_size(expected) and :crypto.hash_equals(token, expected)
  end

  defp refuse(reason, id, details), do: {:error, Error.new(reason, :attach, id, details)}

  defp token(key, id, mode, expires) do
    text = ["snakepit_shm 1", 0, id, 0, Atom.to_string(mode), 0, if(expires, do: Integer.to_string(expires), else: "")]
    Base.url_encode64(:crypto.mac(:hmac, :sha256, key, text), padding: false)
  end

  # ── The key and the socket's place ────────────────────────────────────────────────────────────────────────────

  defp key(%{config: %{broker: false}}), do: {:ok, :crypto.strong_rand_bytes(@key_bytes)}

  defp key(%{tables: %{house: house}} = instance) do
    case :ets.lookup(house, :key) do
      # A restart within this VM: key, lock and path are still ours, whatever has become of the file. (Tables are not in
      # crash dumps.)
      [{:key, key}] ->
        {:ok, key}

      [] ->
        with {:ok, descriptor, contents, base} <- place(instance),
             {:ok, key} <- contents_or_new(descriptor, contents) do
          :ets.insert(house, [{:key, key} | names(descriptor, base)])
          {:ok, key}
        end
    end
  end

  # The directory, and in it the lock that makes the names ours.
  defp place(instance) do
    with {:ok, _descriptor, _contents, base} = place <- find_place(instance) do
      sweep(Path.dirname(base), instance.key)
      place
    end
  end

  # What VMs that were killed have left of names with their process ids in them: nobody takes those up again.
  defp sweep(directory, key) do
    prefix = key <> "-"

    for file <- list(directory), String.starts_with?(file, prefix), Path.extname(file) == ".key" do
      path = Path.join(directory, file)

      # Whoever lives holds the lock.
      with {:ok, descriptor, _contents} <- Native.lock_file(path) do
        File.rm(Path.rootname(path) <> ".sock")
        File.rm(path)
        Native.descriptor_close(descriptor)
      end
    end
  end

  defp list(directory) do
    case File.ls(directory) do
      {:ok, files} -> files
      {:error, _} -> []
    end
  end

  defp find_place(%{config: config} = instance) do
    case lock_in(config.socket_dir, instance.key) do
      # Somebody else was there first: nobody keeps a VM from starting by making a directory.
      {:error, %Error{reason: :foreign_user} = error} when config.socket_dir_auto ->
        directory = "#{config.socket_dir}-#{Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)}"
        Logger.warning("#{inspect(instance.name)} uses #{directory}: #{Exception.message(error)}")
        :ets.insert(instance.tables.house, {:directory, directory})
        lock_in(directory, instance.key)

      other ->
        other
    end
  end

  # A second VM of the same user and instance name gets names of its own.
  defp lock_in(directory, key) do
    base = Path.join(directory, key)

    with :ok <- short_enough(base),
         :ok <- private_directory(directory),
         {:error, %Error{reason: :locked}} <- lock(base) do
      own = base <> "-" <> System.pid()
      with :ok <- short_enough(own), do: lock(own)
    end
  end

  defp lock(base) do
    case Native.lock_file(base <> ".key") do
      {:ok, descriptor, contents} -> {:ok, descriptor, contents, base}
      failure -> Error.from_native(failure, :start, nil)
    end
  end

  # Directory or key file have been removed under us (a tmp cleaner, the end of a login session): the same key again, in
  # a place that is ours.
  defp restore(%{instance: %{tables: %{house: house}} = instance, key: key}) do
    [{:lock, descriptor, path, inode}] = :ets.lookup(house, :lock)

    if inode(path) == inode do
      :ok
    else
      with {:ok, new, _contents, base} <- place(instance),
           :ok <- or_error(Native.lock_write(new, key)) do
        Native.descriptor_close(descriptor)
        :ets.insert(house, names(new, base))
        :ok
      end
    end
  end

  defp names(descriptor, base),
    do: [{:lock, descriptor, base <> ".key", inode(base <> ".key")}, {:socket, base <> ".sock"}]

  defp inode(path) do
    case File.lstat(path) do
      {:ok, %{inode: inode, major_device: device}} -> {device, inode}
      {:error, _} -> nil
    end
  end

  defp or_error(:ok), do: :ok
  defp or_error(failure), do: Error.from_native(failure, :start, nil)

  defp contents_or_new(_descriptor, key) when byte_size(key) == @key_bytes, do: {:ok, key}

  # New, or left half written by a VM that was killed in the middle.
  defp contents_or_new(descriptor, _contents) do
    key = :crypto.strong_rand_bytes(@key_bytes)

    case Native.lock_write(descriptor, key) do
      :ok -> {:ok, key}
      failure -> Error.from_native(failure, :start, nil)
    end
  end

  defp private_directory(directory) do
    File.mkdir_p(Path.dirname(directory))
    File.mkdir(directory)

    with {:ok, %{type: :directory, uid: uid} = stat} <- File.lstat(directory),
         {:own, true, _} <- {:own, uid == Native.effective_uid(), uid},
         :ok <- if(Bitwise.band(stat.mode, 0o077) == 0, do: :ok, else: File.chmod(directory, 0o700)) do
      :ok
    else
      {:own, false, uid} ->
        {:error, Error.new(:foreign_user, :start, nil, %{uid: Native.effective_uid(), expected: uid, path: directory})}

      {:ok, %{type: type}} ->
        {:error, os_error("use", directory, type)}

      {:error, reason} ->
        {:error, os_error("make", directory, reason)}
    end
  end

  defp short_enough(base) when byte_size(base) + 5 <= @socket_path_limit, do: :ok

  defp short_enough(base) do
    socket = base <> ".sock"

    details = %{
      key: :socket_dir,
      expected: "a path that leaves #{@socket_path_limit} bytes for the socket's",
      got: socket
    }

    {:error, Error.new(:invalid_option, :start, nil, details)}
  end

  defp os_error(call, path, reason),
    do: Error.new(:os_error, :start, nil, %{call: "#{call} #{path}", message: inspect(reason)})
end
