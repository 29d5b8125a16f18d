defmodule Snakepit.Isolation do
  @moduledoc """
  Native libraries in processes of their own: an existing NIF library, unchanged, is called through shared memory, and a
  segfault, a hang or damaged memory in it is an `{:error, _}` for one caller, never a dead VM.

      {:ok, lib} = Snakepit.Isolation.load({:jiffy, "priv/jiffy"}, sandbox: :none)
      {:ok, json} = Snakepit.Isolation.call(lib, :nif_encode_init, [%{"a" => 1}, []])
      :ok = Snakepit.Isolation.unload(lib)

  or in a supervision tree, and called by its name:

      children = [{Snakepit.Isolation, name: :jiffy, path: {:jiffy, "priv/jiffy"}, sandbox: :none, workers: 2}]
      Snakepit.Isolation.call(:jiffy, :nif_encode_init, [%{"a" => 1}, []])

  ## What a call may rely on

  Arguments and results are any terms; local pids, ports, references and funs go as names, and only those that were sent
  come back. A call is executed at most once: if the worker dies before it has begun the call, another one gets it; if
  it had begun, the caller gets `:crashed`. When the deadline passes, the caller gets `:timeout` at once, nothing ever arrives late, and if
  the call was running, its worker is killed and replaced, which crashes the calls that run beside it (`concurrency:`).

  A library can send messages to the processes that it was given, watch them, and make references. What a call has sent is in the mailbox when it
  returns; what was sent before a crash arrives.

  State that a library keeps (objects, caches) lives in one worker and dies with it.

  ## Errors

  `{:error, %Snakepit.Isolation.Error{}}` with a `reason` to match on and a message that says what to do;
  `call!/4` raises it.

  ## Modules of others

  `isolate/2` does the same for a module that somebody else wrote, without a change in what calls it; `Snakepit.Isolation.Module` for one
  of one's own. The configuration does it for several when
  the application starts, in the order that the list has then:

      config :snakepit_shm, isolate: [jiffy: [workers: 2, sandbox: :none], "Elixir.MyApp.Native": [sandbox: :none]]

  The options are those of `isolate/2`; `false` in their place leaves a module in the VM, which is how one environment says it where the list is that of
  another. Under `mix test --cover` that is what the project's own modules need: their code is not that of their files. Configurations are merged as keyword lists,
  which moves a module that a later file names again behind the others: where the order matters (`with:`), one file should have the whole list.

  **It fails closed.** A bad list, or a module that cannot be isolated, stops the start of `:snakepit_shm`, with the module, the reason and what to do in the
  error; a release then ends. Modules that were isolated until then stay so, and their functions raise. To go on without, use `isolate/2` and decide
  yourself. When the application is stopped, the functions raise `:not_loaded`, until it is started again. While it runs, these modules come back by themselves should our own
  processes be killed; one that cannot be isolated then does not stop anything: its functions raise, the log says why, and it is tried again after 1, 2, 4 ... 30 seconds.

  **A library that keeps crashing** is given up after more than 20 crashes in 10 seconds, as any other (`max_restarts:`, `max_seconds:`), and stays so: its functions raise until
  somebody isolates the module again. `max_restarts: :infinity` never gives up.

  **Before the start** a module is what it is. Applications that depend on `:snakepit_shm` are started after it. Others that call the module may come
  before: list `:snakepit_shm` first in `extra_applications`, for a release `applications: [snakepit_shm: :permanent]`. What was loaded earlier is isolated
  nevertheless and the library leaves the VM, as soon as the VM has collected its objects. The log says so: as a warning, since the library has run in the VM; under Mix, but
  for `MIX_ENV=prod`, only as information, because Mix loads modules when it compiles what calls them, and that line comes after each compilation. If processes still run in the module's code, the start is stopped (`:in_use`).

  **Releases** load all modules, and with them all libraries, before any application is started, and have no `debug_info`. They need a step of
  `mix release`: `Snakepit.Isolation.Release`.

  `lib/snakepit/isolation/README.md` tells how it works.
  """

  alias Snakepit.Isolation.{
    Async,
    Batch,
    Call,
    Check,
    Directory,
    DropIn,
    Error,
    Library,
    Options,
    Pool,
    Roster,
    Telemetry,
    Warden
  }

  alias Snakepit.Native

  @typedoc "What `load/2` gave, a name, or an isolated module."
  @type library :: Library.t() | atom() | String.t()
  @type result(value) :: {:ok, value} | {:error, Error.t()}

  @longest_wait Options.longest_wait()

  defguardp is_timeout(value) when value == :infinity or value in 0..@longest_wait

  # ── Loading ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Loads a library and starts its workers. It stays until `unload/1`, whatever becomes of the caller.

  `path` is as `:erlang.load_nif/2` takes it: without `.so`; or `{application, "priv/path"}`.

  ## Options

    * `:sandbox` - must be `:none`: this version has no sandbox, and leaving the option out is `:not_loaded`. The library
      runs in a process of its own with all the rights of this one
    * `:load_info` - a term for the library's load callback, default 0
    * `:with` - another library (or its name, or an isolated module) in whose processes this one is loaded, because they share state: pointers, objects, what is
      global in C. See "Several libraries in one process" below
    * `:name` - an atom that the functions take in place of the library
    * `:workers` - processes, 1 to 64, default 1. A call goes to the least busy one
    * `:concurrency` - calls that one process executes at the same time, 1 to 64, default 1. More than one needs a
      library that is safe for threads (as NIF libraries have to be), and lets calls share the fate of a process
    * `:timeout` - of a call that does not say otherwise, in ms, or `:infinity`; default 5,000
    * `:load_timeout` - ms that loading may take, default 10,000
    * `:memory` - bytes of private memory that one worker process may have, or `:infinity` (the default). Counted as the kernel does for `RLIMIT_DATA`: all
      that was allocated, whether it was touched or not, with 8 MiB of stack for each thread, which are `concurrency:` and up to 3 more; so it is at least 9 MiB
      for each of these. What stands in shared memory (arguments, results, `spill_size:`) does not count. Past it the library finds no memory (`malloc` and
      `enif_alloc` give null, C++ throws). A library that ends its process then is `:quota_exceeded` if that is known to be the reason, which is when the API was asked
      for the memory, else `:crashed`; so is a term for which the worker has no memory
    * `:env` - the environment of the worker processes: `:inherit` (default), the VM's as it is when a worker is started, `System.put_env/2` included; or a list of
      names that are taken from it and of `{name, value}`, as in `["HOME", {"OMP_NUM_THREADS", "2"}]`. `[]`: empty
    * `:restart` - whether a worker that has ended is started again, as in a supervisor's child specification. `:permanent` (default): always; `:transient`:
      unless its library has ended it with `exit(0)`; `:temporary`: never, for whatever reason it has ended, a deadline of ours too. One that is not started
      again is `:failed` in `info/1`; when all are, calls are `:not_loaded`, and a library of `child_spec/1` ends
    * `:max_restarts`, `:max_seconds` - a worker that crashes more than 20 times within 10 seconds is not started again.
      The first restart is immediate, the next ones wait 1, 2, 4 ... 100 ms. Workers that were killed because of a deadline do not count.
      `max_restarts: :infinity` never gives up
    * `:heartbeat_timeout` - ms without a sign of life after which a worker is killed, default 5,000, or `:infinity`
    * `:spin` - us that a caller waits on its scheduler for a call that has begun before it sleeps, 0 to 1,000, default 10; a sleeping worker gets up
      to 60 us more to begin. 0: the caller always sleeps
    * `:worker_spin` - us that a worker stays awake after a call, default 50
    * `:slots` - calls that one worker may have, running or queued; a power of two up to 1,024, default 64. Further callers wait
    * `:max_waiting` - how many may wait, default 10,000; past it a call is `:overloaded`
    * `:slot_size` - bytes of arguments or result that need no further memory, default 16,384
    * `:spill_size` - bytes for those that are larger, of all calls of a worker at a time and each way, default 32 MiB, at most 2 GiB. Taken
      from the machine only as they are used
    * `:max_words`, `:max_depth` - bounds of a result: words of the VM's heap (default 16,777,216, which is 128 MiB) and nesting (65,536)
    * `:max_names` - pids, ports, references and funs that a worker may know, default 16,384
    * `:max_atoms` - atoms that the library may add to the VM, in the VM's lifetime, default 10,000
    * `:max_mailbox`, `:max_mailbox_bytes` - messages in a mailbox, and bytes of them that come from this worker, past which a library that sends
      to it has to wait (in `enif_send`); default 100,000 and 256 MiB, or `:infinity`. Bytes are those that terms take in the VM, roughly; copies of funs
      are taken for larger than they are. A caller that waits for this library may have four times as much; a worker that sends more is replaced. For a port the bytes
      count that it has not got rid of
    * `:whereis` - registered names that the library may look up (`enif_whereis_pid`, `enif_whereis_port`), default `[]`, or `:all`. What it finds it can
      send to
    * `:port_command` - `true` lets the library send to ports that it is given, default `false`
    * `:output` - the log level of what the library prints (default `:info`), or `:discard`
    * `:telemetry` - `false` leaves out the spans of calls

  ## Several libraries in one process

      {:ok, a} = Snakepit.Isolation.load("priv/a", workers: 2, sandbox: :none)
      {:ok, b} = Snakepit.Isolation.load("priv/b", with: a, sandbox: :none)

  `b` is loaded into every worker of `a`, and the options of the processes are those of `a`: besides `with:` only `load_info:`, `name:`, `timeout:`, `load_timeout:`,
  `telemetry:` and the same `sandbox:` can be given. If a worker cannot load it, it stays nowhere. What crashes or hangs in one of them ends the
  process of all; a worker that is started again loads all of them, in their order. Budgets (`max_atoms:`, `max_names:`, slots) are common. `unload/1` of one of them leaves the others;
  with the last one the processes end. The others end with the first one if that stands in a supervision tree.

  A library that imports `enif_` functions which this version does not have is loaded; a warning names them, `info/1`
  lists them, and a call that uses one is `:not_implemented`.
  """
  @spec load(Path.t() | charlist() | {Application.app(), Path.t()}, keyword()) :: result(Library.t())
  def load(path, options \\ []) do
    with {:ok, options} <- Options.load(path, options), do: load_checked(options)
  end

  @doc false
  # `old`: whose successor it is, in its process.
  @spec load_checked(Options.t(), Library.t() | nil) :: result(Library.t())
  def load_checked(options, old \\ nil) do
    with {:ok, host} <- host(options, old),
         :ok <- ready(options, old) do
      id = options.name || new_id(options.path)
      load = fn -> if host, do: load_beside(host, id, options, old), else: load_on_demand(id, options) end

      if Telemetry.available?(options.telemetry),
        do: Telemetry.span(:load, %{library: id, function: nil}, load),
        else: load.()
    end
  end

  defp host(%{with: nil}, old), do: {:ok, old}
  defp host(%{with: _}, %Library{} = old), do: {:ok, old}

  defp host(%{with: other, sandbox: sandbox}, nil) do
    with {:ok, host} <- resolve(other) do
      case Library.entry(host.table, host.number) do
        nil ->
          unknown(other)

        %{options: %{sandbox: ^sandbox}} ->
          {:ok, host}

        %{options: options} ->
          Error.invalid(:sandbox, "that of the other library, #{inspect(options.sandbox)}", sandbox)
      end
    end
  end

  defp load_beside(host, id, options, old) do
    with :gone <- Roster.add(host, id, options, old), do: unknown(host)
  end

  defp load_on_demand(id, options) do
    start = {Library, :start_link, [{id, options, :on_demand}]}
    spec = %{id: id, start: start, type: :supervisor, restart: :transient, shutdown: :infinity}

    case Snakepit.Isolation.Supervisor.start_library(spec) do
      {:ok, supervisor} -> await_loaded(supervisor, id)
      {:error, reason} -> {:error, not_started(id, reason)}
    end
  end

  defp await_loaded(supervisor, id) do
    case Pool.loaded(pool(supervisor)) do
      {:ok, library} ->
        {:ok, library}

      failed ->
        Snakepit.Isolation.Supervisor.stop_library(supervisor)

        case failed do
          {:error, error} -> {:error, error}
          _gone -> {:error, Error.new(:not_loaded, id, nil, %{because: :unloaded})}
        end
    end
  end

  # The process, before it has written itself into the table that we do not know yet.
  defp pool(supervisor) do
    Enum.find_value(Supervisor.which_children(supervisor), fn {id, pid, _, _} -> if id == Pool, do: pid end)
  catch
    :exit, _ -> nil
  end

  @doc """
  A library in a supervision tree: `{Snakepit.Isolation, path: path, name: name}` and the options of `load/2`.

  Starting waits until the library is loaded and fails if it cannot be. When all its workers were given up, it ends, and
  the supervisor decides what comes next.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(options) do
    id = if Keyword.keyword?(options), do: options[:name] || options[:path], else: options
    %{id: {__MODULE__, id}, start: {__MODULE__, :start_link, [options]}, type: :supervisor, shutdown: :infinity}
  end

  @doc "Starts a library that is linked to the caller. `child_spec/1` has the options."
  @spec start_link(keyword()) :: Supervisor.on_start() | {:error, Error.t()}
  def start_link(options) do
    with {:ok, path, options} <- split_path(options),
         {:ok, options} <- Options.load(path, options),
         :ok <-
           expect(
             options.with == nil,
             :with,
             "nothing (in a supervision tree it has processes of its own)",
             options.with
           ),
         :ok <- ready(options) do
      id = options.name || new_id(options.path)

      with {:error, reason} <- Library.start_link({id, options, :supervised}), do: {:error, not_started(id, reason)}
    end
  end

  defp split_path(options) do
    if Keyword.keyword?(options) and Keyword.has_key?(options, :path) do
      {path, options} = Keyword.pop!(options, :path)
      {:ok, path, options}
    else
      Error.invalid(:options, "a keyword list with path:", options)
    end
  end

  # What can be said before a process is started.
  defp ready(options, old \\ nil) do
    name = Path.basename(options.path)

    cond do
      match?({:error, _, _}, Native.loaded()) ->
        {:error, kind, text} = Native.loaded()
        path = Native.library() <> ".so"
        {:error, Error.new(:not_loaded, name, nil, %{because: :native, path: path, kind: kind, text: text})}

      not Directory.started?() ->
        {:error, Error.new(:not_loaded, name, nil, %{because: :not_started})}

      not File.exists?(options.path <> ".so") ->
        ending? = String.ends_with?(options.path, ".so") and File.exists?(options.path)
        {:error, Error.new(:not_loaded, name, nil, %{because: :no_file, path: options.path, with_ending: ending?})}

      options.name != nil and old == nil and match?({:ok, _, _}, Directory.fetch(options.name)) ->
        {:error, Error.new(:not_loaded, options.name, nil, %{because: :name_taken, name: options.name})}

      true ->
        :ok
    end
  end

  defp not_started(_id, {:shutdown, {:failed_to_start_child, :gate, %Error{} = error}}), do: error
  defp not_started(id, :not_running), do: Error.new(:not_loaded, id, nil, %{because: :not_started})
  defp not_started(id, reason), do: Error.new(:not_loaded, id, nil, %{because: :start, message: inspect(reason)})

  defp new_id(path), do: "#{Path.basename(path)}-#{System.unique_integer([:positive])}"

  @doc """
  Ends a library of `load/2`: its workers are asked to end, and killed if they do not. Calls that run are `:not_loaded`.

  When other libraries are in the same processes, these go on: nobody can call the library any more, calls that run are answered, and in each worker its unload
  callback runs when they are over and no object of it is left that needs it. What can run at once has run when this returns.
  """
  @spec unload(library()) :: :ok | {:error, Error.t()}
  def unload(target) do
    with {:ok, %Library{id: id}} <- resolve(target),
         {:ok, library, _supervisor} <- running(id, target),
         do: library |> unload_one() |> unloaded(target)
  end

  defp unloaded(:supervised, target),
    do: Error.invalid(:library, "one of load/2 (this one stands in a supervision tree: end it there)", target)

  defp unloaded(:gone, target), do: unknown(target)
  defp unloaded(:ok, _target), do: :ok

  @doc false
  # This very one, also if another one has its id by now.
  @spec unload_one(Library.t()) :: :ok | :supervised | :gone
  def unload_one(%Library{table: table} = library) do
    with :last <- Roster.remove(library),
         supervisor when is_pid(supervisor) <- Library.lookup(table, :supervisor),
         {:error, :not_found} <- Snakepit.Isolation.Supervisor.stop_library(supervisor) do
      # Somebody has been faster, or it is not ours.
      if Process.alive?(supervisor), do: :supervised, else: :ok
    else
      nil -> :ok
      answer -> answer
    end
  end

  defp running(id, target) do
    with :error <- Directory.fetch(id), do: unknown(target)
  end

  # ── Modules ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Isolates a module that somebody else wrote: it works as before, and so does everything that calls it, but its native
  library runs in another process.

      :ok = Snakepit.Isolation.isolate(:jiffy, workers: 2, sandbox: :none)
      %{"a" => 1} = :jiffy.decode(~s({"a": 1}), [:return_maps])

  The module's code is made anew from the `debug_info` of its beam file, with this library where it calls `erlang:load_nif/2`, and
  replaces the code that is loaded, if any. Its `on_load` runs; it finds the library and passes the load info as it
  always does. Exports and attributes stay. What the library raises is raised by the module's functions as in the VM; a
  crash or deadline is a `Snakepit.Isolation.Error`, raised in the caller alone.

  `options` are those of `load/2`, with these differences: `timeout:` is `:infinity` unless it is given, because a NIF has no
  deadline; the library has the name of the module, which the other functions take, unless `name:` is given; there is no `load_info:`.

  Nothing is changed when there is an error, but in one case: a module whose on_load goes on without its library, while others still run in its
  original code, stays without it (`details.not_undone` says who is in the way, `restore/1` ends it). The error's `reason` is

    * `:unsupported_module` - without a beam file or `debug_info`; of the runtime system, in a sticky directory, compiled for coverage; without a
      call of `erlang:load_nif/2`
    * `:already_isolated` - its library runs (one that was unloaded or given up is replaced), and its file is still the same, or the options are others
    * `:in_use` - processes still run in a version of the module that was replaced earlier: `details.pids`
    * `:not_loaded` - the library, or the module's `on_load`, failed
    * `:invalid_option`

  Processes that run in the module's code at this moment go on in it, with the library in the VM, until they leave it.

  ## New versions

  When the module's file has changed, `isolate/2` with the same options loads the new version instead of `:code.load_file/1`. What happens to the library is what
  happens in the VM: old and new code stand side by side, each with its library, in the same processes; the new library is loaded with its upgrade callback (without
  one it is refused), takes over data and types of objects, and the old one's unload callback runs when the old code has been purged, which is noticed within a second.
  Loading the module in any other way (`l/1`, a release's hot upgrade, coverage) ends the isolation: isolate it again afterwards; a module that is deleted and purged is no longer isolated.

  `with:` puts the library into the processes of another one, also of another isolated module: `isolate(:b, with: :a, sandbox: :none)`.
  """
  @spec isolate(module(), keyword()) :: :ok | {:error, Error.t()}
  def isolate(module, options \\ []), do: DropIn.isolate(module, options)

  @doc """
  Puts an isolated module back as its beam file had it, which loads the library into the VM, and unloads the isolated
  library. Calls that run in it are `:not_loaded`, and objects that it made are `:stale`.

  `:in_use` as for `isolate/2`. If the module's own `on_load` fails, it stays isolated.
  """
  @spec restore(module()) :: :ok | {:error, Error.t()}
  def restore(module) when is_atom(module), do: DropIn.restore(module)
  def restore(other), do: Error.invalid(:module, "a module", other)

  @doc """
  Says whether a library (its path, with or without `.so`, or `{application, path}`) or a module can be isolated, and what will be different
  then, without running any of it: `verdict`, and all else of `Snakepit.Isolation.Check`.

      {:ok, %{verdict: :yes, nif_version: "2.16"}} = Snakepit.Isolation.check(:jiffy)

  The file is read by a process of its own, which takes some 10 ms. Neither the application nor the native library has to be started.
  `load: [sandbox: :none]` (options of `load/2`) also loads the library in a worker, which does run it.

  An error is that there is no such file or module; of a file that is no library, or a damaged one, the verdict is `:no`.
  """
  @spec check(module() | Path.t() | {Application.app(), Path.t()}, keyword()) :: result(Check.t())
  def check(target, options \\ []), do: Check.check(target, options)

  # ── Calling ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc """
  Calls a function of the library.

  `timeout:` in ms, or `:infinity`; default: the library's, 5,000 unless it was loaded with another. Past it the answer is
  `:timeout`, or `:overloaded` if the call was still waiting for a slot. The call is executed at most once.
  """
  @spec call(library(), atom(), [term()], keyword()) :: result(term())
  def call(library, function, arguments, options \\ [])

  def call(%Library{telemetry: false} = library, function, arguments, [])
      when is_atom(function) and is_list(arguments),
      do: fast(library, function, arguments, library.timeout)

  def call(%Library{telemetry: false} = library, function, arguments, [{:timeout, timeout}])
      when is_atom(function) and is_list(arguments) and is_timeout(timeout),
      do: fast(library, function, arguments, timeout)

  def call(target, function, arguments, options) do
    with {:ok, library, timeout} <- check(target, function, arguments, options) do
      if library.telemetry do
        metadata = %{library: library.id, function: {function, length(arguments)}}
        Telemetry.span(:call, metadata, fn -> fast(library, function, arguments, timeout) end)
      else
        fast(library, function, arguments, timeout)
      end
    end
  end

  # The clock is read only if there is no answer at once.
  defp fast(%Library{native: native, spin: spin} = library, function, arguments, timeout) do
    case Native.call(native, function, arguments, spin) do
      {:ok, _} = done -> done
      other -> Call.finish(other, library, function, arguments, timeout)
    end
  end

  @doc "As `call/4`; gives the value, or raises the error."
  @spec call!(library(), atom(), [term()], keyword()) :: term()
  def call!(library, function, arguments, options \\ []) do
    case call(library, function, arguments, options) do
      {:ok, value} -> value
      {:error, error} -> raise error
    end
  end

  @doc """
  Calls one function with many lists of arguments, as many at a time as the workers take. The results stand in the
  order of the lists, each as `call/4` gives it; an error in their place says that none was called. `timeout:` is the deadline of all.

      {:ok, [{:ok, 3}, {:ok, 7}]} = Snakepit.Isolation.call_many(lib, :add, [[1, 2], [3, 4]])
  """
  @spec call_many(library(), atom(), [[term()]], keyword()) :: result([result(term())])
  def call_many(library, function, argument_lists, options \\ []) do
    with {:ok, library, timeout} <- check(library, function, argument_lists, options),
         :ok <- check_lists(argument_lists) do
      call = Call.new(library, function, List.first(argument_lists) || [], timeout)

      if library.telemetry do
        metadata = %{library: library.id, function: nil}
        Telemetry.span(:call_many, metadata, fn -> Batch.run(call, argument_lists) end)
      else
        Batch.run(call, argument_lists)
      end
    end
  end

  # All of one arity: it is one function.
  defp check_lists([first | rest]) when is_list(first) do
    arity = length(first)

    if Enum.all?(rest, &(is_list(&1) and length(&1) == arity)),
      do: :ok,
      else: Error.invalid(:argument_lists, "lists of #{arity} arguments", :others)
  end

  defp check_lists([]), do: :ok
  defp check_lists([other | _]), do: Error.invalid(:argument_lists, "a list of lists of arguments", other)

  @doc """
  Starts a call and goes on; `await/2` gets its result. The deadline (`timeout:`) runs from now. If every slot is taken, it
  waits for one first. No message comes and no process is started.
  """
  @spec call_async(library(), atom(), [term()], keyword()) :: Async.t()
  def call_async(library, function, arguments, options \\ []) do
    case check(library, function, arguments, options) do
      {:ok, library, timeout} -> Async.start(Call.new(library, function, arguments, timeout))
      {:error, error} -> Async.failed(error)
    end
  end

  @doc """
  Waits for a call of `call_async/4`, in the process that made it, once. `timeout` in ms shortens what is left until its deadline; a
  call that passes it is given up, as in `call/4`.
  """
  @spec await(Async.t(), timeout() | nil) :: result(term())
  def await(%Async{} = async, timeout \\ nil) when timeout == nil or is_timeout(timeout),
    do: Async.await(async, timeout)

  defp check(%Library{} = library, function, arguments, options) do
    with {:ok, timeout} <- timeout(options, library),
         :ok <- expect(is_atom(function), :function, "an atom", function),
         :ok <- expect(proper?(arguments), :arguments, "a list", arguments),
         do: {:ok, library, timeout}
  end

  defp check(target, function, arguments, options) do
    with {:ok, library} <- resolve(target), do: check(library, function, arguments, options)
  end

  defp timeout([], library), do: {:ok, library.timeout}
  defp timeout([{:timeout, timeout}], _library) when is_timeout(timeout), do: {:ok, timeout}
  defp timeout(other, _library), do: Error.invalid(:options, "[timeout: milliseconds or :infinity]", other)

  defp proper?(list), do: is_list(list) and List.improper?(list) == false

  defp expect(true, _key, _expected, _got), do: :ok
  defp expect(false, key, expected, got), do: Error.invalid(key, expected, got)

  defp resolve(%Library{} = library), do: {:ok, library}

  defp resolve(name) when is_atom(name) do
    case Directory.named(name) || DropIn.library(name) do
      nil -> unknown(name)
      library -> {:ok, library}
    end
  end

  defp resolve(id) when is_binary(id) do
    with {:ok, library, _supervisor} <- Directory.fetch(id), do: {:ok, library}, else: (:error -> unknown(id))
  end

  defp resolve(other), do: Error.invalid(:library, "a library of load/2, or its name", other)

  defp unknown(%Library{id: id}), do: {:error, Error.new(:not_loaded, id, nil, %{because: :unloaded})}

  defp unknown(target) do
    details =
      cond do
        not Directory.started?() -> %{because: :not_started}
        is_atom(target) and DropIn.fetch(target) != nil -> without_library(DropIn.fetch(target))
        is_atom(target) and function_exported?(target, :__isolation__, 0) -> %{because: :not_called_yet}
        true -> %{because: :unknown, got: target}
      end

    {:error, Error.new(:not_loaded, target, nil, details)}
  end

  # Only a module that has its library itself can have it in the VM.
  defp without_library(%{original: nil}), do: %{because: :in_vm}

  defp without_library(%{module: module, slot: slot}),
    do: if(DropIn.loaded_in(slot), do: %{because: :unloaded, module: module}, else: %{because: :no_library})

  # ── Looking ───────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "The libraries that are loaded."
  @spec list() :: [Library.t()]
  def list, do: Enum.sort_by(Directory.list(), &inspect(&1.id))

  @doc """
  What there is to know of a library: `id`, `name`, `path`, `module`, `functions`, `nif_version`, `missing` (imported `enif_` functions
  that this version does not have), `with` (ids of the other libraries in its processes), `state` (`:ready`, `:degraded` if some of its workers are not, `:restarting`, `:failed`), `error` (why it
  failed), `calls`, `in_flight`, `waiting` (for a slot), `atoms` (added to the VM), `warden` (its process), and for each of the `workers`:

    * `position`, `state` (`:starting`, `:loading`, `:ready`, `:ending`, `:waiting` for its restart, `:failed`), `os_pid`, `uptime` (ms)
    * `restarts`, `hung` (how often it was killed because of a deadline), `last_exit`
    * `calls` it has answered, `in_flight`, `executing`, `longest_call` (ms that the oldest of these is known to have run, to the second; nil for
      none), `hung_calls` (that go on after their callers have given them up)
    * `memory`: `limit`, and `used`, in bytes, as `memory:` counts them
    * `heartbeat_age` (ms), `resident` (bytes), `objects` (of the library, alive in the worker): what the worker says itself

  Of libraries in the same processes, `calls`, `in_flight`, `waiting`, `atoms` and the workers are those of all.
  """
  @spec info(library()) :: result(map())
  def info(target) do
    with {:ok, %Library{id: id}} <- resolve(target),
         {:ok, library, _supervisor} <- running(id, target),
         do: {:ok, Snakepit.Isolation.Info.describe(library, Warden.os_pid())}
  end
end
