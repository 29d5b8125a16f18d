defmodule Snakepit.NativeWorker do
  @moduledoc false
  # A worker with a library in service, by the native functions alone: no supervisor, nobody who starts it again.

  import ExUnit.Assertions
  import ExUnit.Callbacks

  alias Snakepit.{Native, NativeFixture}

  @executable Path.expand("priv/native/snakepit_worker")
  @deadline 10_000

  @spec executable() :: Path.t()
  def executable, do: @executable

  @doc "A warden of the calling process."
  @spec warden() :: {Native.warden(), os_pid :: pos_integer()}
  def warden do
    {:ok, warden} = Native.warden_spawn(@executable)
    on_exit(fn -> Native.warden_close(warden) end)
    assert {:hello, os_pid} = heard(warden)
    {warden, os_pid}
  end

  @doc "What `Native.worker_new/1` takes: a small one, with some things different."
  @spec spec(map()) :: Native.worker_spec()
  def spec(overrides \\ %{}) do
    Map.merge(
      %{
        slots: 8,
        slot_bytes: 4096,
        spill_bytes: 1_048_576,
        executors: 1,
        spin_us: 50,
        atoms: Native.atoms_new(100),
        names: 64,
        max_words: 1_048_576,
        max_depth: 1000,
        whereis: [],
        port_command: false,
        memory: 0
      },
      overrides
    )
  end

  @doc "A process, without a library."
  @spec worker(Native.warden(), pos_integer(), map()) :: {Native.worker(), os_pid :: pos_integer()}
  def worker(warden, token, overrides \\ %{}) do
    {:ok, worker} = Native.worker_new(spec(overrides))
    assert :ok = Native.warden_start(warden, token, worker, "test", "")
    assert {:started, ^token, os_pid} = heard(warden)
    assert {:hello, ^os_pid} = said(worker)
    {worker, os_pid}
  end

  @doc "A worker that has loaded a fixture, with somebody who hears its doorbell, at a position of the pool."
  @spec serve(Native.pool(), non_neg_integer(), Native.warden(), atom(), map()) :: Native.worker()
  def serve(pool, position, warden, fixture, overrides \\ %{}) do
    {worker, _} = worker(warden, position + 1, overrides)
    assert :ok = Native.worker_load(worker, {0, nil, false}, NativeFixture.path(fixture), 0)
    assert {:loaded, %{}} = said(worker)
    assert :ok = Native.pool_put(pool, position, worker)
    listener = spawn(fn -> listen(worker) end)
    on_exit(fn -> Process.exit(listener, :kill) end)
    worker
  end

  defp listen(worker) do
    with {:ok, _, false, _, _} <- Native.worker_bell(worker, :serve),
         :ok <- Native.worker_select(worker, :bell) do
      receive do
        {:select, ^worker, :bell, :ready_input} -> listen(worker)
      end
    else
      {:ok, _, true, _, _} -> listen(worker)
      _closed -> :ok
    end
  end

  @doc "The next message of the warden."
  @spec heard(Native.warden()) :: Native.warden_message() | :closed
  def heard(warden) do
    next(fn -> Native.warden_receive(warden) end, fn ->
      :ok = Native.warden_select(warden)
      assert_receive {:select, ^warden, :undefined, :ready_input}, @deadline
    end)
  end

  @doc "The next message of a worker."
  @spec said(Native.worker()) :: Native.worker_message() | :closed
  def said(worker) do
    next(fn -> Native.worker_receive(worker) end, fn ->
      :ok = Native.worker_select(worker, :control)
      assert_receive {:select, ^worker, :control, :ready_input}, @deadline
    end)
  end

  defp next(receive_it, wait) do
    case receive_it.() do
      {:ok, message} ->
        message

      :closed ->
        :closed

      :again ->
        wait.()
        next(receive_it, wait)
    end
  end

  @doc "Ends the process and waits until the warden has said so."
  @spec slay(Native.warden(), pos_integer()) :: :ok
  def slay(warden, token) do
    assert :ok = Native.warden_kill(warden, token, 9)
    assert {:exited, ^token, _, {:signal, 9}} = heard(warden)
    :ok
  end
end
