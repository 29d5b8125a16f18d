defmodule Snakepit.Isolation.Error do
  @moduledoc """
  What went wrong with an isolated library, and what to do about it.

  `reason` is to match on:

  | reason | means |
  |---|---|
  | `:crashed` | the library's process ended while the call ran: `signal` or `exit_code`, and the `function` |
  | `:timeout` | the call's deadline passed; if it was running and goes on, its worker is killed and replaced |
  | `:raised` | the library raised an exception: `exception` |
  | `:overloaded` | no slot was free until the deadline, or too many callers were waiting |
  | `:not_loaded` | the library is not there, or could not be loaded: the message says why |
  | `:stale` | an argument is an object of a worker that has gone (or of two workers), or the result a reference or fun of an earlier call |
  | `:quota_exceeded` | a bound was exceeded: payload, heap words, depth, atoms, names; or the library's process ended, because it had all the memory that `memory:` gives it |
  | `:protocol` | the worker answered with what it cannot have been given, or wrote nonsense |
  | `:not_implemented` | the library called an `enif_` function that this version does not have |
  | `:sandbox_violation` | the library did what its sandbox does not let it do |
  | `:undefined_function` | the library has no such function |
  | `:unsupported_term` | an argument cannot be sent to another process |
  | `:unsupported_module` | the module cannot be isolated: the message says why |
  | `:already_isolated` | the module is isolated |
  | `:in_use` | processes still run in old code of the module: `details` has `pids` |
  | `:invalid_option` | an option or argument is wrong: `details` has `key`, `expected`, `got` |

  `Exception.message/1` gives a sentence and a remedy.
  """

  @typedoc "The kinds of failure."
  @type reason ::
          :crashed
          | :timeout
          | :raised
          | :overloaded
          | :not_loaded
          | :stale
          | :quota_exceeded
          | :protocol
          | :not_implemented
          | :sandbox_violation
          | :undefined_function
          | :unsupported_term
          | :unsupported_module
          | :already_isolated
          | :in_use
          | :invalid_option

  @type t :: %__MODULE__{
          reason: reason(),
          library: term(),
          function: {atom(), arity()} | nil,
          signal: atom() | pos_integer() | nil,
          exit_code: non_neg_integer() | nil,
          exception: term(),
          details: map()
        }

  defexception [:reason, :library, :function, :signal, :exit_code, :exception, details: %{}]

  # Numbers of Linux on x86-64 and aarch64.
  @signals %{
    1 => :SIGHUP,
    2 => :SIGINT,
    3 => :SIGQUIT,
    4 => :SIGILL,
    5 => :SIGTRAP,
    6 => :SIGABRT,
    7 => :SIGBUS,
    8 => :SIGFPE,
    9 => :SIGKILL,
    10 => :SIGUSR1,
    11 => :SIGSEGV,
    12 => :SIGUSR2,
    13 => :SIGPIPE,
    14 => :SIGALRM,
    15 => :SIGTERM,
    24 => :SIGXCPU,
    25 => :SIGXFSZ,
    31 => :SIGSYS
  }
  @numbers Map.new(@signals, fn {number, name} -> {name, number} end)

  @doc false
  @spec new(reason(), term(), {atom(), arity()} | nil, map()) :: t()
  def new(reason, library, function \\ nil, details \\ %{}) do
    {fields, details} = Map.split(details, [:signal, :exit_code, :exception])
    struct!(%__MODULE__{reason: reason, library: library, function: function, details: details}, fields)
  end

  @doc false
  @spec invalid(atom(), String.t(), term()) :: {:error, t()}
  def invalid(key, expected, got),
    do: {:error, new(:invalid_option, nil, nil, %{key: key, expected: expected, got: got})}

  @reasons ~w(crashed timeout raised overloaded not_loaded stale quota_exceeded protocol not_implemented
              sandbox_violation unsupported_term undefined_function)a
  # What native/nif says that the face says with another word.
  @bounds ~w(too_large too_many_names too_many_atoms)a

  @doc false
  # What a native function answered.
  @spec from_native({atom(), map()}, term(), {atom(), arity()} | nil) :: t()
  def from_native({reason, details}, library, function) when is_map(details) do
    details = Map.put_new(details, :native, reason)

    cond do
      reason in @reasons -> new(reason, library, function, details)
      reason in @bounds -> new(:quota_exceeded, library, function, details)
      reason == :unsupported -> new(:unsupported_term, library, function, details)
      true -> new(:protocol, library, function, details)
    end
  end

  @doc false
  # How a process ended, as fields of an error.
  @spec status({:exit, non_neg_integer()} | {:signal, pos_integer()} | nil) :: map()
  def status({:signal, number}), do: %{signal: Map.get(@signals, number, number)}
  def status({:exit, code}), do: %{exit_code: code}
  def status(nil), do: %{}

  @doc """
  The crash in Snakepit's own form, for code that handles crashes of its Python workers:
  `{:worker_crash, %{reason:, exit_code:, classification:}}`.

  `exit_code` is the shell's: 128 + the signal. `classification` is `:segfault` (SIGSEGV, SIGBUS), `:abort`, `:oom` (a SIGKILL that did
  not come from here), `:timeout` (killed because of a deadline), `:exit` or `:unknown`. An error that is no crash gives
  its reason and message instead.
  """
  @spec to_snakepit(t()) ::
          {:worker_crash, %{reason: term(), exit_code: non_neg_integer() | nil, classification: atom()}}
          | {reason(), String.t()}
  def to_snakepit(%__MODULE__{reason: :crashed} = e) do
    {:worker_crash,
     %{reason: e.signal || {:exit, e.exit_code}, exit_code: shell_code(e), classification: classification(e)}}
  end

  def to_snakepit(%__MODULE__{reason: :timeout, details: %{started: true}}),
    do: {:worker_crash, %{reason: :timeout, exit_code: 128 + 9, classification: :timeout}}

  def to_snakepit(%__MODULE__{} = e), do: {e.reason, Exception.message(e)}

  defp shell_code(%{signal: nil, exit_code: code}), do: code
  defp shell_code(%{signal: signal}), do: 128 + Map.get(@numbers, signal, signal)

  defp classification(%{details: %{because: :hung}}), do: :timeout
  defp classification(%{signal: signal}) when signal in [:SIGSEGV, :SIGBUS], do: :segfault
  defp classification(%{signal: :SIGABRT}), do: :abort
  defp classification(%{signal: :SIGKILL, details: %{because: :exited}}), do: :oom
  defp classification(%{signal: nil, exit_code: code}) when is_integer(code), do: :exit
  defp classification(_), do: :unknown

  # ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def message(%__MODULE__{} = e) do
    {what, remedy} = explain(e.reason, e, e.details)

    [where(e.details), subject(e), what, ". ", remedy, unnoticed(e.details)]
    |> IO.iodata_to_binary()
    |> String.trim_trailing()
  end

  @doc "What to do about it, one or two sentences."
  @spec remedy(t()) :: String.t()
  def remedy(%__MODULE__{} = e), do: e.reason |> explain(e, e.details) |> elem(1)

  # Of DropIn.Start.
  defp where(%{configured: true, key: :isolate}), do: "config :snakepit_shm, "
  defp where(%{configured: true}), do: "config :snakepit_shm, isolate: "
  defp where(_), do: ""

  defp unnoticed(%{configured: true}) do
    " snakepit_shm does not start without what is listed there, so that no library is used in the VM unnoticed. " <>
      "A module that is set to false stays in the VM."
  end

  defp unnoticed(_), do: ""

  defp subject(%{library: nil, function: nil}), do: ""
  defp subject(%{library: library, function: nil}), do: [name(library), ": "]
  defp subject(%{library: nil, function: {f, a}}), do: "#{f}/#{a}: "
  defp subject(%{library: library, function: {f, a}}), do: [name(library), ": #{f}/#{a}: "]

  defp name(library) when is_binary(library), do: library
  defp name(library), do: inspect(library)

  defp explain(:crashed, e, d),
    do: {"the library's process #{ended(e, d)} while the call ran", crash_remedy(e, d)}

  defp explain(:timeout, _e, %{started: true} = d),
    do:
      {"it was still running after #{d[:timeout]} ms, and unless it ended at the same moment its worker is killed and replaced",
       "Pass a longer timeout: (or :infinity), or find out why the library hangs."}

  defp explain(:timeout, _e, %{because: :no_worker} = d),
    do:
      {"no worker was ready within #{d[:timeout]} ms",
       "Snakepit.Isolation.info/1 shows why the workers are restarting."}

  defp explain(:timeout, _e, %{because: :loading} = d),
    do:
      {"its library had not been loaded within #{d[:timeout]} ms",
       "Call again: it goes on being loaded. Snakepit.Isolation.Module.load/1 loads it before the first call."}

  defp explain(:timeout, _e, d),
    do:
      {"it had not been started within #{d[:timeout]} ms, because the workers were busy with other calls",
       "Pass a longer timeout:, or load the library with more workers: or concurrency:."}

  defp explain(:raised, e, _d),
    do: {"the library raised #{show(e.exception)}", "Correct the arguments, or handle the exception."}

  defp explain(:overloaded, _e, %{because: :waiting} = d),
    do:
      {"#{d[:limit] || "too many"} callers are waiting already",
       "Call less at a time, or load the library with more workers:, slots: or max_waiting:."}

  defp explain(:overloaded, _e, d),
    do:
      {"all slots were taken for #{d[:timeout]} ms",
       "Call less at a time, pass a longer timeout:, or load the library with more workers: or slots:."}

  defp explain(:not_loaded, _e, d), do: not_loaded(d)

  defp explain(:stale, _e, d),
    do:
      {"an argument or the result names what is no more: #{d[:message] || "an object of a worker that has gone"}",
       "Make the object again; with workers: 1 all objects live in one worker."}

  defp explain(:quota_exceeded, e, %{native: :memory} = d),
    do:
      {"the library's process #{ended(e, d)} while the call ran, right after it wanted more than the #{d[:limit]} bytes of memory: that it may have",
       "A new worker is being started. Pass less at a time, or load the library with a larger memory:."}

  defp explain(:quota_exceeded, _e, d),
    do:
      {"a bound was exceeded: #{d[:message] || bound(d)}",
       "Pass less at a time, or load the library with a larger #{option(d)}."}

  defp explain(:protocol, _e, d),
    do:
      {"the worker broke the protocol (#{d[:message] || d[:what] || bound(d)})",
       "Its library has probably damaged its memory, or is hostile; the worker is replaced. The answer was not used."}

  defp explain(:not_implemented, _e, d),
    do:
      {"the library called #{d[:symbol] || d[:function] || d[:message] || "a function"}, which isolated libraries cannot use yet",
       "Snakepit.Isolation.info/1 lists such functions under missing."}

  defp explain(:sandbox_violation, _e, d),
    do:
      {"the library did what its sandbox forbids (#{d[:message] || inspect(d)})",
       "Grant it, or use the library less freely."}

  defp explain(:undefined_function, e, d) do
    near = d[:near] || []
    hint = if near == [], do: "", else: " Did you mean #{Enum.join(near, ", ")}?"
    _ = e
    {"the library has no such function", "Snakepit.Isolation.info/1 lists its functions." <> hint}
  end

  defp explain(:unsupported_term, _e, d),
    do:
      {"an argument cannot be sent to another process: #{d[:message] || bound(d)}",
       "Pass data, local pids, ports, references and funs."}

  defp explain(:unsupported_module, _e, d), do: unsupported(d)

  defp explain(:already_isolated, _e, _d),
    do:
      {"it is isolated already",
       "To change its options, unload it first: Snakepit.Isolation.unload/1. (restore/1 puts it back into this VM.)"}

  defp explain(:in_use, _e, %{because: :in_vm} = d),
    do:
      {"#{pids(d)} had called it before snakepit_shm was started, and still run in it, with its library in this VM",
       "Let snakepit_shm start before who calls it: list it first in extra_applications, or in `applications:` of the release."}

  defp explain(:in_use, _e, d),
    do:
      {"old code of the module is in use by #{pids(d)}; nothing was changed",
       "Wait until they have left it, or end them (:code.purge/1 kills them), and try again."}

  defp explain(:invalid_option, _e, %{problems: problems}),
    do: {"options are refused:" <> Enum.map_join(problems, "", &"\n  * #{&1}") <> "\n", "Correct them"}

  defp explain(:invalid_option, _e, %{key: :isolate} = d),
    do:
      {"isolate: expected #{d[:expected]}, got #{show(d[:got])}",
       "README.md of snakepit_shm has examples, under Configuration."}

  defp explain(:invalid_option, _e, d),
    do:
      {"#{inspect(d[:key])}: expected #{d[:expected]}, got #{show(d[:got])}",
       if(d[:configured],
         do: "The documentation of Snakepit.Isolation.load/2 lists the options.",
         else: "The documentation of the function lists its options."
       )}

  # How it comes back. A library of a module comes with the module only; whoever is no longer there needs not be unloaded.
  defp again(%{module: module}) do
    if function_exported?(module, :__isolation__, 0),
      do: "Load it again with Snakepit.Isolation.Module.load(#{inspect(module)})",
      else: "Isolate the module again with Snakepit.Isolation.isolate(#{inspect(module)}, options)"
  end

  defp again(%{because: :unloaded}), do: "Load it again"
  defp again(_), do: "Unload it and load it again"

  defp pids(d) do
    pids = d[:pids] || []
    some = pids |> Enum.take(5) |> Enum.map_join(", ", &inspect/1)
    if length(pids) > 5, do: some <> " and #{length(pids) - 5} others", else: some
  end

  defp ended(%{signal: signal}, %{because: :hung}) when signal != nil,
    do: "was killed, because another call in it did not answer before its deadline,"

  defp ended(_e, %{because: :heartbeat}), do: "was killed, because it showed no sign of life,"
  defp ended(_e, %{because: :stuck}), do: "was killed, because it no longer took calls,"
  defp ended(_e, %{because: :protocol}), do: "was killed, because it broke the protocol,"
  defp ended(_e, %{because: :warden}), do: "ended with the warden"
  defp ended(_e, %{because: :server}), do: "ended with the process that watched it"
  defp ended(%{signal: signal}, _d) when signal != nil, do: "ended with #{signal}"
  defp ended(%{exit_code: code}, _d) when code != nil, do: "called exit(#{code})"
  defp ended(_e, _d), do: "ended"

  defp crash_remedy(_e, %{because: :hung}), do: "Call again; with concurrency: 1 calls do not share a fate."

  defp crash_remedy(%{signal: :SIGKILL}, %{because: :exited}),
    do: "Somebody, or the kernel for want of memory, killed it. Call again."

  defp crash_remedy(_e, %{because: :exited}),
    do: "This is a fault of the library; a new worker is being started. Call again with other arguments."

  defp crash_remedy(_e, _d), do: "A new worker is being started. Call again."

  # Of isolate/2.
  defp unsupported(%{because: :own}),
    do: {"isolated libraries are called through it", "It stays in the VM."}

  defp unsupported(%{because: :isolates_itself}),
    do:
      {"it has its library itself (use Snakepit.Isolation.Module)",
       "Its option isolated: says whether that runs isolated."}

  defp unsupported(%{because: :preloaded}),
    do: {"it is a part of the runtime system and is there before any code is loaded", "It stays in the VM."}

  defp unsupported(%{because: :sticky}),
    do: {"it lies in a sticky directory, whose modules the VM does not replace", "It stays in the VM."}

  defp unsupported(%{because: :cover_compiled}),
    do:
      {"it is compiled for coverage, and its own code is not loaded",
       "Leave it out of the coverage, or stop :cover (mix test --cover compiles all of the project's own modules so)."}

  defp unsupported(%{because: :non_existing}),
    do: {"there is no such module in the code path", "Check its name, and that its application is there."}

  defp unsupported(%{because: :no_file} = d),
    do:
      {"there is no beam file of it#{if d[:path], do: " at #{d[:path]}"}",
       "Modules that were made in memory cannot be isolated: compile it to a file in the code path."}

  defp unsupported(%{because: :no_beam} = d), do: {"#{d[:path]} cannot be used (#{d[:message]})", "Build it again."}

  defp unsupported(%{because: :other_module} = d),
    do: {"#{d[:path]} is the module #{inspect(d[:got])}", "Check the code path."}

  defp unsupported(%{because: :no_debug_info} = d),
    do:
      {"#{d[:path]} has no debug_info, from which isolated code is made",
       "Compile it with debug_info (Erlang: +debug_info; Elixir: @compile :debug_info), and give releases the step Snakepit.Isolation.Release.rewrite/1."}

  defp unsupported(%{because: :encrypted} = d),
    do:
      {"the debug_info of #{d[:path]} is encrypted",
       "Make the key known to :beam_lib (crypto_key_fun/1, .erlang.crypt)."}

  defp unsupported(%{because: :other_version} = d),
    do: {"#{d[:path]} was rewritten by another version of snakepit_shm", "Build the release again."}

  defp unsupported(%{because: :not_in_release}),
    do:
      {"no application of the release has it",
       "Check its name, and that its application is in the release (extra_applications of yours, or applications: of the release)."}

  defp unsupported(%{because: :not_assembled} = d),
    do:
      {"it is not in the assembled release: #{d[:path]} (#{d[:message]})",
       "The step comes after :assemble and before :tar; modules of OTP are there only with include_erts: true."}

  defp unsupported(%{because: :no_load_nif}),
    do:
      {"it does not call erlang:load_nif/2",
       "Isolate the module that does, or load the library with Snakepit.Isolation.load/2."}

  defp unsupported(%{because: :on_load}),
    do: {"its on_load function failed, for another reason than its library", "The log has what it returned or raised."}

  defp unsupported(%{because: :not_compiled} = d),
    do: {"its rewritten code does not compile (#{d[:message]})", "Please report this, with the module."}

  # Of load/2, and of calls to what is no longer there.
  defp not_loaded(%{because: :sandbox} = d) do
    {"sandbox: #{if d[:got] == :missing, do: "is not given", else: show(d[:got]) <> " is not known"}; this version has no sandbox",
     "Pass sandbox: :none to say that you know: the library then runs in a process of its own, with all the rights of this one."}
  end

  # With or without its ending.
  defp not_loaded(%{because: :no_file, as_given: true, path: path}) do
    other = if String.ends_with?(path, ".so"), do: "", else: ", and none with the ending .so"
    {"there is no file #{path}#{other}", "Check the path."}
  end

  defp not_loaded(%{because: :not_reached} = d),
    do: {"there is no way to #{d[:path]} (#{d[:message]})", "Check the path, and who may read it."}

  defp not_loaded(%{because: :no_file} = d) do
    hint = if d[:with_ending], do: " Leave out the ending .so, as for :erlang.load_nif/2.", else: ""
    {"there is no file #{d[:path]}.so", "Check the path." <> hint}
  end

  defp not_loaded(%{because: :no_application} = d),
    do: {"there is no application #{inspect(d[:application])}", "Check the name, or pass a path."}

  defp not_loaded(%{because: :native} = d),
    do:
      {"the native library of snakepit_shm could not be loaded from #{d[:path]} (#{d[:kind]}: #{d[:text]})",
       "Run mix compile with Rust installed, or set SNAKEPIT_SHM_NATIVE to a directory of pre-built artefacts."}

  defp not_loaded(%{because: :executable} = d),
    do:
      {"the executable #{d[:path]} could not be started (#{d[:message] || bound(d)})",
       "Run mix compile with Rust installed, or set SNAKEPIT_SHM_NATIVE to a directory of pre-built artefacts."}

  defp not_loaded(%{because: :not_started}),
    do: {"the application snakepit_shm is not running", "Start it: Application.ensure_all_started(:snakepit_shm)."}

  defp not_loaded(%{because: :unknown} = d),
    do: {"no library #{show(d[:got])} is loaded", "Load it with Snakepit.Isolation.load/2; list/0 shows what is there."}

  defp not_loaded(%{because: :not_isolated}),
    do: {"the module is not isolated", "Isolate it with Snakepit.Isolation.isolate/2."}

  defp not_loaded(%{because: :waits}),
    do:
      {"it is isolated when the application snakepit_shm is started, which is not running",
       "Start it before who calls this module: first in applications: of the release; with Application.ensure_all_started(:snakepit_shm) in eval."}

  defp not_loaded(%{because: :rewritten}),
    do:
      {"its code was rewritten when the release was built, and it is not isolated",
       "List it in config :snakepit_shm, isolate:, or isolate it with Snakepit.Isolation.isolate/2."}

  defp not_loaded(%{because: :no_library}),
    do: {"the module is isolated and has not loaded its library yet", "It does so where it called erlang:load_nif/2."}

  defp not_loaded(%{because: :not_called_yet}),
    do:
      {"its library is loaded when one of its functions is called for the first time",
       "Snakepit.Isolation.Module.load/1 loads it at once."}

  defp not_loaded(%{because: :in_vm}),
    do: {"its library runs in the VM (isolated: false)", "Call the module's functions; isolated: true isolates it."}

  defp not_loaded(%{because: :load_nif} = d),
    do: {"#{d[:path]}.so could not be loaded into the VM (#{d[:kind]}: #{d[:text]})", "Check the library."}

  defp not_loaded(%{because: :no_such_module}),
    do: {"there is no such module, or it does not use Snakepit.Isolation.Module", "Check its name."}

  defp not_loaded(%{because: :replaced}),
    do:
      {"this code of the module has been replaced, and its library with it",
       "Whoever runs in old code comes to the new one with a call that names the module."}

  defp not_loaded(%{because: :misfit} = d),
    do: {d[:message], "The library and the module's code are of different versions, or the path is another library's."}

  defp not_loaded(%{because: :unloaded} = d), do: {"it has been unloaded", again(d) <> "."}

  defp not_loaded(%{because: :abandoned}),
    do:
      {"our processes that looked after its own were killed, and with them the call was lost",
       "It is started again if it stands in a supervision tree or in config isolate:; otherwise load it again."}

  defp not_loaded(%{because: :name_taken} = d),
    do: {"there is a library of the name #{inspect(d[:name])} already", "Unload it first, or choose another name."}

  defp not_loaded(%{because: :gave_up} = d),
    do:
      {"its workers ended #{d[:restarts]} times within #{d[:seconds]} seconds, the last one #{d[:last]}, and were given up",
       "#{again(d)} when the cause is repaired; max_restarts: and max_seconds: set the limit."}

  defp not_loaded(%{because: :not_restarted} = d),
    do:
      {"its process #{d[:last]} and is not started again (restart: #{inspect(d[:restart])})",
       "#{again(d)}; with restart: :permanent it would have been started again."}

  defp not_loaded(%{because: :load_timeout} = d),
    do:
      {"it did not finish loading within #{d[:timeout]} ms (a constructor or its load callback hangs)",
       "Repair the library, or pass a longer load_timeout:."}

  defp not_loaded(%{because: :died_loading} = d),
    do:
      {"its process #{d[:last]} while the library was being loaded",
       "A constructor, nif_init or its load callback is at fault."}

  defp not_loaded(%{because: :atoms} = d) do
    {"the names of its functions are new atoms, of which it may make #{d[:limit]} in all",
     "Load it with a larger max_atoms:."}
  end

  # E2BIG: 128 KiB in one string, a quarter of the stack's limit in all.
  defp not_loaded(%{because: :start, call: "posix_spawn", errno: 7}),
    do: {"its process could not be started: its environment is longer than the kernel takes", "Give it less with env:."}

  defp not_loaded(%{because: :start} = d),
    do:
      {"its process could not be started (#{d[:message] || bound(d)})",
       "See lib/snakepit/isolation/README.md for what a worker needs."}

  defp not_loaded(%{because: :failed, stage: stage} = d), do: stage(stage, d)
  defp not_loaded(d), do: {"it is not loaded (#{d[:message] || bound(d)})", "Load it with Snakepit.Isolation.load/2."}

  defp stage(stage, d) when stage in [:not_found, :no_file],
    do: {"there is no file #{d[:path]}.so", "Check the path."}

  defp stage(:not_a_library, d),
    do: {"#{d[:path]}.so is not a shared library (#{d[:message]})", "Check the path, or build it again."}

  defp stage(:wrong_architecture, d),
    do: {"#{d[:path]}.so is made for another processor (#{d[:message]})", "Build it for this machine."}

  defp stage(:no_init, d),
    do: {"#{d[:path]}.so has no function nif_init", "It is a shared library, but not one with a NIF. Check the path."}

  defp stage(:unresolved_symbol, d),
    do:
      {"#{d[:path]}.so needs a symbol that is nowhere (#{d[:message]})",
       "Install the library that has it, or build this one again."}

  defp stage(:init, d),
    do: {"its nif_init failed (#{d[:message]})", "See the library's output in the log."}

  defp stage(:nif_version, d),
    do: {"it is made for another version of the NIF interface (#{d[:message]})", "Build it again."}

  defp stage(:load_info, d),
    do: {"load_info: could not be decoded (#{d[:message]})", "Pass plain data as load_info:."}

  defp stage(:load_callback, d),
    do: {"its load callback returned #{d[:code]}", "Pass the load_info: that it expects; see its output in the log."}

  defp stage(:open, d),
    do: {"#{d[:path]}.so could not be opened (#{d[:message]})", "Check its rights and the libraries that it needs."}

  defp stage(stage, d),
    do:
      {"loading failed at #{stage}: #{d[:message]} (code #{inspect(d[:code])})", "See the library's output in the log."}

  @doc false
  # How a process ended, in words that follow "its process".
  @spec end_in_words(map()) :: String.t()
  def end_in_words(details) do
    ended(%{signal: details[:signal], exit_code: details[:exit_code]}, details) |> String.trim_trailing(",")
  end

  defp bound(d) do
    case Map.drop(d, [:worker, :because]) do
      empty when empty == %{} -> "no more is known"
      rest -> Enum.map_join(rest, ", ", fn {key, value} -> "#{key}: #{show(value)}" end)
    end
  end

  defp option(%{native: :too_many_names}), do: "max_names:"
  defp option(%{native: :too_many_atoms}), do: "max_atoms:"
  defp option(_), do: "limit (slot_size:, spill_size:, max_words:, max_depth:, max_atoms:, max_names:)"

  # What came, as far as a sentence can hold it.
  defp show(term) do
    text = inspect(term, limit: 5, printable_limit: 60)
    if String.length(text) > 200, do: String.slice(text, 0, 200) <> "...", else: text
  end
end
