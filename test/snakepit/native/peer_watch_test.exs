defmodule Snakepit.Native.PeerWatchTest do
  # The end of the process at the other end of a socket, told to whoever is to hear of it.
  use Snakepit.ShmCase, async: true

  alias Snakepit.Native

  @moduletag shm: false

  @script """
  import socket, sys
  s = socket.socket(socket.AF_UNIX)
  s.connect(sys.argv[1])
  sys.stdin.read()
  """

  setup do
    path = Path.join(temporary_directory("watch"), "s")
    {:ok, listener} = :socket.open(:local, :stream)
    :ok = :socket.bind(listener, %{family: :local, path: path})
    :ok = :socket.listen(listener)
    port = Port.open({:spawn_executable, Snakepit.Python.executable()}, [:binary, args: ["-c", @script, path]])
    {:ok, socket} = :socket.accept(listener, 10_000)
    {:ok, number} = :socket.getopt(socket, {:otp, :fd})
    {:ok, number: number, port: port}
  end

  test "is told once, and again to each new receiver", %{number: number, port: port} do
    {:ok, watch, %{pid: pid}} = Native.peer_watch(number, self(), :first)
    assert pid > 1
    Port.close(port)
    assert_receive {:snakepit_peer_down, :first}, 10_000
    refute_received {:snakepit_peer_down, _}
    :ok = Native.peer_watch_move(watch, self(), :second)
    assert_receive {:snakepit_peer_down, :second}
    # A receiver that is dead loses it; the next one hears it all the same.
    dead = spawn(fn -> :ok end)
    kill(dead)
    :ok = Native.peer_watch_move(watch, dead, :lost)
    :ok = Native.peer_watch_move(watch, self(), :third)
    assert_receive {:snakepit_peer_down, :third}
    :ok = Native.peer_watch_close(watch)
    :ok = Native.peer_watch_move(watch, self(), :closed)
    refute_receive {:snakepit_peer_down, _}, 50
  end

  test "is not lost with the receiver it was first meant for", %{number: number, port: port} do
    receiver = spawn_worker()
    {:ok, watch, _} = Native.peer_watch(number, receiver, :old)
    kill(receiver)
    Port.close(port)
    :ok = Native.peer_watch_move(watch, self(), :new)
    assert_receive {:snakepit_peer_down, :new}, 10_000
  end
end
