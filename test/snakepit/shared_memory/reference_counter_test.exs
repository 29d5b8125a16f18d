defmodule Snakepit.SharedMemory.ReferenceCounterTest do
  use Snakepit.ShmCase, async: true

  alias Snakepit.SharedMemory.ReferenceCounter

  setup %{shm: shm} do
    {:ok, region: Shm.put!("data", instance: shm, owner: :none)}
  end

  test "one holder counts once", %{region: region} do
    assert {:ok, 1} = ReferenceCounter.increment(region.id, self())
    assert {:ok, 1} = ReferenceCounter.increment(region.id, self())
    ref = make_ref()
    assert {:ok, 2} = ReferenceCounter.increment(region.id, ref)
    assert {:ok, refs} = ReferenceCounter.get_references(region.id)
    assert Enum.sort(refs) == Enum.sort([self(), ref])
    assert {:ok, 1} = ReferenceCounter.decrement(region.id, self())
    assert {:ok, 1} = ReferenceCounter.decrement(region.id, self())
    assert {:ok, 0} = ReferenceCounter.decrement(region.id, ref)
  end

  test "bad holders and regions", %{region: region} do
    assert {:error, %Error{reason: :invalid_argument}} = ReferenceCounter.increment(region.id, :me)
    assert {:error, %Error{reason: :region_not_found}} = ReferenceCounter.increment("shm_x", self())
    assert {:error, %Error{reason: :region_not_found}} = ReferenceCounter.get_count("shm_x")
  end

  test "a thousand holders that die leave nothing", %{region: region, shm: shm} do
    workers = for _ <- 1..1000, do: spawn_worker()
    for pid <- workers, do: {:ok, _} = ReferenceCounter.increment(region.id, pid)
    assert {:ok, 1000} = ReferenceCounter.get_count(region.id)
    for pid <- workers, do: Process.exit(pid, :kill)
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
    assert :ets.tab2list(instance(shm).tables.held) == []
    assert :sys.get_state(child(shm, :reference_counter)).monitors == %{}
  end

  test "freeing forgets the holders", %{region: region, shm: shm} do
    Shm.hold!(region)
    Shm.free!(region)
    settle(shm)
    assert :ets.tab2list(instance(shm).tables.holders) == []
    assert :ets.tab2list(instance(shm).tables.held) == []
  end

  test "a restart takes up the rows: who died meanwhile is let go", %{region: region, shm: shm} do
    a = spawn_worker()
    b = spawn_worker()
    for pid <- [a, b], do: {:ok, _} = ReferenceCounter.increment(region.id, pid)
    counter = child(shm, :reference_counter)
    :sys.suspend(counter)
    kill(a)
    kill(counter)
    eventually(fn -> ReferenceCounter.get_references(region.id) == {:ok, [b]} end)
    kill(b)
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
  end
end
