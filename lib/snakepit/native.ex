defmodule Snakepit.Native do
  @moduledoc false
  # The functions of native/nif. Nothing else: policy and validation are the callers'.
  #
  # Whatever can fail answers {:error, {reason, details}}, an atom and a map. Functions whose work grows with
  # a size come twice: the plain one runs on the calling scheduler and is for small sizes, the `_dirty` one on a
  # dirty scheduler. native/nif/README.md lists the reasons.

  @on_load :load

  @type budget :: reference()
  @type charge :: reference()
  @type segment :: reference()
  @type descriptor :: reference()
  @type watch :: reference()
  @type failure :: {:error, {reason :: atom(), details :: map()}}

  @typedoc """
  What a header page says (native/shm/LAYOUT.md). `metadata` is JSON text. `timeout` and `shape` may be nil.
  `identity` is `{boot_id_hex, pid_namespace, pid, start_time}`.
  """
  @type header :: %{
          id: binary(),
          instance: binary(),
          size: pos_integer(),
          data_offset: pos_integer(),
          named: boolean(),
          huge_pages: boolean(),
          peers_write: boolean(),
          access_read_only: boolean(),
          owner_read_only: boolean(),
          label: binary() | nil,
          mode: non_neg_integer(),
          cleanup_policy: :automatic | :manual | :reference_counted,
          timeout: non_neg_integer() | nil,
          created_at: integer(),
          dtype: binary() | nil,
          shape: [non_neg_integer()] | nil,
          metadata: binary(),
          identity: {binary(), non_neg_integer(), non_neg_integer(), non_neg_integer()},
          sequence: non_neg_integer(),
          writer: non_neg_integer(),
          state: :allocated | :sealed | :freed | :invalid
        }

  @typedoc "What `segment_create/2` needs. `name` is the absolute path of a named object, or nil."
  @type spec :: %{
          id: binary(),
          instance: binary(),
          size: pos_integer(),
          name: binary() | nil,
          label: binary() | nil,
          mode: non_neg_integer(),
          peers_write: boolean(),
          access_read_only: boolean(),
          owner_read_only: boolean(),
          huge_pages: :no | :prefer | :require,
          reserve: boolean(),
          cleanup_policy: :automatic | :manual | :reference_counted,
          timeout: non_neg_integer() | nil,
          dtype: binary() | nil,
          shape: [non_neg_integer()] | nil,
          metadata: binary(),
          mapping_limit: pos_integer(),
          descriptor_reserve: non_neg_integer()
        }

  @doc false
  def load do
    loaded_before? = :persistent_term.get({__MODULE__, :loaded}, nil) == :ok

    case :erlang.load_nif(path(), 0) do
      :ok ->
        :persistent_term.put({__MODULE__, :loaded}, :ok)

      {:error, {kind, text}} when loaded_before? ->
        # The running library has threads and live memory, and its resource types cannot be taken over. An error here
        # keeps the loaded code in service.
        :logger.warning(
          ~c"snakepit_shm: the native library stays as it is until the VM restarts (~p: ~ts)",
          [kind, text]
        )

        {:error, :restart_needed}

      {:error, {kind, text}} ->
        # The first load never fails: an on_load that does would stop a release at boot. The stubs stay, and starting
        # an instance is refused with this reason.
        :persistent_term.put({__MODULE__, :loaded}, {:error, kind, List.to_string(text)})
        :ok
    end
  end

  @doc "Where the library is looked for, without its ending."
  @spec library() :: String.t()
  def library, do: List.to_string(path())

  defp path do
    directory =
      case :code.priv_dir(:snakepit_shm) do
        # Not loaded as an application: from the project's own directory, as scripts do.
        {:error, :bad_name} -> ~c"priv"
        path -> path
      end

    :filename.join([directory, ~c"native", ~c"snakepit_nif"])
  end

  @doc "Whether the library is there: `:ok`, or why not."
  @spec loaded() :: :ok | {:error, atom(), String.t()}
  def loaded, do: :persistent_term.get({__MODULE__, :loaded}, {:error, :not_loaded, "never tried"})

  # ── Accounting ────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "An account of bytes. Lives as long as somebody refers to it."
  @spec budget_new() :: budget()
  def budget_new, do: nif()

  @doc "Bytes charged and number of charges not yet released (memory kept alive by views included)."
  @spec budget_usage(budget()) :: {bytes :: non_neg_integer(), charges :: non_neg_integer()}
  def budget_usage(_budget), do: nif()

  @doc """
  Takes `bytes` out of `limit`, atomically. `segment_create/2` moves the charge into the segment, which gives it back
  when the last mapping of the memory is gone. Error: `:memory_limit_exceeded` (`%{used:, asked:, limit:, closing:}`,
  `closing` the bytes that the reaper is about to give back).
  """
  @spec charge(budget(), pos_integer(), pos_integer()) :: {:ok, charge()} | failure()
  def charge(_budget, _bytes, _limit), do: nif()

  @doc "Gives back a charge that no segment has taken. Does nothing the second time."
  @spec charge_release(charge()) :: :ok
  def charge_release(_charge), do: nif()

  # ── Segments ──────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "Creates, reserves, writes the header, maps (anonymous), and names it last (named)."
  @spec segment_create(charge(), spec()) :: {:ok, segment()} | failure()
  def segment_create(_charge, _spec), do: nif()
  @spec segment_create_dirty(charge(), spec()) :: {:ok, segment()} | failure()
  def segment_create_dirty(_charge, _spec), do: nif()

  @doc "Opens a named object that exists and checks its header (`:corrupted` with `%{field:, found:, expected:}`)."
  @spec segment_open_dirty(charge(), path :: binary(), descriptor_reserve :: non_neg_integer()) ::
          {:ok, segment(), header()} | failure()
  def segment_open_dirty(_charge, _path, _reserve), do: nif()

  @doc "Reads and checks the header of a named object with `pread`; the object's length with it."
  @spec header_read(path :: binary()) ::
          {:ok, header(), length :: non_neg_integer()} | failure()
  def header_read(_path), do: nif()

  @doc "Whether a VM serves the named object: it holds a lock on it for as long."
  @spec named_served(path :: binary()) :: boolean()
  def named_served(_path), do: nif()

  @doc "Takes a named object out of service: unlinks it if `header_read/1` still finds the same `id` there."
  @spec named_unlink(path :: binary(), id :: binary()) :: :ok | failure()
  def named_unlink(_path, _id), do: nif()

  @doc """
  Copies the binaries one after the other to `offset`. Errors: `:busy` (`%{writer: number}`: 1 another process of
  this VM, else a peer's session; 0 readers are in the way), `:sealed`, `:closed`, `:out_of_range`, `:corrupted`. Answers the new generation.
  """
  @spec segment_write(segment(), non_neg_integer(), [binary()]) :: {:ok, generation :: non_neg_integer()} | failure()
  def segment_write(_segment, _offset, _binaries), do: nif()
  @spec segment_write_dirty(segment(), non_neg_integer(), [binary()]) :: {:ok, non_neg_integer()} | failure()
  def segment_write_dirty(_segment, _offset, _binaries), do: nif()

  @doc "Copies out. Never torn by `segment_write` or a peer between `write_begin` and `write_end`: `:busy` then."
  @spec segment_read(segment(), non_neg_integer(), non_neg_integer()) :: {:ok, binary()} | failure()
  def segment_read(_segment, _offset, _length), do: nif()
  @spec segment_read_dirty(segment(), non_neg_integer(), non_neg_integer()) :: {:ok, binary()} | failure()
  def segment_read_dirty(_segment, _offset, _length), do: nif()

  @doc "Copies `length` bytes of a file, from `file_offset`, to the start of the data. `:file_changed` if it is shorter."
  @spec segment_fill_dirty(segment(), path :: binary(), non_neg_integer(), non_neg_integer()) ::
          {:ok, generation :: non_neg_integer()} | failure()
  def segment_fill_dirty(_segment, _path, _file_offset, _length), do: nif()

  @doc """
  Makes the memory immutable. `:busy` when somebody else maps it writable. `copied` says that a fresh object was
  needed (a peer had sealed or pinned the old one). Of a named object only the header and this VM's own state change.
  """
  @spec segment_seal_dirty(segment()) :: {:ok, %{copied: boolean(), zero_copy: boolean()}} | failure()
  def segment_seal_dirty(_segment), do: nif()
  @doc "For small segments that were never exported nor named, which the kernel seals at once; else `:dirty_needed`."
  @spec segment_seal(segment()) :: {:ok, %{copied: boolean(), zero_copy: boolean()}} | failure()
  def segment_seal(_segment), do: nif()

  @doc "A binary over the memory itself; sealed memory only. `:not_zero_copy` when it has to be read instead."
  @spec segment_view(segment(), non_neg_integer(), non_neg_integer()) :: {:ok, binary()} | failure()
  def segment_view(_segment, _offset, _length), do: nif()

  @doc "What the VM itself knows of it; never read out of shared memory."
  @spec segment_info(segment()) :: %{
          state: :allocated | :sealed | :invalid | :closed,
          size: pos_integer(),
          length: pos_integer(),
          data_offset: pos_integer(),
          generation: non_neg_integer(),
          writer: non_neg_integer(),
          access_count: non_neg_integer(),
          last_access: integer(),
          viewed: boolean(),
          named: boolean(),
          huge_pages: boolean(),
          peers_write: boolean(),
          zero_copy: boolean(),
          mapped: boolean()
        }
  def segment_info(_segment), do: nif()

  @doc "Bytes of memory behind it (`st_blocks * 512`)."
  @spec segment_resident(segment()) :: {:ok, non_neg_integer()} | failure()
  def segment_resident(_segment), do: nif()

  @doc "The number of completed writes."
  @spec segment_generation(segment()) :: {:ok, non_neg_integer()} | failure()
  def segment_generation(_segment), do: nif()

  @doc "Milliseconds since the last use, by a clock that nobody sets."
  @spec segment_idle(segment()) :: non_neg_integer()
  def segment_idle(_segment), do: nif()

  @doc "Counts as a use (attach, hold)."
  @spec segment_touch(segment()) :: :ok
  def segment_touch(_segment), do: nif()

  @doc "Gives up the memory: header says freed, descriptor closed, unmapped by the reaper. Views live on. Idempotent."
  @spec segment_close(segment(), unlink :: boolean()) :: :ok
  def segment_close(_segment, _unlink), do: nif()
  @spec segment_close_dirty(segment(), unlink :: boolean()) :: :ok
  def segment_close_dirty(_segment, _unlink), do: nif()

  @doc "Nobody reads it any more; the header says invalid."
  @spec segment_invalidate(segment(), reason :: binary()) :: :ok
  def segment_invalidate(_segment, _reason), do: nif()

  @doc "A peer starts writing: sequence odd, header too. `writer` is over 1. `:busy` as for `segment_write`."
  @spec write_begin(segment(), writer :: pos_integer()) :: :ok | failure()
  def write_begin(_segment, _writer), do: nif()

  @doc "A peer has finished: sequence even. `:not_writer` if it was not the writer."
  @spec write_end(segment(), writer :: pos_integer()) :: {:ok, generation :: non_neg_integer()} | failure()
  def write_end(_segment, _writer), do: nif()

  # ── Descriptors ───────────────────────────────────────────────────────────────────────────────────────────────

  @doc "A descriptor of its own for a peer. `:read_write` is refused (`:read_only`) when peers may not write."
  @spec segment_export(segment(), :read_only | :read_write) ::
          {:ok, descriptor(), number :: non_neg_integer()} | failure()
  def segment_export(_segment, _mode), do: nif()

  @doc "Closes it. Does nothing the second time; the garbage collector does it otherwise."
  @spec descriptor_close(descriptor()) :: :ok
  def descriptor_close(_descriptor), do: nif()

  @doc "Opens (or makes, 0600) a file and locks it for this VM. `:locked` when another process holds it."
  @spec lock_file(path :: binary()) :: {:ok, descriptor(), contents :: binary()} | failure()
  def lock_file(_path), do: nif()

  @doc "Replaces the contents of a locked file (64 KiB at most), durably."
  @spec lock_write(descriptor(), binary()) :: :ok | failure()
  def lock_write(_descriptor, _contents), do: nif()

  # ── Peers ─────────────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Watches the process at the other end of a Unix socket (its number as `:socket.getopt(s, {:otp, :fd})` gives it):
  `{:snakepit_peer_down, tag}` goes to `receiver` once, when it has ended. Kernel's SO_PEERPIDFD, else pidfd_open
  with the start time checked. `:no_process` when it is gone already.
  """
  @spec peer_watch(socket :: integer(), receiver :: pid(), tag :: term()) ::
          {:ok, watch(),
           %{pid: non_neg_integer(), uid: non_neg_integer(), gid: non_neg_integer(), start_time: non_neg_integer()}}
          | failure()
  def peer_watch(_socket, _receiver, _tag), do: nif()

  @doc "Sends the message to another process from now on; at once, when the peer is gone already."
  @spec peer_watch_move(watch(), pid(), tag :: term()) :: :ok
  def peer_watch_move(_watch, _receiver, _tag), do: nif()

  @spec peer_watch_close(watch()) :: :ok
  def peer_watch_close(_watch), do: nif()

  @doc "Boot id (hex), pid namespace, pid and start time of this VM."
  @spec identity() :: {binary(), non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def identity, do: nif()

  @doc "Whether the process with this pid and start time lives in our own pid namespace."
  @spec process_alive(non_neg_integer(), non_neg_integer()) :: boolean()
  def process_alive(_pid, _start_time), do: nif()

  @doc "The VM's effective user."
  @spec effective_uid() :: non_neg_integer()
  def effective_uid, do: nif()

  # ── The machine ───────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  `%{page_size:, open_files: soft limit, max_map_count:, memory_available: bytes (the least of MemAvailable and what
  the cgroups leave), memory_limited_by: binary, huge_pages_free: bytes, huge_page_size: bytes}`
  """
  @spec machine() :: map()
  def machine, do: nif()

  @doc "Live things of this library in this VM: `%{mappings:, descriptors:, closing:, closing_bytes:, watches:}`."
  @spec live() :: map()
  def live, do: nif()

  @doc "Waits until the reaper has given back what it was handed before this call. `:timeout` past the deadline."
  @spec reaper_flush_dirty(timeout_ms :: non_neg_integer()) :: :ok | failure()
  def reaper_flush_dirty(_timeout), do: nif()

  # ── JSON (64 KiB at most, either way) ─────────────────────────────────────────────────────────────────────────

  @doc "JSON text to maps with string keys, lists, binaries, numbers, booleans and nil. Never makes an atom."
  @spec json_decode(binary()) :: {:ok, term()} | failure()
  def json_decode(_text), do: nif()

  @doc "The reverse; atoms as strings or keys are taken too. `:invalid_json` names what has no JSON form."
  @spec json_encode(term()) :: {:ok, binary()} | failure()
  def json_encode(_term), do: nif()

  defp nif, do: :erlang.nif_error(:not_loaded)
end
