defmodule Snakepit.SharedMemory.LimitsTest do
  # Limits of the machine: descriptors, mappings, memory, file systems. A VM of its own for those that concern the process.
  use Snakepit.ShmCase, async: true

  alias Snakepit.{Native, SubVm}

  @moduletag shm: false

  defp counted_notice(what), do: IO.puts(:stderr, "\n1 skipped here: #{what}")

  defp root?, do: Native.effective_uid() == 0

  @vm """
  alias Snakepit.SharedMemory, as: Shm
  {:ok, _} = Shm.start_link(name: :vm, max_regions: 20_000, socket_dir: DIR)
  """

  test "10,000 regions under RLIMIT_NOFILE 1,024: it stops early, with a remedy, and everything else goes on" do
    directory = temporary_directory("vm")

    {output, status} =
      SubVm.run(
        String.replace(@vm, "DIR", inspect(directory)) <>
          """
          fill = fn fill, regions ->
            case Shm.put("x", instance: :vm) do
              {:ok, region} -> fill.(fill, [region | regions])
              {:error, error} -> {regions, error}
            end
          end

          {regions, error} = fill.(fill, [])
          :emfile = error.reason
          message = Exception.message(error)
          true = message =~ "ulimit -n, now 1024"
          true = length(regions) < 1024 - 128
          true = length(regions) > 700
          # The limit is as it was, and 128 are free: files, sockets, the broker.
          1024 = Snakepit.Native.machine().open_files
          files = for _ <- 1..100, do: File.open!("/dev/null")
          for region <- regions, do: "x" = Shm.view!(region)
          %{"socket" => socket} = Shm.handle(hd(regions))
          {:ok, peer} = :socket.open(:local, :stream, :default)
          :ok = :socket.connect(peer, %{family: :local, path: socket})
          Enum.each(files, &File.close/1)
          # The remedy: free one.
          :ok = Shm.free(hd(regions))
          {:ok, _} = Shm.put("x", instance: :vm)
          IO.puts("all good")
          """,
        before: "ulimit -n 1024;"
      )

    assert {String.trim(output), status} == {"all good", 0}
  end

  test "the other remedy: more descriptors" do
    directory = temporary_directory("vm")

    {output, status} =
      SubVm.run(
        String.replace(@vm, "DIR", inspect(directory)) <>
          """
          for _ <- 1..1500, do: {:ok, _} = Shm.put("x", instance: :vm)
          IO.puts("all good")
          """,
        before: "ulimit -n 4096;"
      )

    assert {String.trim(output), status} == {"all good", 0}
  end

  test "max_mappings, and its remedies" do
    # Mappings are counted for the whole VM, so this one has its own.
    directory = temporary_directory("vm")

    {output, status} =
      SubVm.run("""
      alias Snakepit.SharedMemory, as: Shm
      {:ok, _} = Shm.start_link(name: :vm, max_mappings: 3, socket_dir: #{inspect(directory)})
      {:ok, _} = Shm.start_link(name: :more, max_mappings: 10, socket_dir: #{inspect(directory)})
      regions = for _ <- 1..3, do: Shm.put!("x", instance: :vm)
      {:error, error} = Shm.put("x", instance: :vm)
      {:too_many_mappings, :mapping_failed} = {error.reason, error.type}
      true = Exception.message(error) =~ "max_mappings (now 3"
      for region <- regions, do: "x" = Shm.view!(region)
      0 = length(Shm.list!(instance: :vm)) - 3
      {:ok, _} = Shm.put("x", instance: :more)
      for region <- regions, do: :ok = Shm.free(region)
      :erlang.garbage_collect()
      # A large heap is collected on a dirty scheduler, and the destructors run later, on another.
      wait = fn wait -> Snakepit.Native.live().mappings == 1 || (Process.sleep(1) && wait.(wait)) end
      wait.(wait)
      {:ok, _} = Shm.put("x", instance: :vm)
      IO.puts("all good")
      """)

    assert {String.trim(output), status} == {"all good", 0}
  end

  test "RLIMIT_FSIZE is an error and not a signal" do
    directory = temporary_directory("vm")

    {output, status} =
      SubVm.run(
        String.replace(@vm, "DIR", inspect(directory)) <>
          """
          {:error, error} = Shm.allocate(300_000_000, instance: :vm)
          :efbig = error.reason
          true = Exception.message(error) =~ "ulimit -f"
          {:ok, _} = Shm.put("small", instance: :vm)
          1 = length(Shm.list!(instance: :vm))
          IO.puts("all good")
          """,
        # Not less: the VM itself makes a file of 64 MiB for its compiled code.
        before: "ulimit -f 200000;"
      )

    assert {String.trim(output), status} == {"all good", 0}
  end

  test "huge pages that are not there: an error when required, normal pages when preferred" do
    %{shm: shm} = start_instance()
    free = Native.machine().huge_pages_free

    if free == 0 do
      assert {:error, %Error{reason: :no_huge_pages} = error} = Shm.allocate(4_000_000, instance: shm, huge_pages: true)
      assert Error.remedy(error) =~ "vm.nr_hugepages"
      assert charged(shm) == 0
      # The remedy.
      region = Shm.allocate!(4_000_000, instance: shm, huge_pages: :prefer)
      assert Shm.info!(region).huge_pages == false
    else
      assert Shm.info!(Shm.allocate!(2_000_000, instance: shm, huge_pages: true)).huge_pages
    end
  end

  test "not enough memory is found out first, and leaves nothing" do
    total = Native.machine().memory_available * 4
    %{shm: shm} = start_instance(max_region_size: total, max_total_memory: total)
    before = Native.live()

    assert {:error, %Error{reason: :not_enough_memory, type: :memory_limit_exceeded} = error} =
             Shm.allocate(total - 8192, instance: shm)

    assert Error.remedy(error) =~ "reserve: false"
    assert charged(shm) == 0
    assert Shm.list!(instance: shm) == []
    assert Native.live().descriptors <= before.descriptors + 50
    # The remedy.
    assert {:ok, region} = Shm.allocate(total - 8192, instance: shm, reserve: false)
    assert :ok = Shm.write(region, total - 9000, "far out")
    Shm.free!(region)
  end

  test "a cgroup's limit is respected" do
    case memory_cgroup() do
      {:ok, directory, enter} ->
        socket_dir = temporary_directory("vm")

        {output, status} =
          SubVm.run(
            String.replace(@vm, "DIR", inspect(socket_dir)) <>
              """
              {:error, error} = Shm.allocate(900_000_000, instance: :vm)
              :not_enough_memory = error.reason
              true = Exception.message(error) =~ "memory."
              {:ok, _} = Shm.allocate(10_000_000, instance: :vm)
              IO.puts("all good")
              """,
            before: enter
          )

        assert {String.trim(output), status} == {"all good", 0}
        File.rmdir(directory)

      :error ->
        counted_notice("no memory cgroup can be made")
    end
  end

  # A group of its own with a limit of 600 MB: v1, or v2 where the controller is delegated.
  defp memory_cgroup do
    name = "snakepit-test-#{System.pid()}"

    Enum.find_value(
      [{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}],
      :error,
      fn {root, limit} ->
        directory = Path.join(root, name)

        with true <- root?(),
             true <- File.dir?(root),
             :ok <- File.mkdir(directory),
             true <- File.exists?(Path.join(directory, limit)) or (File.rmdir(directory) && false),
             :ok <- File.write(Path.join(directory, limit), "600000000") do
          on_exit(fn -> File.rmdir(directory) end)
          {:ok, directory, "echo $$ > #{directory}/cgroup.procs;"}
        else
          _ -> nil
        end
      end
    )
  end

  test "a file system that is full is an error for named regions, and leaves nothing" do
    directory = temporary_directory("small")

    case root?() && System.cmd("mount", ["-t", "tmpfs", "-o", "size=1m", "none", directory], stderr_to_stdout: true) do
      {_, 0} ->
        on_exit(fn -> System.cmd("umount", ["-l", directory]) end)
        %{shm: shm} = start_instance(platform_options: %{linux: %{shm_path: directory}})
        assert {:error, %Error{reason: reason} = error} = Shm.allocate(5_000_000, instance: shm, named: "big")
        assert reason in [:enospc, :not_enough_memory]
        assert is_binary(Exception.message(error))
        assert File.ls!(directory) == []
        assert charged(shm) == 0
        assert {:ok, region} = Shm.put("fits", instance: shm, named: "small")
        assert Shm.view!(region) == "fits"
        Shm.free!(region)

      _ ->
        counted_notice("no tmpfs can be mounted")
    end
  end
end
