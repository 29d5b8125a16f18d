defmodule Snakepit.Isolation.DifferencesTest do
  # Where a library can tell that it runs isolated: the rows of that table in lib/snakepit/isolation/README.md, a test for each, which
  # has the row's name. The same library (test/support/fixtures/isolation/differences.c) is loaded into this VM, as the reference.
  use Snakepit.IsolationCase, async: false

  @readme Path.expand("../../../lib/snakepit/isolation/README.md", __DIR__)
  @deadline 20_000

  setup_all do
    %{vm: NativeFixture.load_into_vm(:differences, elsewhere_pid())}
  end

  # A process of a node that there never was.
  defp elsewhere_pid, do: :erlang.binary_to_term(<<131, 88, 119, 7, "a@there", 1::32, 0::32, 1::32>>)

  defp load(options \\ []), do: load!(:differences, options)

  defp call(library, function, arguments \\ []), do: Isolation.call(library, function, arguments, timeout: @deadline)
  defp call!(library, function, arguments \\ []), do: Isolation.call!(library, function, arguments, timeout: @deadline)

  # In a process of its own, whose terms are gone afterwards.
  defp elsewhere(fun) do
    task = Task.async(fun)
    Task.await(task, @deadline)
  end

  test "each row has a test, and each test of a row its row" do
    [_, table] = Regex.run(~r/^## Where a library can tell\n(.*?)^## /ms, File.read!(@readme))
    rows = for [_, row] <- Regex.scan(~r/^\| \*\*(.+?)\*\* \|/m, table), do: row
    tests = for %{name: name} <- __MODULE__.__ex_unit__().tests, do: to_string(name)
    tested = for "test in the table " <> name <- tests, do: name
    assert Enum.sort(rows) == Enum.sort(tested)
    assert rows == Enum.uniq(rows)
  end

  describe "in the table" do
    # ── The process ─────────────────────────────────────────────────────────────────────────────────────────────

    test "process", %{vm: vm} do
      library = load()
      assert to_string(vm.os_pid()) == System.pid()
      assert call!(library, :os_pid) == os_pid(library)
    end

    test "environment", %{vm: vm} do
      names = ["SNAKEPIT_DIFFERENCE", "SNAKEPIT_LATER"]
      on_exit(fn -> Enum.each(names, &System.delete_env/1) end)
      System.put_env("SNAKEPIT_DIFFERENCE", "here before")
      library = load()
      System.put_env("SNAKEPIT_LATER", "and after")
      assert Enum.map(names, &vm.getenv/1) == ["here before", "and after"]
      assert Enum.map(names, &call!(library, :getenv, [&1])) == ["here before", :undefined]
      assert call!(library, :getenv, ["PATH"]) == System.get_env("PATH")
    end

    test "static variables", %{vm: vm} do
      library = load()
      first = vm.count()
      assert vm.count() == first + 1
      for n <- 1..3, do: assert(call!(library, :count) == n)
      before = os_pid(library)
      signal(before)
      successor(library, before)
      assert call!(library, :count) == 1
      # Each worker has its own: both are called, one of them while the other one sleeps.
      many = load!(:adder, workers: 2)
      held = Isolation.call_async(many, :sleep, [200], timeout: @deadline)
      pids = for _ <- 1..5, do: call!(many, :os_pid)
      assert {:ok, _} = Isolation.await(held)
      assert [one] = Enum.uniq(pids)
      assert one in [os_pid(many, 1), os_pid(many, 2)]
      assert os_pid(many, 1) != os_pid(many, 2)
    end

    test "calls at the same time" do
      calls = fn library ->
        calls = for _ <- 1..4, do: Isolation.call_async(library, :together, [100], timeout: @deadline)
        calls |> Enum.map(&(Isolation.await(&1) |> elem(1))) |> Enum.max()
      end

      vm = NativeFixture.load_into_vm(:adder)
      together = for(_ <- 1..4, do: Task.async(fn -> vm.together(100) end)) |> Task.await_many(@deadline)
      assert Enum.max(together) > 1
      assert calls.(load!(:adder)) == 1
      assert calls.(load!(:adder, concurrency: 2)) == 2
    end

    test "schedulers", %{vm: vm} do
      assert vm.consume(100) == 1
      library = load()
      for _ <- 1..10, do: assert(call!(library, :consume, [100]) == 0)
    end

    test "the VM's books", %{vm: vm} do
      load()
      assert function_exported?(vm, :count, 0)
      assert :snakepit_differences in :erlang.system_info(:taints)
      isolated = load!(:unimplemented)
      assert call!(isolated, :fine) == :ok
      refute :snakepit_unimplemented in :erlang.system_info(:taints)
    end

    test "time" do
      library = load()

      for _ <- 1..1_000 do
        before = :erlang.monotonic_time(:nanosecond)
        inside = call!(library, :monotonic)
        # The two clocks are read one after the other, which may take as long as it takes to be interrupted.
        assert_in_delta inside, before, System.convert_time_unit(1, :second, :nanosecond)
      end

      times = for _ <- 1..1_000, do: call!(library, :monotonic)
      assert times == Enum.sort(times)
      assert_in_delta call!(library, :offset), :erlang.time_offset(:nanosecond), 1_000_000
    end

    test "CPU time", %{vm: vm} do
      library = load()
      seconds = fn {mega, seconds, micro} -> mega * 1_000_000 + seconds + micro / 1_000_000 end
      # This VM has run for longer than a worker that was started just now.
      assert seconds.(call!(library, :cpu_time)) < seconds.(vm.cpu_time())
    end

    # ── Terms ───────────────────────────────────────────────────────────────────────────────────────────────────

    test "new atoms", %{vm: vm} do
      library = load()
      made = fn text -> match?({:ok, _}, existing(text)) end
      assert vm.make("made in " <> "the VM") == 14
      assert made.("made in " <> "the VM")
      assert call!(library, :make, ["made in " <> "isolation"]) == 17
      refute made.("made in " <> "isolation")
    end

    test "order of pairs", %{vm: vm} do
      assert vm.keys() == [:a, :b]
      library = load()
      assert call!(library, :keys) == [:b, :a]
      # Above 32 pairs the VM writes another order than an iterator gives.
      large = Map.new(1..100, &{&1, :x})
      assert vm.to_bytes(large) == :erlang.term_to_binary(large)
      bytes = call!(library, :to_bytes, [large])
      assert bytes != vm.to_bytes(large)
      assert :erlang.binary_to_term(bytes) == large
    end

    test "internal hash values", %{vm: vm} do
      library = load()
      terms = [1, :a, "b", {1.5, [self()]}, %{x: 1}, 2 ** 70]
      hashes = for term <- terms, do: call!(library, :internal_hash, [term])
      assert hashes == for(term <- terms, do: call!(library, :internal_hash, [term]))
      assert hashes != for(term <- terms, do: vm.internal_hash(term))
    end

    test "phash2 of objects", %{vm: vm} do
      object = vm.new()
      assert vm.phash2(object) == :erlang.phash2(object)
      library = load()
      assert {:error, %Error{reason: :not_implemented} = error} = call(library, :phash2, [call!(library, :new)])
      assert Exception.message(error) =~ "ERL_NIF_PHASH2"
    end

    test "bytes of objects", %{vm: vm} do
      object = vm.new()
      assert vm.to_bytes(object) == :erlang.term_to_binary(object)
      library = load()
      assert {:error, %Error{reason: :not_implemented} = error} = call(library, :to_bytes, [[call!(library, :new)]])
      assert Exception.message(error) =~ "enif_term_to_binary of a resource"
    end

    test "text of objects", %{vm: vm} do
      object = vm.new()
      assert vm.print(object) == to_string(:erlang.ref_to_list(object))
      library = load()
      object = call!(library, :new)
      text = call!(library, :print, [object])
      assert text =~ ~r/^#Ref<0\.0\.0\.\d+>$/
      assert text != to_string(:erlang.ref_to_list(object))
      assert text == call!(library, :print, [object])
    end

    test "order of objects" do
      library = load()
      references = for _ <- 1..3, do: make_ref()
      objects = for _ <- 1..3, do: call!(library, :new)

      for reference <- references, object <- objects do
        assert call!(library, :compare, [reference, object]) == -1
        assert call!(library, :compare, [object, reference]) == 1
      end

      for one <- objects, other <- objects do
        assert call!(library, :compare, [one, other]) == -call!(library, :compare, [other, one])
        assert call!(library, :compare, [one, other]) == 0 == (one == other)
      end
    end

    test "names from bytes", %{vm: vm} do
      unknown = spawn(fn -> :ok end)
      assert vm.from_bytes(:erlang.term_to_binary(unknown)) == unknown
      library = load()
      assert {:error, %Error{reason: :not_implemented}} = call(library, :from_bytes, [:erlang.term_to_binary(unknown)])
      assert call!(library, :internal_hash, [self()]) > 0
      assert call!(library, :from_bytes, [:erlang.term_to_binary(self())]) == self()
    end

    test "a part beyond a binary" do
      assert {:error, %Error{reason: :raised, exception: :badarg}} = call(load(), :beyond, ["bytes"])
    end

    test "no term" do
      library = load()
      assert {:error, %Error{} = error} = call(library, :nothing)
      assert error.reason != :crashed
      assert call!(library, :count) == 1
    end

    test "large answers", %{vm: vm} do
      assert byte_size(vm.zeros(2_000_000)) == 2_000_000
      library = load(spill_size: 1_048_576)
      assert {:error, %Error{reason: :quota_exceeded}} = call(library, :zeros, [2_000_000])
      assert byte_size(call!(library, :zeros, [1_000_000])) == 1_000_000
    end

    # ── Objects ─────────────────────────────────────────────────────────────────────────────────────────────────

    test "destructors" do
      library = load()
      assert elsewhere(fn -> is_reference(call!(library, :new)) end)
      eventually(fn -> call!(library, :things) == 0 end)
    end

    test "binaries of objects", %{vm: vm} do
      bytes = vm.bytes_of_new()
      assert vm.leads(bytes)
      library = load()
      isolated = call!(library, :bytes_of_new)
      assert isolated == bytes
      refute call!(library, :leads, [isolated])
      eventually(fn -> call!(library, :things) == 0 end)
      assert isolated == bytes
    end

    test "who monitors", %{vm: vm} do
      pid = spawn_link(fn -> Process.sleep(:infinity) end)
      object = vm.watch(pid)
      assert {:monitored_by, by} = Process.info(pid, :monitored_by)
      assert object in by
      assert vm.leads(object)

      library = load()
      pid = spawn_link(fn -> Process.sleep(:infinity) end)

      watcher =
        elsewhere(fn ->
          object = call!(library, :watch, [pid])
          assert {:monitored_by, [watcher]} = Process.info(pid, :monitored_by)
          # It leads to the object, and is not its term.
          assert call!(library, :leads, [watcher])
          assert watcher != object
          watcher
        end)

      # It does not hold the object: that has ended, and the monitor with it.
      eventually(fn -> Process.info(pid, :monitored_by) == {:monitored_by, []} end)
      assert {:error, %Error{}} = call(library, :leads, [watcher])
      assert call!(library, :count) == 1
    end

    test "stopped descriptors", %{vm: vm} do
      {0, stopped} = vm.select_and_stop()
      # Called, or scheduled; the bit of what was cancelled is there in some releases.
      assert Bitwise.band(stopped, 3) in [1, 2]
      library = load()

      for _ <- 1..20 do
        assert {0, stopped} = call!(library, :select_and_stop)
        assert Bitwise.band(stopped, 3) == 1
      end
    end

    # ── Processes and ports ─────────────────────────────────────────────────────────────────────────────────────

    test "pids while it loads", %{vm: vm} do
      refute vm.loaded_with_local_pid()
      library = load(load_info: elsewhere_pid())
      assert call!(library, :loaded_with_local_pid)
      # From the first call on it is known which node is here.
      assert {:error, %Error{reason: :raised, exception: :badarg}} = call(library, :send, [elsewhere_pid(), :x])
    end

    test "messages to the dead", %{vm: vm} do
      library = load()

      answers =
        for _ <- 1..100 do
          {pid, monitor} = spawn_monitor(fn -> Process.sleep(:infinity) end)
          assert call!(library, :send, [pid, :x]) == true
          Process.exit(pid, :kill)
          assert_receive {:DOWN, ^monitor, _, _, _}, @deadline
          refute vm.send(pid, :x)
          answer = call!(library, :send, [pid, :x])
          eventually(fn -> call!(library, :send, [pid, :x]) == false end)
          answer
        end

      assert true in answers
    end

    test "registered names", %{vm: vm} do
      init = Process.whereis(:init)
      assert vm.whereis(:init) == init

      log =
        ExUnit.CaptureLog.capture_log(fn ->
          library = load()
          assert call!(library, :whereis, [:init]) == :undefined
          eventually(fn -> told?(library, "enif_whereis_pid") end)
          Isolation.unload(library)
        end)

      assert log =~ "enif_whereis_pid was refused"
      assert call!(load(whereis: [:init]), :whereis, [:init]) == init
    end

    test "commands to ports", %{vm: vm} do
      port = Port.open({:spawn_executable, "/bin/cat"}, [:binary])
      on_exit(fn -> if Port.info(port), do: Port.close(port) end)
      assert vm.command(port, "one")
      assert_receive {^port, {:data, "one"}}, @deadline

      ExUnit.CaptureLog.capture_log(fn ->
        library = load()
        refute call!(library, :command, [port, "two"])
        eventually(fn -> told?(library, "enif_port_command") end)
        Isolation.unload(library)
      end)

      assert call!(load(port_command: true), :command, [port, "three"])
      assert_receive {^port, {:data, "three"}}, @deadline
    end
  end

  # A refusal is logged by another process than the one that calls; before that it says so in its library's table.
  defp told?(%{table: table}, function), do: :ets.member(table, {:denied, function})

  defp existing(text) do
    {:ok, String.to_existing_atom(text)}
  rescue
    ArgumentError -> :error
  end

  # ── What one might think is another thing, and is not ─────────────────────────────────────────────────────────────

  describe "as in the VM" do
    test "what the system is", %{vm: vm} do
      assert call!(load(), :system) == vm.system()
    end

    test "bytes of terms", %{vm: vm} do
      library = load()
      x = make_ref()

      for term <- [
            [:ok, :"", :åäö, :漢字, [ok: :é, é: %{ok: self()}], String.duplicate("ü", 255) |> String.to_atom()],
            [0, 255, 256, -1, 2 ** 31, -(2 ** 31), 2 ** 60, 2 ** 64, -(2 ** 2_048), 1.5, -0.0],
            [[], ~c"text", [1, 2 | 3], [1, 2, 300], [~c"a", ~c"b"], [255], Enum.to_list(1..300)],
            for(length <- [65_535, 65_536], do: List.duplicate(7, length)),
            ["", "bytes", <<1::3>>, :binary.copy("x", 100), {}, List.to_tuple(Enum.to_list(1..300))],
            [%{}, %{a: 1, b: ~c"two"}],
            [self(), hd(Port.list()), x, fn -> x end, &:lists.map/2]
          ],
          term <- [term | term] do
        assert call!(library, :to_bytes, [term]) == vm.to_bytes(term)
      end
    end

    test "whether zeros are one", %{vm: vm} do
      library = load()

      for pair <- [[0.0, -0.0], [[0.0], [-0.0]], [%{0.0 => 1}, %{-0.0 => 1}]] do
        assert call!(library, :identical, pair) == vm.identical(Enum.at(pair, 0), Enum.at(pair, 1))
        assert call!(library, :compare, pair) == vm.compare(Enum.at(pair, 0), Enum.at(pair, 1))
      end
    end

    test "times that are never given twice" do
      library = load()

      times =
        for _ <- 1..100,
            time <- [apply(:erlang, :now, []), call!(library, :now), call!(library, :now)],
            do: time

      assert times == times |> Enum.sort() |> Enum.dedup()
    end
  end
end
