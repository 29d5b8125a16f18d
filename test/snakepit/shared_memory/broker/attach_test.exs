defmodule Snakepit.SharedMemory.Broker.AttachTest do
  # Who gets which region, and how: tokens, expiry, modes.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SharedMemory.{Allocation, ReferenceCounter}

  setup %{shm: shm}, do: {:ok, in: [instance: shm], peer: RawPeer.open(shm)}

  # A handle that was already too old, as its maker would have signed it.
  defp expired(shm, region) do
    {:ok, row} = Registry.fetch(instance(shm), region.id)
    past = System.system_time(:millisecond) - 1
    {:ok, handle} = Snakepit.SharedMemory.SecurityController.handle(instance(shm), row, [:read_only], past)
    handle
  end

  test "gives the region as it is, and holds it", %{in: opts, peer: peer} do
    data = for i <- 1..6, into: "", do: <<i::float-32-native>>
    region = Shm.put!(data, [dtype: "float32", shape: [2, 3], metadata: %{"a" => [1, nil]}] ++ opts)

    assert %{
             "size" => 24,
             "data_offset" => 4096,
             "length" => 8192,
             "dtype" => "float32",
             "shape" => [2, 3],
             "state" => "sealed",
             "mode" => "read_only",
             "generation" => 1,
             "named" => false,
             "metadata" => %{"a" => [1, nil]},
             "id" => id
           } = RawPeer.attach!(peer, Shm.handle(region))

    assert id == region.id
    assert ReferenceCounter.get_references(id) == {:ok, [{:peer, peer.session}]}
  end

  test "of a region whose metadata are as deep as can be works", %{in: opts, peer: peer} do
    deep = fn levels -> Enum.reduce(1..levels, 1, fn _, inner -> %{"a" => inner} end) end
    levels = Enum.find(200..1, &match?({:ok, _}, Shm.allocate(8, [metadata: deep.(&1)] ++ opts)))
    region = Shm.allocate!(8, [metadata: deep.(levels)] ++ opts)
    assert %{"ok" => true} = RawPeer.attach(peer, Shm.handle(region))
  end

  test "twice is holding once", %{in: opts, peer: peer} do
    region = Shm.put!("abc", opts)
    for _ <- 1..2, do: RawPeer.attach!(peer, Shm.handle(region))
    assert ReferenceCounter.get_count(region.id) == {:ok, 1}
  end

  test "keeps a region whose owner dies", %{in: opts, peer: peer, shm: shm} do
    owner = spawn_worker()
    region = in_worker(owner, fn -> Shm.put!("abc", opts) end)
    RawPeer.attach!(peer, Shm.handle(region))
    kill(owner)
    settle(shm)
    assert %{"ok" => true} = RawPeer.request(peer, "info", %{id: region.id})
    RawPeer.close(peer)
    eventually(fn -> Shm.list!(instance: shm) == [] end)
  end

  describe "is refused to" do
    setup %{in: opts} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      {:ok, region: region, handle: Shm.handle(region, mode: :read_only, expires_in: 60_000)}
    end

    defp refused(peer, handle, reason, region) do
      assert peer |> RawPeer.attach(handle) |> RawPeer.refusal() == reason
      assert ReferenceCounter.get_count(region.id) == {:ok, 0}
      # And the peer may go on.
      assert %{"ok" => true} = RawPeer.request(peer, "ping")
    end

    test "a token that is made up", %{peer: peer, handle: handle, region: region} do
      refused(
        peer,
        %{handle | "token" => Base.url_encode64(:crypto.strong_rand_bytes(32), padding: false)},
        :bad_token,
        region
      )
    end

    test "a token that is truncated", %{peer: peer, handle: handle, region: region} do
      refused(peer, Map.update!(handle, "token", &binary_part(&1, 0, 42)), :bad_token, region)
    end

    test "an empty token", %{peer: peer, handle: handle, region: region} do
      refused(peer, %{handle | "token" => ""}, :bad_token, region)
    end

    test "the token of another region", %{in: opts, peer: peer, handle: handle, region: region} do
      other = Shm.handle(Shm.allocate!(8, opts), mode: :read_only)
      refused(peer, %{handle | "token" => other["token"], "expires" => nil}, :bad_token, region)
    end

    test "a mode that was changed to read_write", %{peer: peer, handle: handle, region: region} do
      refused(peer, %{handle | "mode" => "read_write"}, :bad_token, region)
    end

    test "a mode that was changed to read_only", %{peer: peer, region: region} do
      refused(peer, %{Shm.handle(region) | "mode" => "read_only"}, :bad_token, region)
    end

    test "an expiry that was moved", %{peer: peer, handle: handle, region: region} do
      refused(peer, Map.update!(handle, "expires", &(&1 + 1)), :bad_token, region)
    end

    test "an expiry that was removed", %{peer: peer, handle: handle, region: region} do
      refused(peer, %{handle | "expires" => nil}, :bad_token, region)
      refused(peer, Map.delete(handle, "expires"), :bad_token, region)
    end

    test "an expired handle", %{peer: peer, shm: shm, region: region} do
      refused(peer, expired(shm, region), :expired, region)
    end

    test "an expired handle whose expiry was moved", %{peer: peer, shm: shm, region: region} do
      refused(peer, Map.update!(expired(shm, region), "expires", &(&1 + 60_000)), :bad_token, region)
    end

    test "an id with another mode's text in it", %{peer: peer, handle: handle, region: region} do
      refused(peer, %{handle | "id" => handle["id"] <> <<0>> <> "read_only"}, :bad_token, region)
    end

    test "a handle of another instance of this VM", %{peer: peer, region: region} do
      %{shm: other} = start_instance()
      theirs = Shm.put!("abc", instance: other)
      refused(peer, Shm.handle(theirs), :bad_token, region)
    end
  end

  test "a region that is gone is not found, when the token is right", %{in: opts, peer: peer} do
    region = Shm.put!("abc", opts)
    handle = Shm.handle(region)
    Shm.free!(region)
    answer = RawPeer.attach(peer, handle)
    assert RawPeer.refusal(answer) == :region_not_found
    assert answer["error"]["message"] =~ region.id
  end

  test "a region that is gone says nothing to who has no token", %{in: opts, peer: peer} do
    region = Shm.put!("abc", opts)
    handle = %{Shm.handle(region) | "token" => "x"}
    Shm.free!(region)
    assert peer |> RawPeer.attach(handle) |> RawPeer.refusal() == :bad_token
  end

  test "an invalid region is refused, and not held", %{in: opts, peer: peer, shm: shm} do
    region = Shm.allocate!(8, [peers: :read_write] ++ opts)
    handle = Shm.handle(region)
    writer = RawPeer.open(shm, "writer")
    RawPeer.attach!(writer, handle)
    assert %{"ok" => true} = RawPeer.request(writer, "write_begin", %{id: region.id, timeout: 0})
    RawPeer.close(writer)
    eventually(fn -> Shm.info!(region).state == :invalid end)
    answer = RawPeer.attach(peer, handle)
    assert RawPeer.refusal(answer) == :invalid
    assert answer["error"]["message"] =~ "writer"
    eventually(fn -> ReferenceCounter.get_count(region.id) == {:ok, 0} end)
  end

  describe "the strictest way to say read-only wins" do
    modes = [:read_only, :read_write]

    for permission <- modes, peers <- modes, access <- modes do
      allowed = if :read_only in [permission, peers, access], do: :read_only, else: :read_write

      test "permissions #{permission}, peers #{peers}, access_mode #{access}: peers #{allowed}",
           %{in: opts, peer: peer} do
        allowed = unquote(allowed)
        options = [permissions: %{owner: unquote(permission)}, peers: unquote(peers), access_mode: unquote(access)]
        region = Shm.allocate!(8, options ++ opts)

        for mode <- [nil, :read_only, :read_write], want <- [nil, "read_only", "read_write"] do
          case Shm.handle(region, mode: mode) do
            {:error, %Error{reason: :read_only}} ->
              assert {mode, allowed} == {:read_write, :read_only}

            handle ->
              signed = Allocation.strictest([mode || :read_write, allowed])
              assert handle["mode"] == Atom.to_string(signed)
              granted = if want == "read_only", do: :read_only, else: signed
              wanted = if want, do: %{"want" => want}, else: %{}
              assert RawPeer.attach!(peer, handle, wanted)["mode"] == Atom.to_string(granted)
              # What is granted is what can be done.
              answer = RawPeer.request(peer, "write_begin", %{id: region.id, timeout: 0})

              if granted == :read_write do
                assert %{"ok" => true} = answer
                assert %{"ok" => true} = RawPeer.request(peer, "write_end", %{id: region.id})
              else
                assert RawPeer.refusal(answer) == :read_only
              end

              RawPeer.request(peer, "detach", %{id: region.id})
          end
        end
      end
    end

    test "a read_write handle from before the region was sealed grants reading", %{in: opts, peer: peer} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      handle = Shm.handle(region, mode: :read_write)
      Shm.seal!(region)
      assert %{"mode" => "read_only", "state" => "sealed"} = RawPeer.attach!(peer, handle)
    end

    test "a handle that a reader makes is for readers", %{in: opts, peer: peer} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      RawPeer.attach!(peer, Shm.handle(region))
      assert %{"ok" => true, "handle" => handle} = RawPeer.request(peer, "handle", %{id: region.id})
      assert handle["mode"] == "read_only"
      assert %{"mode" => "read_only"} = RawPeer.attach!(peer, handle)
    end

    test "attached again and stricter, the first attachment stays as it is", %{in: opts, peer: peer} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      RawPeer.attach!(peer, Shm.handle(region))
      assert %{"mode" => "read_only"} = RawPeer.attach!(peer, Shm.handle(region), %{"want" => "read_only"})
      assert %{"ok" => true} = RawPeer.request(peer, "write_begin", %{id: region.id, timeout: 0})
    end

    test "attached again and less strict, the session may do more", %{in: opts, peer: peer} do
      region = Shm.allocate!(8, [peers: :read_write] ++ opts)
      RawPeer.attach!(peer, Shm.handle(region, mode: :read_only))
      assert %{"mode" => "read_write"} = RawPeer.attach!(peer, Shm.handle(region))
      assert %{"ok" => true} = RawPeer.request(peer, "write_begin", %{id: region.id, timeout: 0})
    end
  end
end
