defmodule Snakepit.SharedMemory.Application do
  @moduledoc false
  # Starts the default instance, and the house of isolated libraries, which is there in any case and does nothing before
  # the first of them. A configuration that is refused stops the start; a native library that is missing does
  # not (nothing native may prevent a boot): then each call says what is wrong.

  use Application

  require Logger

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Config

  @impl true
  def start(_type, _args) do
    case children() do
      {:ok, children} ->
        children = children ++ [Snakepit.Isolation.Supervisor]
        Supervisor.start_link(children, strategy: :one_for_one, name: __MODULE__)

      # As an exception with its (empty) stack trace, so that the VM prints its message.
      {:error, error} ->
        {:error, {error, []}}
    end
  end

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
