defmodule Snakepit.Isolation.Module do
  @moduledoc """
  A module of one's own around a NIF library, which runs isolated or in the VM as an option says.

      defmodule MyApp.Nif do
        use Snakepit.Isolation.Module, otp_app: :my_app, library: "priv/my_nif", sandbox: :none, workers: 2

        @spec add(integer(), integer()) :: integer()
        def add(_a, _b), do: :erlang.nif_error(:nif_not_loaded)
      end

      3 = MyApp.Nif.add(1, 2)

  The library is an ordinary one, whose `ERL_NIF_INIT` names `Elixir.MyApp.Nif`, and the functions are stubs as `:erlang.load_nif/2` documents
  them. Isolated or not, results and exceptions are the same; an isolated library's crash is a `Snakepit.Isolation.Error`, raised in the
  caller alone.

  ## Which functions are NIFs

  Those whose body is nothing but a call of `:erlang.nif_error/1` or `/2`, exported or private (`defp`). If the module has the attribute `@nifs`, those that it
  names, whatever their bodies are: `@nifs [add: 2, hash: 1]`. Functions that the library turns out not to have do what their bodies say, as in the VM.

  A stub with another body (`raise "..."`, `exit(:nif_not_loaded)`, a call of a function that calls `:erlang.nif_error/1` for all of them) is taken
  for an ordinary function: name such in `@nifs`, or the library is refused when it is loaded, because it has functions that the module has not declared.

  The module's `@on_load` is taken: Elixir allows one, and does not compile a module that sets another ("the @on_load attribute can
  only be set once per module"). What such a function did besides loading the library belongs where the application starts.

  ## Options

    * `:otp_app` - the application that the library belongs to
    * `:library` - its path there, without `.so`: `"priv/my_nif"`; or `{application, path}`, or an absolute path
    * `:isolated` - `false` loads the library into the VM. Default `true`
    * `:load_info` - a term for the library's load callback, default 0
    * all others of `Snakepit.Isolation.load/2`, with these differences: `:timeout` is `:infinity` unless it is given, because a NIF has no deadline; and
      the library's name is the module, which the functions of `Snakepit.Isolation` take. In the VM they mean nothing

  They are checked when the module is compiled. The configuration of the application goes before them, and is read when the library is loaded, so
  that it can be in `config/runtime.exs` too:

      config :my_app, MyApp.Nif, isolated: false

  ## When the library is loaded

  When one of the NIFs is called for the first time, or by `load/1`; never when the module is. Compilers load the modules that they have compiled,
  and releases load all of theirs before applications are started and before `config/runtime.exs` is read. So no boot fails because of a
  library. An application that wants to know at its start whether the library is there says so:

      def start(_type, _args) do
        :ok = Snakepit.Isolation.Module.load(MyApp.Nif)

  The application `:snakepit_shm` has to run by then, or the call raises a `Snakepit.Isolation.Error` that says so. Calls that come while the library is being
  loaded wait for it, each for its `:timeout` at most; then it raises `:timeout`, and the load goes on. When a library cannot be loaded, all who waited for it raise
  why, and the next call tries again. A caller that is killed changes nothing for the others.

  When the module is loaded anew (`recompile/0`, a hot upgrade), its isolated library is unloaded, which ends the calls that run in it with `:not_loaded`, and the next
  call loads the library as it then is. In the VM, a library is upgraded by its own upgrade callback, or not at all while old code of the
  module is there.

  After `Snakepit.Isolation.unload/1`, and when all its workers have been given up, calls raise that, until `load/1` loads it again. When
  `:snakepit_shm` is stopped, the library ends with it, and is loaded again by the first call after the next start.

  Such a module needs no `Snakepit.Isolation.isolate/2`, which refuses it, and no step of a release.
  """

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{Directory, DropIn, Error, Library, Options}
  alias Snakepit.Isolation.DropIn.{Loader, Rewriter}
  alias Snakepit.Isolation.Module.{Gates, Loads}

  @doc false
  defmacro __using__(options) do
    quote do
      # Who looks at the beam without running it finds its options and NIFs there (`DropIn.Source.own/1`).
      for name <- [:snakepit_isolation, :snakepit_nifs], do: Module.register_attribute(__MODULE__, name, persist: true)
      @snakepit_isolation Snakepit.Isolation.Module.checked!(__MODULE__, unquote(options))
      # The compiler's own attribute: what stands in such a function says nothing about what it returns.
      Module.register_attribute(__MODULE__, :nifs, persist: true, accumulate: true)
      @on_load {:__isolation_on_load__, 0}
      @before_compile Snakepit.Isolation.Module
    end
  end

  @doc false
  defmacro __before_compile__(%{module: module} = env) do
    options = Module.get_attribute(module, :snakepit_isolation)
    nifs = Gates.nifs(env)
    # The compiler does not keep its own.
    Module.put_attribute(module, :snakepit_nifs, nifs)
    slot = Rewriter.version_slot(module, {nifs, options})
    definition = %{slot: slot, nifs: nifs, options: options}

    quote do
      unquote_splicing(Gates.gates(module, nifs, slot))

      @doc false
      def __isolation__, do: unquote(Macro.escape(definition))

      @doc false
      def __isolation_on_load__, do: unquote(__MODULE__).replaced(__MODULE__, unquote(slot))

      # The VM lets only the module itself load its library.
      @doc false
      def __isolation_load_nif__(path, load_info), do: :erlang.load_nif(path, load_info)
    end
  end

  @doc false
  @spec checked!(module(), term()) :: keyword()
  def checked!(module, options) do
    case Options.module(module, options) do
      {:ok, _} -> options
      {:error, error} -> raise %{error | library: module}
    end
  end

  @doc """
  Loads the library of a module that uses this one, as its options and its application's configuration say. `:ok` too if it is loaded.
  """
  @spec load(module()) :: :ok | {:error, Error.t()}
  def load(module) when is_atom(module),
    do: with({:ok, definition} <- definition(module), do: load(module, definition, :infinity))

  def load(other), do: Error.invalid(:module, "a module", other)

  # ── What the module itself calls ──────────────────────────────────────────────────────────────────────────────

  @doc false
  # By a gate whose slot is empty. Afterwards it is not, or there is an error.
  @spec first_call(module(), atom()) :: :ok | {:error, Error.t()}
  def first_call(module, slot) do
    with :missing <- there(slot),
         {:ok, definition} <- definition(module),
         :ok <- load(module, definition, patience(module, definition)),
         :missing <- there(slot),
         do: {:error, Error.new(:not_loaded, module, nil, %{because: :replaced})}
  end

  defp there(slot), do: if(:persistent_term.get(slot, nil), do: :ok, else: :missing)

  # As long as the call itself would wait. In the VM a call has no deadline.
  defp patience(module, definition) do
    case Options.module(module, configured(definition.options, module)) do
      {:ok, %{isolated: true, load: options}} -> options[:timeout]
      {:ok, %{isolated: false}} -> :infinity
      # Which is the answer of the load.
      {:error, _} -> :infinity
    end
  end

  @doc false
  # By on_load. The module's code is new; if there was an earlier one, it has loaded another library, perhaps.
  @spec replaced(module(), atom()) :: :ok
  def replaced(module, slot) do
    with %{slot: earlier} <- DropIn.fetch(module) do
      DropIn.drop(module)
      :persistent_term.erase(earlier)
    end

    :persistent_term.erase(slot)
    :ok
  end

  # ── Loading ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp definition(module) do
    if Code.ensure_loaded?(module), do: loaded_definition(module), else: no_such_module(module)
  end

  # Does not ask the code server, which may be waiting for us: on_load waits for who is alone with the module.
  defp loaded_definition(module) do
    if function_exported?(module, :__isolation__, 0), do: {:ok, module.__isolation__()}, else: no_such_module(module)
  end

  defp no_such_module(module), do: {:error, Error.new(:not_loaded, module, nil, %{because: :no_such_module})}

  defp load(module, %{slot: slot}, timeout) do
    with false <- running?(:persistent_term.get(slot, nil)),
         :timeout <- Loads.run(module, slot, fn -> load_alone(module) end, timeout) do
      {:error, Error.new(:timeout, module, nil, %{because: :loading, timeout: timeout, started: false})}
    else
      true -> :ok
      answer -> answer
    end
  end

  defp load_alone(module) do
    Loader.alone(module, fn ->
      # It may have been replaced, and loaded, meanwhile.
      with {:ok, %{slot: slot} = definition} <- loaded_definition(module),
           false <- running?(:persistent_term.get(slot, nil)),
           {:error, %Error{} = error} <- load_now(module, definition) do
        {:error, %{error | library: module}}
      else
        true -> :ok
        answer -> answer
      end
    end)
  end

  defp load_now(module, definition) do
    with {:ok, options} <- Options.module(module, configured(definition.options, module)),
         {:ok, path} <- Options.path(options.library) do
      # Of code with another definition, which was called while this one was being loaded; or one that was unloaded.
      if DropIn.fetch(module), do: DropIn.drop(module)
      open(options.isolated, path, options.load_info, state(module, definition, options))
    end
  end

  # A library that was unloaded or has failed is not; one in the VM is for as long as the module's code.
  defp running?(nil), do: false
  defp running?(loaded) when elem(loaded, 0) == nil, do: true

  defp running?(loaded) do
    with {:ok, %Library{table: table}, _supervisor} <- Directory.fetch(elem(loaded, 0).id),
         do: Enum.any?(Library.rows(table), &(&1.state != :failed)),
         else: (:error -> false)
  end

  @doc false
  # The options that count, of those that it was compiled with and those of its application's configuration.
  @spec configured(keyword(), module()) :: term()
  def configured(options, module) do
    configured = Application.get_env(options[:otp_app], module, [])
    if Keyword.keyword?(configured), do: Keyword.merge(options, configured), else: configured
  end

  defp open(true, path, load_info, %{module: module} = state) do
    # Slots are emptied when the libraries' supervisor is started: if that was meanwhile, the library is of an earlier one.
    libraries = Isolation.Supervisor.libraries()

    with {:ok, library} <- Loader.open(state, path, load_info),
         :ok <- DropIn.loaded(state, library) do
      if Isolation.Supervisor.libraries() == libraries do
        :ok
      else
        DropIn.lost(module)
        {:error, Error.new(:not_loaded, module, nil, %{because: :unloaded})}
      end
    end
  end

  defp open(false, path, load_info, %{module: module} = state) do
    case module.__isolation_load_nif__(String.to_charlist(path), load_info) do
      :ok ->
        DropIn.loaded(state, nil)

      # By somebody who has called that function himself.
      {:error, {:reload, _}} ->
        DropIn.loaded(state, nil)

      {:error, {kind, text}} ->
        details = %{because: :load_nif, path: path, kind: kind, text: IO.chardata_to_string(text)}
        {:error, Error.new(:not_loaded, module, nil, details)}
    end
  end

  defp state(module, %{slot: slot, nifs: nifs}, options) do
    %{
      module: module,
      slot: slot,
      functions: nifs |> Gates.places() |> Map.new(),
      declared: true,
      options: options.load,
      file: nil,
      original: nil,
      md5: nil,
      old: nil,
      loading: false,
      error: nil
    }
  end
end
