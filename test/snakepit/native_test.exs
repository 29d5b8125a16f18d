defmodule Snakepit.NativeTest do
  use Snakepit.ShmCase, async: false

  alias Snakepit.{Native, SubVm}

  test "loading it again is refused, while the running one stays in service", %{shm: shm} do
    region = Shm.put!("before", instance: shm)
    view = Shm.view!(region)
    {Native, binary, file} = :code.get_object_code(Native)

    for _ <- 1..3 do
      log =
        ExUnit.CaptureLog.capture_log(fn ->
          assert {:error, :on_load_failure} = :code.load_binary(Native, file, binary)
        end)

      assert log =~ "until the VM restarts"
      assert Shm.view!(region) == "before"
      assert {:ok, _} = Shm.put("after", instance: shm)
      :code.purge(Native)
    end

    assert Native.loaded() == :ok
    assert view == "before"
  end

  test "without the library a VM boots, and says what is missing when it is needed" do
    # A copy of the application without its priv directory.
    directory = temporary_directory("app")
    ebin = Path.join([directory, "snakepit_shm", "ebin"])
    File.mkdir_p!(ebin)
    File.cp_r!(to_string(:code.lib_dir(:snakepit_shm, :ebin)), ebin)

    {output, status} =
      SubVm.run(
        """
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:error, error} = Snakepit.SharedMemory.start_link(name: :a)
        :not_loaded = error.reason
        IO.puts(Exception.message(error))
        {:error, error} = Snakepit.SharedMemory.put("x")
        :not_started = error.reason
        IO.puts("went on")
        """,
        ebin: ebin
      )

    assert status == 0
    assert output =~ "native library could not be loaded from"
    assert output =~ "SNAKEPIT_SHM_NATIVE"
    assert output =~ "went on"
  end

  test "JSON: round trips, and what is refused" do
    for term <- [
          nil,
          true,
          0,
          -5,
          1.5,
          "",
          "ü\n\"",
          [],
          [1, [2]],
          %{},
          %{"a" => %{"b" => [nil]}},
          9_007_199_254_740_993
        ] do
      assert {:ok, text} = Native.json_encode(term)
      assert Native.json_decode(text) == {:ok, term}
    end

    for text <- [
          "",
          "{",
          "nul",
          "[1,]",
          <<255>>,
          "\"\\ud800\"",
          String.duplicate("[", 1000),
          String.duplicate(" ", 70_000) <> "1"
        ] do
      assert {:error, {_, %{}}} = Native.json_decode(text)
    end

    for term <- [
          self(),
          make_ref(),
          {1},
          fn -> 1 end,
          %{1 => 2},
          <<255>>,
          <<1::3>>,
          [1 | 2],
          String.duplicate("x", 70_000)
        ] do
      assert {:error, {_, %{}}} = Native.json_encode(term)
    end
  end

  test "JSON never makes an atom" do
    before = :erlang.system_info(:atom_count)
    for i <- 1..100, do: {:ok, _} = Native.json_decode(~s({"fresh_key_#{i}_#{System.unique_integer()}": 1}))
    assert :erlang.system_info(:atom_count) - before < 50
  end

  test "arguments of the wrong kind are badarg, not a crash" do
    for call <- [
          fn -> Native.segment_read(make_ref(), 0, 1) end,
          fn -> Native.segment_create(make_ref(), %{}) end,
          fn -> Native.budget_usage(:x) end,
          fn -> Native.lock_file(1) end,
          fn -> Native.json_decode(:x) end,
          fn -> Native.peer_watch(:x, :y, :z) end
        ] do
      assert_raise ArgumentError, call
    end

    assert {:error, {_, _}} = Native.peer_watch(0, self(), "tag")
    assert {:error, {_, _}} = Native.peer_watch(-1, self(), "tag")
    assert {:error, {_, _}} = Native.peer_watch(1_000_000, self(), "tag")
  end
end
