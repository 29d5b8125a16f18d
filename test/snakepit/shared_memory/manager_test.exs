defmodule Snakepit.SharedMemory.ManagerTest do
  use Snakepit.ShmCase, async: true

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Manager, ReferenceCounter}

  setup %{shm: shm}, do: {:ok, in: [instance: shm]}

  defp gone?(region), do: match?({:error, %Error{reason: :region_not_found}}, Shm.info(region))

  describe "the functions with ids and maps" do
    test "allocate, map, info, list, unmap, deallocate", %{shm: shm} do
      {:ok, id} = Manager.allocate_region(4096, %{instance: shm, metadata: %{a: 1}})
      assert {:ok, %Region{id: ^id, size: 4096} = region} = Manager.map_region(id)
      Shm.write!(region, 0, "hello")
      assert {:ok, info} = Manager.get_region_info(id)
      assert info.owner_pid == self()
      assert info.reference_count == 1
      assert info.access_count >= 2
      assert DateTime.compare(info.last_accessed, info.created_at) in [:gt, :eq]
      assert info.metadata == %{"a" => 1}
      assert {:ok, [%{id: ^id}]} = Manager.list_regions(%{instance: shm})
      assert :ok = Manager.unmap_region(id)
      assert {:ok, 0} = ReferenceCounter.get_count(id)
      assert :ok = Manager.deallocate_region(id)
      assert {:error, %Error{reason: :region_not_found}} = Manager.deallocate_region(id)
    end

    test "map_region with access_mode: :read_only gives a value that cannot write", %{in: opts} do
      region = Shm.allocate!(10, opts)
      {:ok, reader} = Manager.map_region(region.id, %{access_mode: :read_only})
      assert {:error, %Error{reason: :read_only}} = Shm.write(reader, 0, "a")
      assert {:error, %Error{reason: :read_only}} = Shm.seal(reader)
      assert {:error, %Error{details: %{key: :access_mode}}} = Manager.map_region(region.id, %{access_mode: :none})
      assert {:error, %Error{details: %{key: :colour}}} = Manager.map_region(region.id, %{colour: :red})
    end

    test "access_mode: :read_only at allocation leaves writing to the owner", %{in: opts} do
      region = Shm.allocate!(10, [access_mode: :read_only, peers: :read_write] ++ opts)
      assert :ok = Shm.write(region, 0, "mine")
      assert Shm.info!(region).peers == :read_only
      assert {:error, %Error{reason: :read_only}} = Task.await(Task.async(fn -> Shm.write(region, 0, "x") end))
    end
  end

  describe "limits" do
    @tag shm: [max_regions: 2]
    test "max_regions, and its remedy", %{in: opts} do
      a = Shm.put!("a", opts)
      Shm.put!("b", opts)
      assert {:error, %Error{reason: :region_limit_exceeded, type: :allocation_failed} = error} = Shm.put("c", opts)
      assert Error.remedy(error) =~ "max_regions (now 2)"
      Shm.free!(a)
      assert {:ok, _} = Shm.put("c", opts)
    end

    @tag shm: [max_regions: 3]
    test "max_regions holds for those who come at the same time", %{in: opts, shm: shm} do
      # 1: live by the users' own count; 2: the most there were
      counts = :atomics.new(2, [])

      users =
        for _ <- 1..8 do
          Task.async(fn ->
            for _ <- 1..300, {:ok, region} <- [Shm.allocate(10, opts)] do
              live = :atomics.add_get(counts, 1, 1)
              most = :atomics.get(counts, 2)
              if live > most, do: :atomics.compare_exchange(counts, 2, most, live)
              :erlang.yield()
              :atomics.sub(counts, 1, 1)
              :ok = Shm.free(region)
            end
          end)
        end

      Task.await_many(users)
      assert :atomics.get(counts, 2) in 1..3
      assert Shm.list!(instance: shm) == []
      for _ <- 1..3, do: Shm.allocate!(10, opts)
      assert {:error, %Error{reason: :region_limit_exceeded, details: %{limit: 3}}} = Shm.allocate(10, opts)
    end

    @tag shm: [max_region_size: 20_000, max_total_memory: 20_000]
    test "max_total_memory holds for those who come at the same time", %{in: opts, shm: shm} do
      users =
        for _ <- 1..8 do
          Task.async(fn ->
            for _ <- 1..300 do
              with {:ok, region} <- Shm.allocate(4_000, opts), do: :ok = Shm.free(region)
              {bytes, _} = Native.budget_usage(instance(shm).budget)
              assert bytes <= 20_000
            end
          end)
        end

      Task.await_many(users)
      assert charged(shm) == 0
    end

    @tag shm: [max_region_size: 1000, max_total_memory: 1_000_000]
    test "max_region_size", %{in: opts} do
      assert {:error, %Error{reason: :size_exceeds_limit, details: %{limit: 1000}} = error} = Shm.allocate(1001, opts)
      assert Error.remedy(error) =~ "at most 1000 bytes"
      assert {:ok, _} = Shm.allocate(1000, opts)
    end

    @tag shm: [max_region_size: 20_000, max_total_memory: 20_000]
    test "max_total_memory, and its remedy", %{in: opts} do
      a = Shm.allocate!(10_000, opts)

      assert {:error, %Error{reason: :memory_limit_exceeded, type: :memory_limit_exceeded} = error} =
               Shm.allocate(10_000, opts)

      assert error.details.limit == 20_000
      Shm.free!(a)
      assert {:ok, _} = Shm.allocate(10_000, opts)
    end

    @tag shm: [max_region_size: 3_000_000, max_total_memory: 3_000_000]
    test "memory that is on its way back is not a reason to refuse", %{in: opts} do
      for _ <- 1..20 do
        region = Shm.allocate!(2_500_000, opts)
        Shm.free!(region)
      end
    end

    @tag shm: [max_regions_per_process: 1]
    test "max_regions_per_process counts owners, and another owner helps", %{in: opts} do
      Shm.put!("a", opts)
      assert {:error, %Error{reason: :process_region_limit_exceeded} = error} = Shm.put("b", opts)
      assert Error.remedy(error) =~ "owner:"
      worker = spawn_worker()
      assert {:ok, _} = Shm.put("b", [owner: worker] ++ opts)
      assert {:ok, _} = Shm.put("c", [owner: :none] ++ opts)
      assert {:ok, _} = Shm.put("d", [owner: :none] ++ opts)
      assert {:error, %Error{reason: :process_region_limit_exceeded}} = Shm.put("e", [owner: worker] ++ opts)
      send(worker, :stop)
    end
  end

  describe "by its owner, without the Manager" do
    setup %{in: opts} do
      Shm.free!(Shm.put!("first", opts))
      :ok
    end

    test "a known process makes and frees what is its own", %{in: opts, shm: shm} do
      :sys.suspend(child(shm, :manager))
      region = Shm.put!("abc", opts)
      assert Shm.view!(region) == "abc"
      assert :ok = Shm.free(region)
      assert {:error, %Error{reason: :region_not_found}} = Shm.free(region)
      assert {:ok, %{active_regions: 0, total_allocations: 2, total_deallocations: 2}} = Shm.stats(shm)
      :sys.resume(child(shm, :manager))
    end

    test "what others own is asked for", %{in: opts, shm: shm} do
      worker = spawn_worker()
      region = Shm.put!("abc", [owner: worker] ++ opts)
      assert :ok = Shm.free(region)
      assert gone?(region)
      assert :ok = Shm.free(Shm.put!("abc", [owner: :none] ++ opts))
      kill(worker, shm)
    end

    test "holders and those who wait hear of it", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      worker = spawn_worker()
      :ok = in_worker(worker, fn -> Shm.hold(region) end)
      assert :ok = Shm.free(region)
      settle(shm)
      assert :ets.info(instance(shm).tables.held, :size) == 0
      send(worker, :stop)
    end
  end

  describe "ownership" do
    test "the owner's death frees, also another owner's than the maker", %{in: opts, shm: shm} do
      worker = spawn_worker()
      region = Shm.put!("a", [owner: worker] ++ opts)
      mine = Shm.put!("b", opts)
      kill(worker, shm)
      assert gone?(region)
      refute gone?(mine)
    end

    test "owner: :none stays", %{in: opts, shm: shm} do
      worker = spawn_worker()
      region = in_worker(worker, fn -> Shm.put!("a", [owner: :none] ++ opts) end)
      kill(worker, shm)
      refute gone?(region)
    end

    test "a dead owner is refused or undone", %{in: opts, shm: shm} do
      worker = spawn_worker()
      kill(worker)
      # The monitor fires while the row is reserved, or just after it has been completed.
      case Shm.put("a", [owner: worker] ++ opts) do
        {:ok, region} -> eventually(fn -> gone?(region) end)
        {:error, error} -> assert error.reason in [:owner_down, :region_not_found]
      end

      eventually(fn -> Shm.list!(instance: shm) == [] end)
      eventually(fn -> charged(shm) == 0 end)
    end

    test "a holder outlives the owner; the last to let go frees", %{in: opts, shm: shm} do
      owner = spawn_worker()
      holder = spawn_worker()
      region = in_worker(owner, fn -> Shm.put!("a", opts) end)
      :ok = in_worker(holder, fn -> Shm.hold(region) end)
      :ok = Shm.hold(region)
      kill(owner, shm)
      refute gone?(region)
      Shm.release!(region)
      settle(shm)
      refute gone?(region)
      kill(holder, shm)
      assert gone?(region)
    end

    test "transfer", %{in: opts, shm: shm} do
      a = spawn_worker()
      b = spawn_worker()
      region = in_worker(a, fn -> Shm.put!("a", opts) end)
      assert {:error, %Error{reason: :not_owner}} = Shm.transfer(region, self())
      assert :ok = in_worker(a, fn -> Shm.transfer(region, b) end)
      kill(a, shm)
      assert Shm.info!(region).owner_pid == b
      kill(b, shm)
      assert gone?(region)
      mine = Shm.put!("b", opts)
      assert {:error, %Error{reason: :owner_down}} = Shm.transfer(mine, b)
      assert :ok = Shm.transfer(mine, :none)
      assert Shm.info!(mine).owner_pid == nil
      # While there is none, anybody may take it.
      c = spawn_worker()
      assert :ok = in_worker(c, fn -> Shm.transfer(mine, self()) end)
      assert {:error, %Error{details: %{key: :to}}} = Shm.transfer(mine, :nobody)
      send(c, :stop)
    end
  end

  describe "policies" do
    test "manual goes by hand only", %{in: opts, shm: shm} do
      worker = spawn_worker()
      region = in_worker(worker, fn -> Shm.put!("a", [cleanup_policy: :manual] ++ opts) end)
      kill(worker, shm)
      {:ok, _} = Shm.cleanup(instance: shm)
      refute gone?(region)
      Shm.free!(region)
    end

    test "reference counted starts with one and goes with the last", %{in: opts, shm: shm} do
      region = Shm.put!("a", [cleanup_policy: :reference_counted] ++ opts)
      assert {:ok, 1} = ReferenceCounter.get_count(region.id)
      {:ok, _} = Shm.cleanup(instance: shm)
      worker = spawn_worker()
      :ok = in_worker(worker, fn -> Shm.hold(region) end)
      Shm.release!(region)
      settle(shm)
      refute gone?(region)
      kill(worker, shm)
      assert gone?(region)
    end

    test "reference counted: the first reference goes along with the ownership", %{in: opts, shm: shm} do
      worker = spawn_worker()
      region = Shm.put!("a", [cleanup_policy: :reference_counted] ++ opts)
      Shm.transfer!(region, worker)
      assert ReferenceCounter.get_references(region.id) == {:ok, [worker]}
      kill(worker, shm)
      assert gone?(region)
    end
  end

  describe "timeouts" do
    test "count from the last use, and not while somebody holds", %{in: opts, shm: shm} do
      region = Shm.put!("a", [timeout: 30] ++ opts)
      held = Shm.put!("b", [timeout: 30] ++ opts)
      kept = Shm.put!("c", [timeout: 600_000] ++ opts)
      Shm.hold!(held)

      eventually(fn ->
        {:ok, _} = Shm.cleanup(instance: shm)
        gone?(region)
      end)

      refute gone?(held)
      refute gone?(kept)
      Shm.release!(held)

      eventually(fn ->
        {:ok, _} = Shm.cleanup(instance: shm)
        gone?(held)
      end)
    end

    @tag shm: [default_timeout: 20, cleanup_interval: 5]
    test "the configured one, by itself", %{in: opts} do
      # Nothing is done with it: on a busy machine that could come too late.
      region = Shm.allocate!(1, opts)
      eventually(fn -> gone?(region) end)
    end
  end

  test "requests to a Manager that is suspended wait, and its death in between loses nothing", %{in: opts, shm: shm} do
    manager = child(shm, :manager)
    :sys.suspend(manager)
    task = Task.async(fn -> Shm.put("abc", [owner: :none] ++ opts) end)
    eventually(fn -> Process.info(manager, :message_queue_len) |> elem(1) > 0 end)
    kill(manager)
    assert {:ok, region} = Task.await(task)
    assert Shm.view!(region) == "abc"
    assert length(Shm.list!(instance: shm)) == 1
  end
end
