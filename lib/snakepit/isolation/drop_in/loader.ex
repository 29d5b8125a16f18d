defmodule Snakepit.Isolation.DropIn.Loader do
  @moduledoc false
  # What stands in an isolated module where `erlang:load_nif/2` stood: the same arguments, the same answers, and the
  # library opens in a worker. Called by the module's own code, in whichever process that runs; often that of on_load.

  alias Snakepit.Isolation
  alias Snakepit.Isolation.{DropIn, Error, Fit, Library, Options}

  # `:badarg` is raised by the caller.
  @type answer :: :ok | :badarg | {:error, {atom(), charlist()}}

  @doc "`slot`: of the version whose code calls it."
  @spec load_nif(module(), atom(), term(), term()) :: answer()
  def load_nif(module, slot, path, load_info) do
    # It may be called by several processes at once, and only one of them loads.
    alone(module, fn ->
      DropIn.swept(module)

      case DropIn.fetch(module) do
        %{slot: ^slot} = state -> if path?(path), do: first(state, path, load_info), else: :badarg
        %{old: ^slot} -> failed(:old_code, "Calling load_nif from old module '#{module}' not allowed")
        _ -> failed(:bad_lib, "#{inspect(module)} is no longer isolated")
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
  def open(%{module: module} = state, path, load_info) do
    fits = Fit.new(module, Map.keys(state.functions), state.declared)

    with {:ok, options} <- Options.load(path, [load_info: load_info] ++ state.options),
         do: Isolation.load_checked(%{options | fits: fits}, predecessor(state))
  end

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
