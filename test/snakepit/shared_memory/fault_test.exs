defmodule Snakepit.SharedMemory.FaultTest do
  # Kills the processes of an instance, and its callers, at the worst places, and checks that rows, memory, descriptors
  # and references agree afterwards.
  use Snakepit.ShmCase, async: false

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Fault, Registry, Waiters}

  @points [:reserve, :reserved, :create, :created, :indexed, :committed, :free, :free_own, :closed, :taken, :forgotten] ++
            [:increment, :incremented, :decrement, :released]

  setup %{shm: shm} do
    on_exit(fn -> for point <- @points, do: Fault.disarm(shm, point) end)
    Native.reaper_flush_dirty(10_000)
    {:ok, in: [instance: shm], before: Native.live()}
  end

  # Kills whoever passes, the first `times` times.
  defp kill_at(shm, point, times \\ 1) do
    counter = :counters.new(1, [])

    Fault.arm(shm, point, fn _ ->
      :counters.add(counter, 1, 1)
      if :counters.get(counter, 1) <= times, do: Process.exit(self(), :kill)
    end)

    counter
  end

  # A process that the Manager has heard of: it makes and frees what is its own without asking.
  defp spawn_known(opts) do
    worker = spawn_worker()
    in_worker(worker, fn -> Shm.free!(Shm.put!("first", opts)) end)
    worker
  end

  # Runs `fun` in the process, which is killed while it does.
  defp killed_in(worker, fun) do
    monitor = Process.monitor(worker)
    send(worker, {:run, self(), make_ref(), fun})
    assert_receive {:DOWN, ^monitor, _, _, :killed}
  end

  # Rows, charges, descriptors and mappings of the instance, after everything has been freed.
  defp nothing_left(shm, before) do
    settle(shm)
    eventually(fn -> Shm.list!(instance: shm) == [] end)

    tables = Map.take(instance(shm).tables, [:regions, :names, :owned, :holders, :held, :waiters])
    eventually(fn -> Enum.all?(tables, fn {_, table} -> :ets.info(table, :size) == 0 end) end)

    eventually(fn -> :erlang.garbage_collect() && charged(shm) == 0 end)
    now = Native.live()
    assert Map.take(now, [:mappings, :descriptors]) == Map.take(before, [:mappings, :descriptors])
  end

  for point <- [:reserve, :indexed, :reserved] do
    test "the Manager killed at #{point}: the caller notices nothing", %{in: opts, shm: shm, before: before} do
      kill_at(shm, unquote(point))
      assert {:ok, region} = Shm.put("abc", opts)
      assert Shm.view!(region) == "abc"
      assert [%{id: id}] = Shm.list!(instance: shm)
      assert id == region.id
      Shm.free!(region)
      nothing_left(shm, before)
    end
  end

  for point <- [:create, :created, :committed] do
    test "the caller killed at #{point}: nothing is left of its region", %{in: opts, shm: shm, before: before} do
      kill_at(shm, unquote(point))
      {pid, monitor} = spawn_monitor(fn -> Shm.put("abc", opts) end)
      assert_receive {:DOWN, ^monitor, _, ^pid, :killed}
      nothing_left(shm, before)
    end

    test "caller and Manager both killed at #{point}", %{in: opts, shm: shm, before: before} do
      manager = child(shm, :manager)

      Fault.arm(shm, unquote(point), fn _ ->
        Fault.disarm(shm, unquote(point))
        Process.exit(manager, :kill)
        Process.exit(self(), :kill)
      end)

      {pid, monitor} = spawn_monitor(fn -> Shm.put("abc", opts) end)
      assert_receive {:DOWN, ^monitor, _, ^pid, :killed}
      eventually(fn -> child(shm, :manager) not in [nil, manager] end)
      nothing_left(shm, before)
    end
  end

  # What a process does without asking the Manager, and what it may be cut short in.
  @own [
    create: :make,
    created: :make,
    indexed: :make,
    committed: :make,
    free_own: :free,
    closed: :free,
    taken: :free,
    forgotten: :free
  ]

  for {point, what} <- @own, policy <- [:automatic, :manual] do
    test "a known process killed at #{point}, #{policy}", %{in: opts, shm: shm, before: before} do
      %{run: run, after: finish} = own(unquote(what), unquote(policy), opts)
      kill_at(shm, unquote(point))
      killed_in(run.worker, run.fun)
      finish.()
      nothing_left(shm, before)
    end

    test "a known process and the Manager killed at #{point}, #{policy}", %{in: opts, shm: shm, before: before} do
      %{run: run, after: finish} = own(unquote(what), unquote(policy), opts)
      manager = child(shm, :manager)

      Fault.arm(shm, unquote(point), fn _ ->
        Fault.disarm(shm, unquote(point))
        Process.exit(manager, :kill)
        Process.exit(self(), :kill)
      end)

      killed_in(run.worker, run.fun)
      eventually(fn -> child(shm, :manager) not in [nil, manager] end)
      finish.()
      nothing_left(shm, before)
    end

    test "the Manager restarted while a known process is at #{point}, #{policy}", context do
      %{in: opts, shm: shm, before: before} = context
      %{run: run, after: finish} = own(unquote(what), unquote(policy), opts)
      manager = child(shm, :manager)

      Fault.arm(shm, unquote(point), fn _ ->
        Fault.disarm(shm, unquote(point))
        kill(manager)
        eventually(fn -> child(shm, :manager) not in [nil, manager] end)
        settle(shm)
      end)

      in_worker(run.worker, run.fun)
      kill(run.worker, shm)
      finish.()
      nothing_left(shm, before)
    end
  end

  # A held region, and one that is waited for: their rows go too.
  defp own(:free, policy, opts) do
    worker = spawn_known(opts)
    region = in_worker(worker, fn -> Shm.put!("abc", [cleanup_policy: policy] ++ opts) end)
    Shm.hold!(region)
    Waiters.subscribe(instance(opts[:instance]), region.id, make_ref(), self())

    done = fn ->
      assert_receive {:snakepit_shm_changed, _}
      assert {:error, %Error{reason: :region_not_found}} = Shm.info(region)
    end

    # Before anything was done to it, a region outlives its owner if it is held, or to be freed by hand.
    # The Manager may be about to free it.
    finish = fn -> with {:error, %Error{reason: :region_not_found}} <- Shm.free(region), do: done.() end
    %{run: %{worker: worker, fun: fn -> Shm.free!(region) end}, after: finish}
  end

  defp own(:make, policy, opts) do
    options = [cleanup_policy: policy] ++ opts
    # To be freed by hand once it is complete.
    finish = fn -> if policy == :manual, do: for(info <- Shm.list!(opts), do: free_by_hand(info, opts)) end
    %{run: %{worker: spawn_known(opts), fun: fn -> Shm.allocate(100, options) end}, after: finish}
  end

  defp free_by_hand(info, opts), do: Shm.free!(%Region{id: info.id, size: 1, instance: opts[:instance], node: node()})

  for point <- [:reserve, :indexed, :reserved] do
    test "the Manager killed at #{point}, and the caller that it served", %{in: opts, shm: shm, before: before} do
      {:ok, caller} = Agent.start(fn -> nil end)
      manager = child(shm, :manager)

      Fault.arm(shm, unquote(point), fn _ ->
        Fault.disarm(shm, unquote(point))
        kill(caller)
        Process.exit(self(), :kill)
      end)

      catch_exit(Agent.get(caller, fn _ -> Shm.put("abc", opts) end))
      eventually(fn -> child(shm, :manager) not in [nil, manager] end)
      nothing_left(shm, before)
    end
  end

  test "a caller that makes a region for somebody else is killed in between", %{in: opts, shm: shm, before: before} do
    kill_at(shm, :created)
    owner = spawn_worker()
    {pid, monitor} = spawn_monitor(fn -> Shm.put("abc", [owner: owner] ++ opts) end)
    assert_receive {:DOWN, ^monitor, _, ^pid, :killed}
    nothing_left(shm, before)
    send(owner, :stop)
  end

  test "the owner dies between reserve and commit", %{in: opts, shm: shm, before: before} do
    owner = spawn_worker()

    Fault.arm(shm, :created, fn _ ->
      kill(owner, shm)
    end)

    assert {:error, %Error{reason: :owner_down}} = Shm.put("abc", [owner: owner] ++ opts)
    Fault.disarm(shm, :created)
    nothing_left(shm, before)
  end

  for point <- [:free, :closed, :taken, :forgotten] do
    test "the Manager killed at #{point} of a free: it is done all the same", %{in: opts, shm: shm, before: before} do
      worker = spawn_worker()
      region = in_worker(worker, fn -> Shm.put!("abc", opts) end)
      kill_at(shm, unquote(point))
      assert :ok = Shm.free(region)
      kill(worker, shm)
      nothing_left(shm, before)
    end
  end

  for point <- [:closed, :taken, :forgotten] do
    test "the Manager killed at #{point} of an owner's death", %{in: opts, shm: shm, before: before} do
      worker = spawn_worker()
      in_worker(worker, fn -> for _ <- 1..5, do: Shm.put!("abc", opts) end)
      kill_at(shm, unquote(point), 2)
      kill(worker)
      nothing_left(shm, before)
    end
  end

  for point <- [:increment, :incremented] do
    test "the ReferenceCounter killed at #{point}", %{in: opts, shm: shm, before: before} do
      region = Shm.put!("abc", opts)
      kill_at(shm, unquote(point))
      assert :ok = Shm.hold(region)
      assert Shm.info!(region).references == [self()]
      Shm.free!(region)
      nothing_left(shm, before)
    end
  end

  for point <- [:decrement, :released] do
    test "the ReferenceCounter killed at #{point}: an orphan still goes", %{in: opts, shm: shm, before: before} do
      owner = spawn_worker()
      region = in_worker(owner, fn -> Shm.put!("abc", opts) end)
      Shm.hold!(region)
      kill(owner, shm)
      kill_at(shm, unquote(point))
      assert {:error, %Error{}} = with(:ok <- Shm.release(region), do: {:error, %Error{}})
      nothing_left(shm, before)
    end
  end

  test "under load, every process killed again and again, two at once", %{in: opts, shm: shm, before: before} do
    # 1: rounds that users have completed; 2: stop
    shared = :atomics.new(2, [])
    users = for _ <- 1..4, do: Task.async(fn -> use_regions(opts, shared) end)
    roles = [:manager, :reference_counter, :janitor, :security_controller, :broker]

    for _ <- 1..150 do
      done = :atomics.get(shared, 1)
      for role <- Enum.take_random(roles, 2), pid = child(shm, role), do: Process.exit(pid, :kill)
      eventually(fn -> Enum.all?(roles, &child(shm, &1)) and :atomics.get(shared, 1) > done end)
    end

    :atomics.put(shared, 2, 1)
    Task.await_many(users, 60_000)
    # What a lost answer left to a user goes with the user.
    nothing_left(shm, before)
  end

  defp use_regions(opts, shared) do
    size = 1 + :rand.uniform(9000)

    with {:ok, region} <- Shm.put(:binary.copy("x", size), opts),
         :ok <- Shm.hold(region),
         {:ok, view} <- Shm.view(region) do
      assert view == :binary.copy("x", size)
      assert Shm.info!(region).references == [self()]
      if :rand.uniform(2) == 1, do: :ok = Shm.release(region)
      :ok = Shm.free(region)
    end

    :atomics.add(shared, 1, 1)
    if :atomics.get(shared, 2) == 0, do: use_regions(opts, shared)
  end

  test "users killed under load", %{in: opts, shm: shm, before: before} do
    for _ <- 1..100 do
      pid =
        spawn(fn ->
          Stream.repeatedly(fn ->
            region = Shm.put!(:binary.copy("x", 5000), opts)
            Shm.hold!(region)
            Shm.view!(region)
          end)
          |> Stream.run()
        end)

      # Somewhere in the middle of something.
      :erlang.yield()
      for _ <- 1..:rand.uniform(2000), do: :ok
      kill(pid)
    end

    nothing_left(shm, before)
  end

  test "a Manager that is restarted knows owners from the rows", %{in: opts, shm: shm} do
    regions = for _ <- 1..3, do: Shm.put!("x", opts)
    worker = spawn_worker()
    theirs = in_worker(worker, fn -> Shm.put!("y", opts) end)
    manager = child(shm, :manager)
    kill(manager)
    eventually(fn -> child(shm, :manager) not in [nil, manager] end)
    assert Map.keys(:sys.get_state(child(shm, :manager)).owners) |> Enum.sort() == Enum.sort([self(), worker])
    kill(worker, shm)
    assert Registry.fetch(instance(shm), theirs.id) == :error
    for region <- regions, do: assert(Shm.view!(region) == "x")
  end
end
