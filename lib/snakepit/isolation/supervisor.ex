defmodule Snakepit.Isolation.Supervisor do
  @moduledoc false
  # The house of isolated libraries: the directory, the warden, the libraries that are loaded on demand, and then those of the
  # modules that the configuration names. Starts with the application and costs three idle processes; nothing native is
  # touched before the first load.

  use Supervisor

  alias Snakepit.Isolation.{Directory, DropIn, Warden}

  @libraries Snakepit.Isolation.Libraries
  @names [Warden, DropIn.Sweeper, @libraries]

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
      {DynamicSupervisor, name: @libraries, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5},
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

  @spec start_library(Supervisor.child_spec()) :: DynamicSupervisor.on_start_child()
  def start_library(spec), do: DynamicSupervisor.start_child(@libraries, spec)

  @doc "Ends a library that was loaded on demand; `:not_found` for one that stands somewhere else."
  @spec stop_library(pid()) :: :ok | {:error, :not_found}
  def stop_library(pid), do: DynamicSupervisor.terminate_child(@libraries, pid)
end
