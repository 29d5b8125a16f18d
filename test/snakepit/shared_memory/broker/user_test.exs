defmodule Snakepit.SharedMemory.Broker.UserTest do
  # Peers of another user. Needs root, to become one.
  use Snakepit.PeerCase, async: false

  alias Snakepit.SubVm

  @nobody 65_534
  @become_nobody ["setpriv", "--reuid=#{@nobody}", "--regid=#{@nobody}", "--clear-groups"]

  # Starting something as another user takes root, and that the other user can reach it. (The shell is in between
  # because setpriv itself still may everything when it looks for its command.)
  {uid, 0} = System.cmd("id", ["-u"])

  as_nobody = fn script, arguments ->
    match?({_, 0}, System.cmd(hd(@become_nobody), tl(@become_nobody) ++ ["sh", "-c", script, "sh" | arguments]))
  end

  root? = String.trim(uid) == "0"
  files = [Path.expand("../../../support/raw_peer.py", __DIR__), to_string(:code.lib_dir(:snakepit_shm, :ebin))]

  pythons =
    for path <- [System.get_env("SNAKEPIT_PYTHON"), "/usr/bin/python3", "/usr/local/bin/python3"], path, do: path

  @python root? && Enum.find(pythons, &as_nobody.(~S(exec "$1" -c "import socket" 2>/dev/null), [&1]))

  cond do
    not root? -> @moduletag skip: "needs root to start a process of another user"
    @python == nil -> @moduletag skip: "user #{@nobody} can run none of #{Enum.join(pythons, ", ")}"
    not Enum.all?(files, &as_nobody.(~S(test -r "$1"), [&1])) -> @moduletag skip: "user #{@nobody} cannot read this"
    true -> :ok
  end

  defp connect_as(uid, path), do: OsPeer.call(OsPeer.start(), "connect_as", %{uid: uid, path: path})

  # As if somebody had opened what the broker keeps closed.
  defp open_up(shm, directory) do
    File.chmod!(directory, 0o755)
    File.chmod!(RawPeer.path(shm), 0o666)
  end

  test "the directory keeps them out", %{shm: shm} do
    assert connect_as(@nobody, RawPeer.path(shm)) == %{"errno" => "EACCES"}
    assert Shm.sessions!(shm) == []
  end

  test "the socket's mode keeps them out, where the directory does not", %{shm: shm, socket_dir: directory} do
    File.chmod!(directory, 0o755)
    assert connect_as(@nobody, RawPeer.path(shm)) == %{"errno" => "EACCES"}
  end

  test "the kernel's word keeps them out, where neither does", %{shm: shm, socket_dir: directory} do
    open_up(shm, directory)
    answer = connect_as(@nobody, RawPeer.path(shm))
    assert RawPeer.refusal(answer) == :foreign_user
    assert answer["rid"] == nil
    assert answer["error"]["message"] =~ "user #{@nobody}"
    assert answer["then"] == "closed"
    assert Shm.sessions!(shm) == []
    # And whoever comes next is served.
    assert %{session: _} = RawPeer.open(shm)
  end

  test "setpriv makes no difference", %{shm: shm, socket_dir: directory} do
    open_up(shm, directory)

    script = """
    import socket, struct, json, sys
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    print(json.loads(s.recv(65536)[4:])["error"]["reason"])
    """

    command = tl(@become_nobody) ++ [@python, "-c", script, RawPeer.path(shm)]
    assert System.cmd(hd(@become_nobody), command, stderr_to_stdout: true) == {"foreign_user\n", 0}
  end

  test "they do not take the places of others", %{shm: shm, socket_dir: directory} do
    open_up(shm, directory)
    peer = OsPeer.start()

    for _ <- 1..20,
        do: assert(%{"ok" => false} = OsPeer.call(peer, "connect_as", %{uid: @nobody, path: RawPeer.path(shm)}))

    assert DynamicSupervisor.count_children(child(shm, :connections)).active == 0
  end

  describe "a VM that is not root's" do
    # There mode bits mean something, and a peer can take them away.
    @describetag shm: false

    setup do
      directory = temporary_directory("nobody")
      {_, 0} = System.cmd("chown", ["#{@nobody}", directory])

      code = """
      alias Snakepit.SharedMemory, as: Shm
      {:ok, _} = Shm.start_link(name: :vm, socket_dir: #{inspect(directory)})

      for {name, peers, seal?} <- [{"open", :read_only, false}, {"shared", :read_write, false}, {"sealed", :read_only, true}, {"result", :read_write, true}] do
        region = Shm.allocate!(8, peers: peers, instance: :vm, owner: :none)
        Shm.write!(region, 0, "abcdefgh")
        if seal?, do: Shm.seal!(region)
        {:ok, json} = region |> Shm.handle(mode: :read_only) |> Shm.Handle.to_json()
        File.write!(#{inspect(directory)} <> "/" <> name, json)
      end
      """

      # SubVm puts `exec` in front of the command; this takes it away.
      become = Enum.join(@become_nobody, " ")
      SubVm.start(code, before: "exec #{become} sh -c 'shift; exec \"$@\"' sh")
      {:ok, directory: directory, path: "#{directory}/vm.sock"}
    end

    for name <- ["open", "shared", "sealed", "result"] do
      test "still gives #{name} memory after a peer has taken all rights from it", %{
        directory: directory,
        path: path
      } do
        {:ok, handle} = "#{directory}/#{unquote(name)}" |> File.read!() |> Native.json_decode()
        [hostile, other] = for _ <- 1..2, do: OsPeer.start(@become_nobody ++ [@python])
        for peer <- [hostile, other], do: OsPeer.open(peer, path)
        %{"fd" => fd} = OsPeer.attach!(hostile, handle)
        assert OsPeer.call(hostile, "chmod", %{fd: fd, bits: 0}) == "ok"
        %{"fd" => fd} = OsPeer.attach!(other, handle)
        assert OsPeer.call(other, "read", %{fd: fd, offset: 4096, length: 8}) == Base.encode64("abcdefgh")
        assert OsPeer.call(other, "map_shared", %{fd: fd, length: 8192, name: "m"}) in ["EACCES", "EPERM"]
      end
    end
  end
end
