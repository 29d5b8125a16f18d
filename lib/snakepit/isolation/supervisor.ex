defmodule Snakepit.Isolation.Supervisor do
  @moduledoc false
  # The house of isolated libraries: the directory, the warden, the libraries that are loaded on demand, and then those of the
  # modules that the configuration names. Starts with the application and costs three idle processes; nothing native is
  # touched before the first load.

  use Supervisor

  alias Snakepit.Isolation.{Directory, DropIn, Warden}

  @libraries Snakepit.Isolation.Libraries

  @spec start_link(term()) :: Supervisor.on_start()
  def start_link(_), do: Supervisor.start_link(__MODULE__, [], name: __MODULE__)

  @impl true
  def init(_) do
    Directory.new()

    # The libraries end before the warden does.
    children = [
      Warden,
      DropIn.Sweeper,
      {DynamicSupervisor, name: @libraries, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5},
      DropIn.Start
    ]

    Supervisor.init(children, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5)
  end

  @spec start_library(Supervisor.child_spec()) :: DynamicSupervisor.on_start_child()
  def start_library(spec), do: DynamicSupervisor.start_child(@libraries, spec)

  @doc "Ends a library that was loaded on demand; `:not_found` for one that stands somewhere else."
  @spec stop_library(pid()) :: :ok | {:error, :not_found}
  def stop_library(pid), do: DynamicSupervisor.terminate_child(@libraries, pid)
end
