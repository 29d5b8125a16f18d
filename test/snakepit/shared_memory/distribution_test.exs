defmodule Snakepit.SharedMemory.DistributionTest do
  # Holders on another node: a real one.
  use Snakepit.ShmCase, async: false

  alias Snakepit.SharedMemory.ReferenceCounter

  @moduletag shm: false

  setup_all do
    Snakepit.PeerNode.distribute()
  end

  setup do
    peer = Snakepit.PeerNode.start()
    {:ok, Map.merge(start_instance(reconnect_grace: 300), peer)}
  end

  # A process there that holds the region until it is killed.
  defp remote_holder(node, region) do
    pid = Node.spawn(node, Snakepit.ShmCase, :hold_until_released, [self(), region])
    assert_receive {:held, :ok}
    pid
  end

  test "a process of another node holds, releases, and its death lets go", %{node: node, shm: shm} do
    region = Shm.put!("abc", instance: shm)
    pid = remote_holder(node, region)
    assert ReferenceCounter.get_references(region.id) == {:ok, [pid]}
    send(pid, :release)
    assert_receive {:released, :ok}
    assert ReferenceCounter.get_count(region.id) == {:ok, 0}
    other = remote_holder(node, region)
    Process.exit(other, :kill)
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
  end

  test "memory does not cross nodes, and the error says what to do", %{node: node, shm: shm} do
    region = Shm.put!("abc", instance: shm)
    assert {:error, %{reason: :remote_region} = error} = :erpc.call(node, Shm, :view, [region])
    assert error.details.node == node()
    assert Exception.message(error) =~ ":erpc.call"
    # Its remedy.
    assert "abc" == :erpc.call(node, :erpc, :call, [node(), Shm, :view!, [region]])
  end

  test "a node that cannot be reached is not a death: it gets its grace, and may come back", %{
    node: node,
    shm: shm,
    peer: peer
  } do
    region = Shm.put!("abc", instance: shm, owner: :none, cleanup_policy: :reference_counted)
    pid = remote_holder(node, region)
    Shm.release!(region)
    counter = child(shm, :reference_counter)
    Node.disconnect(node)
    eventually(fn -> map_size(:sys.get_state(counter).lost) == 1 end)
    assert ReferenceCounter.get_references(region.id) == {:ok, [pid]}
    # Back in time.
    true = Node.connect(node)
    eventually(fn -> map_size(:sys.get_state(counter).lost) == 0 end)
    assert ReferenceCounter.get_references(region.id) == {:ok, [pid]}
    # And for good.
    :peer.stop(peer)
    eventually(fn -> ReferenceCounter.get_count(region.id) != {:ok, 1} end)
    eventually(fn -> match?({:error, %Error{reason: :region_not_found}}, Shm.info(region)) end)
  end
end
