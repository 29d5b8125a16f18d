defmodule Snakepit.Isolation.Module.Loads do
  @moduledoc false
  # Who loads the libraries of modules that use `Snakepit.Isolation.Module`. Each is loaded by a process of its own, and whoever calls
  # the module meanwhile waits for that one's result: a thousand first calls are one load, also one that fails. They wait as long as they
  # like and can be killed; the load goes on, and the library is the module's when it is there.

  use GenServer

  alias Snakepit.Isolation.Error

  @type answer :: :ok | {:error, Error.t()}

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "What the function gives, or has given to somebody who asked for the same and still waits."
  @spec run(module(), atom(), (() -> answer()), timeout()) :: answer() | :timeout
  def run(module, slot, function, timeout) do
    GenServer.call(__MODULE__, {:run, {module, slot}, function}, timeout)
  catch
    :exit, {:timeout, _} -> :timeout
    # The application does not run, which a library in the VM does not need; or this process has been killed, and its loads with it.
    :exit, _ -> function.()
  end

  @impl true
  def init(_) do
    # Those that load end with this process, and it does not end with them.
    Process.flag(:trap_exit, true)
    {:ok, %{loads: %{}, waiting: %{}}}
  end

  @impl true
  def handle_call({:run, key, function}, from, state) do
    state = if is_map_key(state.waiting, key), do: state, else: start(state, key, function)
    {:noreply, %{state | waiting: Map.update!(state.waiting, key, &[from | &1])}}
  end

  defp start(%{loads: loads, waiting: waiting}, key, function) do
    {_pid, monitor} = :erlang.spawn_opt(fn -> exit({:shutdown, {__MODULE__, function.()}}) end, [:link, :monitor])
    %{loads: Map.put(loads, monitor, key), waiting: Map.put(waiting, key, [])}
  end

  @impl true
  def handle_info({:DOWN, monitor, :process, _, reason}, state) when is_map_key(state.loads, monitor) do
    {{module, _slot} = key, loads} = Map.pop!(state.loads, monitor)
    {waiting, others} = Map.pop!(state.waiting, key)
    for from <- waiting, do: GenServer.reply(from, answer(reason, module))
    {:noreply, %{loads: loads, waiting: others}}
  end

  # The other word of the same end.
  def handle_info(_exit, state), do: {:noreply, state}

  defp answer({:shutdown, {__MODULE__, answer}}, _module), do: answer

  defp answer(reason, module) do
    message = "who loads it was ended: #{inspect(reason, limit: 10)}"
    {:error, Error.new(:not_loaded, module, nil, %{because: :start, message: message})}
  end
end
