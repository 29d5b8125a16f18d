defmodule Snakepit.Isolation.Warden do
  @moduledoc false
  # Our side of the warden, the one process that starts and reaps workers (native/worker). It is started with the first
  # worker, and again when it has died. Whoever has a worker started is told, as `{Warden, token, event}`:
  #
  #     {:started, os_pid} | {:not_started, details} | {:exited, os_pid, {:exit, code} | {:signal, number}} | :lost
  #
  # `:lost`: the warden died, and its workers with it. When the owner of a worker dies, the worker is killed. That a
  # process has ended is told to the native worker too: if its owner dies before it has said so to those who wait, that does.

  use GenServer

  require Logger

  alias Snakepit.Isolation.Error
  alias Snakepit.Native

  # Between attempts to write to a socket that is full.
  @pause 10

  @type token :: pos_integer()

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "Where the executable is."
  @spec executable() :: String.t()
  def executable, do: Path.join(Path.dirname(Native.library()), "snakepit_worker")

  @doc "Has a process started for the native worker, with this environment. The caller is its owner."
  @spec start_worker(reference(), String.t(), binary()) :: {:ok, token()} | Native.failure()
  def start_worker(native, label, environment),
    do: GenServer.call(__MODULE__, {:start, native, label, environment}, :infinity)

  @doc "Sends the signal, if the process still lives."
  @spec kill(token(), pos_integer()) :: :ok
  def kill(token, signal), do: GenServer.cast(__MODULE__, {:kill, token, signal})

  @doc "The warden's process, if it has been started; for info and tests."
  @spec os_pid() :: pos_integer() | nil
  def os_pid, do: GenServer.call(__MODULE__, :os_pid)

  @impl true
  def init(_) do
    Process.flag(:trap_exit, true)
    {:ok, %{native: nil, os_pid: nil, next: 1, workers: %{}, owners: %{}}}
  end

  @impl true
  def handle_call({:start, worker, label, environment}, {owner, _}, state) do
    with {:ok, state} <- ensure(state),
         token = state.next,
         :ok <- Native.warden_start(state.native, token, worker, label, environment) do
      monitor = Process.monitor(owner)

      state = %{
        state
        | next: token + 1,
          workers: Map.put(state.workers, token, %{owner: owner, monitor: monitor, native: worker}),
          owners: Map.put(state.owners, monitor, token)
      }

      {:reply, {:ok, token}, state}
    else
      {:error, _} = error -> {:reply, error, state}
    end
  end

  def handle_call(:os_pid, _from, state), do: {:reply, state.os_pid, state}

  @impl true
  def handle_cast({:kill, token, signal}, state) do
    if is_map_key(state.workers, token), do: signal(state, token, signal)
    {:noreply, state}
  end

  @impl true
  # Hibernated: a worker that has ended is a term on this heap, and its ring stays mapped for as long.
  def handle_info({:select, native, _ref, :ready_input}, %{native: native} = state),
    do: {:noreply, read(state), :hibernate}

  # An owner that has gone without a word.
  def handle_info({:DOWN, monitor, :process, _, _}, state) do
    case Map.pop(state.owners, monitor) do
      {nil, _} ->
        {:noreply, state}

      {token, owners} ->
        signal(state, token, 9)
        workers = Map.update!(state.workers, token, &%{&1 | owner: nil})
        {:noreply, %{state | owners: owners, workers: workers}}
    end
  end

  # Of a warden before this one.
  def handle_info({:select, _, _, _}, state), do: {:noreply, state}
  def handle_info({:EXIT, _, _}, state), do: {:noreply, state}

  # If this process is killed, the native part closes the socket.
  @impl true
  def terminate(_reason, %{native: nil}), do: :ok
  def terminate(_reason, %{native: native}), do: Native.warden_close(native)

  # A signal that is not sent now is sent soon: nobody asks twice.
  defp signal(state, token, signal) do
    with {:error, {:busy, _}} <- Native.warden_kill(state.native, token, signal),
         do: Process.send_after(self(), {:"$gen_cast", {:kill, token, signal}}, @pause)
  end

  # ── The warden's process ──────────────────────────────────────────────────────────────────────────────────────

  defp ensure(%{native: nil} = state) do
    path = executable()

    with {:file, true} <- {:file, File.regular?(path)},
         {:ok, native} <- Native.warden_spawn(path),
         :ok <- Native.warden_select(native) do
      {:ok, %{state | native: native}}
    else
      {:file, false} -> {:error, {:executable, %{path: path, message: "there is no such file"}}}
      {:error, {_, details}} -> {:error, {:executable, Map.put(details, :path, path)}}
    end
  end

  defp ensure(state), do: {:ok, state}

  defp read(state) do
    case Native.warden_receive(state.native) do
      {:ok, message} ->
        message |> heard(state) |> read()

      :again ->
        case Native.warden_select(state.native) do
          :ok -> state
          {:error, _} -> lost(state)
        end

      _closed ->
        lost(state)
    end
  end

  defp heard({:hello, os_pid}, state), do: %{state | os_pid: os_pid}

  defp heard({:started, token, os_pid}, state) do
    tell(state, token, {:started, os_pid})
    state
  end

  defp heard({:not_started, token, details}, state) do
    tell(state, token, {:not_started, details})
    forget(state, token, Map.put(details, :because, :start))
  end

  defp heard({:exited, token, os_pid, status}, state) do
    tell(state, token, {:exited, os_pid, status})
    forget(state, token, Map.put(Error.status(status), :because, :exited))
  end

  defp tell(state, token, event) do
    with %{owner: owner} when is_pid(owner) <- state.workers[token], do: send(owner, {__MODULE__, token, event})
  end

  defp forget(state, token, details) do
    case Map.pop(state.workers, token) do
      {nil, _} ->
        state

      {%{monitor: monitor, native: native}, workers} ->
        Process.demonitor(monitor, [:flush])
        Native.worker_ended(native, {:crashed, details})
        %{state | workers: workers, owners: Map.delete(state.owners, monitor)}
    end
  end

  # The kernel kills a worker when its warden dies.
  defp lost(state) do
    Logger.error("snakepit_shm: the warden (process #{state.os_pid || "unknown"}) has ended, and with it all workers")

    for {token, worker} <- state.workers do
      tell(state, token, :lost)
      Process.demonitor(worker.monitor, [:flush])
      Native.worker_ended(worker.native, nil)
    end

    Native.warden_close(state.native)
    %{state | native: nil, os_pid: nil, workers: %{}, owners: %{}}
  end
end
