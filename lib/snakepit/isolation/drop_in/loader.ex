defmodule Snakepit.Isolation.DropIn.Loader do
  @moduledoc false
  # What stands in an isolated module where `erlang:load_nif/2` stood: the same arguments, the same answers, and the
  # library opens in a worker. Called by the module's own code, in whichever process that runs; often that of on_load.

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{DropIn, Error, Library}

  # `:badarg` is raised by the caller.
  @type answer :: :ok | :badarg | {:error, {atom(), charlist()}}

  @spec load_nif(module(), term(), term()) :: answer()
  def load_nif(module, path, load_info) do
    # It may be called by several processes at once, and only one of them loads.
    alone(module, fn ->
      case DropIn.fetch(module) do
        nil -> failed(:bad_lib, "#{inspect(module)} is not isolated")
        state -> if path?(path), do: first(state, path, load_info), else: :badarg
      end
    end)
  end

  @doc "While nobody loads the module's library."
  @spec alone(module(), (() -> result)) :: result when result: term()
  def alone(module, function), do: :global.trans({{__MODULE__, module}, self()}, function, [node()])

  defp first(state, path, load_info) do
    case DropIn.library(state.module) do
      nil -> load(state, path, load_info)
      _ -> failed(:reload, "NIF library already loaded (reload disallowed since OTP 20).")
    end
  end

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
  def open(state, path, load_info) do
    with {:ok, library} <- Isolation.load(path, [load_info: load_info] ++ state.options),
         do: fitting(library, state)
  end

  # As the VM: all of the library's functions are the module's.
  defp fitting(%Library{module: name} = library, %{module: name, functions: functions, declared: declared}) do
    case Enum.find(library.functions, &(not is_map_key(functions, &1))) do
      nil ->
        {:ok, library}

      {function, arity} ->
        what = if declared, do: "Function not declared as nif", else: "Function not found"
        misfit(library, "#{what} #{name}:#{function}/#{arity}")
    end
  end

  defp fitting(library, %{module: module}),
    do: misfit(library, "Library module name '#{library.module}' does not match calling module '#{module}'")

  defp misfit(library, message) do
    Isolation.unload(library)
    {:error, Error.new(:not_loaded, library.id, nil, %{because: :misfit, message: message})}
  end

  # The VM's atoms, and its words where code might look at them.
  defp answer(%Error{details: %{because: :misfit, message: message}}), do: failed(:bad_lib, message)

  defp answer(%Error{details: %{stage: :load_callback, code: code}}),
    do: failed(:load, "Library load-call unsuccessful (#{code}).")

  defp answer(%Error{details: %{stage: :no_init, message: message}}),
    do: failed(:bad_lib, "Failed to find library init function: '#{message}'")

  defp answer(%Error{details: %{stage: stage, message: message}}) when stage in [:init, :nif_version],
    do: failed(:bad_lib, message)

  defp answer(%Error{} = error), do: failed(:load_failed, "Failed to load NIF library: " <> Exception.message(error))

  defp failed(kind, text), do: {:error, {kind, String.to_charlist(text)}}

  defp path?(path) when is_binary(path) or is_list(path), do: is_binary(:unicode.characters_to_binary(path))
  defp path?(_), do: false
end
