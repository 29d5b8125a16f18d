# Deadlines of five seconds, in three modules so that they pass at the same time.

defmodule Snakepit.SharedMemory.Broker.HelloDeadlineTest do
  use Snakepit.PeerCase, async: true

  test "who does not say hello in five seconds is closed", %{shm: shm} do
    silent = RawPeer.connect(shm)
    started = System.monotonic_time(:millisecond)
    # Trying again does not give it more time.
    undecided = RawPeer.connect(shm)
    assert undecided |> RawPeer.hello("made up") |> RawPeer.refusal() == :unknown_session
    polite = RawPeer.open(shm)
    assert RawPeer.closed?(silent)
    assert System.monotonic_time(:millisecond) - started >= 4_900
    assert RawPeer.closed?(undecided)
    assert %{"ok" => true} = RawPeer.request(polite, "ping")
    assert [_] = Shm.sessions!(shm)
  end
end

defmodule Snakepit.SharedMemory.Broker.FrameDeadlineTest do
  use Snakepit.PeerCase, async: true

  test "half a frame and then silence ends the connection after five seconds", %{shm: shm} do
    half = RawPeer.open(shm)
    slow = RawPeer.open(shm)
    idle = RawPeer.open(shm)
    {:ok, body} = Native.json_encode(%{op: "ping", rid: 1})
    started = System.monotonic_time(:millisecond)
    RawPeer.transmit_bytes(half, [<<byte_size(body)::32>>, binary_part(body, 0, 5)])
    RawPeer.transmit_bytes(slow, <<100::32>>)
    # A whole frame, and the first byte of the next: its time begins anew.
    assert %{"ok" => true} = RawPeer.request(idle, "ping")
    dribble(slow, 40)
    assert RawPeer.closed?(half)
    assert System.monotonic_time(:millisecond) - started >= 4_900
    # Bytes that come now and then do not keep a frame alive.
    assert RawPeer.closed?(slow)
    assert %{"ok" => true} = RawPeer.request(idle, "ping")
    eventually(fn -> length(Shm.sessions!(shm)) == 1 end)
  end

  defp dribble(_peer, 0), do: :ok

  defp dribble(peer, left) do
    Process.send_after(self(), :next, 100)

    receive do
      :next -> :ok
    end

    RawPeer.transmit_bytes(peer, " ")
    dribble(peer, left - 1)
  end
end

defmodule Snakepit.SharedMemory.Broker.SendDeadlineTest do
  use Snakepit.PeerCase, async: true

  test "who does not read its answers is given up, and loses what it holds; others notice nothing", %{shm: shm} do
    region = Shm.put!("abc", instance: shm)
    deaf = RawPeer.open(shm, "deaf")
    RawPeer.attach!(deaf, Shm.handle(region))
    other = RawPeer.open(shm, "other")
    connection = connection(shm, deaf.session)
    assert flood(deaf) > 0
    # It is stuck, and nobody else is.
    assert %{"ok" => true} = RawPeer.attach(other, Shm.handle(region))
    assert :ok = Shm.free(Shm.put!("x", instance: shm))
    monitor = Process.monitor(connection)
    assert_receive {:DOWN, ^monitor, :process, _, _}, 20_000
    eventually(fn -> for(%{session: session} <- Shm.sessions!(shm), do: session) == [other.session] end)
    assert Shm.info!(region).references == [{:peer, other.session}]
  end

  # Requests until no more go in: the answers fill one direction, then the requests the other.
  defp flood(peer, sent \\ 0) do
    {:ok, body} = Native.json_encode(%{op: "ping", rid: sent})

    case RawPeer.transmit_bytes(peer, RawPeer.frame(body), 200) do
      :ok -> flood(peer, sent + 1)
      {:error, _} -> sent
    end
  end
end
