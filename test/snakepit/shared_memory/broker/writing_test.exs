defmodule Snakepit.SharedMemory.Broker.WritingTest do
  # One writer at a time, peers and this VM alike; and waiting for what was written.
  use Snakepit.PeerCase, async: false

  setup %{shm: shm} do
    region = Shm.allocate!(64, peers: :read_write, instance: shm)
    peers = for name <- ["first", "second"], do: RawPeer.open(shm, name)
    for peer <- peers, do: RawPeer.attach!(peer, Shm.handle(region))
    {:ok, region: region, peers: peers}
  end

  defp write_begin(peer, region, timeout \\ 0),
    do: RawPeer.request(peer, "write_begin", %{id: region.id, timeout: timeout})

  defp write_end(peer, region), do: RawPeer.request(peer, "write_end", %{id: region.id})
  defp waiting(shm, count), do: eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) == count end)

  test "each write is one generation", %{region: region, peers: [peer, _]} do
    for generation <- 1..3 do
      assert %{"ok" => true} = write_begin(peer, region)
      assert %{"ok" => true, "generation" => ^generation} = write_end(peer, region)
    end

    assert Shm.info!(region).generation == 3
  end

  test "the second writer is refused when its time is up, and told who writes", %{
    region: region,
    peers: [one, two],
    shm: shm
  } do
    assert %{"ok" => true} = write_begin(one, region)
    answer = write_begin(two, region, 30)
    assert RawPeer.refusal(answer) == :busy
    [{_, %{number: number}}] = :ets.lookup(instance(shm).tables.sessions, one.session)
    assert answer["error"]["message"] =~ "session #{number}"
    assert answer["error"]["message"] =~ "30 ms"
    assert answer["error"]["message"] =~ "write_begin"
  end

  test "a refused writer is not the writer later", %{region: region, peers: [one, two]} do
    assert %{"ok" => true} = write_begin(one, region)
    assert two |> write_begin(region) |> RawPeer.refusal() == :busy
    assert %{"ok" => true} = write_end(one, region)
    assert two |> write_end(region) |> RawPeer.refusal() == :not_writer
  end

  test "who waits gets its turn when the writer has finished", %{region: region, peers: [one, two], shm: shm} do
    assert %{"ok" => true} = write_begin(one, region)
    turn = RawPeer.ask(two, "write_begin", %{id: region.id, timeout: 60_000})
    waiting(shm, 1)
    assert %{"generation" => 1} = write_end(one, region)
    assert %{"ok" => true} = RawPeer.answer(two, turn)
    assert one |> write_begin(region) |> RawPeer.refusal() == :busy
    assert %{"generation" => 2} = write_end(two, region)
  end

  test "who waits gets its turn when the writer detaches or ends: it hears that the region is invalid",
       %{region: region, peers: [one, two], shm: shm} do
    assert %{"ok" => true} = write_begin(one, region)
    turn = RawPeer.ask(two, "write_begin", %{id: region.id, timeout: 60_000})
    waiting(shm, 1)
    RawPeer.close(one)
    assert two |> RawPeer.answer(turn) |> RawPeer.refusal() == :invalid
  end

  test "a connection answers other requests while it waits for its turn", %{region: region, peers: [one, two], shm: shm} do
    assert %{"ok" => true} = write_begin(one, region)
    turn = RawPeer.ask(two, "write_begin", %{id: region.id, timeout: 60_000})
    waiting(shm, 1)
    assert %{"ok" => true} = RawPeer.request(two, "ping")
    assert %{"ok" => true} = write_end(one, region)
    assert %{"ok" => true} = RawPeer.answer(two, turn)
  end

  test "the writer cannot begin again before it ends", %{region: region, peers: [peer, _]} do
    assert %{"ok" => true} = write_begin(peer, region)
    assert peer |> write_begin(region) |> RawPeer.refusal() == :busy
    assert %{"ok" => true} = write_end(peer, region)
  end

  test "ending without having begun, and ending twice", %{region: region, peers: [peer, _]} do
    assert peer |> write_end(region) |> RawPeer.refusal() == :not_writer
    assert %{"ok" => true} = write_begin(peer, region)
    assert %{"ok" => true} = write_end(peer, region)
    assert peer |> write_end(region) |> RawPeer.refusal() == :not_writer
  end

  test "nobody ends another's turn", %{region: region, peers: [one, two]} do
    assert %{"ok" => true} = write_begin(one, region)
    assert two |> write_end(region) |> RawPeer.refusal() == :not_writer
    assert %{"ok" => true} = write_end(one, region)
  end

  test "the VM is refused, read and write, when its time is up", %{region: region, peers: [peer, _]} do
    assert %{"ok" => true} = write_begin(peer, region)
    assert {:error, %Error{reason: :busy, operation: :write}} = Shm.write(region, 0, "x", timeout: 30)
    assert {:error, %Error{reason: :busy, operation: :read}} = Shm.read(region, 0, 1, timeout: 30)
    assert {:error, %Error{reason: :busy, operation: :seal}} = Shm.seal(region)
  end

  test "the VM waits for its turn", %{region: region, peers: [peer, _], shm: shm} do
    assert %{"ok" => true} = write_begin(peer, region)
    writer = Task.async(fn -> Shm.write(region, 0, "x", timeout: :infinity) end)
    reader = Task.async(fn -> Shm.read(region, 0, 1, timeout: :infinity) end)
    waiting(shm, 2)
    assert %{"ok" => true} = write_end(peer, region)
    assert :ok = Task.await(writer)
    assert {:ok, _} = Task.await(reader)
    assert {:ok, "x"} = Shm.read(region, 0, 1)
  end

  test "a sealed region has no writers", %{region: region, peers: [peer, _]} do
    Shm.seal!(region)
    assert peer |> write_begin(region) |> RawPeer.refusal() == :sealed
  end

  test "a region that is freed while somebody waits for its turn", %{region: region, peers: [one, two], shm: shm} do
    assert %{"ok" => true} = write_begin(one, region)
    turn = RawPeer.ask(two, "write_begin", %{id: region.id, timeout: 60_000})
    waiting(shm, 1)
    Shm.free!(region)
    assert two |> RawPeer.answer(turn) |> RawPeer.refusal() == :region_not_found
    assert one |> write_end(region) |> RawPeer.refusal() == :region_not_found
  end

  test "writers that all want it at once all get it, one at a time", %{region: region, shm: shm} do
    peers = for i <- 1..8, do: RawPeer.open(shm, "#{i}")
    for peer <- peers, do: RawPeer.attach!(peer, Shm.handle(region))
    turns = for peer <- peers, do: {peer, RawPeer.ask(peer, "write_begin", %{id: region.id, timeout: 60_000})}

    generations = take_turns(turns, region, [])
    assert Enum.sort(generations) == Enum.to_list(1..8)
  end

  defp take_turns([], _region, generations), do: generations

  defp take_turns(turns, region, generations) do
    # Which of them is the next is not said.
    {ready, others} = Enum.split_with(turns, fn {peer, _} -> answered?(peer) end)
    assert length(ready) <= 1

    ended =
      for {peer, rid} <- ready do
        assert %{"ok" => true} = RawPeer.answer(peer, rid)
        write_end(peer, region)["generation"]
      end

    take_turns(others, region, ended ++ generations)
  end

  defp answered?(peer), do: match?({:ok, _}, :socket.recv(peer.socket, 4, [:peek], 5))

  describe "wait" do
    test "answers at once when the generation is over the one given", %{region: region, peers: [peer, _]} do
      Shm.write!(region, 0, "x")

      assert %{"ok" => true, "generation" => 1} =
               RawPeer.request(peer, "wait", %{id: region.id, generation: 0, timeout: 0})
    end

    test "answers when the VM has written", %{region: region, peers: [peer, _], shm: shm} do
      rid = RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      waiting(shm, 1)
      Shm.write!(region, 0, "x")
      assert %{"ok" => true, "generation" => 1} = RawPeer.answer(peer, rid)
    end

    test "answers when another peer has written", %{region: region, peers: [one, two], shm: shm} do
      rid = RawPeer.ask(one, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      waiting(shm, 1)
      assert %{"ok" => true} = write_begin(two, region)
      assert %{"ok" => true} = write_end(two, region)
      assert %{"ok" => true, "generation" => 1} = RawPeer.answer(one, rid)
    end

    test "a peer's write wakes who waits in the VM", %{region: region, peers: [peer, _], shm: shm} do
      task = Task.async(fn -> Shm.wait(region, 0, :infinity) end)
      waiting(shm, 1)
      assert %{"ok" => true} = write_begin(peer, region)
      assert %{"ok" => true} = write_end(peer, region)
      assert Task.await(task) == {:ok, 1}
    end

    test "says when its time is up", %{region: region, peers: [peer, _]} do
      answer = RawPeer.request(peer, "wait", %{id: region.id, generation: 0, timeout: 20})
      assert RawPeer.refusal(answer) == :timeout
      assert answer["error"]["message"] =~ "20 ms"
    end

    test "is not too early", %{region: region, peers: [peer, _]} do
      started = System.monotonic_time(:millisecond)
      answer = RawPeer.request(peer, "wait", %{id: region.id, generation: 0, timeout: 100})
      assert RawPeer.refusal(answer) == :timeout
      assert System.monotonic_time(:millisecond) - started >= 100
    end

    test "ends when the region is freed", %{region: region, peers: [peer, _], shm: shm} do
      rid = RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      waiting(shm, 1)
      Shm.free!(region)
      assert peer |> RawPeer.answer(rid) |> RawPeer.refusal() == :region_not_found
    end

    test "of a generation that is never reached can be as large as can be said", %{region: region, peers: [peer, _]} do
      largest = 18_446_744_073_709_551_615
      answer = RawPeer.request(peer, "wait", %{id: region.id, generation: largest, timeout: 0})
      assert RawPeer.refusal(answer) == :timeout
    end

    test "with a timeout as large as can be said waits", %{region: region, peers: [peer, _], shm: shm} do
      rid = RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 18_446_744_073_709_551_615})
      waiting(shm, 1)
      Shm.write!(region, 0, "x")
      assert %{"ok" => true} = RawPeer.answer(peer, rid)
    end

    test "64 at a time: each is answered", %{region: region, peers: [peer, _], shm: shm} do
      rids = for _ <- 1..64, do: RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      waiting(shm, 64)
      Shm.write!(region, 0, "x")
      for rid <- rids, do: assert(%{"ok" => true, "generation" => 1} = RawPeer.answer(peer, rid))
      waiting(shm, 0)
    end

    test "the 65th unanswered request ends the connection and the session", %{
      region: region,
      peers: [peer, other],
      shm: shm
    } do
      for _ <- 1..64, do: RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      waiting(shm, 64)
      RawPeer.ask(peer, "ping")
      assert RawPeer.closed?(peer)
      eventually(fn -> [other.session] == for(%{session: session} <- Shm.sessions!(shm), do: session) end)
    end
  end
end
