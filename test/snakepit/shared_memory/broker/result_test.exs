defmodule Snakepit.SharedMemory.Broker.ResultTest do
  # Regions that peers make.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SharedMemory.ReferenceCounter

  setup %{shm: shm}, do: {:ok, in: [instance: shm], peer: RawPeer.open(shm, "maker")}

  defp allocate(peer, fields), do: RawPeer.request(peer, "allocate", Map.merge(%{size: 64, metadata: %{}}, fields))

  defp allocate!(peer, fields \\ %{}) do
    assert %{"ok" => true, "fds" => 1, "region" => region} = allocate(peer, fields)
    region
  end

  defp seal!(peer, id) do
    assert %{"ok" => true, "fds" => 1, "handle" => handle} = RawPeer.request(peer, "seal", %{id: id})
    handle
  end

  test "an allocated region is the session's: owned, held, writable", %{peer: peer, shm: shm} do
    region = allocate!(peer, %{dtype: "int16", shape: [4, 8], metadata: %{"k" => "v"}})

    assert %{
             "size" => 64,
             "mode" => "read_write",
             "state" => "allocated",
             "generation" => 0,
             "metadata" => %{"k" => "v"}
           } = region

    assert [%{owner: {:peer, session}, owner_pid: nil, references: [{:peer, session}], dtype: "int16", shape: [4, 8]}] =
             Shm.list!(instance: shm)

    assert session == peer.session
  end

  test "what the peer wrote is what Elixir views", %{shm: shm} do
    peer = OsPeer.start()
    OsPeer.open(peer, RawPeer.path(shm))
    assert %{"region" => %{"id" => id, "length" => length}, "fd" => fd} = OsPeer.request(peer, "allocate", %{size: 5})
    assert OsPeer.call(peer, "map_shared", %{fd: fd, length: length, name: "m"}) == "ok"
    OsPeer.call(peer, "poke", %{name: "m", offset: 4096, data: Base.encode64("hello")})
    OsPeer.call(peer, "unmap", %{name: "m"})
    assert %{"ok" => true, "handle" => handle} = OsPeer.request(peer, "seal", %{id: id})
    assert {:ok, region} = Shm.attach(handle)
    assert Shm.view!(region) == "hello"
  end

  test "sealing waits for the peer to unmap: busy until then", %{shm: shm} do
    peer = OsPeer.start()
    OsPeer.open(peer, RawPeer.path(shm))
    assert %{"region" => %{"id" => id, "length" => length}, "fd" => fd} = OsPeer.request(peer, "allocate", %{size: 5})
    assert OsPeer.call(peer, "map_shared", %{fd: fd, length: length, name: "m"}) == "ok"
    answer = OsPeer.request(peer, "seal", %{id: id})
    assert RawPeer.refusal(answer) == :busy
    assert answer["error"]["message"] =~ "#{peer.os_pid}"
    # The region is as before: it can be written, and sealed later.
    OsPeer.call(peer, "poke", %{name: "m", offset: 4096, data: Base.encode64("hello")})
    OsPeer.call(peer, "unmap", %{name: "m"})
    assert %{"ok" => true, "handle" => handle} = OsPeer.request(peer, "seal", %{id: id})
    assert handle |> Shm.attach!() |> Shm.view!() == "hello"
  end

  test "sealing in the middle of a write is busy", %{peer: peer} do
    %{"id" => id} = allocate!(peer)
    assert %{"ok" => true} = RawPeer.request(peer, "write_begin", %{id: id, timeout: 0})
    assert peer |> RawPeer.request("seal", %{id: id}) |> RawPeer.refusal() == :busy
    assert %{"ok" => true} = RawPeer.request(peer, "write_end", %{id: id})
    seal!(peer, id)
  end

  test "sealing twice gives the handle again", %{peer: peer} do
    %{"id" => id} = allocate!(peer)
    assert seal!(peer, id) == seal!(peer, id)
  end

  test "sealed, its maker may only read too", %{peer: peer} do
    %{"id" => id} = allocate!(peer)
    seal!(peer, id)
    assert %{"region" => %{"mode" => "read_only", "state" => "sealed"}} = RawPeer.request(peer, "info", %{id: id})
    answer = RawPeer.request(peer, "write_begin", %{id: id, timeout: 0})
    assert RawPeer.refusal(answer) in [:read_only, :sealed]
  end

  test "a handle that the maker gives away, sealed or not, is for reading", %{peer: peer} do
    %{"id" => id} = allocate!(peer)
    assert %{"handle" => %{"mode" => "read_only"} = handle} = RawPeer.request(peer, "handle", %{id: id})
    assert {:ok, %Region{mode: :read_only} = region} = Shm.attach(handle)
    assert {:error, %Error{reason: :read_only}} = Shm.write(region, 0, "x")
    assert %{"mode" => "read_only"} = seal!(peer, id)
  end

  describe "of another" do
    setup %{in: opts, peer: peer, shm: shm} do
      other = RawPeer.open(shm, "other")
      mine = Shm.allocate!(8, [peers: :read_write] ++ opts)
      RawPeer.attach!(other, Shm.handle(mine))
      %{"id" => theirs} = allocate!(peer)
      %{"handle" => handle} = RawPeer.request(peer, "handle", %{id: theirs})
      {:ok, other: other, mine: mine.id, theirs: theirs, handle: handle}
    end

    for op <- ["seal", "free"] do
      test "#{op} is refused, held or not", %{other: other, mine: mine, theirs: theirs, handle: handle, shm: shm} do
        assert other |> RawPeer.request(unquote(op), %{id: theirs}) |> RawPeer.refusal() == :not_owner
        RawPeer.attach!(other, handle)
        assert other |> RawPeer.request(unquote(op), %{id: theirs}) |> RawPeer.refusal() == :not_owner
        assert other |> RawPeer.request(unquote(op), %{id: mine}) |> RawPeer.refusal() == :not_owner
        assert [%{state: :allocated}, %{state: :allocated}] = Shm.list!(instance: shm)
      end
    end

    for op <- ["info", "handle"] do
      test "#{op} is refused unless held", %{other: other, theirs: theirs, handle: handle} do
        assert other |> RawPeer.request(unquote(op), %{id: theirs}) |> RawPeer.refusal() == :not_held
        RawPeer.attach!(other, handle)
        assert %{"ok" => true} = RawPeer.request(other, unquote(op), %{id: theirs})
      end
    end

    test "a seal that is busy names processes, and no sessions", %{other: other, shm: shm} do
      maker = OsPeer.start()
      OsPeer.open(maker, RawPeer.path(shm))

      assert %{"region" => %{"id" => id, "length" => length}, "fd" => fd} =
               OsPeer.request(maker, "allocate", %{size: 8})

      assert %{"handle" => handle} = OsPeer.request(maker, "handle", %{id: id})
      RawPeer.attach!(other, handle)
      assert OsPeer.call(maker, "map_shared", %{fd: fd, length: length, name: "m"}) == "ok"
      answer = OsPeer.request(maker, "seal", %{id: id})
      assert RawPeer.refusal(answer) == :busy
      assert answer["error"]["message"] =~ "#{maker.os_pid}"
      refute answer["error"]["message"] =~ other.session
    end

    test "a refusal does not tell the session of the owner", %{other: other, theirs: theirs, peer: peer} do
      answer = RawPeer.request(other, "free", %{id: theirs})
      refute answer["error"]["message"] =~ peer.session
    end
  end

  for op <- ["seal", "free"] do
    test "#{op} of a region that is not there", %{peer: peer} do
      assert peer |> RawPeer.request(unquote(op), %{id: "shm_never"}) |> RawPeer.refusal() == :region_not_found
    end
  end

  test "free gives the memory back at once", %{peer: peer, shm: shm} do
    %{"id" => id} = allocate!(peer)
    assert %{"ok" => true} = RawPeer.request(peer, "free", %{id: id})
    assert Shm.list!(instance: shm) == []
    eventually(fn -> charged(shm) == 0 end)
    assert peer |> RawPeer.request("info", %{id: id}) |> RawPeer.refusal() == :region_not_found
  end

  defp rows(shm, table), do: :ets.info(instance(shm).tables[table], :size)

  test "allocating and freeing for ever leaves no rows", %{peer: peer, shm: shm} do
    for _ <- 1..50 do
      %{"id" => id} = allocate!(peer)
      assert %{"ok" => true} = RawPeer.request(peer, "free", %{id: id})
    end

    settle(shm)
    for table <- [:regions, :holders, :held, :grants], do: assert({table, rows(shm, table)} == {table, 0})
  end

  test "regions that Elixir frees under a peer leave no rows", %{in: opts, peer: peer, shm: shm} do
    for i <- 1..50 do
      region = Shm.put!("#{i}", opts)
      RawPeer.attach!(peer, Shm.handle(region))
      Shm.free!(region)
    end

    settle(shm)
    for table <- [:regions, :holders, :held, :grants], do: assert({table, rows(shm, table)} == {table, 0})
  end

  describe "when its maker ends" do
    test "what was not sealed is freed", %{peer: peer, shm: shm} do
      allocate!(peer)
      RawPeer.close(peer)
      eventually(fn -> Shm.list!(instance: shm) == [] end)
      eventually(fn -> charged(shm) == 0 end)
    end

    test "what was not sealed stays while somebody holds it, and goes then", %{peer: peer, shm: shm} do
      %{"id" => id} = allocate!(peer)
      %{"handle" => handle} = RawPeer.request(peer, "handle", %{id: id})
      region = Shm.attach!(handle)
      RawPeer.close(peer)
      eventually(fn -> Shm.sessions!(shm) == [] end)
      settle(shm)
      assert {:ok, _} = Shm.read(region, 0, 64)
      Shm.release!(region)
      eventually(fn -> Shm.list!(instance: shm) == [] end)
    end

    test "what was sealed waits for somebody to attach it", %{peer: peer, shm: shm} do
      %{"id" => id} = allocate!(peer)
      handle = seal!(peer, id)
      RawPeer.close(peer)
      nobody_left(shm)
      assert {:ok, region} = Shm.attach(handle)
      assert byte_size(Shm.view!(region)) == 64
    end

    @tag shm: [grace_period: 50]
    test "what was sealed goes when nobody has attached it in time", %{peer: peer, shm: shm} do
      %{"id" => id} = allocate!(peer)
      handle = seal!(peer, id)
      RawPeer.close(peer)
      eventually(fn -> Shm.list!(instance: shm) == [] end)
      assert {:error, %Error{reason: :region_not_found}} = Shm.attach(handle)
    end

    @tag shm: [grace_period: 0]
    test "what was sealed and is held stays, and goes with the last holder", %{peer: peer, shm: shm} do
      %{"id" => id} = allocate!(peer)
      region = Shm.attach!(seal!(peer, id))
      RawPeer.close(peer)
      nobody_left(shm)
      settle(shm)
      assert byte_size(Shm.view!(region)) == 64
      Shm.release!(region)
      eventually(fn -> Shm.list!(instance: shm) == [] end)
    end

    @tag shm: [grace_period: 0]
    test "what was sealed and another peer holds stays", %{peer: peer, shm: shm} do
      %{"id" => id} = allocate!(peer)
      handle = seal!(peer, id)
      other = RawPeer.open(shm, "other")
      RawPeer.attach!(other, handle)
      RawPeer.close(peer)
      eventually(fn -> ReferenceCounter.get_references(id) == {:ok, [{:peer, other.session}]} end)
      settle(shm)
      assert %{"ok" => true} = RawPeer.request(other, "info", %{id: id})
      RawPeer.close(other)
      eventually(fn -> Shm.list!(instance: shm) == [] end)
    end
  end

  describe "the limits hold for peers, with the same errors:" do
    defp same_refusal(peer, fields, options) do
      answer = allocate(peer, fields)
      assert {:error, error} = Shm.allocate(fields[:size] || 64, options)
      assert RawPeer.refusal(answer) == error.reason
      assert answer["error"]["type"] == Atom.to_string(error.type)
      error.reason
    end

    @tag shm: [max_regions: 2]
    test "max_regions", %{in: opts, peer: peer} do
      for _ <- 1..2, do: allocate!(peer)
      assert same_refusal(peer, %{}, opts) == :region_limit_exceeded
    end

    @tag shm: [max_region_size: 10_000]
    test "max_region_size", %{in: opts, peer: peer} do
      assert same_refusal(peer, %{size: 10_001}, opts) == :size_exceeds_limit
    end

    @tag shm: [max_total_memory: 32_768, max_region_size: 32_768]
    test "max_total_memory", %{in: opts, peer: peer} do
      allocate!(peer, %{size: 20_000})
      assert same_refusal(peer, %{size: 20_000}, opts) == :memory_limit_exceeded
    end

    @tag shm: [max_regions_per_process: 2]
    test "max_regions_per_process, by session", %{in: opts, peer: peer, shm: shm} do
      for _ <- 1..2, do: {allocate!(peer), Shm.allocate!(1, opts)}
      assert same_refusal(peer, %{}, opts) == :process_region_limit_exceeded
      allocate!(RawPeer.open(shm, "other"))
    end

    # Counted over the whole VM: what earlier tests have left to the garbage collector goes first, the rest is allowed for.
    test "max_mappings" do
      Enum.each(Process.list(), &:erlang.garbage_collect/1)
      :ok = Snakepit.Native.reaper_flush_dirty(10_000)
      %{shm: tight} = start_instance(max_mappings: Snakepit.Native.live().mappings + 1)
      peer = RawPeer.open(tight, "tight")
      allocate!(peer)
      assert same_refusal(peer, %{}, instance: tight) == :too_many_mappings
    end
  end

  test "sizes, types, shapes and metadata that are wrong, with the same errors", %{in: opts, peer: peer, shm: shm} do
    for {size, fields} <- [
          {0, %{}},
          {8, %{dtype: "float33"}},
          {7, %{dtype: "float32"}},
          {8, %{shape: [8]}},
          {8, %{dtype: "float32", shape: [3]}},
          {8, %{dtype: "float32", shape: [-2]}},
          {8, %{dtype: "int8", shape: [8 | List.duplicate(1, 32)]}},
          {8, %{metadata: %{"m" => String.duplicate("x", 3072)}}}
        ] do
      answer = allocate(peer, Map.put(fields, :size, size))
      assert {:error, error} = Shm.allocate(size, Map.to_list(fields) ++ opts)
      assert RawPeer.refusal(answer) == error.reason
    end

    assert Shm.list!(instance: shm) == []
  end
end
