defmodule Snakepit.Isolation.Supervisor do
  @moduledoc false
  # The house of isolated libraries: the directory, the warden, the libraries that are loaded on demand, and then those of the
  # modules that the configuration names. Starts with the application and costs a few idle processes; nothing native is
  # touched before the first load.

  use Supervisor

  alias Snakepit.Isolation.{Directory, DropIn, Module, Warden}

  @libraries Snakepit.Isolation.Libraries
  @names [Warden, DropIn.Sweeper, @libraries, Module.Loads]

  # Longer than a library takes to end.
  @patience 15_000

  @doc "`started`: of this start of the application, for `DropIn.Start`."
  @spec start_link(:atomics.atomics_ref()) :: Supervisor.on_start()
  def start_link(started), do: Supervisor.start_link(__MODULE__, started, name: __MODULE__)

  @impl true
  def init(started) do
    gone(for name <- @names, pid = Process.whereis(name), do: pid)
    Directory.new()

    # The libraries end before the warden does; a warden that is started again leaves them alone. Modules of the configuration are
    # isolated again when the libraries have ended.
    libraries = [
      %{id: @libraries, start: {__MODULE__, :start_libraries, []}, type: :supervisor},
      {DropIn.Start, started}
    ]

    flags = [strategy: :rest_for_one, max_restarts: 1_000, max_seconds: 5]
    inner = %{id: :isolated, start: {Supervisor, :start_link, [libraries, flags]}, type: :supervisor}

    Supervisor.init([Warden, DropIn.Sweeper, Module.Loads, inner],
      strategy: :one_for_one,
      max_restarts: 1_000,
      max_seconds: 5
    )
  end

  @doc false
  @spec start_libraries() :: Supervisor.on_start()
  # The libraries of a predecessor that was killed end by themselves, and until then they have their names.
  def start_libraries do
    gone(Enum.filter(Directory.supervisors(), &of_libraries?/1))
    # Modules that have their library themselves load it again.
    Enum.each(DropIn.modules(), &DropIn.lost/1)
    DynamicSupervisor.start_link(name: @libraries, strategy: :one_for_one, max_restarts: 1_000, max_seconds: 5)
  end

  # Not those that stand in somebody else's tree.
  defp of_libraries?(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         [parent | _] <- dictionary[:"$ancestors"],
         do: parent == @libraries,
         else: (_ -> false)
  end

  # What a supervisor that was killed leaves behind ends by itself, and in order; until then it has the names. If it were in the way, the
  # application would end after three attempts. What does not end is killed.
  defp gone(pids) do
    monitors = Map.new(pids, &{Process.monitor(&1), &1})
    late = await(monitors, System.monotonic_time(:millisecond) + @patience)
    for {_, pid} <- late, do: Process.exit(pid, :kill)
    await(late, :infinity)
  end

  defp await(monitors, _until) when monitors == %{}, do: monitors

  defp await(monitors, until) do
    left = if until == :infinity, do: :infinity, else: max(until - System.monotonic_time(:millisecond), 0)

    receive do
      {:DOWN, monitor, :process, _, _} when is_map_key(monitors, monitor) -> await(Map.delete(monitors, monitor), until)
    after
      left -> monitors
    end
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
