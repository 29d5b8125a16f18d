defmodule Snakepit.SharedMemory.Broker.DescriptorsTest do
  # A VM that has no descriptors left: a second one, with a small limit.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SubVm

  @moduletag shm: false

  # While `hoard` exists it takes every descriptor that is free, and removes `ask` when it has them all.
  # When there is `kill`, it kills the broker, and lets it come back when it has them all again.
  @code """
  alias Snakepit.SharedMemory, as: Shm

  # As in a release: afterwards no code can be loaded.
  for application <- [:kernel, :stdlib, :elixir, :logger, :crypto, :snakepit_shm] do
    Application.load(application)
    {:ok, modules} = :application.get_key(application, :modules)
    :code.ensure_modules_loaded(modules)
  end

  {:ok, supervisor} = Shm.start_link(name: :full, socket_dir: DIRECTORY)
  {:ok, region} = Shm.put("abc", instance: :full, owner: :none)
  {:ok, json} = region |> Shm.handle() |> Shm.Handle.to_json()
  File.write!(DIRECTORY <> "/handle", json)

  take = fn taken, take ->
    case :file.open("/dev/null", [:read, :raw]) do
      {:ok, file} -> take.([file | taken], take)
      {:error, _} -> taken
    end
  end

  loop = fn taken, loop ->
    taken =
      if File.exists?(DIRECTORY <> "/hoard") do
        killed? = File.exists?(DIRECTORY <> "/kill")
        if killed? do
          :ok = :sys.suspend(supervisor)
          broker = Process.whereis(:"Elixir.full.Broker")
          monitor = Process.monitor(broker)
          Process.exit(broker, :kill)
          receive do: ({:DOWN, ^monitor, _, _, _} -> :ok)
        end

        taken = take.(taken, take)
        if killed?, do: :sys.resume(supervisor)
        for file <- ["kill", "ask"], do: File.rm(DIRECTORY <> "/" <> file)
        taken
      else
        Enum.each(taken, &:file.close/1)
        []
      end

    :timer.sleep(1)
    loop.(taken, loop)
  end

  spawn(fn -> loop.([], loop) end)
  """

  setup do
    directory = temporary_directory("emfile")
    SubVm.start(String.replace(@code, "DIRECTORY", inspect(directory)), before: "ulimit -n 256;")
    path = "#{directory}/full.sock"
    {:ok, handle} = "#{directory}/handle" |> File.read!() |> Native.json_decode()
    # Everything that the broker needs for a peer is loaded afterwards, as in a release.
    witness = path |> RawPeer.connect() |> RawPeer.hello!(nil)
    RawPeer.attach!(witness, handle)
    {:ok, directory: directory, path: path, handle: handle, witness: witness}
  end

  defp hoard(directory, also \\ []) do
    for file <- also ++ ["ask", "hoard"], do: File.touch!("#{directory}/#{file}")
    eventually(fn -> not File.exists?("#{directory}/ask") end)
  end

  defp release(directory), do: File.rm!("#{directory}/hoard")

  defp listening?(path) do
    {:ok, socket} = :socket.open(:local, :stream, :default)
    result = :socket.connect(socket, %{family: :local, path: path})
    :socket.close(socket)
    result == :ok
  end

  test "new peers wait, and are taken when there are some again", %{directory: directory, path: path} do
    hoard(directory)
    # The kernel takes the connection; the broker cannot yet.
    peer = RawPeer.connect(path)
    RawPeer.transmit(peer, %{op: "hello", rid: 1, version: 1, session: nil, name: "n"})
    assert RawPeer.receive_frame(peer, 300) == :silent
    release(directory)
    assert %{"ok" => true, "rid" => 1} = RawPeer.receive_frame(peer)
    assert %{session: _} = path |> RawPeer.connect() |> RawPeer.hello!(nil)
  end

  test "peers that are there go on, and hear what is missing", %{directory: directory, handle: handle, witness: witness} do
    hoard(directory)
    assert %{"ok" => true} = RawPeer.request(witness, "ping")
    assert %{"ok" => true} = RawPeer.request(witness, "info", %{id: handle["id"]})
    answer = RawPeer.attach(witness, handle)
    assert RawPeer.refusal(answer) == :emfile
    assert answer["error"]["message"] =~ "RLIMIT_NOFILE"
    assert witness |> RawPeer.request("allocate", %{size: 8, metadata: %{}}) |> RawPeer.refusal() == :emfile
    release(directory)
    eventually(fn -> RawPeer.attach(witness, handle)["ok"] end)
  end

  test "a broker that is killed meanwhile comes back: the instance does not end with it",
       %{directory: directory, path: path, handle: handle, witness: witness} do
    hoard(directory, ["kill"])
    # Long enough for any number of attempts.
    assert RawPeer.receive_frame(witness, 1_000) == :silent
    assert %{"ok" => true} = RawPeer.request(witness, "info", %{id: handle["id"]})
    release(directory)
    eventually(fn -> listening?(path) end)
    assert %{session: _} = path |> RawPeer.connect() |> RawPeer.hello!(nil)
    assert %{"ok" => true} = RawPeer.request(witness, "info", %{id: handle["id"]})
  end
end
