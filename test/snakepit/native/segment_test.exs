defmodule Snakepit.Native.SegmentTest do
  # The contract of the native functions, below all policy.
  use Snakepit.ShmCase, async: true

  alias Snakepit.Native

  @moduletag shm: false

  @spec_of_a_region %{
    id: "shm_x",
    instance: "i",
    size: 24,
    name: nil,
    label: nil,
    mode: 0o600,
    peers_write: true,
    access_read_only: true,
    owner_read_only: false,
    huge_pages: :no,
    reserve: true,
    cleanup_policy: :automatic,
    timeout: nil,
    dtype: nil,
    shape: nil,
    metadata: "{}",
    mapping_limit: 60_000,
    descriptor_reserve: 16
  }

  defp charge, do: Native.budget_new() |> Native.charge(1_000_000, 1_000_000) |> elem(1)
  defp spec(changes), do: Map.merge(@spec_of_a_region, changes)

  defp create(changes \\ %{}) do
    {:ok, segment} = Native.segment_create_dirty(charge(), spec(changes))
    on_exit(fn -> Native.segment_close_dirty(segment, true) end)
    segment
  end

  test "values that cannot be are refused by field, and the charge is given back" do
    for {field, value} <- [
          timeout: Bitwise.bsl(1, 64) - 1,
          timeout: Bitwise.bsl(1, 64),
          timeout: -1,
          size: 0,
          size: Bitwise.bsl(1, 70),
          mode: 0o1000,
          id: "r",
          id: <<255>>,
          label: "named, without a name",
          dtype: "int17",
          metadata: String.duplicate("x", 4000),
          instance: String.duplicate("x", 64)
        ] do
      budget = Native.budget_new()
      {:ok, charge} = Native.charge(budget, 10, 100)
      name = Atom.to_string(field)
      assert {:error, {:invalid_spec, %{field: ^name}}} = Native.segment_create(charge, spec(%{field => value}))
      assert Native.budget_usage(budget) == {0, 0}
    end
  end

  test "values of the wrong kind are badarg" do
    for change <- [%{timeout: :x}, %{id: 1}, %{size: "1"}, %{shape: [1 | 2]}, %{shape: 1}, %{label: 1}, %{name: "a\0b"}] do
      assert_raise ArgumentError, fn -> Native.segment_create(charge(), spec(change)) end
    end

    assert_raise ArgumentError, fn -> Native.segment_create(charge(), Map.delete(spec(%{}), :label)) end
  end

  test "a charge can be taken together with the segment" do
    budget = Native.budget_new()
    account = {budget, 8192, 10_000}
    assert {:ok, segment} = Native.segment_create(account, spec(%{}))
    assert Native.budget_usage(budget) == {8192, 1}

    assert {:error, {:memory_limit_exceeded, %{asked: 8192, used: 8192, limit: 10_000}}} =
             Native.segment_create(account, spec(%{}))

    Native.segment_close(segment, false)
    assert {:error, {:invalid_spec, _}} = Native.segment_create(account, spec(%{size: 0}))
    assert Native.budget_usage(budget) == {0, 0}

    for wrong <- [:x, {budget, -1, 10}, {budget, 1}, {make_ref(), 1, 10}],
        do: assert_raise(ArgumentError, fn -> Native.segment_create(wrong, spec(%{})) end)
  end

  test "what was ever exported is sealed on a dirty scheduler only" do
    segment = create()
    assert {:ok, _descriptor, _number} = Native.segment_export(segment, :read_only)
    assert Native.segment_seal(segment) == {:error, {:dirty_needed, %{}}}
    assert {:ok, _} = Native.segment_seal_dirty(segment)
    assert {:ok, _} = Native.segment_seal(create())
  end

  describe "a named one" do
    setup do
      {:ok, path: Path.join(tmpfs_directory(), "snakepit_x")}
    end

    test "is locked for as long as it is served", %{path: path} do
      refute Native.named_served(path)
      segment = create(%{name: path, label: "x"})
      assert Native.named_served(path)
      assert {:ok, %{label: "x", access_read_only: true, owner_read_only: false}, _length} = Native.header_read(path)
      :ok = Native.segment_close_dirty(segment, false)
      refute Native.named_served(path)
    end

    test "that another process serves cannot be opened", %{path: path} do
      :ok = Native.segment_close_dirty(create(%{name: path, label: "x"}), false)

      hold = """
      import fcntl, os, sys
      f = os.open(sys.argv[1], os.O_RDONLY)
      fcntl.flock(f, fcntl.LOCK_EX)
      print("held", flush=True)
      sys.stdin.read()
      """

      port = Port.open({:spawn_executable, Snakepit.Python.executable()}, [:binary, args: ["-c", hold, path]])
      assert_receive {^port, {:data, "held" <> _}}, 10_000
      assert Native.named_served(path)
      assert Native.segment_open_dirty(charge(), path, 16) == {:error, {:locked, %{path: path}}}
      Port.close(port)
      eventually(fn -> not Native.named_served(path) end)
    end

    test "that was being written is opened as invalid", %{path: path} do
      :ok = Native.segment_close_dirty(create(%{name: path, label: "x"}), false)
      {:ok, file} = :file.open(path, [:read, :write, :raw, :binary])
      :ok = :file.pwrite(file, 4032, <<7::little-64, 1::little-64>>)
      :ok = :file.close(file)
      assert {:ok, segment, %{sequence: 7}} = Native.segment_open_dirty(charge(), path, 16)
      on_exit(fn -> Native.segment_close_dirty(segment, true) end)
      assert Native.segment_info(segment).state == :invalid

      for {:error, {reason, details}} <- [
            Native.segment_read(segment, 0, 1),
            Native.segment_write(segment, 0, ["x"]),
            Native.segment_view(segment, 0, 1),
            Native.segment_seal_dirty(segment),
            Native.segment_generation(segment),
            Native.segment_export(segment, :read_only)
          ] do
        assert {reason, details.cause} == {:invalid, "a writer (1) ended in the middle of a write, sequence 7"}
      end
    end
  end
end
