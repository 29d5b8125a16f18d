defmodule Snakepit.SharedMemory.JanitorTest do
  use Snakepit.ShmCase, async: true

  alias Snakepit.Native
  alias Snakepit.SharedMemory.Janitor
  alias Snakepit.SubVm

  # Named regions of each test are in a directory of its own.
  setup context do
    directory = tmpfs_directory()
    options = Keyword.merge([platform_options: %{linux: %{shm_path: directory}}], Map.get(context, :named, []))
    {:ok, Map.merge(start_instance(options), %{dir: directory, options: options})}
  end

  @moduletag shm: false

  defp object(dir, name), do: Path.join(dir, "snakepit_" <> name)

  # A VM of its own makes regions under `name` and is killed with SIGKILL.
  defp killed_vm(name, dir, code) do
    socket_dir = temporary_directory("vm")

    SubVm.run_and_kill("""
    {:ok, _} = Snakepit.SharedMemory.start_link(name: #{inspect(name)}, socket_dir: #{inspect(socket_dir)},
      platform_options: %{linux: %{shm_path: #{inspect(dir)}}})
    alias Snakepit.SharedMemory, as: Shm
    opts = [instance: #{inspect(name)}]
    #{code}
    """)
  end

  describe "a named region" do
    test "is a file that others can read, and goes with free/1", %{shm: shm, dir: dir} do
      region = Shm.put!("hello", instance: shm, named: "greeting")
      assert region.name == "greeting"
      assert inspect(region) =~ "named greeting"
      assert File.ls!(dir) == ["snakepit_greeting"]
      assert {:ok, %{mode: mode}} = File.stat(object(dir, "greeting"))
      assert Bitwise.band(mode, 0o777) == 0o600
      assert <<_::binary-size(4096), "hello", _::binary>> = File.read!(object(dir, "greeting"))
      assert Shm.view!(region) == "hello"
      assert Shm.info!(region).zero_copy == false
      assert Shm.open!("greeting", instance: shm).id == region.id
      assert {:error, %Error{reason: :not_found}} = Shm.open("other", instance: shm)
      Shm.free!(region)
      assert File.ls!(dir) == []
    end

    test "permissions are the file's", %{shm: shm, dir: dir} do
      Shm.allocate!(10, instance: shm, named: "shared", permissions: %{group: :read_write, other: :read_only})
      assert {:ok, %{mode: mode}} = File.stat(object(dir, "shared"))
      assert Bitwise.band(mode, 0o777) == 0o664
    end

    test "a name that is taken is refused, by a region or by a file", %{shm: shm, dir: dir} do
      Shm.allocate!(10, instance: shm, named: "x")
      assert {:error, %Error{reason: :exists}} = Shm.allocate(10, instance: shm, named: "x")
      File.write!(object(dir, "y"), "somebody else's")
      assert {:error, %Error{reason: :exists}} = Shm.allocate(10, instance: shm, named: "y")
      assert File.read!(object(dir, "y")) == "somebody else's"
      assert length(Shm.list!(instance: shm)) == 1
    end

    test "stays when its owner dies (manual is its default policy), goes with :automatic", %{shm: shm, dir: dir} do
      worker = spawn_worker()
      in_worker(worker, fn -> Shm.put!("a", instance: shm, named: "stays") end)
      in_worker(worker, fn -> Shm.put!("b", instance: shm, named: "goes", cleanup_policy: :automatic) end)
      kill(worker, shm)
      assert File.ls!(dir) == ["snakepit_stays"]
    end
  end

  describe "somebody else's hand on a named object" do
    for {what, damage} <- [
          truncated:
            quote(
              do: fn path -> File.open!(path, [:read, :write], &(:file.position(&1, 100) && :file.truncate(&1))) end
            ),
          unlinked: quote(do: &File.rm!/1),
          replaced: quote(do: fn path -> File.write!(path <> "~", "new") && File.rename!(path <> "~", path) end),
          scribbled: quote(do: fn path -> File.open!(path, [:read, :write], &:file.pwrite(&1, 20, "xxxx")) end)
        ] do
      test "#{what}: an error that says what was found, for good", %{shm: shm, dir: dir} do
        region = Shm.allocate!(100_000, instance: shm, named: "victim")
        Shm.write!(region, 0, "fine")
        unquote(damage).(object(dir, "victim"))
        assert {:error, %Error{type: :corruption_detected, reason: :corrupted} = error} = Shm.read(region, 0, 4)
        assert Exception.message(error) =~ "damaged"
        assert {:error, %Error{type: :corruption_detected}} = Shm.write(region, 0, "x")
        assert {:error, %Error{type: :corruption_detected}} = Shm.read(region, 0, 4)
        assert Shm.info!(region).state == :invalid
        assert :ok = Shm.free(region)
        # What was put in its place is not ours to remove.
        if unquote(what) == :replaced, do: assert(File.read!(object(dir, "victim")) == "new")
      end
    end
  end

  describe "after a VM was killed" do
    test "nothing but its named regions is left, and the next start finds them", %{shm: shm, dir: dir} do
      killed_vm(shm, dir, """
      for i <- 1..100, do: Shm.put!("data \#{i}", [owner: :none] ++ opts)
      Shm.put!(<<1.5::float-32-native, 2.5::float-32-native>>, [named: "kept", dtype: "float32", shape: [2], metadata: %{a: 1}] ++ opts)
      Shm.put!("x", [named: "gone", cleanup_policy: :automatic, owner: :none] ++ opts)
      """)

      assert Enum.sort(File.ls!(dir)) == ["snakepit_gone", "snakepit_kept"]

      assert {:ok, %{adopted: ["kept"], removed: ["gone"]}} = Shm.cleanup(instance: shm)
      region = Shm.open!("kept", instance: shm)
      assert Shm.view!(region) == <<1.5::float-32-native, 2.5::float-32-native>>
      assert %{dtype: "float32", shape: [2], metadata: %{"a" => 1}, sealed: true} = region
      assert Shm.info!(region).owner_pid == nil
      assert File.ls!(dir) == ["snakepit_kept"]
      Shm.free!(region)
      assert File.ls!(dir) == []
    end

    test "at a start, without being asked", %{dir: dir} do
      name = :"n#{System.unique_integer([:positive])}"
      killed_vm(name, dir, ~s|Shm.put!("abc", [named: "kept"] ++ opts)|)
      %{shm: ^name} = start_instance(name: name, platform_options: %{linux: %{shm_path: dir}})
      eventually(fn -> match?({:ok, _}, Shm.open("kept", instance: name)) end)
      assert Shm.view!(Shm.open!("kept", instance: name)) == "abc"
    end

    test "dry_run only says what would be done", %{shm: shm, dir: dir} do
      killed_vm(shm, dir, ~s|Shm.put!("abc", [named: "kept"] ++ opts)|)
      assert {:ok, %{adopted: ["kept"], freed: []}} = Shm.cleanup(instance: shm, dry_run: true)
      assert Shm.list!(instance: shm) == []
    end

    test "another instance's objects are left alone", %{shm: shm, dir: dir} do
      killed_vm(
        :stranger,
        dir,
        ~s|Shm.put!("abc", [named: "theirs", cleanup_policy: :automatic, owner: :none] ++ opts)|
      )

      assert {:ok, %{kept: [%{name: "theirs", why: :other_instance}]}} = Shm.cleanup(instance: shm)
      assert File.exists?(object(dir, "theirs"))
    end
  end

  test "objects of a VM that lives are left alone", %{shm: shm, dir: dir} do
    socket_dir = temporary_directory("vm")

    vm =
      SubVm.start("""
      {:ok, _} = Snakepit.SharedMemory.start_link(name: #{inspect(shm)}, socket_dir: #{inspect(socket_dir)},
        platform_options: %{linux: %{shm_path: #{inspect(dir)}}})
      Snakepit.SharedMemory.put!("abc", instance: #{inspect(shm)}, named: "alive", cleanup_policy: :automatic, owner: :none)
      """)

    assert {:ok, %{kept: [%{name: "alive", why: :in_use}], removed: []}} = Shm.cleanup(instance: shm)
    SubVm.kill(vm)
    assert {:ok, %{removed: ["alive"]}} = Shm.cleanup(instance: shm)
  end

  test "a header of another pid namespace is never removed", %{shm: shm, dir: dir} do
    region = Shm.put!("abc", instance: shm, named: "far", cleanup_policy: :automatic)
    page = File.read!(object(dir, "far"))
    Shm.free!(region)
    # The same page as if it were from another namespace: its number, and the checksum.
    <<before::binary-size(80), namespace::64-little, middle::binary-size(3940), _sum::32, rest::binary>> = page
    changed = before <> <<namespace + 1::64-little>> <> middle
    File.write!(object(dir, "far"), [changed, <<:erlang.crc32(changed)::32-little>>, rest])
    assert {:ok, %{kept: [%{name: "far", why: :other_namespace}]}} = Shm.cleanup(instance: shm)
    assert File.exists?(object(dir, "far"))
  end

  test "damaged objects are reported, and removed when that is asked for", %{shm: shm, dir: dir} do
    File.write!(object(dir, "junk"), :crypto.strong_rand_bytes(10_000))
    File.write!(object(dir, "short"), "x")
    File.write!(Path.join(dir, "unrelated"), "x")
    assert {:ok, %{kept: kept, removed: []}} = Shm.cleanup(instance: shm)
    assert Enum.map(kept, & &1.name) == ["junk", "short"]
    assert {:ok, %{removed: ["junk", "short"]}} = Shm.cleanup(instance: shm, damaged: true)
    assert File.ls!(dir) == ["unrelated"]
  end

  test "a copy, or a name changed by hand, is left alone; the region in service is untouched", %{shm: shm, dir: dir} do
    region = Shm.allocate!(10, instance: shm, named: "original", cleanup_policy: :automatic)
    Shm.write!(region, 0, "mine")
    File.cp!(object(dir, "original"), object(dir, "backup"))
    assert {:ok, %{kept: [%{name: "backup", why: :copy}], adopted: [], removed: []}} = Shm.cleanup(instance: shm)
    Shm.write!(region, 0, "more")
    assert binary_part(File.read!(object(dir, "backup")), 4096, 4) == "mine"
    assert length(Shm.list!(instance: shm)) == 1
    Shm.free!(region)
    assert File.ls!(dir) == ["snakepit_backup"]
    # Nor when the original is gone.
    assert {:ok, %{kept: [%{name: "backup", why: :copy}]}} = Shm.cleanup(instance: shm)
  end

  test "metadata that is not JSON is damage, and nothing more", %{shm: shm, dir: dir} do
    region = Shm.put!("abc", instance: shm, named: "forged")
    page = File.read!(object(dir, "forged"))
    Shm.free!(region)

    <<before::binary-size(584), _length::32, reserved::32, _text::binary-size(3), rest::binary-size(3433), _sum::32,
      live::binary>> = page

    changed = before <> <<3::32-little, reserved::32>> <> "abc" <> rest
    4028 = byte_size(changed)
    File.write!(object(dir, "forged"), [changed, <<:erlang.crc32(changed)::32-little>>, live])
    janitor = child(shm, :janitor)
    assert {:ok, %{kept: [%{name: "forged", why: :corrupted}]}} = Shm.cleanup(instance: shm)
    send(janitor, :tidy)
    :sys.get_state(janitor)
    assert child(shm, :janitor) == janitor
    assert {:ok, %{removed: ["forged"]}} = Shm.cleanup(instance: shm, damaged: true)
  end

  test "a write that its VM did not survive: adopted as invalid, never read, freed by hand", %{shm: shm, dir: dir} do
    region = Shm.put!("abc", instance: shm, named: "torn")
    page = File.read!(object(dir, "torn"))
    Shm.free!(region)
    # The live line is not covered by the checksum: sequence 7, writer 1, allocated.
    <<static::binary-size(4032), _live::binary-size(20), rest::binary>> = page
    File.write!(object(dir, "torn"), [static, <<7::64-little, 1::64-little, 1::32-little>>, rest])
    assert {:ok, %{adopted: ["torn"]}} = Shm.cleanup(instance: shm)
    region = Shm.open!("torn", instance: shm)
    assert Shm.info!(region).state == :invalid
    assert {:error, %Error{type: :corruption_detected} = error} = Shm.read(region, 0, 3)
    assert Exception.message(error) =~ "middle of a write"
    assert {:error, %Error{type: :corruption_detected}} = Shm.write(region, 0, "x")
    assert :ok = Shm.free(region)
    assert File.ls!(dir) == []
  end

  test "freed, but its VM was killed before it was removed: removed", %{shm: shm, dir: dir} do
    region = Shm.put!("abc", instance: shm, named: "going")
    page = File.read!(object(dir, "going"))
    Shm.free!(region)
    <<static::binary-size(4048), _state::32, rest::binary>> = page
    File.write!(object(dir, "going"), [static, <<3::32-little>>, rest])
    assert {:ok, %{removed: ["going"]}} = Shm.cleanup(instance: shm)
  end

  test "two VMs with one directory of regions and different sockets: one of them serves", %{shm: shm, dir: dir} do
    killed_vm(shm, dir, ~s|Shm.put!("abc", [named: "one"] ++ opts)|)
    assert {:ok, %{adopted: ["one"]}} = Shm.cleanup(instance: shm)
    socket_dir = temporary_directory("vm")

    {output, 0} =
      SubVm.run("""
      {:ok, _} = Snakepit.SharedMemory.start_link(name: #{inspect(shm)}, socket_dir: #{inspect(socket_dir)},
        platform_options: %{linux: %{shm_path: #{inspect(dir)}}})
      {:ok, report} = Snakepit.SharedMemory.cleanup(instance: #{inspect(shm)})
      IO.inspect(report.kept)
      """)

    assert output =~ ":in_use"
    assert Shm.view!(Shm.open!("one", instance: shm)) == "abc"
  end

  test "who may write survives with the region", %{shm: shm, dir: dir} do
    killed_vm(
      shm,
      dir,
      ~s|Shm.put!("abc", [named: "strict", access_mode: :read_only, permissions: %{owner: :read_only}, peers: :read_write] ++ opts)|
    )

    assert {:ok, %{adopted: ["strict"]}} = Shm.cleanup(instance: shm)
    info = Shm.info!(Shm.open!("strict", instance: shm))
    assert {info.access_mode, info.permissions.owner, info.peers} == {:read_only, :read_only, :read_only}
  end

  test "a symbolic link with our prefix is not followed", %{shm: shm, dir: dir} do
    target = Path.join(dir, "target")
    File.write!(target, "precious")
    File.ln_s!(target, object(dir, "link"))
    assert {:ok, %{kept: [%{name: "link"}]}} = Shm.cleanup(instance: shm, damaged: true)
    assert File.read!(target) == "precious"
  end

  test "an instance that is stopped in order keeps what is manual and adopts it again", %{
    shm: shm,
    dir: dir,
    options: options
  } do
    Shm.put!("abc", instance: shm, named: "kept")
    Shm.put!("abc", instance: shm, named: "gone", cleanup_policy: :automatic)
    socket_dir = instance(shm).config.socket_dir
    handle = Shm.handle(Shm.open!("kept", instance: shm))
    :ok = stop_supervised(shm)
    assert File.ls!(dir) == ["snakepit_kept"]
    start_instance([name: shm, socket_dir: socket_dir] ++ options)
    eventually(fn -> match?({:ok, _}, Shm.open("kept", instance: shm)) end)
    # The key was kept too: handles from before still hold.
    assert {:ok, region} = Shm.attach(handle)
    Shm.free!(region)
    :ok = stop_supervised(shm)
    assert File.ls!(dir) == []
    assert File.ls!(socket_dir) == []
  end

  test "options of cleanup are checked", %{shm: shm} do
    assert {:error, %Error{details: %{key: :dry}}} = Shm.cleanup(instance: shm, dry: true)
    assert {:error, %Error{details: %{key: :damaged}}} = Janitor.cleanup_regions(%{instance: shm, damaged: 1})
    assert {:error, %Error{reason: :not_started}} = Shm.cleanup(instance: :nobody)
  end

  @tag named: [max_regions: 1, health_check_interval: 5]
  test "the health check warns near a limit", %{shm: shm} do
    log =
      ExUnit.CaptureLog.capture_log(fn ->
        Shm.put!("x", instance: shm)
        janitor = child(shm, :janitor)
        send(janitor, :health)
        :sys.get_state(janitor)
      end)

    assert log =~ "max_regions"
  end

  test "identity and liveness of processes" do
    {boot, namespace, pid, start} = Native.identity()
    assert byte_size(boot) == 32
    assert namespace > 0
    assert Integer.to_string(pid) == System.pid()
    assert Native.process_alive(pid, start)
    refute Native.process_alive(pid, start + 1)
  end
end
