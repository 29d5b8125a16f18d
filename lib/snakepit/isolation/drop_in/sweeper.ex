defmodule Snakepit.Isolation.DropIn.Sweeper do
  @moduledoc false
  # Looks every second whether code of isolated modules has been purged, because the VM tells nobody: then the libraries of that
  # code are unloaded. Two questions to the VM for each module, and no lock unless there is something to do.

  use GenServer

  alias Snakepit.Isolation.DropIn

  @every 1_000

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @spec watch(module()) :: :ok
  def watch(module), do: GenServer.cast(__MODULE__, {:watch, module})

  # Modules outlive the application, and this process.
  @impl true
  def init(_), do: {:ok, Enum.reduce(DropIn.modules(), MapSet.new(), &put(&2, &1))}

  @impl true
  def handle_cast({:watch, module}, modules), do: {:noreply, put(modules, module)}

  @impl true
  def handle_info(:sweep, modules) do
    left = modules |> Enum.filter(&left?/1) |> MapSet.new()
    if MapSet.size(left) > 0, do: Process.send_after(self(), :sweep, @every)
    {:noreply, left}
  end

  def handle_info(_other, modules), do: {:noreply, modules}

  defp left?(module) do
    case DropIn.fetch(module) do
      nil -> false
      %{old: nil} -> :erlang.module_loaded(module) or DropIn.sweep(module)
      _ -> :erlang.check_old_code(module) or DropIn.sweep(module)
    end
  end

  defp put(modules, module) do
    if MapSet.size(modules) == 0, do: Process.send_after(self(), :sweep, @every)
    MapSet.put(modules, module)
  end
end
