defmodule Snakepit.SharedMemory.SecurityControllerTest do
  # The directory of socket and key: whose it is, who has it, and what is left in it.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SharedMemory.SecurityController
  alias Snakepit.SubVm

  {uid, 0} = System.cmd("id", ["-u"])
  @root String.trim(uid) == "0"

  # Starts an instance that is expected to be refused, and gives the error.
  defp refused(options) do
    Process.flag(:trap_exit, true)
    options = Keyword.put_new_lazy(options, :name, fn -> :"t#{System.unique_integer([:positive])}" end)
    assert {:error, reason} = Shm.start_link(options)

    case reason do
      {:shutdown, {:failed_to_start_child, SecurityController, %Error{} = error}} -> error
      %Error{} = error -> error
    end
  end

  defp mode(path), do: Bitwise.band(File.stat!(path).mode, 0o777)
  defp files(directory), do: directory |> File.ls!() |> Enum.sort()

  describe "socket_dir" do
    test "is made, 0700, its parents too; the socket and the key are the user's alone", %{socket_dir: directory} do
      inner = Path.join([directory, "a", "b"])
      %{shm: shm} = start_instance(socket_dir: inner)
      assert mode(inner) == 0o700
      assert mode("#{inner}/#{shm}.sock") == 0o600
      assert mode("#{inner}/#{shm}.key") == 0o600
      assert byte_size(File.read!("#{inner}/#{shm}.key")) == 32
    end

    for bits <- [0o755, 0o777, 0o710, 0o701] do
      @tag shm: false
      test "that others can reach (#{Integer.to_string(bits, 8)}) becomes 0700" do
        directory = temporary_directory("open")
        File.chmod!(directory, unquote(bits))
        start_instance(socket_dir: directory)
        assert mode(directory) == 0o700
      end
    end

    @tag shm: false
    unless @root, do: @tag(skip: "needs root to give a directory to another user")

    test "of another user is refused, by its path" do
      directory = temporary_directory("foreign")
      {_, 0} = System.cmd("chown", ["65534", directory])
      error = refused(socket_dir: directory)
      assert error.reason == :foreign_user
      assert files(directory) == []
      # A remedy names the option, and what is wrong with its value.
      assert Exception.message(error) =~ directory
      assert Exception.message(error) =~ "socket_dir"
    end

    @tag shm: false
    test "that is a link is refused, even one to a directory of our own" do
      directory = temporary_directory("link")
      link = Path.join(directory, "link")
      target = Path.join(directory, "target")
      File.mkdir!(target)
      File.ln_s!(target, link)
      error = refused(socket_dir: link)
      assert error.reason == :os_error
      assert Exception.message(error) =~ link
      assert files(target) == []
    end

    @tag shm: false
    test "that is a file is refused" do
      path = Path.join(temporary_directory("file"), "file")
      File.write!(path, "mine")
      assert refused(socket_dir: path).reason == :os_error
      assert File.read!(path) == "mine"
    end

    @tag shm: false
    test "that is too long for a socket is refused, with the limit; a shorter one helps; nothing is left" do
      parent = temporary_directory("long")
      directory = Path.join(parent, String.duplicate("d", 100))
      error = refused(socket_dir: directory)
      assert error.reason == :invalid_option
      assert error.details.key == :socket_dir
      assert Exception.message(error) =~ "107"
      assert Path.wildcard("#{directory}/*") == []
      %{shm: _} = start_instance(socket_dir: Path.join(parent, "short"))
    end

    @tag shm: false
    test "that leaves just enough bytes is taken, one that lacks a byte is not" do
      parent = temporary_directory("exact")
      name = :"t#{System.unique_integer([:positive])}"
      # A second VM of that name would have the longer one.
      enough = 107 - byte_size("#{parent}//#{name}-#{System.pid()}.sock")
      lacking = 108 - byte_size("#{parent}//#{name}.sock")
      error = refused(name: name, socket_dir: Path.join(parent, String.duplicate("e", lacking)))
      assert error.details.key == :socket_dir
      %{shm: shm} = start_instance(name: name, socket_dir: Path.join(parent, String.duplicate("d", enough)))
      assert %{session: _} = RawPeer.open(shm)
    end

    @tag shm: false
    test "with somebody's file where the key goes: refused, and left alone" do
      directory = temporary_directory("taken")
      name = :"t#{System.unique_integer([:positive])}"
      File.mkdir!("#{directory}/#{name}.key")
      Process.flag(:trap_exit, true)
      assert {:error, _} = Shm.start_link(name: name, socket_dir: directory)
      assert files(directory) == ["#{name}.key"]
    end

    @tag shm: false
    test "with a key that was left half written: a new one" do
      directory = temporary_directory("half")
      name = :"t#{System.unique_integer([:positive])}"
      File.write!("#{directory}/#{name}.key", "half")
      %{shm: shm} = start_instance(name: name, socket_dir: directory)
      assert byte_size(File.read!("#{directory}/#{name}.key")) == 32
      region = Shm.put!("abc", instance: shm)
      assert {:ok, _} = Shm.attach(Shm.handle(region))
    end

    @tag shm: false
    test "with a socket that a killed VM has left: replaced" do
      directory = temporary_directory("stale")
      name = :"t#{System.unique_integer([:positive])}"
      {:ok, socket} = :socket.open(:local, :stream, :default)
      :ok = :socket.bind(socket, %{family: :local, path: "#{directory}/#{name}.sock"})
      :ok = :socket.close(socket)
      %{shm: shm} = start_instance(name: name, socket_dir: directory)
      assert %{session: _} = RawPeer.open(shm)
    end
  end

  describe "an orderly end" do
    test "leaves neither socket nor key", %{shm: shm, socket_dir: directory} do
      assert files(directory) == ["#{shm}.key", "#{shm}.sock"]
      Shm.put!("abc", instance: shm)
      :ok = stop_supervised(shm)
      assert files(directory) == []
    end

    test "leaves the key of named regions that stay, and with it their handles hold after the next start",
         %{socket_dir: directory} do
      options = [name: :kept, socket_dir: directory, platform_options: %{linux: %{shm_path: tmpfs_directory()}}]
      start_instance(options)
      region = Shm.put!("named", named: "stays", instance: :kept, owner: :none)
      handle = Shm.handle(region)
      :ok = stop_supervised(:kept)
      assert "kept.key" in files(directory)
      refute "kept.sock" in files(directory)
      start_instance(options)
      # Adopted by now.
      :sys.get_state(child(:kept, :janitor))
      assert {:ok, again} = Shm.attach(handle)
      assert Shm.read!(again, 0, 5) == "named"
      assert %{"mode" => "read_only"} = :kept |> RawPeer.open() |> RawPeer.attach!(handle)
      Shm.free!(again)
    end

    test "of an instance whose named regions go leaves no key", %{socket_dir: directory} do
      path = tmpfs_directory()
      start_instance(name: :going, socket_dir: directory, platform_options: %{linux: %{shm_path: path}})
      Shm.put!("named", named: "goes", instance: :going, cleanup_policy: :automatic)
      :ok = stop_supervised(:going)
      refute "going.key" in files(directory)
      assert files(path) == []
    end
  end

  describe "its process is killed" do
    test "handles from before it hold, and new ones are the same", %{shm: shm} do
      region = Shm.put!("abc", instance: shm)
      handle = Shm.handle(region)
      controller = child(shm, :security_controller)
      kill(controller)
      successor(shm, :security_controller, controller)
      assert Shm.handle(region) == handle
      assert {:ok, _} = Shm.attach(handle)
      assert %{"mode" => "read_only"} = shm |> RawPeer.open() |> RawPeer.attach!(handle)
    end

    test "and somebody has removed the key file: handles hold all the same", %{shm: shm, socket_dir: directory} do
      region = Shm.put!("abc", instance: shm)
      handle = Shm.handle(region)
      File.rm!("#{directory}/#{shm}.key")
      controller = child(shm, :security_controller)
      kill(controller)
      successor(shm, :security_controller, controller)
      assert {:ok, _} = Shm.attach(handle)
    end

    test "a peer that asks in between is answered", %{shm: shm} do
      region = Shm.put!("abc", instance: shm)
      peer = RawPeer.open(shm)
      handle = Shm.handle(region)

      for _ <- 1..20 do
        Process.exit(child(shm, :security_controller), :kill)
        assert %{"mode" => "read_only"} = RawPeer.attach!(peer, handle)
        eventually(fn -> child(shm, :security_controller) end)
      end
    end
  end

  test "its key is not in what a crash report or an observer shows", %{shm: shm, socket_dir: directory} do
    key = File.read!("#{directory}/#{shm}.key")
    controller = child(shm, :security_controller)
    status = inspect(:sys.get_status(controller), limit: :infinity)
    refute status =~ inspect(key, limit: :infinity)
  end

  describe "a second VM with the same instance name" do
    setup %{shm: shm, socket_dir: directory} do
      file = Path.join(directory, "out")

      vm =
        SubVm.start("""
        alias Snakepit.SharedMemory, as: Shm
        {:ok, _} = Shm.start_link(name: #{inspect(shm)}, socket_dir: #{inspect(directory)})
        {:ok, region} = Shm.put("theirs", instance: #{inspect(shm)}, owner: :none)
        {:ok, json} = region |> Shm.handle() |> Shm.Handle.to_json()
        File.write!(#{inspect(file)}, json)
        """)

      {:ok, theirs} = file |> File.read!() |> Native.json_decode()
      File.rm!(file)
      {:ok, vm: vm, theirs: theirs, mine: Shm.handle(Shm.put!("mine", instance: shm))}
    end

    test "has a socket and a key of its own", %{shm: shm, socket_dir: directory, vm: vm, theirs: theirs} do
      own = "#{shm}-#{vm.os_pid}"
      assert theirs["socket"] == "#{directory}/#{own}.sock"
      assert files(directory) == Enum.sort(["#{shm}.key", "#{shm}.sock", "#{own}.key", "#{own}.sock"])
      assert File.read!("#{directory}/#{shm}.key") != File.read!("#{directory}/#{own}.key")
    end

    test "does not take our handles, nor we its own", %{shm: shm, theirs: theirs, mine: mine} do
      assert shm |> RawPeer.open() |> RawPeer.attach(theirs) |> RawPeer.refusal() == :bad_token
      other = theirs["socket"] |> RawPeer.connect() |> RawPeer.hello!(nil)
      assert other |> RawPeer.attach(mine) |> RawPeer.refusal() == :bad_token
      assert %{"size" => 6} = RawPeer.attach!(other, theirs)
    end

    test "that is killed leaves its files, and ours alone", %{shm: shm, vm: vm, mine: mine} do
      SubVm.kill(vm)
      assert %{"size" => 4} = shm |> RawPeer.open() |> RawPeer.attach!(mine)
    end
  end

  @tag shm: false
  test "the key of a VM that was killed is the next one's" do
    directory = temporary_directory("killed")

    SubVm.run_and_kill("""
    {:ok, _} = Snakepit.SharedMemory.start_link(name: :killed, socket_dir: #{inspect(directory)})
    """)

    assert files(directory) == ["killed.key", "killed.sock"]
    key = File.read!("#{directory}/killed.key")
    start_instance(name: :killed, socket_dir: directory)
    assert File.read!("#{directory}/killed.key") == key
    assert %{session: _} = RawPeer.open(:killed)
    :ok = stop_supervised(:killed)
    assert files(directory) == []
  end
end
