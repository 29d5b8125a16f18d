defmodule Snakepit.SharedMemoryTest do
  use Snakepit.ShmCase, async: true

  doctest Snakepit.SharedMemory

  setup %{shm: shm}, do: {:ok, in: [instance: shm]}

  describe "put, view, read" do
    test "what was put comes back, without and with a copy", %{in: opts} do
      data = :crypto.strong_rand_bytes(10_000)
      {:ok, region} = Shm.put(data, opts)
      assert region.sealed and region.size == 10_000
      assert {:ok, ^data} = Shm.view(region)
      assert {:ok, ^data} = Shm.read(region, 0, 10_000)
      assert Shm.view(region, 100, 50) == {:ok, binary_part(data, 100, 50)}
      assert Shm.read(region, 9_999, 1) == {:ok, binary_part(data, 9_999, 1)}
      assert Shm.read(region, 10_000, 0) == {:ok, ""}
    end

    test "iodata of every nesting", %{in: opts} do
      big = :binary.copy("x", 100_000)
      data = [?a, ["bc" | "d"], [], [[big], "e"]]
      assert Shm.view!(Shm.put!(data, opts)) == IO.iodata_to_binary(data)
    end

    test "a sub-binary of a view keeps the memory after free and the owner's death", %{in: opts, shm: shm} do
      test = self()
      data = :crypto.strong_rand_bytes(100_000)

      owner =
        spawn(fn ->
          region = Shm.put!(data, opts)
          <<_::binary-size(500), part::binary-size(1000), _::binary>> = Shm.view!(region)
          send(test, {:part, part, region})
        end)

      monitor = Process.monitor(owner)
      assert_receive {:part, part, region}
      assert_receive {:DOWN, ^monitor, _, _, _}
      eventually(fn -> match?({:error, %{reason: :region_not_found}}, Shm.info(region)) end)
      :erlang.garbage_collect()
      assert part == binary_part(data, 500, 1000)
      # It still counts.
      assert charged(shm) >= 100_000
    end

    test "memory that a view keeps alive is given back when the last binary is gone", %{in: opts, shm: shm} do
      task =
        Task.async(fn ->
          region = Shm.put!(:crypto.strong_rand_bytes(100_000), opts)
          view = Shm.view!(region)
          :ok = Shm.free(region)
          before = charged(shm)
          {before, byte_size(view)}
        end)

      assert {before, 100_000} = Task.await(task)
      assert before >= 100_000
      eventually(fn -> charged(shm) == 0 end)
    end

    test "put refuses what has no bytes", %{in: opts} do
      assert {:error, %Error{reason: :invalid_size}} = Shm.put("", opts)
      assert {:error, %Error{reason: :invalid_option, details: %{key: :data}}} = Shm.put(:atom, opts)
    end
  end

  describe "allocate" do
    test "is zeroed and writable", %{in: opts} do
      {:ok, region} = Shm.allocate(5_000, opts)
      assert Shm.read!(region, 0, 5_000) == :binary.copy(<<0>>, 5_000)
      assert :ok = Shm.write(region, 4_998, "ab")
      assert Shm.read!(region, 4_997, 3) == <<0, ?a, ?b>>
      assert :ok = Shm.write(region, 0, [["he", ?l], "lo"])
      assert Shm.read!(region, 0, 5) == "hello"
    end

    for size <- [0, -1, 1.5, nil, "8"] do
      test "refuses the size #{inspect(size)}", %{in: opts} do
        assert {:error, %Error{reason: :invalid_size, details: %{got: unquote(size)}}} =
                 Shm.allocate(unquote(size), opts)
      end
    end

    test "refuses options that are not right, with the key, and leaves nothing", %{in: opts, shm: shm} do
      for {key, value} <- [
            owner: :nobody,
            timeout: 0,
            timeout: -5,
            cleanup_policy: :sometimes,
            access_mode: :write_only,
            peers: :none,
            permissions: %{owner: :none},
            permissions: %{group: :read_only},
            permissions: %{everybody: :read_only},
            permissions: :all,
            metadata: "text",
            metadata: %{a: self()},
            named: "a/b",
            named: ".hidden",
            named: "",
            dtype: "float31",
            dtype: :float32,
            shape: [4],
            huge_pages: :maybe,
            reserve: :later,
            security_level: :paranoid,
            sise: 3
          ] do
        assert {:error, %Error{reason: :invalid_option, details: %{key: ^key}} = error} =
                 Shm.allocate(16, [{key, value} | opts])

        assert Exception.message(error) =~ inspect(key)
      end

      assert {:error, %Error{details: %{key: :timeout}}} =
               Shm.allocate(16, [cleanup_policy: :manual, timeout: 5] ++ opts)

      assert {:error, %Error{details: %{key: :huge_pages}}} =
               Shm.allocate(16, [huge_pages: true, peers: :read_write] ++ opts)

      assert {:error, %Error{details: %{key: :options}}} = Shm.allocate(16, :none)
      assert Shm.list!(instance: shm) == []
      assert charged(shm) == 0
    end

    test "security levels that are not there are refused with the reason", %{in: opts} do
      for level <- [:high, :maximum] do
        assert {:error, %Error{reason: :not_supported} = error} = Shm.allocate(16, [security_level: level] ++ opts)
        assert Exception.message(error) =~ "encryption"
      end
    end

    test "metadata comes back as JSON has it", %{in: opts} do
      region = Shm.allocate!(16, [metadata: %{"b" => [1, 2.5, nil, true], layer: %{"x" => "ü"}}] ++ opts)
      assert region.metadata == %{"layer" => %{"x" => "ü"}, "b" => [1, 2.5, nil, true]}

      assert {:error, %Error{details: %{key: :metadata}}} =
               Shm.allocate(16, [metadata: %{a: String.duplicate("x", 3100)}] ++ opts)
    end
  end

  describe "dtype and shape" do
    test "as NumPy and Nx name them", %{in: opts} do
      region = Shm.put!(<<0::size(24 * 32)>>, [dtype: "float32", shape: {2, 3, 4}] ++ opts)
      assert Shm.dtype(region) == "float32"
      assert Shm.shape(region) == [2, 3, 4]
      assert Shm.nx_type(region) == {:f, 32}
      assert inspect(region) =~ ~r/^#SharedMemory.Region<shm_.*, 96 B, float32\[2x3x4\], sealed>$/
      assert Shm.nx_type(Shm.put!(<<0::32>>, [dtype: "bfloat16"] ++ opts)) == {:bf, 16}
      assert Shm.nx_type(Shm.put!(<<0::32>>, opts)) == nil
    end

    test "that do not fit the size are refused with both", %{in: opts} do
      assert {:error, %Error{details: %{key: :shape, expected: text}}} =
               Shm.allocate(100, [dtype: "float32", shape: [24]] ++ opts)

      assert text =~ "100 bytes"
      assert {:error, %Error{details: %{key: :dtype}}} = Shm.allocate(10, [dtype: "float32"] ++ opts)
      assert {:error, %Error{details: %{key: :shape}}} = Shm.allocate(8, [dtype: "int8", shape: [-2, -4]] ++ opts)
      assert {:error, %Error{details: %{key: :shape}}} = Shm.allocate(8, [dtype: "int8", shape: [2 | 4]] ++ opts)
    end
  end

  describe "bounds" do
    test "offset and length outside are refused, huge ones too", %{in: opts} do
      region = Shm.allocate!(100, opts)
      huge = 0xFFFF_FFFF_FFFF_FFFF

      for {offset, length} <- [{0, 101}, {100, 1}, {101, 0}, {huge, 1}, {1, huge}, {huge * huge, huge}] do
        assert {:error, %Error{reason: :out_of_range}} = Shm.read(region, offset, length)
      end

      assert {:error, %Error{reason: :out_of_range}} = Shm.write(region, 99, "ab")
      assert {:error, %Error{reason: :invalid_argument, details: %{key: :offset}}} = Shm.read(region, -1, 1)
      assert {:error, %Error{reason: :invalid_argument, details: %{key: :length}}} = Shm.read(region, 0, -1)
      assert {:error, %Error{reason: :invalid_argument, details: %{key: :data}}} = Shm.write(region, 0, [:a])
      assert {:error, %Error{reason: :out_of_range}} = Shm.view(Shm.seal!(region), 50, 51)
    end

    test "empty writes are writes", %{in: opts} do
      region = Shm.allocate!(10, opts)
      assert :ok = Shm.write(region, 10, "")
      assert :ok = Shm.write(region, 0, [])
    end
  end

  describe "states" do
    test "a sealed region cannot be written, an unsealed one not viewed", %{in: opts} do
      region = Shm.allocate!(100, opts)
      assert {:error, %Error{reason: :not_sealed}} = Shm.view(region)
      sealed = Shm.seal!(region)
      assert {:error, %Error{reason: :sealed}} = Shm.write(sealed, 0, "a")
      # Also by the value from before.
      assert {:error, %Error{reason: :sealed}} = Shm.write(region, 0, "a")
      assert {:ok, _} = Shm.seal(sealed)
    end

    test "free twice, use after free", %{in: opts} do
      region = Shm.put!("data", opts)
      assert :ok = Shm.free(region)

      for {:error, error} <- [
            Shm.free(region),
            Shm.read(region, 0, 1),
            Shm.view(region),
            Shm.write(region, 0, "x"),
            Shm.seal(region),
            Shm.info(region),
            Shm.handle(region),
            Shm.hold(region),
            Shm.release(region),
            Shm.transfer(region, :none),
            Shm.wait(region, 0, 10)
          ] do
        assert error.reason == :region_not_found
        assert error.region_id == region.id
      end
    end

    test "what is not a region is said so" do
      for {:error, error} <- [
            Shm.read(:x, 0, 1),
            Shm.view("x"),
            Shm.free(nil),
            Shm.info(:x),
            Shm.seal(1),
            Shm.hold(2),
            Shm.handle(3)
          ] do
        assert error.reason == :invalid_argument
      end
    end

    test "an id of nowhere" do
      for id <- ["", "x", "shm_", "shm_nowhere_0000000000000000_0000000000000000", String.duplicate("a", 1000)] do
        assert {:error, %Error{reason: :region_not_found}} = Shm.info(id)
      end
    end
  end

  describe "generations" do
    test "count completed writes, and wait/3 sees them", %{in: opts} do
      region = Shm.allocate!(100, opts)
      assert Shm.info!(region).generation == 0
      assert {:error, %Error{reason: :timeout}} = Shm.wait(region, 0, 1)
      Shm.write!(region, 0, "a")
      assert {:ok, 1} = Shm.wait(region, 0, 0)
      task = Task.async(fn -> Shm.wait(region, 1, 5_000) end)
      eventually(fn -> :ets.info(instance(opts[:instance]).tables.waiters, :size) > 0 end)
      Shm.write!(region, 0, "b")
      assert Task.await(task) == {:ok, 2}
    end

    test "wait leaves nothing in the mailbox and no row", %{in: opts, shm: shm} do
      region = Shm.allocate!(100, opts)
      for i <- 1..50, do: Shm.wait(region, i * 1000, 0)
      writer = Task.async(fn -> for _ <- 1..500, do: Shm.write!(region, 0, "x") end)
      for _ <- 1..200, do: Shm.wait(region, 1_000_000, 1)
      Task.await(writer)
      assert Process.info(self(), :messages) == {:messages, []}
      assert :ets.tab2list(instance(shm).tables.waiters) == []
    end

    test "a region that goes wakes who waits for it", %{in: opts, shm: shm} do
      region = Shm.allocate!(100, opts)
      task = Task.async(fn -> Shm.wait(region, 0, :infinity) end)
      eventually(fn -> :ets.info(instance(shm).tables.waiters, :size) > 0 end)
      Shm.free!(region)
      assert {:error, %Error{reason: :region_not_found}} = Task.await(task)
    end

    test "concurrent writers and readers: every copy is one write", %{in: opts} do
      region = Shm.allocate!(100_000, opts)
      Shm.write!(region, 0, :binary.copy(<<0>>, 100_000))

      writers =
        for i <- 1..3 do
          Task.async(fn -> for _ <- 1..50, do: :ok = Shm.write(region, 0, :binary.copy(<<i>>, 100_000)) end)
        end

      readers =
        for _ <- 1..3 do
          Task.async(fn ->
            for _ <- 1..50 do
              <<first, _::binary>> = copy = Shm.read!(region, 0, 100_000)
              assert copy == :binary.copy(<<first>>, 100_000)
            end
          end)
        end

      Task.await_many(writers ++ readers, 30_000)
      assert Shm.info!(region).generation == 151
    end
  end

  describe "files and streams" do
    test "a file goes in and comes out in pieces", %{in: opts} do
      directory = temporary_directory("file")
      path = Path.join(directory, "data")
      data = :crypto.strong_rand_bytes(300_000)
      File.write!(path, data)
      region = Shm.from_file!(path, opts)
      assert region.sealed
      assert Shm.view!(region) == data
      assert region |> Shm.stream!(70_000) |> Enum.map(&byte_size/1) == [70_000, 70_000, 70_000, 70_000, 20_000]
      assert region |> Shm.stream!() |> Enum.into("") == data
      part = Shm.from_file!(path, [file_offset: 1000, length: 10, seal: false] ++ opts)
      refute part.sealed
      assert part |> Shm.stream!(3) |> Enum.join() == binary_part(data, 1000, 10)
    end

    test "files that cannot be used", %{in: opts, shm: shm} do
      directory = temporary_directory("file")
      File.write!(Path.join(directory, "empty"), "")
      File.write!(Path.join(directory, "short"), "abc")
      assert {:error, %Error{reason: :not_found}} = Shm.from_file(Path.join(directory, "none"), opts)
      assert {:error, %Error{details: %{key: :length}}} = Shm.from_file(Path.join(directory, "empty"), opts)
      assert {:error, %Error{details: %{key: :path}}} = Shm.from_file(directory, opts)

      assert {:error, %Error{details: %{key: :length}}} =
               Shm.from_file(Path.join(directory, "short"), [length: 4] ++ opts)

      assert {:error, %Error{details: %{key: :file_offset}}} =
               Shm.from_file(Path.join(directory, "short"), [file_offset: 4] ++ opts)

      assert Shm.list!(instance: shm) == []
      assert_raise Error, fn -> Shm.stream!(:x) end
    end
  end

  describe "the forms that raise" do
    test "give the value or raise the same error", %{in: opts} do
      region = Shm.put!("abc", opts)
      assert Shm.view!(region) == "abc"
      assert Shm.free!(region) == :ok
      assert_raise Error, ~r/there is no such region/, fn -> Shm.view!(region) end
    end
  end

  describe "several instances" do
    test "have their own regions and limits", %{in: opts, shm: shm} do
      %{shm: other} = start_instance(max_regions: 1)
      a = Shm.put!("a", opts)
      b = Shm.put!("b", instance: other)
      assert {:error, %Error{reason: :region_limit_exceeded}} = Shm.put("c", instance: other)
      assert [%{id: id_a}] = Shm.list!(instance: shm)
      assert [%{id: id_b}] = Shm.list!(instance: other)
      assert {id_a, id_b} == {a.id, b.id}
      # One-argument functions find theirs.
      assert Snakepit.SharedMemory.Manager.get_region_info(a.id) |> elem(1) |> Map.fetch!(:instance) == shm
      assert Snakepit.SharedMemory.Manager.get_region_info(b.id) |> elem(1) |> Map.fetch!(:instance) == other
    end

    test "one that does not run is said so" do
      assert {:error, %Error{reason: :not_started} = error} = Shm.put("a", instance: :nowhere)
      assert Exception.message(error) =~ ":nowhere"
    end

    test "names that cannot be one are refused" do
      for name <- [nil, "text", :"with space", :"", :default] do
        assert {:error, %Error{reason: :invalid_option}} = Shm.start_link(name: name)
      end
    end
  end

  test "stats count operations and errors", %{in: opts, shm: shm} do
    region = Shm.put!("abc", opts)
    Shm.view!(region)
    Shm.read!(region, 0, 3)
    {:error, _} = Shm.write(region, 0, "x")
    Shm.free!(region)
    {:ok, stats} = Shm.stats(shm)
    assert stats.total_allocations == 1
    assert stats.total_deallocations == 1
    assert stats.active_regions == 0
    assert stats.error_counts == %{invalid_state: 1}
    assert %{count: 1, bytes: 3, p50_ns: p50, p99_ns: p99} = stats.operations.view
    assert p50 > 0 and p99 >= p50
  end

  test "list filters", %{in: opts, shm: shm} do
    a = Shm.put!("a", opts)
    b = Shm.allocate!(100, opts)
    ids = fn filter -> [instance: shm] |> Keyword.merge(filter) |> Shm.list!() |> Enum.map(& &1.id) end
    assert Enum.sort(ids.([])) == Enum.sort([a.id, b.id])
    assert ids.(state: :sealed) == [a.id]
    assert ids.(min_size: 50) == [b.id]
    assert ids.(owner_pid: self(), max_size: 50) == [a.id]
    assert {:error, %Error{details: %{key: :colour}}} = Shm.list(instance: shm, colour: :red)
  end
end
