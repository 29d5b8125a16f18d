defmodule Snakepit.Isolation.DropIn do
  @moduledoc false
  # Somebody else's module, its library isolated: the module is rewritten (`DropIn.Rewriter`), its code replaced
  # (`DropIn.Code`), and its own code, often on_load, then loads the library through `DropIn.Loader`.
  #
  # Persistent terms for each module. What is known of it, under {DropIn, module}: it outlives the application, since the
  # module's code does, so that it can be restored at any time. And a slot for each version of its code that is there, which the gates
  # of its functions read: {library, false, true, ...}, one element for each function that may be a NIF.
  #
  # A new version of an isolated module finds its predecessor as in the VM: both stand side by side, in the same processes, the new
  # library is loaded as the old one's upgrade, and the old one goes when the old code is purged (`sweep/1`).

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{DropIn, Error, Library, Options}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source, Sweeper}

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
          # The slot of the version before, as long as its code is there.
          old: atom() | nil,
          # Its code is being loaded: the version before is the current one, unless it was deleted.
          loading: boolean(),
          # Why the library was not loaded, while isolate/2 runs.
          error: Error.t() | nil
        }

  @spec isolate(module(), term()) :: :ok | {:error, Error.t()}
  def isolate(module, options) do
    with {:ok, options} <- Options.isolate(module, options) do
      alone(module, fn ->
        with {:ok, source} <- Source.find(module),
             {:ok, earlier} <- earlier(module, source, options),
             do: replace(source, options, earlier)
      end)
    end
  end

  @doc "The same when the application starts: what is known of the module, and its library, are of an earlier start."
  @spec isolate_anew(module(), term()) :: :ok | {:error, Error.t()}
  def isolate_anew(module, options) do
    with {:ok, options} <- Options.isolate(module, options),
         {:ok, source} <- Source.find(module),
         do: alone(module, fn -> replace(source, options, fetch(module), :anew) end)
  end

  @doc """
  The same for code that is not what its file has, in place of whatever is loaded: `beam` is what `restore/1` puts back.
  """
  @spec isolate_beam(module(), charlist(), binary(), keyword()) :: :ok | {:error, Error.t()}
  def isolate_beam(module, file, beam, options) do
    with {:ok, options} <- Options.isolate(module, options),
         {:ok, source} <- Source.read(module, file, beam) do
      alone(module, fn -> replace(source, options, fetch(module)) end)
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

  # The version before: one whose file has changed since, whose code was replaced or deleted by somebody else, or whose library is over.
  defp earlier(module, source, options) do
    case fetch(module) do
      nil ->
        {:ok, nil}

      state ->
        if replaceable?(state, source, options), do: {:ok, state}, else: {:error, Error.new(:already_isolated, module)}
    end
  end

  defp replaceable?(state, source, options) do
    DropIn.Code.md5(state.module) != state.md5 or over?(loaded_in(state.slot)) or
      (source.beam != state.original and Enum.sort(options) == Enum.sort(state.options))
  end

  # It has ended, or its workers were given up.
  defp over?(nil), do: false

  defp over?(%Library{table: table, number: number}) do
    rows = Library.rows(table)
    Library.entry(table, number) == nil or (rows != [] and Enum.all?(rows, &(&1.state == :failed)))
  end

  # ── There ─────────────────────────────────────────────────────────────────────────────────────────────────────

  defp replace(%Source{module: module, file: file} = source, options, earlier, mode \\ :upgrade) do
    taken = if earlier, do: [earlier.slot, earlier.old], else: []

    with {:ok, %{slot: slot} = rewritten} <- Rewriter.rewrite(source, Rewriter.slot(module, taken)),
         :ok <- DropIn.Code.make_room(module) do
      {:ok, {_, md5}} = :beam_lib.md5(rewritten.beam)
      # Where isolated code was, whatever its version, the original does not come back.
      loaded = DropIn.Code.md5(module)
      current = if earlier && earlier.md5 == loaded, do: %{earlier | old: nil}
      before = if current, do: md5, else: loaded
      earlier = survivor(earlier, if(mode == :upgrade, do: slot))

      state = %{
        module: module,
        slot: slot,
        functions: rewritten.functions,
        declared: rewritten.declared,
        options: options,
        file: file,
        original: source.beam,
        md5: md5,
        old: earlier && earlier.slot,
        loading: true,
        error: nil
      }

      DropIn.Loader.alone(module, fn ->
        # A slot that somebody in old code still needed when the module was restored last.
        :persistent_term.erase(slot)
        put(state)
      end)

      case DropIn.Code.load(module, file, rewritten.beam) do
        :ok ->
          change(module, slot, &%{&1 | loading: false})
          settle(state, rewritten.on_load, before, current)

        {:error, error} ->
          withdraw(state, earlier || current, error)
      end
    end
  end

  # What is left of the version before, when there is room for the next one. The code of a release has always the same slot; and
  # of a library that is over nothing is left. No slot: it is not to survive.
  defp survivor(nil, _slot), do: nil

  defp survivor(%{module: module} = earlier, slot) do
    there? =
      if :erlang.module_loaded(module),
        do: DropIn.Code.md5(module) == earlier.md5,
        else: :erlang.check_old_code(module)

    if there? and slot not in [nil, earlier.slot] and not over?(loaded_in(earlier.slot)) do
      DropIn.Loader.alone(module, fn ->
        gone(earlier.old)
        put(%{earlier | old: nil})
      end)

      %{earlier | old: nil}
    else
      # If its code is the current one until the next is, its gates find a library that has been unloaded.
      if DropIn.Code.md5(module) == earlier.md5, do: drop(module), else: forget(earlier)
      nil
    end
  end

  # Some modules go on without their library when it cannot be loaded; whoever wants it isolated does not.
  defp settle(%{module: module, slot: slot} = state, on_load?, before, replaced) do
    Sweeper.watch(module)

    case {library(module), fetch(module)} do
      {nil, %{error: %Error{} = error}} when on_load? and state.old == nil ->
        undo(state, error, before)

      # The version before cannot be had back; its code runs on, with its library, until it is purged.
      {nil, %{error: %Error{} = error}} when on_load? ->
        {:error, error}

      _ ->
        # Whoever runs in the original code goes on in it.
        if state.old == nil and DropIn.Code.purged?(module) and replaced != nil and replaced.slot != slot,
          do: :persistent_term.erase(replaced.slot)

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
  defp withdraw(%{module: module} = state, earlier, error) do
    because = fetch(module).error

    DropIn.Loader.alone(module, fn ->
      gone(state.slot)
      if earlier, do: put(earlier), else: :persistent_term.erase({__MODULE__, module})
    end)

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

  @doc "Unloads the module's libraries, and nothing is known of the module any more."
  @spec drop(module()) :: :ok
  def drop(module) do
    # Not while the module's own code loads one: that would be nobody's.
    DropIn.Loader.alone(module, fn ->
      with %{slot: slot, old: old} <- fetch(module) do
        gone(old)
        unload(slot)
      end

      :persistent_term.erase({__MODULE__, module})
      :ok
    end)
  end

  @doc """
  The supervisor of libraries has ended, and all of them with it. A module that has its library itself loads it again when it is called
  next; others did so where their own code called load_nif.
  """
  @spec lost(module()) :: :ok
  def lost(module) do
    with %{original: nil, slot: slot} <- fetch(module),
         %Library{} <- loaded_in(slot) do
      :persistent_term.erase({__MODULE__, module})
      :persistent_term.erase(slot)
    end

    :ok
  end

  # The code of a version has been purged.
  defp gone(nil), do: :ok

  defp gone(slot) do
    unload(slot)
    :persistent_term.erase(slot)
    :ok
  end

  defp unload(slot), do: with(%Library{} = library <- loaded_in(slot), do: Isolation.unload_one(library))

  @doc """
  Unloads the libraries of code that has been purged. The VM tells nobody when it is, so `DropIn.Sweeper` looks now and then; and who
  needs to know looks first. Answers whether the module is still isolated.
  """
  @spec sweep(module()) :: boolean()
  def sweep(module) do
    # Not while it is being replaced.
    swept =
      :global.trans(
        {{__MODULE__, module}, self()},
        fn -> DropIn.Loader.alone(module, fn -> swept(module) end) end,
        [node()],
        0
      )

    swept != :gone
  end

  @doc "The same, for who is alone with the module's library."
  @spec swept(module()) :: :ok | :gone
  def swept(module) do
    case {fetch(module), :erlang.check_old_code(module)} do
      {nil, _} -> :gone
      {%{loading: true}, _} -> :ok
      {_, true} -> :ok
      {state, false} -> swept_out(state, :erlang.module_loaded(module))
    end
  end

  defp swept_out(%{old: nil}, true), do: :ok

  defp swept_out(%{old: old} = state, true) do
    gone(old)
    put(%{state | old: nil})
  end

  # Deleted, and purged then: whoever loads it again loads it from its file.
  defp swept_out(%{module: module, slot: slot, old: old}, false) do
    gone(old)
    gone(slot)
    :persistent_term.erase({__MODULE__, module})
    :gone
  end

  # ── What is known ─────────────────────────────────────────────────────────────────────────────────────────────

  @spec fetch(module()) :: state() | nil
  def fetch(module), do: :persistent_term.get({__MODULE__, module}, nil)

  defp put(state), do: :persistent_term.put({__MODULE__, state.module}, state)

  # Unless the module has another version by now.
  defp change(module, slot, function) do
    with %{slot: ^slot} = state <- fetch(module), do: put(function.(state))
    :ok
  end

  @doc "The modules that are isolated."
  @spec modules() :: [module()]
  def modules, do: for({{__MODULE__, module}, %{}} <- :persistent_term.get(), do: module)

  @doc "The library of an isolated module, if the module has loaded it."
  @spec library(module()) :: Library.t() | nil
  def library(module), do: with(%{slot: slot} <- fetch(module), do: loaded_in(slot))

  @doc "The library of a version."
  @spec loaded_in(atom() | nil) :: Library.t() | nil
  def loaded_in(slot) do
    case :persistent_term.get(slot, nil) do
      loaded when is_tuple(loaded) -> elem(loaded, 0)
      _ -> nil
    end
  end

  @doc "Opens the gates of the library's functions; without one, as for a library in the VM, none."
  @spec loaded(state(), Library.t() | nil) :: :ok
  def loaded(%{module: module, slot: slot, functions: functions} = state, library) do
    # A module that has its library itself becomes known now.
    unless fetch(module), do: put(state)
    change(module, slot, &%{&1 | error: nil})
    open = if library, do: library.functions, else: []
    gates = functions |> Enum.sort_by(&elem(&1, 1)) |> Enum.map(fn {function, _} -> function in open end)
    :persistent_term.put(slot, List.to_tuple([library | gates]))
  end

  @doc "The library could not be loaded; the module may try another one."
  @spec failed(state(), Error.t()) :: :ok
  def failed(state, error), do: change(state.module, state.slot, &%{&1 | error: error})
end
