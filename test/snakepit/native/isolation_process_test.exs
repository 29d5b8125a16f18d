defmodule Snakepit.Native.IsolationProcessTest do
  # Warden and worker processes as the native functions start and end them, with the real executable and no library.
  # Alone: it counts the VM's descriptors.
  use ExUnit.Case, async: false

  import Snakepit.NativeWorker

  alias Snakepit.{Native, NativeWorker}

  @deadline 5_000

  defp gone?(os_pid, tries \\ 200) do
    cond do
      not File.exists?("/proc/#{os_pid}") -> true
      tries == 0 -> false
      true -> Process.sleep(10) && gone?(os_pid, tries - 1)
    end
  end

  test "an executable that is not there" do
    assert {:error, {:not_found, %{}}} = Native.warden_spawn("/nowhere/snakepit_worker")
  end

  test "the warden goes with its socket, and with its owner" do
    {warden, os_pid} = warden()
    assert File.exists?("/proc/#{os_pid}")
    assert :ok = Native.warden_close(warden)
    assert :ok = Native.warden_close(warden)
    assert :closed = Native.warden_receive(warden)
    assert {:error, {:closed, %{}}} = Native.warden_select(warden)
    assert {:error, {:closed, %{}}} = Native.warden_kill(warden, 1, 9)
    assert gone?(os_pid)

    test = self()

    {owner, monitor} =
      spawn_monitor(fn ->
        {:ok, warden} = Native.warden_spawn(NativeWorker.executable())
        :ok = Native.warden_select(warden)
        receive do: ({:select, ^warden, _, _} -> send(test, Native.warden_receive(warden)))
        Process.sleep(:infinity)
      end)

    assert_receive {:ok, {:hello, os_pid}}, @deadline
    Process.exit(owner, :kill)
    assert_receive {:DOWN, ^monitor, _, _, _}
    assert gone?(os_pid)
  end

  test "a killed warden is closed, and its workers end" do
    {warden, os_pid} = warden()
    {_worker, worker_pid} = worker(warden, 1)
    System.cmd("kill", ["-9", "#{os_pid}"])
    assert :closed = heard(warden)
    assert gone?(worker_pid)
  end

  test "a worker's signal and exit code are reported" do
    {warden, _} = warden()
    {_worker, os_pid} = worker(warden, 7)
    assert :ok = Native.warden_kill(warden, 7, 11)
    assert {:exited, 7, ^os_pid, {:signal, 11}} = heard(warden)

    {worker, os_pid} = worker(warden, 8)
    assert :ok = Native.worker_stop(worker)
    assert {:exited, 8, ^os_pid, {:exit, 0}} = heard(warden)
    assert :closed = said(worker)
  end

  test "a library that is not there is told with its stage" do
    {warden, _} = warden()
    {worker, _} = worker(warden, 1)
    assert :ok = Native.worker_load(worker, {0, nil, false}, "/nowhere/nothing", [{:any, "term"}])
    assert {:failed, %{stage: stage, code: code, message: message}} = said(worker)
    assert is_atom(stage) and is_integer(code) and is_binary(message)
  end

  test "a load info that does not fit a packet" do
    {:ok, worker} = Native.worker_new(spec())

    assert {:error, {:too_large, %{message: _}}} =
             Native.worker_load(worker, {0, nil, false}, "/x", :binary.copy("x", 100_000))
  end

  test "a closed worker has nothing left open" do
    {warden, _} = warden()
    before = length(File.ls!("/proc/self/fd"))

    for token <- 1..20 do
      {worker, os_pid} = worker(warden, token)
      for channel <- [:bell, :output], do: assert(:ok = Native.worker_select(worker, channel))
      assert :ok = Native.warden_kill(warden, token, 9)
      assert {:exited, ^token, ^os_pid, {:signal, 9}} = heard(warden)
      assert :ok = Native.worker_close(worker, {:crashed, %{}})
      assert :ok = Native.worker_close(worker, {:other, %{}})
      assert :closed = Native.worker_receive(worker)
      assert :closed = Native.worker_output(worker)
      assert {:error, {:closed, %{}}} = Native.worker_select(worker, :control)
      assert {:error, {:closed, %{}}} = Native.worker_bell(worker, :serve)
      assert {:error, {:closed, %{}}} = Native.worker_stop(worker)
      assert %{closed: true, in_flight: 0} = Native.worker_status(worker)
    end

    # The VM closes what it has watched from another thread.
    assert Enum.any?(1..100, fn _ ->
             Process.sleep(10)
             length(File.ls!("/proc/self/fd")) <= before + 2
           end)
  end

  test "ends are handed over once" do
    {warden, _} = warden()
    {worker, _} = worker(warden, 1)
    assert {:error, {:closed, %{}}} = Native.warden_start(warden, 2, worker, "again", "")
  end

  test "specifications that cannot be" do
    for {field, value} <- [
          slots: 3,
          slots: 4096,
          slot_bytes: 100,
          spill_bytes: 5,
          executors: 0,
          executors: 65,
          names: 0
        ] do
      assert {:error, {:invalid_spec, %{field: _, message: _}}} = Native.worker_new(spec(%{field => value}))
    end

    assert_raise ArgumentError, fn -> Native.worker_new(Map.delete(spec(), :slots)) end
    assert_raise ArgumentError, fn -> Native.worker_new(spec(%{atoms: make_ref()})) end
  end

  describe "a pool without workers" do
    test "has nobody to call, and lets nobody wait" do
      {:ok, pool} = Native.pool_new(2)
      assert :no_worker = Native.call(pool, :add, [1, 2], 10)
      assert :no_worker = Native.call_many(pool, :add, [[1, 2]])
      assert {:done, []} = Native.call_many(pool, :add, [])
      assert :ready = Native.wait_slot(pool, make_ref(), 10)
      assert :sent = Native.wait_slot_cancel(pool, make_ref())
      assert %{size: 2, workers: [], in_flight: [], waiting: 0, functions: []} = Native.pool_info(pool)
      assert :ok = Native.pool_take(pool, 1)
    end

    test "takes no worker that has not loaded" do
      {:ok, pool} = Native.pool_new(1)
      {:ok, worker} = Native.worker_new(spec())
      assert {:error, {:mismatch, %{message: _}}} = Native.pool_put(pool, 0, worker)
    end

    test "is of a size from 1 to 256" do
      for size <- [0, 257], do: assert_raise(ArgumentError, fn -> Native.pool_new(size) end)
    end
  end

  test "terms of another kind are badarg" do
    for function <- [
          &Native.warden_receive/1,
          &Native.worker_receive/1,
          &Native.worker_bell(&1, :serve),
          &Native.take/1
        ] do
      assert_raise ArgumentError, fn -> function.(make_ref()) end
      assert_raise ArgumentError, fn -> function.(Native.atoms_new(1)) end
    end
  end
end
