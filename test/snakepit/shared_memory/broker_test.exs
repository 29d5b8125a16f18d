defmodule Snakepit.SharedMemory.BrokerTest do
  # Sessions: how they begin, what they survive, and that nothing is left of them.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SharedMemory.{Fault, ReferenceCounter, Waiters}

  setup %{shm: shm} do
    on_exit(fn -> for point <- [:attach, :created, :committed], do: Fault.disarm(shm, point) end)
    {:ok, in: [instance: shm]}
  end

  defp references(region) do
    {:ok, references} = ReferenceCounter.get_references(region.id)
    references
  end

  # A writable region that the peer holds and is writing.
  defp being_written(peer, opts) do
    region = Shm.allocate!(64, [peers: :read_write] ++ opts)
    RawPeer.attach!(peer, Shm.handle(region))
    assert %{"ok" => true} = RawPeer.request(peer, "write_begin", %{id: region.id, timeout: 0})
    region
  end

  # Stops whoever passes the point until the test lets it go on. Who it is comes as `{:stopped, pid}`.
  defp stop_at(shm, point) do
    test = self()

    Fault.arm(shm, point, fn _ ->
      send(test, {:stopped, self()})

      receive do
        :go_on -> :ok
      end
    end)
  end

  describe "hello" do
    test "gives a session, and says how long it outlives a connection", %{shm: shm} do
      peer = RawPeer.connect(shm)
      assert %{"ok" => true, "version" => 1, "session" => session, "grace" => 5_000} = RawPeer.hello(peer, nil, "me")
      assert [%{session: ^session, name: "me", os_pid: os_pid, regions: []}] = Shm.sessions!(shm)
      assert "#{os_pid}" == System.pid()
    end

    for version <- [0, 2, "1", 1.0, nil] do
      test "version #{inspect(version)} is refused, and the connection ends", %{shm: shm} do
        peer = RawPeer.connect(shm)
        answer = RawPeer.request(peer, "hello", %{version: unquote(version), session: nil, name: "n"})
        assert RawPeer.refusal(answer) == :protocol
        assert answer["error"]["message"] =~ "speaks 1"
        assert RawPeer.closed?(peer)
        nobody_left(shm)
      end
    end

    for {what, name} <- [
          {"65 bytes", String.duplicate("n", 65)},
          {"33 two-byte letters", String.duplicate("ä", 33)},
          {"null", nil},
          {"a number", 7}
        ] do
      test "a name of #{what} is refused, and the connection ends", %{shm: shm} do
        peer = RawPeer.connect(shm)
        answer = RawPeer.request(peer, "hello", %{version: 1, session: nil, name: unquote(name)})
        assert RawPeer.refusal(answer) == :invalid_argument
        assert RawPeer.closed?(peer)
        nobody_left(shm)
      end
    end

    test "a name of 64 bytes is taken", %{shm: shm} do
      peer = RawPeer.connect(shm)
      assert %{"ok" => true} = RawPeer.hello(peer, nil, String.duplicate("ä", 32))
    end

    for session <- [7, false, [], %{}] do
      test "session #{inspect(session)} is refused, and the connection ends", %{shm: shm} do
        peer = RawPeer.connect(shm)
        assert peer |> RawPeer.hello(unquote(Macro.escape(session))) |> RawPeer.refusal() == :protocol
        assert RawPeer.closed?(peer)
        nobody_left(shm)
      end
    end

    for op <- ["ping", "attach", "allocate", "goodbye"] do
      test "#{op} before it ends the connection", %{shm: shm} do
        peer = RawPeer.connect(shm)
        RawPeer.ask(peer, unquote(op))
        assert RawPeer.closed?(peer)
        nobody_left(shm)
      end
    end

    test "a second one is refused, and the session goes on", %{shm: shm} do
      peer = RawPeer.open(shm)
      assert peer |> RawPeer.hello(nil) |> RawPeer.refusal() == :protocol
      assert %{"ok" => true} = RawPeer.request(peer, "ping")
      assert [%{session: session}] = Shm.sessions!(shm)
      assert session == peer.session
    end

    test "with the session of the same process resumes it, with what it holds", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      first = RawPeer.open(shm)
      RawPeer.attach!(first, Shm.handle(region))
      second = RawPeer.connect(shm)
      assert %{"ok" => true, "session" => session} = RawPeer.hello(second, first.session)
      assert session == first.session
      assert %{"ok" => true} = RawPeer.request(second, "info", %{id: region.id})
      assert references(region) == [{:peer, session}]
    end

    test "that resumes ends the connection that the session had", %{shm: shm} do
      first = RawPeer.open(shm)
      second = shm |> RawPeer.connect() |> RawPeer.hello!(first.session)
      assert RawPeer.closed?(first)
      assert %{"ok" => true} = RawPeer.request(second, "ping")
    end

    test "with an unknown session may be said again, with null", %{shm: shm} do
      peer = RawPeer.connect(shm)
      assert peer |> RawPeer.hello("made up") |> RawPeer.refusal() == :unknown_session
      assert peer |> RawPeer.hello("made up") |> RawPeer.refusal() == :unknown_session
      assert %{session: session} = RawPeer.hello!(peer, nil)
      assert [%{session: ^session}] = Shm.sessions!(shm)
    end

    test "with the session of another process is an unknown session, and that one goes on", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      mine = RawPeer.open(shm)
      RawPeer.attach!(mine, Shm.handle(region))
      other = OsPeer.start()
      OsPeer.call(other, "connect", %{path: RawPeer.path(shm), name: "a"})
      assert other |> OsPeer.hello("a", mine.session) |> RawPeer.refusal() == :unknown_session
      assert %{"ok" => true} = OsPeer.hello(other, "a")
      assert %{"ok" => true} = RawPeer.request(mine, "info", %{id: region.id})
    end

    test "with the session of the parent, by a forked child, is an unknown session", %{shm: shm} do
      peer = OsPeer.start()
      session = OsPeer.open(peer, RawPeer.path(shm), "parent")
      # The kernel says who connected: a child of it.
      OsPeer.connect_in_child(peer, RawPeer.path(shm), "child")
      assert peer |> OsPeer.hello("child", session) |> RawPeer.refusal() == :unknown_session
    end
  end

  describe "our side of a connection is killed" do
    test "the session stays for the process to resume it, with what it holds", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      kill(connection(shm, peer.session))
      assert RawPeer.closed?(peer)
      assert references(region) == [{:peer, peer.session}]
      again = shm |> RawPeer.connect() |> RawPeer.hello!(peer.session)
      assert %{"ok" => true} = RawPeer.request(again, "info", %{id: region.id})
      RawPeer.close(again)
      nobody_left(shm)
    end

    test "who was writing is still the writer", %{in: opts, shm: shm} do
      peer = RawPeer.open(shm)
      region = being_written(peer, opts)
      kill(connection(shm, peer.session))
      assert {:error, %Error{reason: :busy}} = Shm.read(region, 0, 1, timeout: 0)
      again = shm |> RawPeer.connect() |> RawPeer.hello!(peer.session)
      assert %{"ok" => true, "generation" => 1} = RawPeer.request(again, "write_end", %{id: region.id})
      assert {:ok, <<0>>} = Shm.read(region, 0, 1)
    end

    @tag shm: [reconnect_grace: 50]
    test "references and grants go when nobody has resumed it in time", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      kill(connection(shm, peer.session))
      nobody_left(shm)
      assert references(region) == []
      assert shm |> RawPeer.connect() |> RawPeer.hello(peer.session) |> RawPeer.refusal() == :unknown_session
    end

    @tag shm: [reconnect_grace: 50]
    test "what it was writing is invalid when nobody has resumed it in time", %{in: opts, shm: shm} do
      peer = RawPeer.open(shm)
      region = being_written(peer, opts)
      kill(connection(shm, peer.session))
      assert {:error, %Error{reason: :invalid}} = Shm.wait(region, 0, 5_000)
    end

    @tag shm: [reconnect_grace: 50]
    test "what it had allocated goes when nobody has resumed it in time", %{shm: shm} do
      peer = RawPeer.open(shm)
      assert %{"ok" => true} = RawPeer.request(peer, "allocate", %{size: 64})
      kill(connection(shm, peer.session))
      eventually(fn -> Shm.list!(instance: shm) == [] end)
    end

    test "the session ends at once when its process does", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      session = OsPeer.open(peer, RawPeer.path(shm))
      OsPeer.attach!(peer, Shm.handle(region))
      kill(connection(shm, session))
      settle(shm)
      assert references(region) == [{:peer, session}]
      OsPeer.kill(peer)
      eventually(fn -> references(region) == [] end, 4_000)
    end

    @tag shm: [reconnect_grace: 300]
    test "who resumes it at the last moment keeps it", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      again = RawPeer.connect(shm)
      eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 2 end)
      broker = child(shm, :broker)
      kill(connection(shm, peer.session))
      eventually(fn -> is_map_key(:sys.get_state(broker).pending, peer.session) end)
      # The request to resume is there before the time is up, and both before the broker looks.
      :sys.suspend(broker)
      rid = RawPeer.ask(again, "hello", %{version: 1, session: peer.session, name: "late"})
      queued(broker, 2)
      assert {:messages, [{:"$gen_call", _, _}, _time_is_up]} = Process.info(broker, :messages)
      :sys.resume(broker)
      assert %{"ok" => true} = RawPeer.answer(again, rid)
      settle(shm)
      assert %{"ok" => true} = RawPeer.request(again, "info", %{id: region.id})
      assert references(region) == [{:peer, peer.session}]
    end
  end

  describe "the broker is killed" do
    test "connections go on, and new ones are taken", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      broker = child(shm, :broker)
      kill(broker)
      successor(shm, :broker, broker)
      assert %{"ok" => true} = RawPeer.request(peer, "info", %{id: region.id})
      assert %{"ok" => true} = shm |> RawPeer.open() |> RawPeer.attach(Shm.handle(region))
    end

    test "its successor sees a connection end", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      broker = child(shm, :broker)
      kill(broker)
      successor(shm, :broker, broker)
      RawPeer.close(peer)
      nobody_left(shm)
      assert references(region) == []
    end

    test "its successor sees a process end whose child keeps the socket", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      OsPeer.open(peer, RawPeer.path(shm))
      OsPeer.attach!(peer, Shm.handle(region))
      OsPeer.fork(peer)
      broker = child(shm, :broker)
      kill(broker)
      successor(shm, :broker, broker)
      OsPeer.kill(peer)
      nobody_left(shm)
    end

    test "its successor sees what has ended in between", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      OsPeer.open(peer, RawPeer.path(shm))
      OsPeer.attach!(peer, Shm.handle(region))
      OsPeer.fork(peer)
      broker = child(shm, :broker)
      :sys.suspend(broker)
      OsPeer.kill(peer)
      # It has been told, and dies before it looks.
      queued(broker, 1)
      kill(broker)
      successor(shm, :broker, broker)
      nobody_left(shm)
    end

    test "between a connection and its hello: the end of that process is seen all the same", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      connector = OsPeer.connect_in_child(peer, RawPeer.path(shm), "a")
      eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 1 end)
      broker = child(shm, :broker)
      kill(broker)
      successor(shm, :broker, broker)
      assert %{"ok" => true} = OsPeer.hello(peer, "a")
      OsPeer.attach!(peer, Shm.handle(region))
      # Who connected dies; the socket stays open in `peer`.
      OsPeer.kill(connector)
      nobody_left(shm)
    end

    @tag shm: [reconnect_grace: 50]
    test "sessions that were waiting to be resumed still go when their time is up", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      broker = child(shm, :broker)
      :sys.suspend(broker)
      kill(connection(shm, peer.session))
      kill(broker)
      successor(shm, :broker, broker)
      nobody_left(shm)
    end

    test "together with the connection: the session is resumed", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      broker = child(shm, :broker)
      for pid <- [broker, connection(shm, peer.session)], do: kill(pid)
      successor(shm, :broker, broker)
      again = shm |> RawPeer.connect() |> RawPeer.hello!(peer.session)
      assert %{"ok" => true} = RawPeer.request(again, "info", %{id: region.id})
      assert references(region) == [{:peer, peer.session}]
    end
  end

  test "the supervisor of the connections is killed: every session is resumed", %{in: opts, shm: shm} do
    region = Shm.put!("abc", opts)
    peers = for _ <- 1..5, do: RawPeer.open(shm)
    for peer <- peers, do: RawPeer.attach!(peer, Shm.handle(region))
    connections = child(shm, :connections)
    kill(connections)
    successor(shm, :connections, connections)

    for peer <- peers do
      assert RawPeer.closed?(peer)
      again = shm |> RawPeer.connect() |> RawPeer.hello!(peer.session)
      assert %{"ok" => true} = RawPeer.request(again, "info", %{id: region.id})
    end

    assert Enum.sort(references(region)) == Enum.sort(for peer <- peers, do: {:peer, peer.session})
  end

  describe "a peer ends" do
    test "by closing: what it held goes at once", %{in: opts, shm: shm} do
      regions = for i <- 1..10, do: Shm.put!("#{i}", opts)
      peer = RawPeer.open(shm)
      for region <- regions, do: RawPeer.attach!(peer, Shm.handle(region))
      assert [%{regions: held}] = Shm.sessions!(shm)
      assert Enum.sort(held) == regions |> Enum.map(& &1.id) |> Enum.sort()
      RawPeer.close(peer)
      nobody_left(shm)
      assert Enum.all?(regions, &(references(&1) == []))
    end

    test "by closing its writing half only", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      :ok = :socket.shutdown(peer.socket, :write)
      assert RawPeer.closed?(peer)
      nobody_left(shm)
    end

    test "by SIGKILL", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      OsPeer.open(peer, RawPeer.path(shm))
      OsPeer.attach!(peer, Shm.handle(region))
      OsPeer.kill(peer)
      nobody_left(shm)
    end

    test "by SIGKILL, with a child that keeps the socket open", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      OsPeer.open(peer, RawPeer.path(shm))
      OsPeer.attach!(peer, Shm.handle(region))
      forked = OsPeer.fork(peer)
      OsPeer.kill(peer)
      nobody_left(shm)
      assert OsPeer.sockets?(forked)
    end

    test "before hello: a child that has the socket cannot begin a session that nobody would end", %{shm: shm} do
      peer = OsPeer.start()
      connector = OsPeer.connect_in_child(peer, RawPeer.path(shm), "a")
      eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 1 end)
      OsPeer.kill(connector)
      # Not reaped, but dead; and the broker has been told.
      eventually(fn -> File.read!("/proc/#{connector}/stat") =~ ") Z " end)
      settle(shm)
      # It may be answered, or not; but it is over at once.
      OsPeer.call(peer, "send", %{name: "a", op: "hello", fields: %{version: 1, session: nil, name: "a"}})
      nobody_left(shm)
    end

    test "while it resumes on another connection: that one ends too", %{in: opts, shm: shm} do
      region = Shm.put!("abc", opts)
      peer = OsPeer.start()
      # Two connections of one process that then dies; `peer` has the sockets, as a child of it would.
      connector = OsPeer.connect_in_child(peer, RawPeer.path(shm), ["a", "b"])
      session = OsPeer.hello(peer, "a")["session"]
      OsPeer.attach!(peer, Shm.handle(region))
      eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 2 end)
      broker = child(shm, :broker)
      :sys.suspend(broker)
      OsPeer.kill(connector)
      queued(broker, 2)
      hello = %{version: 1, session: session, name: "b"}
      OsPeer.call(peer, "send", %{name: "b", op: "hello", fields: hello})
      queued(broker, 3)
      :sys.resume(broker)
      assert peer |> OsPeer.call("answer", %{name: "b"}) |> RawPeer.refusal() == :unknown_session
      OsPeer.call(peer, "close", %{name: "b"})
      nobody_left(shm)
    end

    for point <- [:attach, :created, :committed] do
      test "while its connection is at #{point}: nothing comes after the end of the session", %{in: opts, shm: shm} do
        region = Shm.put!("abc", opts)
        peer = OsPeer.start()
        OsPeer.open(peer, RawPeer.path(shm))
        OsPeer.fork(peer)
        stop_at(shm, unquote(point))
        fields = if unquote(point) == :attach, do: Shm.handle(region), else: %{size: 100, metadata: %{}}
        op = if unquote(point) == :attach, do: "attach", else: "allocate"
        OsPeer.call(peer, "send", %{name: "a", op: op, fields: Map.drop(fields, ["metadata", "shape", "dtype"])})
        assert_receive {:stopped, _pid}
        OsPeer.kill(peer)
        nobody_left(shm)
        assert [%{id: id}] = Shm.list!(instance: shm)
        assert id == region.id
        assert :ets.info(instance(shm).tables.regions, :size) == 1
      end
    end

    test "while it writes: the region is invalid, and the error names the writer", %{in: opts, shm: shm} do
      peer = RawPeer.open(shm, "the unlucky one")
      region = being_written(peer, opts)
      RawPeer.close(peer)
      assert {:error, %Error{type: :corruption_detected, reason: :invalid} = error} = Shm.read(region, 0, 1)
      assert Exception.message(error) =~ "the unlucky one (process #{System.pid()}) ended in the middle of a write"
      assert Shm.info!(region).state == :invalid
    end

    test "while it writes: who waits in the VM is told", %{in: opts, shm: shm} do
      peer = RawPeer.open(shm)
      region = being_written(peer, opts)
      waiter = Task.async(fn -> Shm.wait(region, 0, :infinity) end)
      writer = Task.async(fn -> Shm.write(region, 0, "x", timeout: :infinity) end)
      eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) == 2 end)
      RawPeer.close(peer)
      for task <- [waiter, writer], do: assert({:error, %Error{reason: :invalid}} = Task.await(task))
    end

    test "while it writes: peers that wait are told", %{in: opts, shm: shm} do
      peer = RawPeer.open(shm)
      region = being_written(peer, opts)
      other = RawPeer.open(shm)
      RawPeer.attach!(other, Shm.handle(region))
      wait = RawPeer.ask(other, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      write = RawPeer.ask(other, "write_begin", %{id: region.id, timeout: 60_000})
      eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) == 2 end)
      RawPeer.close(peer)
      for rid <- [wait, write], do: assert(other |> RawPeer.answer(rid) |> RawPeer.refusal() == :invalid)
      # And nobody gets it any more.
      assert other |> RawPeer.attach(Shm.handle(region)) |> RawPeer.refusal() == :invalid
    end

    test "while it waits: nothing is left of its requests", %{in: opts, shm: shm} do
      region = Shm.allocate!(8, opts)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      for _ <- 1..10, do: RawPeer.ask(peer, "wait", %{id: region.id, generation: 0, timeout: 60_000})
      eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) == 10 end)
      RawPeer.close(peer)
      nobody_left(shm)
    end
  end

  describe "detach" do
    setup %{in: opts, shm: shm} do
      regions = for i <- 1..2, do: Shm.put!("#{i}", opts)
      peer = RawPeer.open(shm)
      for region <- regions, do: RawPeer.attach!(peer, Shm.handle(region))
      {:ok, regions: regions, peer: peer}
    end

    test "lets go of the one region", %{regions: [one, two], peer: peer} do
      assert %{"ok" => true} = RawPeer.request(peer, "detach", %{id: one.id})
      assert references(one) == []
      assert references(two) == [{:peer, peer.session}]
    end

    test "takes the rights with it", %{regions: [one, _], peer: peer} do
      assert %{"ok" => true} = RawPeer.request(peer, "detach", %{id: one.id})

      for {op, fields} <- [
            {"info", %{}},
            {"handle", %{}},
            {"write_end", %{}},
            {"write_begin", %{timeout: 0}},
            {"wait", %{generation: 0, timeout: 0}}
          ],
          do: assert(peer |> RawPeer.request(op, Map.put(fields, :id, one.id)) |> RawPeer.refusal() == :not_held)
    end

    test "of what is not held is no error", %{regions: [one, _], peer: peer, shm: shm} do
      other = RawPeer.open(shm)
      assert %{"ok" => true} = RawPeer.request(other, "detach", %{id: one.id})
      assert %{"ok" => true} = RawPeer.request(other, "detach", %{id: "shm_never"})
      assert references(one) == [{:peer, peer.session}]
    end

    test "in the middle of a write leaves the region invalid", %{in: opts, peer: peer} do
      region = being_written(peer, opts)
      assert %{"ok" => true} = RawPeer.request(peer, "detach", %{id: region.id})
      assert {:error, %Error{reason: :invalid}} = Shm.read(region, 0, 1)
    end

    test "by somebody else does not disturb a writer", %{in: opts, peer: peer, shm: shm} do
      region = being_written(peer, opts)
      other = RawPeer.open(shm)
      RawPeer.attach!(other, Shm.handle(region))
      assert %{"ok" => true} = RawPeer.request(other, "detach", %{id: region.id})
      assert %{"ok" => true} = RawPeer.request(peer, "write_end", %{id: region.id})
    end
  end

  describe "max_connections" do
    @describetag shm: [max_connections: 3]

    test "one more is refused, with the limit and what to do", %{shm: shm} do
      for _ <- 1..3, do: RawPeer.open(shm)
      peer = RawPeer.connect(shm)
      assert answer = RawPeer.receive_frame(peer)
      assert answer["rid"] == nil
      assert RawPeer.refusal(answer) == :too_many_connections
      assert answer["error"]["message"] =~ "raise max_connections (now 3)"
      assert RawPeer.closed?(peer)
      assert length(Shm.sessions!(shm)) == 3
    end

    test "connections that have not said hello count", %{shm: shm} do
      for _ <- 1..3, do: RawPeer.connect(shm)
      assert shm |> RawPeer.connect() |> RawPeer.receive_frame() |> RawPeer.refusal() == :too_many_connections
    end

    test "a place is free again when one has closed", %{shm: shm} do
      [first | _] = for _ <- 1..3, do: RawPeer.open(shm)
      RawPeer.close(first)
      eventually(fn -> length(Shm.sessions!(shm)) == 2 end)
      assert %{session: _} = RawPeer.open(shm)
    end

    test "the followed remedy helps", %{shm: shm} do
      for _ <- 1..3, do: RawPeer.open(shm)
      %{shm: larger} = start_instance(max_connections: 4)
      for _ <- 1..4, do: assert(%{session: _} = RawPeer.open(larger))
    end
  end

  test "peers that connect and hang up as fast as they can do not keep others waiting", %{in: opts, shm: shm} do
    region = Shm.put!("abc", opts)
    peer = OsPeer.start()
    for pid <- OsPeer.call(peer, "storm", %{path: RawPeer.path(shm), processes: 6}), do: OsPeer.kill_at_exit(pid)
    other = OsPeer.start()
    session = OsPeer.open(other, RawPeer.path(shm), "stays")
    handle = Map.take(Shm.handle(region), ["id", "token", "mode", "expires"])
    assert %{"ok" => true} = OsPeer.request(other, "stays", "attach", handle)

    for _ <- 1..20 do
      OsPeer.open(other, RawPeer.path(shm), "a")
      OsPeer.attach!(other, Shm.handle(region))
      OsPeer.call(other, "close", %{name: "a"})
    end

    assert %{"ok" => true} = OsPeer.request(other, "stays", "ping", %{})
    eventually(fn -> references(region) == [{:peer, session}] end)
  end

  test "notifications while somebody is busy do not add up to a storm of attempts", %{in: opts, shm: shm} do
    peer = RawPeer.open(shm)
    region = being_written(peer, opts)
    other = RawPeer.open(shm)
    RawPeer.attach!(other, Shm.handle(region))
    RawPeer.ask(other, "write_begin", %{id: region.id, timeout: 60_000})
    eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) == 1 end)
    connection = connection(shm, other.session)

    for _ <- 1..50 do
      Waiters.notify(instance(shm), region.id)
      :sys.get_state(connection)
    end

    # Each timer that is running fires once, and what it leads to waits.
    :sys.suspend(connection)
    eventually(fn -> timers_fired(connection) != [] end)
    Process.send_after(self(), :all_have_fired, 100)
    assert_receive :all_have_fired
    assert [_one] = timers_fired(connection)
    :sys.resume(connection)
  end

  # Besides what its socket has to say.
  defp timers_fired(connection) do
    {:messages, messages} = Process.info(connection, :messages)
    Enum.reject(messages, &(&1 == :go or match?({:"$socket", _, _, _}, &1)))
  end

  test "requests that were answered leave no timer", %{in: opts, shm: shm} do
    peer = RawPeer.open(shm)
    region = being_written(peer, opts)
    connection = connection(shm, peer.session)
    assert %{"ok" => true} = RawPeer.request(peer, "write_end", %{id: region.id})

    for _ <- 1..20 do
      assert %{"ok" => true} = RawPeer.request(peer, "write_begin", %{id: region.id, timeout: 100})
      assert %{"ok" => true} = RawPeer.request(peer, "write_end", %{id: region.id})
    end

    :sys.suspend(connection)
    Process.send_after(self(), :all_have_fired, 200)
    assert_receive :all_have_fired
    assert timers_fired(connection) == []
    :sys.resume(connection)
  end
end
