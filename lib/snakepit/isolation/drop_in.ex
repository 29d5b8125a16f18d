defmodule Snakepit.Isolation.DropIn do
  @moduledoc false
  # Somebody else's module, its library isolated: the module is rewritten (`DropIn.Rewriter`), its code replaced
  # (`DropIn.Code`), and its own code, often on_load, then loads the library through `DropIn.Loader`.
  #
  # Two persistent terms for each module. What is known of it, under {DropIn, module}: it outlives the application, since the
  # module's code does, so that it can be restored at any time. And its slot, which the gates of its functions read:
  # {library, false, true, ...}, one element for each function that may be a NIF.

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{Directory, DropIn, Error, Library, Options}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source}

  @type state :: %{
          module: module(),
          slot: atom(),
          functions: %{{atom(), arity()} => pos_integer()},
          declared: boolean(),
          # For load/2.
          options: keyword(),
          # To put it back; nil if it is not rewritten but has its library itself (`Snakepit.Isolation.Module`).
          file: charlist() | nil,
          original: binary() | nil,
          md5: binary() | nil,
          # Why the library was not loaded, while isolate/2 runs.
          error: Error.t() | nil
        }

  @spec isolate(module(), term()) :: :ok | {:error, Error.t()}
  def isolate(module, options) do
    with {:ok, options} <- Options.isolate(module, options) do
      alone(module, fn ->
        with {:ok, earlier} <- not_isolated(module),
             {:ok, source} <- Source.find(module),
             do: replace(source, options, earlier)
      end)
    end
  end

  @doc "The same when the application starts: what is known of the module, and its library, are of an earlier start."
  @spec isolate_anew(module(), term()) :: :ok | {:error, Error.t()}
  def isolate_anew(module, options) do
    with {:ok, options} <- Options.isolate(module, options),
         {:ok, source} <- Source.find(module),
         do: alone(module, fn -> replace(source, options, fetch(module)) end)
  end

  @doc """
  The same for code that is not what its file has, in place of whatever is loaded: `beam` is what `restore/1` puts back. A library of
  earlier code is unloaded.
  """
  @spec isolate_beam(module(), charlist(), binary(), keyword()) :: :ok | {:error, Error.t()}
  def isolate_beam(module, file, beam, options) do
    with {:ok, options} <- Options.isolate(module, options),
         {:ok, source} <- Source.read(module, file, beam) do
      alone(module, fn ->
        replace(source, options, fetch(module))
      end)
    end
  end

  @spec restore(module()) :: :ok | {:error, Error.t()}
  def restore(module) do
    alone(module, fn ->
      case fetch(module) do
        nil ->
          {:error, Error.new(:not_loaded, module, nil, %{because: :not_isolated})}

        %{original: nil} ->
          Source.refuse(module, :isolates_itself)

        state ->
          with :ok <- DropIn.Code.purge(module),
               :ok <- put_back(state) do
            # Nobody calls a new library by now, and the old one only whoever runs in old code.
            forget(state)
          end
      end
    end)
  end

  # One at a time for each module; whoever is killed meanwhile gives it up.
  defp alone(module, function), do: :global.trans({{__MODULE__, module}, self()}, function, [node()])

  # Its code may have been loaded anew from its file by somebody else, or its library have ended.
  defp not_isolated(module) do
    earlier = fetch(module)

    cond do
      match?(%{original: nil}, earlier) ->
        Source.refuse(module, :isolates_itself)

      earlier != nil and DropIn.Code.md5(module) == earlier.md5 and not ended?(library(module)) ->
        {:error, Error.new(:already_isolated, module)}

      true ->
        {:ok, earlier}
    end
  end

  defp ended?(nil), do: false
  defp ended?(%Library{id: id}), do: Directory.fetch(id) == :error

  # ── There ─────────────────────────────────────────────────────────────────────────────────────────────────────

  # `earlier` goes once nothing can refuse any more.
  defp replace(%Source{module: module, file: file} = source, options, earlier) do
    with {:ok, rewritten} <- Rewriter.rewrite(source),
         :ok <- DropIn.Code.purge(module) do
      if earlier, do: forget(earlier)
      {:ok, {_, md5}} = :beam_lib.md5(rewritten.beam)

      state = %{
        module: module,
        slot: rewritten.slot,
        functions: rewritten.functions,
        declared: rewritten.declared,
        options: options,
        file: file,
        original: source.beam,
        md5: md5,
        error: nil
      }

      # Where isolated code was, whatever its version, the original does not come back.
      loaded = DropIn.Code.md5(module)
      before = if earlier && earlier.md5 == loaded, do: md5, else: loaded
      # A slot that somebody in old code still needed when the module was restored last.
      :persistent_term.erase(rewritten.slot)
      put(state)

      case DropIn.Code.load(module, file, rewritten.beam) do
        :ok -> settle(state, rewritten.on_load, before)
        {:error, error} -> withdraw(state, error)
      end
    end
  end

  # Some modules go on without their library when it cannot be loaded; whoever wants it isolated does not.
  defp settle(%{module: module} = state, on_load?, before) do
    case {library(module), fetch(module)} do
      {nil, %{error: %Error{} = error}} when on_load? ->
        undo(state, error, before)

      _ ->
        # Whoever runs in the old code goes on in it.
        _ = DropIn.Code.purged?(module)
        :ok
    end
  end

  # Whoever still runs in the original code, the old one now, would be killed by a third: then the module stays as it is, without its
  # library, until `restore/1` finds nobody there. In a release it is the rewritten code that was there before.
  defp undo(state, error, before) do
    case as_before(state, before) do
      :ok ->
        forget(state)
        {:error, error}

      {:error, %Error{} = in_the_way} ->
        {:error, %{error | details: Map.put(error.details, :not_undone, in_the_way)}}
    end
  end

  defp as_before(%{md5: md5}, md5), do: :ok

  defp as_before(%{module: module}, nil) do
    DropIn.Code.delete(module)
    :ok
  end

  defp as_before(%{module: module} = state, _original),
    do: with(:ok <- DropIn.Code.purge(module), do: put_back(state))

  # The VM has kept the module as it was.
  defp withdraw(%{module: module} = state, error) do
    because = fetch(module).error
    forget(state)
    {:error, because || error}
  end

  # ── Back ──────────────────────────────────────────────────────────────────────────────────────────────────────

  defp put_back(%{module: module, file: file, original: original}), do: DropIn.Code.load(module, file, original)

  defp forget(%{module: module, slot: slot}) do
    drop(module)
    # Gates in old code that is still run find a library that has been unloaded, not a function that was never loaded.
    if DropIn.Code.purged?(module), do: :persistent_term.erase(slot)
    :ok
  end

  @doc "Unloads the module's library, and nothing is known of the module any more."
  @spec drop(module()) :: :ok
  def drop(module) do
    # Not while the module's own code loads it: that would be nobody's.
    DropIn.Loader.alone(module, fn ->
      loaded = library(module)
      if loaded, do: Isolation.unload(loaded)
      :persistent_term.erase({__MODULE__, module})
      :ok
    end)
  end

  # ── What is known ─────────────────────────────────────────────────────────────────────────────────────────────

  @spec fetch(module()) :: state() | nil
  def fetch(module), do: :persistent_term.get({__MODULE__, module}, nil)

  defp put(state), do: :persistent_term.put({__MODULE__, state.module}, state)

  @doc "The library of an isolated module, if the module has loaded it."
  @spec library(module()) :: Library.t() | nil
  def library(module) do
    with %{slot: slot} <- fetch(module),
         loaded when is_tuple(loaded) <- :persistent_term.get(slot, nil),
         do: elem(loaded, 0),
         else: (_ -> nil)
  end

  @doc "Opens the gates of the library's functions; without one, as for a library in the VM, none."
  @spec loaded(state(), Library.t() | nil) :: :ok
  def loaded(%{slot: slot, functions: functions} = state, library) do
    put(%{state | error: nil})
    open = if library, do: library.functions, else: []
    gates = functions |> Enum.sort_by(&elem(&1, 1)) |> Enum.map(fn {function, _} -> function in open end)
    :persistent_term.put(slot, List.to_tuple([library | gates]))
  end

  @doc "The library could not be loaded; the module may try another one."
  @spec failed(state(), Error.t()) :: :ok
  def failed(state, error), do: put(%{state | error: error})
end
