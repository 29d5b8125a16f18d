defmodule Snakepit.SharedMemory.Application do
  @moduledoc false
  # Starts the house of isolated libraries, which is there in any case and does nothing before the first of them, and the default
  # instance; in this order, since :crypto may be among the modules to isolate. A configuration that is refused stops the
  # start; a native library that is missing does not (nothing native may prevent a boot): then each call says what is wrong.
  # Modules that are to be isolated have to be, though.

  use Application

  require Logger

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Config

  @impl true
  def start(_type, _args) do
    with {:ok, children} <- children(),
         children = [{Snakepit.Isolation.Supervisor, :atomics.new(1, [])} | children],
         {:ok, supervisor} <- Supervisor.start_link(children, strategy: :one_for_one, name: __MODULE__) do
      {:ok, supervisor}
    else
      {:error, reason} -> {:error, printable(reason)}
    end
  end

  # As an exception with a stack trace, so that its message is printed: without one, Elixir inspects it.
  defp printable(%_{__exception__: true} = error), do: {error, [{__MODULE__, :start, 2, []}]}
  defp printable({:shutdown, {:failed_to_start_child, _, reason}}), do: printable(reason)
  defp printable(reason), do: reason

  defp children do
    with {:ok, given} <- Config.from_application() do
      cond do
        Map.get(given, :enabled, true) == false ->
          {:ok, []}

        match?({:error, _, _}, Snakepit.Native.loaded()) ->
          Logger.error(Exception.message(SharedMemory.not_loaded()))
          {:ok, []}

        true ->
          with {:ok, _config} <- Config.load(given), do: {:ok, [SharedMemory]}
      end
    end
  end
end
