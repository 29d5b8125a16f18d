defmodule Snakepit.SharedMemory.SurvivalTest do
  # What an operator's machine does to a running instance.
  # Not async: one of them sets an environment variable.
  use Snakepit.ShmCase, async: false

  alias Snakepit.SharedMemory.Fault

  setup %{shm: shm}, do: {:ok, in: [instance: shm]}

  test "its directory is removed: the broker comes back in a new one, and handles still hold", %{
    in: opts,
    shm: shm,
    socket_dir: dir
  } do
    region = Shm.put!("abc", opts)
    handle = Shm.handle(region)
    File.rm_rf!(dir)
    # Seen at the next round, or when the broker is restarted.
    {:ok, _} = Shm.cleanup(instance: shm)
    send(child(shm, :janitor), :tidy)
    eventually(fn -> File.exists?(handle["socket"]) end)
    {:ok, socket} = :socket.open(:local, :stream, :default)
    assert :ok = :socket.connect(socket, %{family: :local, path: handle["socket"]})
    :socket.close(socket)
    assert {:ok, _} = Shm.attach(handle)
    File.rm_rf!(dir)
    kill(child(shm, :broker))
    eventually(fn -> File.exists?(handle["socket"]) end)
    assert {:ok, _} = Shm.attach(handle)
    assert Shm.view!(region) == "abc"
  end

  test "somebody else has taken the default directory: another one is used" do
    # As another user would: it is not ours.
    directory = Path.join(temporary_directory("taken"), "snakepit")
    File.mkdir!(directory)

    if Snakepit.Native.effective_uid() == 0 do
      File.chown!(directory, 65_534)
      name = :"t#{System.unique_integer([:positive])}"
      before = System.fetch_env!("XDG_RUNTIME_DIR")
      on_exit(fn -> System.put_env("XDG_RUNTIME_DIR", before) end)
      System.put_env("XDG_RUNTIME_DIR", Path.dirname(directory))
      start_supervised!({Snakepit.SharedMemory, name: name}, id: name)
      System.put_env("XDG_RUNTIME_DIR", before)
      handle = Shm.handle(Shm.put!("abc", instance: name))
      assert String.starts_with?(handle["socket"], directory <> "-")
      stop_supervised!(name)
      assert File.ls!(Path.dirname(directory)) == ["snakepit"]
    else
      IO.puts(:stderr, "\n1 skipped here: only root can make another user's directory")
    end
  end

  test "names of VMs that were killed are cleared away; those of the living are not" do
    directory = temporary_directory("names")
    File.write!(Path.join(directory, "here-1.key"), "dead")
    File.write!(Path.join(directory, "here-1.sock"), "dead")
    File.write!(Path.join(directory, "there-1.key"), "another instance's")
    {:ok, _lock, _} = Snakepit.Native.lock_file(Path.join(directory, "here.key"))

    # The plain name is taken, so this one gets its process id in its own.
    start_instance(name: :here, socket_dir: directory)
    own = "here-#{System.pid()}"
    assert Enum.sort(File.ls!(directory)) == ["here.key", "#{own}.key", "#{own}.sock", "there-1.key"] |> Enum.sort()
  end

  test "small writes find their turn between overlapping large readers", %{in: opts} do
    region = Shm.allocate!(64 * 1024 * 1024, opts)
    stop = :atomics.new(1, [])

    readers =
      for _ <- 1..3 do
        Task.async(fn ->
          Stream.repeatedly(fn -> {:ok, _} = Shm.read(region, 0, region.size) end)
          |> Enum.find(fn _ -> :atomics.get(stop, 1) == 1 end)

          :done
        end)
      end

    for i <- 1..5, do: assert(:ok = Shm.write(region, i, "abc", timeout: 20_000))
    :atomics.put(stop, 1, 1)
    assert Task.await_many(readers, 60_000) == [:done, :done, :done]
  end

  test "a transfer that is cut short moves the first reference all the same", %{in: opts, shm: shm} do
    worker = spawn_worker()
    region = Shm.put!("abc", [cleanup_policy: :reference_counted] ++ opts)
    # As the Manager leaves it when it is killed in between; the caller asks again.
    Snakepit.SharedMemory.Registry.put_owner(instance(shm), region.id, worker)
    assert :ok = GenServer.call(child(shm, :manager), {:again, {:transfer, region.id, self(), worker}})
    assert Shm.info!(region).references == [worker]
    kill(worker)
  end

  test "an owner that dies while its region is completed takes it along, file and bytes too", %{shm: _} do
    directory = tmpfs_directory()
    %{shm: shm} = start_instance(platform_options: %{linux: %{shm_path: directory}})
    owner = spawn_worker()
    test = self()

    Fault.arm(shm, :closed, fn _ ->
      send(test, {:closing, self()})

      receive do
        :go_on -> :ok
      end
    end)

    Fault.arm(shm, :created, fn _ ->
      kill(owner)

      receive do
        {:closing, manager} -> send(test, {:manager, manager})
      end
    end)

    result = Shm.allocate(100, instance: shm, named: "late", owner: owner, cleanup_policy: :automatic)
    assert_received {:manager, manager}
    Fault.disarm(shm, :closed)
    Fault.disarm(shm, :created)
    send(manager, :go_on)
    settle(shm)
    with {:ok, region} <- result, do: assert({:error, %Error{reason: :region_not_found}} = Shm.info(region))
    assert File.ls!(directory) == []
    eventually(fn -> charged(shm) == 0 end)
  end

  test "put fills what another process is to own and nobody else may write", %{in: opts} do
    worker = spawn_worker()
    assert {:ok, region} = Shm.put("abc", [owner: worker, access_mode: :read_only] ++ opts)
    assert Shm.view!(region) == "abc"
    assert {:ok, _} = Shm.put("abc", [owner: :none, access_mode: :read_only] ++ opts)
    send(worker, :stop)
  end

  test "garbage in any argument is an error, not an exception", %{in: opts, shm: shm} do
    region = Shm.allocate!(10, opts)

    for {:error, error} <- [
          Shm.cleanup("x"),
          Shm.cleanup([1]),
          Shm.cleanup(nil),
          Shm.allocate(10, [timeout: Bitwise.bsl(1, 70)] ++ opts),
          Shm.allocate(10, [timeout: Bitwise.bsl(1, 64) - 1] ++ opts),
          Shm.allocate(10, [permissions: %URI{}] ++ opts),
          Shm.allocate(Bitwise.bsl(1, 80), opts),
          Shm.wait(region, 0, Bitwise.bsl(1, 40)),
          Shm.wait(region, -1, 1),
          Shm.wait(region, 0, :soon),
          Shm.read(region, 0, 1, timeout: -1),
          Shm.read(region, 0, 1, wait: 1),
          Shm.open({:a}, instance: shm),
          Shm.open("a", name: shm),
          Shm.attach(nil),
          Shm.attach(%{}),
          Shm.attach("{"),
          Shm.transfer(region, self: 1),
          Shm.list(:all),
          Shm.stats(:nobody),
          Shm.from_file(<<0>>, opts),
          Shm.from_file(1, opts),
          Snakepit.SharedMemory.Platform.get_info(:a)
        ] do
      assert %Error{} = error
      assert is_binary(Exception.message(error))
    end
  end

  test "stats count what has gone for whatever reason", %{in: opts, shm: shm} do
    for _ <- 1..3 do
      worker = spawn_worker()
      in_worker(worker, fn -> Shm.put!("abc", opts) end)
      kill(worker, shm)
    end

    Shm.free!(Shm.put!("abc", opts))
    eventually(fn -> match?(%{total_allocations: 4, total_deallocations: 4, active_regions: 0}, Shm.stats!(shm)) end)
  end
end
