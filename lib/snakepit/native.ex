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
  @type account :: charge() | {budget(), bytes :: pos_integer(), limit :: pos_integer()}
  @type segment :: reference()
  @type descriptor :: reference()
  @type watch :: reference()
  @type warden :: reference()
  @type worker :: reference()
  @type pool :: reference()
  @type ticket :: reference()
  @type batch :: reference()
  @type atoms :: reference()
  @type failure :: {:error, {reason :: atom(), details :: map()}}
  @type outcome :: {:ok, term()} | {:raised, reason :: term()} | failure()

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

  @type warden_message ::
          {:hello, os_pid :: pos_integer()}
          | {:started, token :: non_neg_integer(), os_pid :: pos_integer()}
          | {:not_started, token :: non_neg_integer(), %{call: binary(), errno: integer()}}
          | {:exited, token :: non_neg_integer(), os_pid :: pos_integer(), {:exit, integer()} | {:signal, integer()}}

  @type worker_message ::
          {:hello, os_pid :: pos_integer()}
          | {:opened | :loaded,
             %{
               library: library_number(),
               module: binary(),
               functions: [{name :: binary(), arity :: non_neg_integer(), flags :: non_neg_integer()}],
               nif_version: {non_neg_integer(), non_neg_integer()},
               missing: [binary()]
             }}
          | {:failed, load_failure()}
          | {:not_loaded, library_number(), load_failure()}
          | {:unloaded, library_number()}

  @typedoc "By which number a worker knows a library: below 2^20, one library's only, and those alive together differ in their remainders by 256."
  @type library_number :: non_neg_integer()

  @type load_failure :: %{stage: atom(), code: integer(), message: binary()}

  @typedoc """
  What `worker_new/1` needs. `slots` is a power of two. `spin_us` is how long the worker spins after a call; `names` how many
  pids, ports, references and funs it may know at a time; `max_words` and `max_depth` bound each of its terms in the VM. `whereis`: the
  registered names that it may look up; `port_command`: whether it may send to ports; `memory`: the most private memory that its process may have,
  in bytes, 0 for no bound.
  """
  @type worker_spec :: %{
          slots: pos_integer(),
          slot_bytes: pos_integer(),
          spill_bytes: pos_integer(),
          executors: pos_integer(),
          spin_us: non_neg_integer(),
          atoms: atoms(),
          names: pos_integer(),
          max_words: pos_integer(),
          max_depth: pos_integer(),
          whereis: [String.t()] | :all,
          port_command: boolean(),
          memory: non_neg_integer()
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

  @doc """
  Creates, reserves, writes the header, maps (anonymous), and names it last (named). `account` is a charge, or budget,
  bytes and limit of one to be taken now.
  """
  @spec segment_create(account(), spec()) :: {:ok, segment()} | failure()
  def segment_create(_account, _spec), do: nif()
  @spec segment_create_dirty(account(), spec()) :: {:ok, segment()} | failure()
  def segment_create_dirty(_account, _spec), do: nif()

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

  # ── Isolated libraries: warden and workers ────────────────────────────────────────────────────────────────────
  #
  # What a worker says is hostile: `{:error, {:protocol, %{message:}}}` means that it lied, and that it is to be killed.

  @doc """
  Starts the warden: `executable` with the argument "warden", its end of the control socket as descriptor 3, default
  signal dispositions, an empty mask, an empty environment. Its process ends when the socket does.
  """
  @spec warden_spawn(executable :: binary()) :: {:ok, warden()} | failure()
  def warden_spawn(_executable), do: nif()

  @doc "Sends `{:select, warden, :undefined, :ready_input}` to the caller, once, when there is something to receive."
  @spec warden_select(warden()) :: :ok | failure()
  def warden_select(_warden), do: nif()

  @doc "The next message. `:closed` from the moment on that the warden is gone or has broken the protocol."
  @spec warden_receive(warden()) :: {:ok, warden_message()} | :again | :closed
  def warden_receive(_warden), do: nif()

  @doc """
  Hands the worker's ends to the warden, which starts a process with them. They are closed here in any case. `environment`: each `NAME=value`
  followed by a zero byte.
  """
  @spec warden_start(warden(), token :: non_neg_integer(), worker(), label :: binary(), environment :: binary()) ::
          :ok | failure()
  def warden_start(_warden, _token, _worker, _label, _environment), do: nif()

  @doc "Asks for a signal to a worker. `:busy` when the socket is full, `:closed` when the warden is gone."
  @spec warden_kill(warden(), token :: non_neg_integer(), signal :: 1..64) :: :ok | failure()
  def warden_kill(_warden, _token, _signal), do: nif()

  @doc "Closes the socket: the warden kills its workers and leaves."
  @spec warden_close(warden()) :: :ok
  def warden_close(_warden), do: nif()

  @doc """
  The ring, control socket, bells and output pipe of a worker to be; no process yet. When the VM has collected objects of it, and `worker_flush/1` is to
  be called, the caller gets `{:releases, number}`, once until it does.
  """
  @spec worker_new(worker_spec()) :: {:ok, worker()} | failure()
  def worker_new(_spec), do: nif()

  @doc """
  Sends `{:select, worker, channel, :ready_input}` to the caller, once. The channel is a pipe or socket of the worker;
  `:closed` after `worker_close/2`.
  """
  @spec worker_select(worker(), :control | :bell | :output) :: :ok | failure()
  def worker_select(_worker, _channel), do: nif()

  @doc "The next message of the control socket. `{:error, {:protocol, _}}`: it could not be understood."
  @spec worker_receive(worker()) :: {:ok, worker_message()} | :again | :closed | failure()
  def worker_receive(_worker), do: nif()

  @doc """
  Has the worker load a library: its number, the one that it replaces (whose data its upgrade callback gets) or nil, and whether the
  worker asks first (`{:opened, _}`, to be answered by `worker_proceed/2` or `worker_unload/2`). `path` as `:erlang.load_nif/2` takes it, without ".so".

  Answered on the control socket by `{:loaded, _}`, or `{:failed, _}` by the first library and `{:not_loaded, _, _}` by a further one. `:unsupported` when
  `load_info` cannot cross, `:too_large` past the limits.
  """
  @spec worker_load(
          worker(),
          {library_number(), replaces :: library_number() | nil, asks :: boolean()},
          path :: binary(),
          load_info :: term()
        ) :: :ok | failure()
  def worker_load(_worker, _library, _path, _load_info), do: nif()

  @doc "The library that the worker has told to be open is wanted."
  @spec worker_proceed(worker(), library_number()) :: :ok | failure()
  def worker_proceed(_worker, _library), do: nif()

  @doc "It is not; or one that is loaded is no longer. Answered by `{:unloaded, _}` when none of its calls runs any more."
  @spec worker_unload(worker(), library_number()) :: :ok | failure()
  def worker_unload(_worker, _library), do: nif()

  @doc "What the worker wrote to its standard output and error: 64 KiB at most."
  @spec worker_output(worker()) :: {:ok, binary()} | :again | :closed
  def worker_output(_worker), do: nif()

  @doc """
  Takes the worker's rings of the doorbell and its completions: parked callers are sent `{ref, :done}`, waiters for a
  slot `{ref, :slot}`. `:serve`: takes some of its event queue too, and does what its library asks for; `:wait`: does not;
  `:hold`: nor does anybody else until the next `:serve`. Answers that the worker did not take at once are sent; the caller gets
  `{:select, worker, :control, :ready_output}` when the socket has room, and `{:select, worker, :bell, :ready_input}` when there is
  something to know here.

  `more`: the queue has more, and nobody will ring for it. `sent`: since it was last said, to processes that were sent much (to all,
  if that is much together). `denied`: functions for which there was no grant; each once. Then select again.
  """
  @spec worker_bell(worker(), :serve | :wait | :hold) ::
          {:ok, woken :: non_neg_integer(), more :: boolean(),
           sent :: [{pid(), messages :: pos_integer(), bytes :: non_neg_integer()}], denied :: [String.t()]}
          | failure()
  def worker_bell(_worker, _mode), do: nif()

  @doc "Whether the process, a local one, sleeps until a call of this worker is done, or one of its pool's slots is free."
  @spec worker_awaited(worker(), pid()) :: boolean()
  def worker_awaited(_worker, _pid), do: nif()

  @doc "The worker is dead: does what its library has asked for before that. Before `worker_close/2`."
  @spec worker_rest(worker()) :: :ok | failure()
  def worker_rest(_worker), do: nif()

  @doc """
  The worker is dead, and must be: calls that it had begun answer `{:error, reason}`, the others `:retry`; parked callers are
  sent `{ref, :done}`. Descriptors and memory go. Idempotent; the first reason stays.
  """
  @spec worker_close(worker(), reason :: {atom(), map()}) :: :ok
  def worker_close(_worker, _reason), do: nif()

  @doc """
  By whoever has had its process started, after its owner was told: the process has ended, for that reason; nil: nobody will see it end. An owner
  that has ended, or ends before it says `worker_close/2`, has the worker closed then.
  """
  @spec worker_ended(worker(), reason :: {atom(), map()} | nil) :: :ok
  def worker_ended(_worker, _reason), do: nif()

  @doc "Asks the worker to end by itself."
  @spec worker_stop(worker()) :: :ok | failure()
  def worker_stop(_worker), do: nif()

  @doc """
  `%{in_flight:, slots:, closed:, bell_closed:, faulty:, releases:, orphans:, calls:, executors:, status:}`. `bell_closed`: it has closed
  its doorbell and can wake nobody. `faulty`: it has lied to a caller. The last four are the worker's word: numbers of given up calls that it works on, calls
  answered, the number of the call that each executor works on (or nil), and `%{beats:, beat_age_ms:, resident:, objects:}`
  (nil while it is being written).
  """
  @spec worker_status(worker()) :: map()
  def worker_status(_worker), do: nif()

  @doc "Tells the worker what the VM's time is. To be told again: the VM corrects it."
  @spec worker_clock(worker()) :: :ok
  def worker_clock(_worker), do: nif()

  @doc """
  Sends the pending releases of resource handles to the worker. Answers how many are left for the next time. `:protocol`: it has not read any for long.
  """
  @spec worker_flush(worker()) :: {:ok, left :: non_neg_integer()} | failure()
  def worker_flush(_worker), do: nif()

  # ── Isolated libraries: calls ─────────────────────────────────────────────────────────────────────────────────

  @doc "An account of the new atoms that a library may make, for as long as somebody refers to it."
  @spec atoms_new(limit :: non_neg_integer()) :: atoms()
  def atoms_new(_limit), do: nif()

  @doc "New atoms made so far."
  @spec atoms_used(atoms()) :: non_neg_integer()
  def atoms_used(_atoms), do: nif()

  @doc "A pool with `size` empty positions (1..256)."
  @spec pool_new(size :: pos_integer()) :: {:ok, pool()}
  def pool_new(_size), do: nif()

  @doc """
  Puts a loaded worker into service. `functions` is the table that it reported: only these can be called, and it is taken
  from the first worker of the pool; another table is `:mismatch`.
  """
  @spec pool_put(pool(), position :: non_neg_integer(), worker()) :: :ok | failure()
  def pool_put(_pool, _position, _worker), do: nif()

  @doc "A pool with the same workers, for the library that they know by this number."
  @spec pool_beside(pool(), library_number()) :: {:ok, pool()}
  def pool_beside(_pool, _library), do: nif()

  @doc "Notes the functions that the worker has reported for the pool's library, or compares them with those noted before: `:mismatch`."
  @spec pool_learn(pool(), worker()) :: :ok | failure()
  def pool_learn(_pool, _worker), do: nif()

  @doc "Nobody calls this pool's library any more: `:no_worker`. Others with the same workers go on."
  @spec pool_close(pool()) :: :ok
  def pool_close(_pool), do: nif()

  @doc "Takes a worker out of service: no new calls go to it."

  @spec pool_take(pool(), position :: non_neg_integer()) :: :ok
  def pool_take(_pool, _position), do: nif()

  @doc "`%{size:, workers: [position], in_flight: [{position, calls}], waiting:, calls:, functions: [{name, arity, flags}]}`"
  @spec pool_info(pool()) :: map()
  def pool_info(_pool), do: nif()

  @doc """
  Calls a function of the library on the least busy worker. `spin_us` bounds the wait on this scheduler; what takes longer,
  or an asleep worker, answers `{:pending, ticket}`.

  `:full`: no worker has a free slot. `:retry`: the worker died before it began. `:undefined`: no such function. Errors:
  `:unsupported_term`, `:too_large`, `:too_many_atoms`, `:too_many_names`, `:stale`, `:protocol` (with `worker`, to be
  killed), `:not_implemented` (`%{symbol:}`), and the reason given to `worker_close/2`.
  """
  @spec call(pool(), atom(), [term()], spin_us :: non_neg_integer()) ::
          outcome() | {:pending, ticket()} | :no_worker | :full | :retry | :undefined
  def call(_pool, _function, _arguments, _spin_us), do: nif()

  @doc """
  The caller stops spinning: `{ref, :done}` will be sent to the calling process, once, when the answer is there or never
  comes. On `:ready` no message is sent. `ref` is made by `make_ref()` in the function that receives.
  """
  @spec park(ticket(), reference()) :: :parked | :ready
  def park(_ticket, _ref), do: nif()

  @doc "The answer of a ticket that is ready; once. `:pending` if it is not ready."
  @spec take(ticket()) :: outcome() | :retry | :pending
  def take(_ticket), do: nif()

  @doc """
  Gives a call up. `{:cancelled, started, worker}`: no message has been or will be sent, and nothing can be taken. `:ready`: the
  answer was faster; after `:parked` its `{ref, :done}` has been sent already, so receive it.
  """
  @spec cancel(ticket()) :: {:cancelled, started :: boolean(), worker()} | :ready
  def cancel(_ticket), do: nif()

  @doc """
  Queues the calling process for a free slot. `{ref, :slot}` is sent to it once. `:ready`: there is one now, and no message
  will come. `:full`: `limit` processes are waiting.
  """
  @spec wait_slot(pool(), reference(), limit :: pos_integer()) :: :waiting | :ready | :full
  def wait_slot(_pool, _ref, _limit), do: nif()

  @doc "`:ok`: no message has been or will be sent. `:sent`: it has been sent."
  @spec wait_slot_cancel(pool(), reference()) :: :ok | :sent
  def wait_slot_cancel(_pool, _ref), do: nif()

  @doc """
  Many calls of one function at once. Submits and collects for at most a millisecond, and returns when it would wait:
  `{:more, batch}`; then `batch_park/3`, receive `{ref, :done}`, `batch_next/1`, until `{:done, outcomes}`, in the order of the argument lists
  (`:retry` among them for those that a dead worker had not begun).
  """
  @spec call_many(pool(), atom(), [[term()]]) ::
          {:done, [outcome() | :retry]} | {:more, batch()} | :no_worker | :undefined
  def call_many(_pool, _function, _argument_lists), do: nif()

  @doc "`:full` instead of `:more`: nothing was sent or collected."
  @spec batch_next(batch()) :: {:done, [outcome() | :retry]} | {:more | :full, batch()}
  def batch_next(_batch), do: nif()

  @doc """
  As `park/2`, for the first call of the batch that is answered next; for a slot when none of them is in flight. `:full`: then
  `limit` processes are waiting.
  """
  @spec batch_park(batch(), reference(), limit :: pos_integer()) :: :parked | :ready | :full
  def batch_park(_batch, _ref, _limit), do: nif()

  @doc """
  Leaves the queue for a slot. `:waiting`: it is not there but parked at its first call, and stays so. `:ok`: no message has
  been or will be sent. `:sent`: it has been sent.
  """
  @spec batch_unwait(batch()) :: :waiting | :ok | :sent
  def batch_unwait(_batch), do: nif()

  @doc """
  Gives up: outcomes so far, `{:error, {:timeout, %{started: boolean}}}` for calls still in flight and not sent. `hung` are the workers
  that have begun one of them. After `:parked`, `sent` says whether `{ref, :done}` has been sent.
  """
  @spec batch_cancel(batch()) :: {outcomes :: [outcome() | :retry], hung :: [worker()], sent :: boolean()}
  def batch_cancel(_batch), do: nif()

  # ── Isolated libraries: the codec, for tests and diagnosis ────────────────────────────────────────────────────

  @doc "The wire form of a term, as for a worker (its table of names is thrown away). 16 MiB at most."
  @spec wire_encode(term()) :: {:ok, binary()} | failure()
  def wire_encode(_term), do: nif()

  @doc "A term out of its wire form. There are no names. 16 MiB at most."
  @spec wire_decode(binary()) :: {:ok, term()} | failure()
  def wire_decode(_binary), do: nif()

  defp nif, do: :erlang.nif_error(:not_loaded)
end
