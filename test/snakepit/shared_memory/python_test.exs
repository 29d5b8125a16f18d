defmodule Snakepit.SharedMemory.PythonTest do
  # The real client of priv/python against the real broker.
  use Snakepit.ShmCase, async: true

  alias Snakepit.Python
  alias Snakepit.SharedMemory.{Broker, ReferenceCounter}

  setup %{shm: shm}, do: {:ok, in: [instance: shm], python: Python.start()}

  defp attach(python, handle, name \\ "region"),
    do: Python.run!(python, "#{name} = snakepit_shm.attach(#{Python.literal(handle)})")

  defp floats(list), do: for(x <- list, into: "", do: <<x::float-64-native>>)

  test "reads what Elixir put, as NumPy sees it, without a copy", %{in: opts, python: python} do
    region = Shm.put!(floats([1, 2, 3, 4, 5, 6]), [dtype: "float64", shape: [2, 3]] ++ opts)
    attach(python, Shm.handle(region))
    assert Python.run!(python, "region.numpy().sum(axis=1).tolist()") == [6.0, 15.0]

    assert Python.run!(python, "[region.dtype, list(region.shape), region.size, region.sealed, region.mode]") == [
             "float64",
             [2, 3],
             48,
             true,
             "read_only"
           ]

    assert Python.run!(python, "region.numpy().flags.writeable") == false
    assert {:ok, [{:peer, _}]} = ReferenceCounter.get_references(region.id)
    Python.run!(python, "region.close()")
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
  end

  test "every dtype means the same on both sides", %{in: opts, python: python} do
    for dtype <- Snakepit.SharedMemory.DType.names() -- ["bfloat16"] do
      size = Snakepit.SharedMemory.DType.item_size(dtype)
      region = Shm.put!(:binary.copy(<<0>>, size * 6), [dtype: dtype, shape: [3, 2]] ++ opts)
      attach(python, Shm.handle(region))
      assert Python.run!(python, "[str(region.numpy().dtype), list(region.numpy().shape)]") == [dtype, [3, 2]]
      Python.run!(python, "region.close()")
    end
  end

  test "sees what Elixir writes later, and waits for it", %{in: opts, python: python} do
    region = Shm.allocate!(100, opts)
    attach(python, Shm.handle(region))
    Python.send_code(python, "region.wait(0, timeout=20)")
    Shm.write!(region, 0, "later")
    assert {:ok, 1} = Python.answer(python)
    assert Python.run!(python, "region.read(0, 5).decode()") == "later"
  end

  test "writes into a shared mutable region; Elixir waits for it and reads it whole", %{in: opts, python: python} do
    region = Shm.allocate!(100_000, [peers: :read_write] ++ opts)
    attach(python, Shm.handle(region))
    Python.run!(python, "w = region.writing(); mv = w.__enter__(); mv[:] = b'a' * 100000; result = 1")
    # Torn or half finished is never read: it waits, and says who is in the way.
    assert {:error, %Error{reason: :busy} = error} = Shm.read(region, 0, 10, timeout: 20)
    assert Exception.message(error) =~ "writes"
    assert {:error, %Error{reason: :busy}} = Shm.write(region, 0, "x", timeout: 20)
    task = Task.async(fn -> Shm.read(region, 0, 10, timeout: 20_000) end)
    Python.run!(python, "del mv; w.__exit__(None, None, None); result = 1")
    assert Task.await(task, 20_000) == {:ok, "aaaaaaaaaa"}
    assert Shm.info!(region).generation == 1
  end

  test "a result: allocated, filled, sealed there, viewed here, and it outlives the worker", %{
    in: opts,
    python: python,
    shm: shm
  } do
    input = Shm.put!(floats([1, 2, 3, 4]), [dtype: "float64", shape: [4]] ++ opts)
    attach(python, Shm.handle(input))

    handle =
      Python.run!(python, """
      out = region.allocate((2, 2), "float64", metadata={"step": 3})
      out.numpy()[:] = (region.numpy() * 2).reshape(2, 2)
      result = out.seal()
      """)

    {:ok, result} = Shm.attach(handle)
    assert result.metadata == %{"step" => 3}
    Python.kill(python)
    eventually(fn -> Shm.sessions!(shm) == [] end)
    assert Shm.view!(result) == floats([2, 4, 6, 8])
    assert {result.dtype, result.shape, result.sealed} == {"float64", [2, 2], true}
    # Nobody owns it any more: with the last reference it goes, at the latest when its grace is over.
    assert :ok = Shm.transfer(result, self())
    assert Shm.info!(result).owner_pid == self()
  end

  @tag shm: [grace_period: 0]
  test "a sealed result that nobody attaches goes after the grace period", %{shm: shm, python: python, socket_dir: dir} do
    handle =
      Python.run!(
        python,
        "o = snakepit_shm.allocate(8, None, socket='#{dir}/#{shm}.sock'); o.memoryview()[:] = b'12345678'; result = o.seal()"
      )

    assert {:ok, [%{state: :sealed}]} = Shm.list(instance: shm)
    Python.kill(python)
    eventually(fn -> Shm.list!(instance: shm) == [] end)
    assert {:error, %Error{reason: :region_not_found}} = Shm.attach(handle)
  end

  test "a result that was not sealed goes with its maker", %{shm: shm, python: python, socket_dir: dir} do
    Python.run!(python, "o = snakepit_shm.allocate(8, None, socket='#{dir}/#{shm}.sock')")
    assert {:ok, [%{state: :allocated, owner_pid: nil}]} = Shm.list(instance: shm)
    Python.kill(python)
    eventually(fn -> Shm.list!(instance: shm) == [] end)
    eventually(fn -> charged(shm) == 0 end)
  end

  test "seal names the peers that still map the region writable", %{in: opts, python: python} do
    region = Shm.allocate!(4096, [peers: :read_write] ++ opts)
    Shm.write!(region, 0, "mine")
    attach(python, Shm.handle(region))
    assert {:error, %Error{reason: :busy} = error} = Shm.seal(region)
    assert [%{os_pid: os_pid}] = error.details.writers
    assert os_pid == python.os_pid
    assert Exception.message(error) =~ "may still write"
    # Nothing has changed: it can be written, and sealed when the peer has gone.
    assert :ok = Shm.write(region, 4, "!")
    Python.run!(python, "region.close()")
    assert {:ok, sealed} = Shm.seal(region)
    assert Shm.view!(sealed, 0, 5) == "mine!"
  end

  test "a writer that is killed in the middle leaves an invalid region, and the error says who", %{
    in: opts,
    python: python
  } do
    region = Shm.allocate!(1000, [peers: :read_write] ++ opts)
    attach(python, Shm.handle(region))
    Python.run!(python, "w = region.writing(); mv = w.__enter__(); mv[:500] = b'x' * 500; result = 1")
    reader = Task.async(fn -> Shm.read(region, 0, 10, timeout: 20_000) end)
    Python.kill(python)
    assert {:error, %Error{type: :corruption_detected, reason: :invalid} = error} = Task.await(reader, 20_000)
    assert Exception.message(error) =~ "#{python.os_pid}"
    assert Shm.info!(region).state == :invalid
    for {:error, error} <- [Shm.write(region, 0, "x"), Shm.seal(region)], do: assert(error.reason == :invalid)
    assert :ok = Shm.free(region)
  end

  test "close refuses while views live, and the region stays usable", %{in: opts, python: python} do
    region = Shm.put!("abcdefgh", opts)
    attach(python, Shm.handle(region))
    Python.run!(python, "a = region.numpy(); result = 1")
    assert {:error, "ViewsAliveError", _, _} = Python.run(python, "region.close()")
    assert Python.run!(python, "int(a[0])") == ?a
    Python.run!(python, "del a; region.close(); result = 1")
  end

  test "resumes by itself when our side of the connection is killed", %{in: opts, python: python, shm: shm} do
    region = Shm.put!("abcdefgh", opts)
    attach(python, Shm.handle(region))
    [%{connection: pid, session: session}] = Shm.sessions!(shm)
    kill(pid)
    # An idle client too: nobody calls it.
    eventually(fn -> match?([%{connection: new, session: ^session}] when new != pid, Shm.sessions!(shm)) end)
    assert ReferenceCounter.get_references(region.id) == {:ok, [{:peer, session}]}
    assert Python.run!(python, "region.read(0, 3).decode()") == "abc"
    handle = Python.run!(python, "region.handle()")
    assert handle["id"] == region.id
  end

  test "goes on when broker and connection are killed together", %{in: opts, python: python, shm: shm} do
    region = Shm.put!("abcdefgh", opts)
    attach(python, Shm.handle(region))
    [%{connection: pid}] = Shm.sessions!(shm)
    for victim <- [pid, child(shm, :broker)], do: Process.exit(victim, :kill)

    eventually(fn ->
      match?([%{connection: new}] when new != pid, Shm.sessions!(shm)) and
        Process.alive?(hd(Shm.sessions!(shm)).connection)
    end)

    assert Python.run!(python, "region.handle()['id']") == region.id
    assert {:ok, 1} = ReferenceCounter.get_count(region.id)
  end

  test "a fork neither doubles nor keeps the reference", %{in: opts, python: python} do
    region = Shm.put!("abcdefgh", opts)
    attach(python, Shm.handle(region))
    assert {:ok, 1} = ReferenceCounter.get_count(region.id)

    child =
      Python.run!(python, """
      import time
      r, w = os.pipe()
      pid = os.fork()
      if pid == 0:
          os.write(w, region.memoryview()[0:1])
          while True:
              time.sleep(60)
      os.read(r, 1)
      result = pid
      """)

    on_exit(fn -> System.cmd("kill", ["-9", "#{child}"], stderr_to_stdout: true) end)
    assert {:ok, 1} = ReferenceCounter.get_count(region.id)
    Python.kill(python)
    # The child lives, with the parent's memory, and holds nothing.
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
    assert {_, 0} = System.cmd("kill", ["-0", "#{child}"])
  end

  test "errors are exceptions with the same reasons", %{in: opts, python: python} do
    region = Shm.put!("abc", opts)
    handle = Shm.handle(region)

    assert {:error, _, "bad_token", _} =
             Python.run(python, "snakepit_shm.attach(#{Python.literal(%{handle | "token" => "made up"})})")

    assert {:error, _, "bad_token", _} =
             Python.run(python, "snakepit_shm.attach(#{Python.literal(%{handle | "mode" => "read_write"})})")

    expired = Shm.handle(region, expires_in: 1)
    eventually(fn -> System.system_time(:millisecond) > expired["expires"] end)
    assert {:error, _, "expired", _} = Python.run(python, "snakepit_shm.attach(#{Python.literal(expired)})")
    Shm.free!(region)

    assert {:error, "RegionNotFoundError", "region_not_found", text} =
             Python.run(python, "snakepit_shm.attach(#{Python.literal(handle)})")

    assert text =~ region.id
  end

  test "a region that is freed here stays mapped there, and new operations say so", %{in: opts, python: python} do
    region = Shm.put!("abc", opts)
    attach(python, Shm.handle(region))
    Shm.free!(region)
    assert Python.run!(python, "bytes(region.memoryview()).decode()") == "abc"
    assert {:error, "RegionNotFoundError", _, _} = Python.run(python, "region.handle()")
  end

  @tag :slow
  test "1,000 holders killed at random instants leave nothing", %{in: opts, shm: shm} do
    regions = for i <- 1..4, do: Shm.put!("region #{i}", [peers: :read_write] ++ opts)
    writable = Shm.allocate!(64, [peers: :read_write] ++ opts)
    handles = Enum.map(regions, &Shm.handle/1) ++ [Shm.handle(writable)]

    # Each batch is one Python process that forks holders; a fresh interpreter for each would take minutes.
    script = """
    import os, random, signal, sys, time, json
    import snakepit_shm
    handles = json.loads(sys.argv[1])
    random.seed(int(sys.argv[2]))
    children = []
    for _ in range(250):
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    held = [snakepit_shm.attach(h) for h in handles[:4]]
                    random.choice(held).close()
                    snakepit_shm.allocate(4096, None, socket=handles[0]["socket"])
            except Exception:
                os._exit(1)
        children.append(pid)
        if len(children) >= 8:
            victim = children.pop(random.randrange(len(children)))
            time.sleep(random.random() * 0.004)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    """

    {:ok, json} = Snakepit.Native.json_encode(handles)

    1..4
    |> Task.async_stream(
      fn seed ->
        System.cmd(
          Python.executable(),
          ["-c", script, json, "#{seed}"],
          env: [{"PYTHONPATH", Path.expand("priv/python")}, {"PYTHONDONTWRITEBYTECODE", "1"}],
          stderr_to_stdout: true
        )
      end,
      max_concurrency: 2,
      timeout: 180_000
    )
    |> Enum.each(fn {:ok, {output, status}} -> assert {output, status} == {"", 0} end)

    eventually(fn -> Shm.sessions!(shm) == [] end, 20_000)
    settle(shm)
    for region <- regions, do: assert(ReferenceCounter.get_count(region.id) == {:ok, 0})
    eventually(fn -> length(Shm.list!(instance: shm)) == 5 end)
    assert DynamicSupervisor.count_children(child(shm, :connections)).active == 0
    assert Broker.sessions(instance(shm)) == []
    for region <- regions, do: assert("region " <> _ = Shm.view!(region))
  end

  test "a named region through Python's own multiprocessing.shared_memory, which leaves it alive", %{shm: shm} do
    # Its names are those of /dev/shm, so this one must be unlike any other.
    name = "test-#{System.pid()}-#{System.unique_integer([:positive])}"
    region = Shm.put!("through the front door", instance: shm, named: name)
    on_exit(fn -> File.rm("/dev/shm/snakepit_" <> name) end)

    script = """
    from multiprocessing import resource_tracker, shared_memory
    shm = shared_memory.SharedMemory(name="snakepit_#{name}")
    resource_tracker.unregister(shm._name, "shared_memory")
    print(bytes(shm.buf[4096:4096 + #{region.size}]).decode())
    shm.close()
    """

    assert {"through the front door\n", 0} = System.cmd(Python.executable(), ["-c", script], stderr_to_stdout: true)
    assert Shm.view!(region) == "through the front door"
    Shm.free!(region)
  end
end
