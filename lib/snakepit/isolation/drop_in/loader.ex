defmodule Snakepit.Isolation.DropIn.Loader do
  @moduledoc false
  # What stands in an isolated module where `erlang:load_nif/2` stood: the same arguments, the same answers, and the
  # library opens in a worker. Called by the module's own code, in whichever process that runs; often that of on_load.

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{Directory, DropIn, Error, Fit, Library, Options}

  # Longer than a library takes to end.
  @patience 15_000

  # `:badarg` is raised by the caller.
  @type answer :: :ok | :badarg | {:error, {atom(), charlist()}}

  @doc "`slot`: of the version whose code calls it."
  @spec load_nif(module(), atom(), term(), term()) :: answer()
  def load_nif(module, slot, path, load_info) do
    await_code_changes(module)

    # Whether there is one is known without waiting for anybody.
    with %{slot: ^slot} <- DropIn.fetch(module),
         %Library{} <- DropIn.loaded_in(slot) do
      if path?(path), do: reload(), else: :badarg
    else
      _ -> to_its_end(fn -> load_nif_alone(module, slot, path, load_info) end)
    end
  end

  # It may be called by several processes at once, and only one of them loads.
  defp load_nif_alone(module, slot, path, load_info) do
    alone(module, fn ->
      DropIn.swept(module)

      case DropIn.fetch(module) do
        %{slot: ^slot} = state -> if path?(path), do: first(state, path, load_info), else: :badarg
        %{old: ^slot} -> failed(:old_code, "Calling load_nif from old module '#{module}' not allowed")
        _ -> failed(:bad_lib, "#{inspect(module)} is no longer isolated")
      end
    end)
  end

  # In a process of its own. As in the VM, where nobody is killed while he loads a library: one that is there is known to its module. (It must not
  # ask the code server for the module, which may be waiting for the caller's on_load.)
  defp to_its_end(function) do
    {_pid, monitor} = spawn_monitor(fn -> exit({:shutdown, {__MODULE__, function.()}}) end)

    receive do
      {:DOWN, ^monitor, :process, _, {:shutdown, {__MODULE__, answer}}} -> answer
      {:DOWN, ^monitor, :process, _, reason} -> exit(reason)
    end
  end

  # As in the VM, not while somebody changes code: what is there of the module, and what was purged, holds then. The VM has no function that
  # only waits for that; to set no breakpoint in a function that there is not does no more.
  defp await_code_changes(module), do: :erlang.trace_pattern({module, :"snakepit no function", 0}, false, [:local])

  @doc "While nobody loads the module's library."
  @spec alone(module(), (() -> result)) :: result when result: term()
  def alone(module, function), do: :global.trans({{__MODULE__, module}, self()}, function, [node()])

  defp first(state, path, load_info) do
    case DropIn.library(state.module) do
      nil -> load(state, path, load_info)
      _ -> reload()
    end
  end

  defp reload, do: failed(:reload, "NIF library already loaded (reload disallowed since OTP 20).")

  defp load(state, path, load_info) do
    case open(state, path, load_info) do
      {:ok, library} ->
        DropIn.loaded(state, library)

      {:error, %Error{} = error} ->
        DropIn.failed(state, error)
        answer(error)
    end
  end

  @doc "Loads a library that fits the module."
  @spec open(DropIn.state(), term(), term()) :: {:ok, Library.t()} | {:error, Error.t()}
  def open(%{module: module} = state, path, load_info) do
    fits = Fit.new(module, Map.keys(state.functions), state.declared)

    with {:ok, options} <- Options.load(path, [load_info: load_info] ++ state.options) do
      # One that was still being loaded when who loaded it was killed may take the name from under us, once.
      with {:error, %Error{details: %{because: :name_taken}}} <- open_named(state, %{options | fits: fits}),
           do: open_named(state, %{options | fits: fits})
    end
  end

  defp open_named(state, options) do
    unload_orphan(state, options.name)
    Isolation.load_checked(options, predecessor(state))
  end

  # A library of the module's name that we loaded for it, and that nobody knows: who loaded it was killed before he could say so; or it is
  # about to end with the libraries' supervisor, and keeps the name until then.
  defp unload_orphan(%{module: module, old: old}, name) do
    with {:ok, %Library{table: table, number: number} = library, supervisor} <- Directory.fetch(name),
         %{fits: %{module: ^module}} <- Library.entry(table, number),
         true <- orphan?(DropIn.loaded_in(old), library),
         ends when ends != :ok <- Isolation.unload_one(library) do
      monitor = Process.monitor(supervisor)

      receive do
        {:DOWN, ^monitor, :process, _, _} -> :ok
      after
        @patience -> Process.demonitor(monitor, [:flush])
      end
    end
  end

  # Its slot is empty. The version before may have one of the same name, in the same processes or, started again, in others.
  defp orphan?(nil, _library), do: true
  defp orphan?(%Library{table: table, number: number}, %Library{table: table} = library), do: library.number != number
  defp orphan?(_before, _library), do: false

  # Whose data and types the library may take over. One whose processes have ended has none.
  defp predecessor(%{old: old}) do
    with %Library{table: table, number: number} = library <- DropIn.loaded_in(old),
         do: if(Library.entry(table, number), do: library)
  end

  # The VM's atoms, and its words where code might look at them.
  defp answer(%Error{details: %{because: :misfit, message: message}}), do: failed(:bad_lib, message)

  defp answer(%Error{details: %{stage: :load_callback, code: code}}),
    do: failed(:load, "Library load-call unsuccessful (#{code}).")

  defp answer(%Error{details: %{stage: :upgrade_callback, code: 0, message: message}}), do: failed(:upgrade, message)

  defp answer(%Error{details: %{stage: :upgrade_callback, code: code}}),
    do: failed(:upgrade, "Library upgrade-call unsuccessful (#{code}).")

  defp answer(%Error{details: %{stage: :no_init, message: message}}),
    do: failed(:bad_lib, "Failed to find library init function: '#{message}'")

  defp answer(%Error{details: %{stage: stage, message: message}}) when stage in [:init, :nif_version],
    do: failed(:bad_lib, message)

  defp answer(%Error{} = error), do: failed(:load_failed, "Failed to load NIF library: " <> Exception.message(error))

  defp failed(kind, text), do: {:error, {kind, String.to_charlist(text)}}

  defp path?(path) when is_binary(path) or is_list(path), do: is_binary(:unicode.characters_to_binary(path))
  defp path?(_), do: false
end
