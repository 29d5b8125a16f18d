defmodule Snakepit.SharedMemory.Broker.ConfinementTest do
  # What the kernel lets a peer do with the descriptor that it was given, whatever it tries.
  use Snakepit.PeerCase, async: false

  setup %{shm: shm} do
    peer = OsPeer.start()
    OsPeer.open(peer, RawPeer.path(shm))
    {:ok, in: [instance: shm], peer: peer}
  end

  @data "what the VM has written"

  defp written(opts) do
    region = Shm.allocate!(byte_size(@data), opts)
    Shm.write!(region, 0, @data)
    region
  end

  # The descriptor that the peer gets, and the length to map.
  defp given(peer, region, fields \\ %{}) do
    %{"fd" => fd, "region" => %{"length" => length}} = OsPeer.attach!(peer, Shm.handle(region), fields)
    {fd, length}
  end

  defp read(peer, fd),
    do: peer |> OsPeer.call("read", %{fd: fd, offset: 4096, length: byte_size(@data)}) |> Base.decode64!()

  defp seal(peer, fd, names), do: OsPeer.call(peer, "seal", %{fd: fd, names: names})
  defp map(peer, fd, length), do: OsPeer.call(peer, "map_shared", %{fd: fd, length: length, name: "m"})
  defp poke(peer, offset, data), do: OsPeer.call(peer, "poke", %{name: "m", offset: offset, data: Base.encode64(data)})

  describe "a reader" do
    test "cannot change or take away a region that the VM still writes", %{in: opts, peer: peer} do
      region = written(opts)
      {fd, length} = given(peer, region)
      confined(peer, fd, length)
      assert Shm.read!(region, 0, region.size) == @data
      # It sees what is written later.
      Shm.write!(region, 0, "WHAT")
      assert read(peer, fd) == "WHAT" <> binary_part(@data, 4, byte_size(@data) - 4)
    end

    test "cannot change or take away a sealed region", %{in: opts, peer: peer} do
      region = Shm.put!(@data, opts)
      {fd, length} = given(peer, region)
      confined(peer, fd, length)
      assert Shm.view!(region) == @data
      assert read(peer, fd) == @data
    end

    test "cannot change or take away a result of its own, once sealed", %{peer: peer, shm: shm} do
      assert %{"region" => %{"id" => id, "length" => length}, "fd" => mine} =
               OsPeer.request(peer, "allocate", %{size: 8})

      assert %{"ok" => true, "fd" => fd, "handle" => handle} = OsPeer.request(peer, "seal", %{id: id})
      confined(peer, fd, length)
      # Nor by the descriptor from before.
      confined(peer, mine, length)
      assert handle |> Shm.attach!() |> Shm.view!() == <<0::64>>
      assert [%{state: :sealed}] = Shm.list!(instance: shm)
    end

    test "of a region that others may write has a descriptor for reading", %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region, %{want: "read_only"})
      assert OsPeer.call(peer, "mode", %{fd: fd}) == "read_only"
      assert map(peer, fd, length) == "EACCES"
    end

    # Opened again for writing, every way to write or to shrink is refused by a seal.
    defp confined(peer, fd, length) do
      assert %{"as given" => given, "reopened" => reopened, "mprotect" => mprotect} =
               OsPeer.call(peer, "break_out", %{fd: fd, length: length})

      for {way, outcome} <- given, do: assert({way, outcome} != {way, "ok"})
      for way <- ~w(map pwrite shrink empty grow punch), do: assert({way, reopened[way]} == {way, "EPERM"})
      assert reopened["zero"] != "ok"
      assert mprotect != "ok"
    end
  end

  describe "a writer" do
    test "cannot shrink or grow the memory", %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert %{"as given" => given} = OsPeer.call(peer, "break_out", %{fd: fd, length: length})
      for way <- ~w(shrink empty grow), do: assert({way, given[way]} == {way, "EPERM"})
    end

    test "that punches the memory away takes the header with it: the region is damaged, the VM goes on",
         %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert %{"as given" => %{"punch" => "ok"}} = OsPeer.call(peer, "break_out", %{fd: fd, length: length})
      assert {:error, %Error{reason: :corrupted} = error} = Shm.read(region, 0, 1)
      assert Exception.message(error) =~ "magic"
      assert {:error, %Error{type: :corruption_detected}} = Shm.read(region, 0, 1)
      assert Shm.info!(region).state == :invalid
    end

    test "that scribbles over the header leaves a damaged region, and peers hear it too", %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert map(peer, fd, length) == "ok"
      poke(peer, 24, <<255, 255, 255, 255>>)
      assert {:error, %Error{reason: :corrupted}} = Shm.write(region, 0, "x")
      assert peer |> OsPeer.request("write_begin", %{id: region.id, timeout: 0}) |> RawPeer.refusal() == :invalid
    end

    test "that scribbles over the live line is not believed", %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert map(peer, fd, length) == "ok"
      # Sequence odd, some writer, sealed.
      poke(peer, 4032, <<7::little-64, 99::little-64, 2::little-32>>)
      assert Shm.read!(region, 0, region.size) == @data
      assert %{state: :allocated, generation: 1} = Shm.info!(region)
      assert :ok = Shm.write(region, 0, "W")
      assert Shm.info!(region).generation == 2
    end
  end

  describe "a peer's seals" do
    for {what, seals} <- [
          {"F_SEAL_SEAL", ["seal"]},
          {"F_SEAL_FUTURE_WRITE", ["future_write"]},
          {"F_SEAL_SEAL and F_SEAL_FUTURE_WRITE", ["seal", "future_write"]}
        ],
        peers <- [:read_only, :read_write] do
      test "#{what} on a #{peers} region: seal/1 works all the same", %{in: opts, peer: peer} do
        region = written([peers: unquote(peers)] ++ opts)
        {fd, _} = given(peer, region)
        assert seal(peer, fd, unquote(seals)) == "ok"
        # The VM still writes through the mapping that it has.
        assert :ok = Shm.write(region, 0, "W")
        assert {:ok, sealed} = Shm.seal(region)
        "w" <> rest = @data
        assert Shm.view!(sealed) == "W" <> rest
        assert Shm.info!(sealed).zero_copy
        assert %{"region" => %{"state" => "sealed"}, "fd" => fd} = OsPeer.attach!(peer, Shm.handle(sealed))
        assert read(peer, fd) == "W" <> rest
        assert seal(peer, fd, ["write"]) == "EPERM"
      end
    end

    test "F_SEAL_WRITE is refused while the VM writes", %{in: opts, peer: peer} do
      region = written(opts)
      {fd, _} = given(peer, region)
      assert seal(peer, fd, ["write"]) == "EBUSY"
      assert :ok = Shm.write(region, 0, "W")
    end

    test "a writer that forbids seals and keeps its mapping changes nothing of what was sealed", %{in: opts, peer: peer} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert map(peer, fd, length) == "ok"
      assert seal(peer, fd, ["seal"]) == "ok"
      sealed = Shm.seal!(region)
      view = Shm.view!(sealed)
      poke(peer, 4096, "scribble")
      assert view == @data
      assert Shm.read!(sealed, 0, sealed.size) == @data
    end

    test "a writer that keeps its mapping and forbids new ones: busy, no byte is lost, and sealed when it has gone",
         %{in: opts, peer: peer, shm: shm} do
      region = written([peers: :read_write] ++ opts)
      {fd, length} = given(peer, region)
      assert map(peer, fd, length) == "ok"
      assert seal(peer, fd, ["future_write"]) == "ok"
      assert {:error, %Error{reason: :busy}} = Shm.seal(region)
      # The VM could not map it again: it reads by other means, and says why it cannot write.
      assert Shm.read!(region, 0, region.size) == @data
      assert {:error, %Error{reason: :sealed_by_peer}} = Shm.write(region, 0, "x")
      OsPeer.kill(peer)
      nobody_left(shm)
      assert {:ok, sealed} = Shm.seal(region)
      assert Shm.view!(sealed) == @data
    end
  end

  test "a peer that takes all rights from the object does not shut out others", %{in: opts, peer: peer, shm: shm} do
    region = Shm.put!(@data, opts)
    {fd, _} = given(peer, region)
    assert OsPeer.call(peer, "chmod", %{fd: fd, bits: 0}) in ["ok", "EPERM"]
    other = OsPeer.start()
    OsPeer.open(other, RawPeer.path(shm))
    {fd, _} = given(other, region)
    assert read(other, fd) == @data
  end
end
