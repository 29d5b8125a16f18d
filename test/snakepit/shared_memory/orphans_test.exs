defmodule Snakepit.SharedMemory.OrphansTest do
  use Snakepit.ShmCase, async: false

  import ExUnit.CaptureIO

  alias Snakepit.SharedMemory.{Doctor, Orphans}
  alias Snakepit.SubVm

  @moduletag shm: false

  setup do
    directory = tmpfs_directory()
    socket_dir = temporary_directory("orphans")

    SubVm.run_and_kill("""
    {:ok, _} = Snakepit.SharedMemory.start_link(name: :dead, socket_dir: #{inspect(socket_dir)},
      platform_options: %{linux: %{shm_path: #{inspect(directory)}}})
    Snakepit.SharedMemory.put!("abc", instance: :dead, named: "kept")
    Snakepit.SharedMemory.put!("abc", instance: :dead, named: "orphan", cleanup_policy: :automatic, owner: :none)
    """)

    File.write!(Path.join(directory, "snakepit_junk"), "junk")
    Application.put_env(:snakepit_shm, :socket_dir, socket_dir)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :socket_dir) end)
    {:ok, directory: directory, socket_dir: socket_dir}
  end

  test "are told from what is kept and damaged, and removed as asked", %{directory: directory} do
    {:ok, objects} = Orphans.list(directory)

    assert Map.new(objects, &{&1.name, &1.state}) == %{
             "kept" => :kept_by_policy,
             "orphan" => :orphan,
             "junk" => :damaged
           }

    {:ok, done} = Orphans.remove(directory: directory, dry_run: true)

    assert Enum.sort(for {o, d} <- done, do: {o.name, d}) == [
             {"junk", :kept},
             {"kept", :kept},
             {"orphan", :would_remove}
           ]

    assert length(File.ls!(directory)) == 3
    {:ok, _} = Orphans.remove(directory: directory)
    assert Enum.sort(File.ls!(directory)) == ["snakepit_junk", "snakepit_kept"]
    {:ok, _} = Orphans.remove(directory: directory, damaged: true, manual: true)
    assert File.ls!(directory) == []
  end

  test "what a living VM has adopted is in use", %{directory: directory, socket_dir: socket_dir} do
    start_instance(name: :dead, socket_dir: socket_dir, platform_options: %{linux: %{shm_path: directory}})
    eventually(fn -> match?({:ok, _}, Shm.open("kept", instance: :dead)) end)
    {:ok, objects} = Orphans.list(directory)
    assert %{state: :in_use} = Enum.find(objects, &(&1.name == "kept"))
    {:ok, _} = Orphans.remove(directory: directory, manual: true)
    assert Shm.view!(Shm.open!("kept", instance: :dead)) == "abc"
  end

  test "the task says what it does, and refuses what it does not know", %{directory: directory} do
    output = capture_io(fn -> Mix.Tasks.Snakepit.Shm.Cleanup.run(["--dry-run", "--directory", directory]) end)
    assert output =~ ~r/would remove +orphan/
    assert output =~ ~r/kept +kept/
    assert_raise Mix.Error, fn -> Mix.Tasks.Snakepit.Shm.Cleanup.run(["--everything"]) end
  end

  test "the doctor looks at everything" do
    checks = Doctor.checks()
    subjects = Enum.map(checks, &elem(&1, 1))

    for subject <- ["native library", "platform", "open files", "mappings", "memory", "broker"],
        do: assert(subject in subjects)

    output = capture_io(fn -> Doctor.print() end)
    assert output =~ "native library"
    Application.put_env(:snakepit_shm, :max_regions, 0)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :max_regions) end)
    assert {:error, "configuration", text} = List.keyfind(Doctor.checks(), "configuration", 1)
    assert text =~ ":max_regions"
  end
end
