defmodule Snakepit.Isolation.UserTest do
  # Ordinary users and containers: no root, no capability, hardly any /dev/shm. Needs root, to become one.
  use Snakepit.IsolationCase, async: false

  @moduletag timeout: 180_000
  # (The shell is in between because setpriv itself still may everything when it looks for its command.)
  @nobody "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --no-new-privs sh -c"
  @small_shm "mount -t tmpfs -o size=64k tmpfs /dev/shm"

  {uid, 0} = System.cmd("id", ["-u"])
  ebin = to_string(:code.lib_dir(:snakepit_shm, :ebin))
  can? = fn command -> match?({_, 0}, System.cmd("sh", ["-c", command], stderr_to_stdout: true)) end

  cond do
    String.trim(uid) != "0" -> @moduletag skip: "needs root to become an ordinary user"
    not can?.("#{@nobody} 'test -r #{ebin}'") -> @moduletag skip: "an ordinary user cannot read this"
    true -> :ok
  end

  @mounts can?.("unshare --mount sh -c '#{@small_shm}'")

  defp everything do
    """
    {:ok, _} = Application.ensure_all_started(:snakepit_shm)
    {:ok, library} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none, workers: 2)
    big = :binary.copy("x", 8_000_000)
    {:ok, ^big} = Snakepit.Isolation.call(library, :echo, [big])
    {:error, %{reason: :timeout}} = Snakepit.Isolation.call(library, :spin_forever, [], timeout: 50)
    {:ok, 3} = Snakepit.Isolation.call(library, :add, [1, 2])
    :ok = Snakepit.Isolation.unload(library)
    IO.puts("all well")
    """
  end

  setup do
    NativeFixture.path(:adder)
    File.chmod!(NativeFixture.directory(), 0o755)
  end

  # The command that follows begins with `exec`.
  test "a user without rights" do
    before = "unset XDG_RUNTIME_DIR; export HOME=/tmp; exec #{@nobody} 'shift; exec \"$@\"' sh"
    assert {output, 0} = SubVm.run(everything(), before: before)
    assert output =~ "all well"
  end

  @tag skip: if(not @mounts, do: "needs a mount namespace")
  test "a small /dev/shm" do
    before = "exec unshare --mount sh -c '#{@small_shm} && shift && exec \"$@\"' sh"
    assert {output, 0} = SubVm.run(everything(), before: before)
    assert output =~ "all well"
  end
end
