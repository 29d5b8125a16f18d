defmodule Snakepit.Isolation.Supervisor do
  @moduledoc false
  # The house of isolated libraries: the directory, the warden, the libraries that are loaded on demand, and then those of the
  # modules that the configuration names. Starts with the application and costs a few idle processes; nothing native is
  # touched before the first load.

  use Supervisor

  alias Snakepit.Isolation.{Directory, DropIn, Module, Warden}

  @libraries Snakepit.Isolation.Libraries
  @names [Warden, @libraries, Module.Loads]

  # Longer than a library takes to end.
  @patience 15_000

  @spec start_link(term()) :: Supervisor.on_start()
  def start_link(_), do: Supervisor.start_link(__MODULE__, [], name: __MODULE__)

  @impl true
  def init(_) do
    Enum.each(@names, &gone/1)
    Directory.new()

    # The libraries end before the warden does.
    children = [
      Warden,
      DropIn.Sweeper,
      %{id: @libraries, start: {__MODULE__, :start_libraries, []}, type: :supervisor},
      Module.Loads,
      DropIn.Start
    ]

    Supervisor.init(children, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5)
  end

  # The children of a predecessor that was killed end by themselves, and in order; until then they have the names. If they were in
  # the way, the application would end after three attempts, and what is ended with it is killed.
  defp gone(name) do
    with pid when is_pid(pid) <- Process.whereis(name) do
      monitor = Process.monitor(pid)

      receive do
        {:DOWN, ^monitor, :process, _, _} -> :ok
      after
        @patience -> Process.demonitor(monitor, [:flush])
      end
    end
  end

  @doc false
  # With nothing left of those that ended with its predecessor: modules that have their library themselves load it again.
  @spec start_libraries() :: Supervisor.on_start()
  def start_libraries do
    Enum.each(DropIn.modules(), &DropIn.lost/1)
    DynamicSupervisor.start_link(name: @libraries, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5)
  end

  @doc "Whom libraries that are loaded on demand end with."
  @spec libraries() :: pid() | nil
  def libraries, do: Process.whereis(@libraries)

  @doc "`:not_running`: the house is being closed."
  @spec start_library(Supervisor.child_spec()) :: DynamicSupervisor.on_start_child() | {:error, :not_running}
  def start_library(spec) do
    DynamicSupervisor.start_child(@libraries, spec)
  catch
    :exit, _ -> {:error, :not_running}
  end

  @doc "Ends a library that was loaded on demand; `:not_found` for one that stands somewhere else, or ends with the house."
  @spec stop_library(pid()) :: :ok | {:error, :not_found}
  def stop_library(pid) do
    DynamicSupervisor.terminate_child(@libraries, pid)
  catch
    :exit, _ -> {:error, :not_found}
  end
end
