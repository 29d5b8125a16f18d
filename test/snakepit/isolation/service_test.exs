defmodule Snakepit.Isolation.ServiceTest do
  # What a library asks of the VM while it runs, with an ordinary one.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureLog

  @deadline 20_000

  defp call!(library, function, arguments, options \\ []),
    do: Isolation.call!(library, function, arguments, [timeout: @deadline] ++ options)

  # All that have come, taken: of itself a process is told only of those that it has looked at.
  defp messages(taken \\ []) do
    receive do
      message -> messages([message | taken])
    after
      0 -> Enum.reverse(taken)
    end
  end

  defp waiting(pid) do
    {:message_queue_len, length} = Process.info(pid, :message_queue_len)
    length
  end

  # A process that does not look at its messages before it is told to.
  defp sleeper do
    test = self()

    pid =
      spawn(fn ->
        receive do
          :empty -> empty(test)
        end
      end)

    on_exit(fn -> Process.exit(pid, :kill) end)
    pid
  end

  defp empty(test) do
    receive do
      :stop -> send(test, :stopped)
      _ -> empty(test)
    end
  end

  defp port do
    port = Port.open({:spawn_executable, "/bin/cat"}, [:binary])
    on_exit(fn -> if Port.info(port), do: Port.close(port) end)
    port
  end

  describe "messages" do
    test "of a call have arrived, in order, when it returns" do
      library = load!(:services)
      pid = self()

      for n <- 1..200 do
        assert call!(library, :send, [pid, {n, [pid, 1.5, "text"]}]) == true
        assert messages() == [{n, [pid, 1.5, "text"]}]
      end

      assert call!(library, :send_many, [self(), :x, 500]) == 500
      assert messages() == for(n <- 1..500, do: {n, :x})
    end

    test "100,000 of one call, of two workers and in a batch" do
      library = load!(:services, workers: 2, max_mailbox: :infinity)
      assert call!(library, :send_many, [self(), :x, 100_000]) == 100_000
      assert messages() == for(n <- 1..100_000, do: {n, :x})

      {:ok, results} =
        Isolation.call_many(library, :send_many, for(n <- 1..100, do: [self(), n, 20]), timeout: @deadline)

      assert results == List.duplicate({:ok, 20}, 100)
      all = messages()
      assert length(all) == 2_000
      for n <- 1..100, do: assert(for({i, ^n} <- all, do: i) == Enum.to_list(1..20))
    end

    test "of a call that is awaited" do
      library = load!(:services)
      calls = for n <- 1..8, do: Isolation.call_async(library, :send_many, [self(), n, 100], timeout: @deadline)
      for call <- calls, do: assert({:ok, 100} = Isolation.await(call))
      assert length(messages()) == 800
    end

    test "of a thread" do
      library = load!(:services)
      me = self()
      assert call!(library, :send_later, [self(), {:later, me}, 1_000, 20]) == :ok
      for n <- 1..1_000, do: assert_receive({^n, {:later, ^me}}, @deadline)
      assert messages() == []
    end

    test "of every size, and terms of every kind" do
      library = load!(:services)

      for size <- [0, 1, 16_000, 16_384, 16_385, 70_000, 1_000_000, 8_000_000] do
        binary = :binary.copy(<<size::8>>, size)
        assert call!(library, :send, [self(), binary]) == true
        assert messages() == [binary], "#{size} bytes"
      end

      term = {make_ref(), fn -> 1 end, %{self() => hd(Port.list())}, Enum.to_list(1..50_000), 1.0e300, -(2 ** 100)}
      assert call!(library, :send, [self(), term]) == true
      assert messages() == [term]
    end

    test "to nobody" do
      library = load!(:services)
      {dead, monitor} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^monitor, _, _, _}
      assert call!(library, :send, [dead, :x]) == false
      assert call!(library, :send_many, [dead, :x, 10]) == 0
      assert call!(library, :send, [self(), :y]) == true
      assert messages() == [:y]
    end

    test "with objects of the library, which end with them, also when nobody takes them" do
      library = load!(:services)
      watched = sleeper()

      holder =
        spawn_link(fn ->
          watch = call!(library, :watch, [watched, self()])
          assert call!(library, :send, [self(), {:object, watch}]) == true
          assert [{:object, object}] = messages()
          {dead, monitor} = spawn_monitor(fn -> :ok end)
          assert_receive {:DOWN, ^monitor, _, _, _}
          assert call!(library, :send, [dead, [watch, object]]) == false
          assert call!(library, :command, [hd(Port.list()), [watch]]) == false
          assert call!(library, :watches, []) == 1
          {watch, object}
        end)

      monitor = Process.monitor(holder)
      assert_receive {:DOWN, ^monitor, _, _, _}, @deadline
      eventually(fn -> call!(library, :watches, []) == 0 end)
    end

    test "while it is loaded" do
      library = load!(:services, load_info: self())
      assert_receive {:loading, true}, @deadline
      assert {:ok, 1} = Isolation.call(library, :echo, [1])
    end

    test "before it dies" do
      library = load!(:services, max_restarts: :infinity)

      for count <- [1, 10, 1_000] do
        assert {:error, %Error{reason: :crashed}} = Isolation.call(library, :send_and_abort, [self(), :x, count])
        for n <- 1..count, do: assert_receive({^n, :x}, @deadline)
        assert messages() == []
      end
    end
  end

  describe "a mailbox that is not emptied" do
    test "holds the library up, and nobody else" do
      library = load!(:services, max_mailbox: 5_000)
      sleeper = sleeper()

      log =
        capture_log(fn ->
          assert call!(library, :storm_start, [sleeper, 10]) == :ok
          eventually(fn -> waiting(sleeper) > 5_000 end, @deadline)
          stands_still(library)
        end)

      assert [_, _] = String.split(log, "#{inspect(sleeper)} has more waiting")
      most = waiting(sleeper)
      # What is counted before somebody looks, and what is on its way.
      assert most < 5_000 + 12_000

      # Calls go on, also those of others in the VM.
      for n <- 1..500, do: assert(call!(library, :echo, [{n, make_ref()}]) |> elem(0) == n)
      assert {:ok, :ok} = Isolation.call(library, :sleep, [20])
      assert waiting(sleeper) == most

      send(sleeper, :empty)
      sent = call!(library, :stormed, [])
      eventually(fn -> call!(library, :stormed, []) > sent + 20_000 end, @deadline)
      call!(library, :storm_stop, [])
    end

    test "in bytes" do
      library = load!(:services, max_mailbox_bytes: 8_000_000)
      sleeper = sleeper()
      assert call!(library, :storm_start, [sleeper, 100_000]) == :ok
      eventually(fn -> waiting(sleeper) > 80 end, @deadline)
      stands_still(library)
      assert waiting(sleeper) < 80 + 40
      assert {:ok, 1} = Isolation.call(library, :echo, [1])
      send(sleeper, :empty)
      sent = call!(library, :stormed, [])
      eventually(fn -> call!(library, :stormed, []) > sent + 200 end, @deadline)
      call!(library, :storm_stop, [])
    end

    test "in what copies of a fun take" do
      library = load!(:services, max_mailbox_bytes: 8_000_000)
      sleeper = sleeper()
      large = Enum.to_list(1..50_000)
      # A few bytes of each message, and 800 kB of the VM's memory.
      fun = fn -> length(large) end

      sending = Task.async(fn -> call!(library, :send_many, [sleeper, fun, 500]) end)
      # No more go than are counted before somebody looks.
      eventually(fn -> waiting(sleeper) > 2 end, @deadline)
      Process.sleep(200)
      assert waiting(sleeper) < 100
      send(sleeper, :empty)
      assert Task.await(sending, @deadline) == 500
    end

    test "of a port, in bytes that it does not get rid of" do
      library = load!(:services, port_command: true, max_mailbox_bytes: 4_000_000)
      port = Port.open({:spawn_executable, "/bin/sleep"}, [:binary, args: ["1000"]])
      {:os_pid, os_pid} = Port.info(port, :os_pid)
      on_exit(fn -> System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) end)
      Process.unlink(port)
      data = [:binary.copy("x", 300_000), List.duplicate(?y, 100_000)]
      sending = Task.async(fn -> for _ <- 1..100, do: call!(library, :command, [port, data]) end)

      queued = fn ->
        {:queue_size, bytes} = :erlang.port_info(port, :queue_size)
        bytes
      end

      log =
        capture_log(fn ->
          eventually(fn -> queued.() > 4_000_000 end, @deadline)
          refute Task.yield(sending, 300)
          # And what goes before somebody looks.
          assert queued.() < 4_000_000 + 2_000_000
          signal(os_pid)
          # The others find it closed.
          answers = Task.await(sending, @deadline)
          assert Enum.count(answers, & &1) < 20
        end)

      assert log =~ "#{inspect(port)} has more waiting than max_mailbox_bytes: allows"
    end

    test "of the caller does not hold up its own call" do
      library = load!(:services, max_mailbox: 1_000)
      # More than are counted before somebody looks.
      assert call!(library, :send_many, [self(), :x, 3_500]) == 3_500
      assert length(messages()) == 3_500
      {pid, _} = spawn_monitor(fn -> exit(call!(library, :send_many, [self(), :x, 2_000_000])) end)
      assert_receive {:DOWN, _, :process, ^pid, {%Snakepit.Isolation.Error{}, _}}, @deadline
      assert call!(library, :echo, [1]) == 1
    end

    test "and a worker that is killed meanwhile, which is replaced" do
      library = load!(:services, max_mailbox: 1_000)
      sleeper = sleeper()
      assert call!(library, :storm_start, [sleeper, 10]) == :ok
      stands_still(library)
      old = os_pid(library)
      signal(old)
      successor(library, old)
      assert call!(library, :send_many, [self(), :x, 100]) == 100
      assert length(messages()) == 100
    end

    # The library waits in enif_send.
    defp stands_still(library) do
      eventually(
        fn ->
          before = call!(library, :stormed, [])
          Process.sleep(100)
          before > 0 and call!(library, :stormed, []) == before
        end,
        @deadline
      )
    end
  end

  test "a storm from a worker that is killed in the middle, again and again" do
    library = load!(:services, workers: 2, max_restarts: :infinity, max_mailbox: :infinity)
    sleeper = sleeper()
    send(sleeper, :empty)

    for _ <- 1..10 do
      {:ok, :ok} = Isolation.call(library, :storm_start, [sleeper, 1_000], timeout: @deadline)
      for n <- 1..2, os_pid = os_pid(library, n), do: System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true)
      for _ <- 1..20, do: Isolation.call(library, :send_many, [self(), :x, 10], timeout: @deadline)
      ready(library)
    end

    assert call!(library, :echo, [1]) == 1
    assert Process.alive?(sleeper)
  end

  test "the names of the dead make room before one of the living does" do
    library = load!(:services, max_names: 4_096)
    living = for _ <- 1..1_500, do: sleeper()
    assert call!(library, :keep, [living]) == :ok
    # The caller and the test's own processes have places too: the table is full, and the living came first.
    dead = for _ <- 1..2_590, do: spawn_monitor(fn -> :ok end)
    for {_, monitor} <- dead, do: assert_receive({:DOWN, ^monitor, _, _, _}, @deadline)
    assert length(call!(library, :echo, [for({pid, _} <- dead, do: pid)])) == 2_590
    for _ <- 1..2_000, do: assert(Task.await(Task.async(fn -> call!(library, :echo, [self()]) end)) |> is_pid())
    assert call!(library, :kept, []) == living
  end

  describe "references" do
    test "are made, and are the VM's" do
      library = load!(:services)
      refs = for _ <- 1..10, ref <- call!(library, :make_refs, [100]), do: ref
      assert Enum.all?(refs, &is_reference/1)
      assert length(Enum.uniq(refs)) == 1_000
      [ref | _] = refs
      assert call!(library, :echo, [ref]) == ref
    end

    test "do not fill the table, however many are made" do
      # The worker makes and drops some at a time, and what is dropped during a call leaves after it.
      library = load!(:services, max_names: 512)
      for _ <- 1..200, do: assert(length(call!(library, :make_refs, [32])) == 32)
    end

    test "do not fill the table while a call goes on that has none of them" do
      library = load!(:services, max_names: 128, concurrency: 2)
      long = Isolation.call_async(library, :sleep, [2_000], timeout: @deadline)
      begun(library, 1)
      for _ <- 1..100, do: assert(length(call!(library, :make_refs, [16])) == 16)
      # It was still there.
      assert info!(library).in_flight == 1
      assert {:ok, :ok} = Isolation.await(long)
    end

    test "outlive their call when they are kept, and come back" do
      library = load!(:services, max_names: 128)

      for _ <- 1..300 do
        term = {make_ref(), fn -> 7 end, self()}
        assert call!(library, :keep, [term]) == :ok
        for _ <- 1..3, do: assert(call!(library, :kept, []) == term)
      end

      ref = call!(library, :make_and_keep, [])
      for _ <- 1..3, do: assert(call!(library, :kept, []) == ref)
      assert call!(library, :drop, []) == :ok
      assert call!(library, :kept, []) == :undefined
      # Nothing of all that is left.
      assert length(call!(library, :echo, [for(_ <- 1..60, do: make_ref())])) == 60
    end

    test "are kept while other calls run" do
      library = load!(:services, concurrency: 4)

      callers =
        for _ <- 1..4 do
          Task.async(fn ->
            for n <- 1..300 do
              assert {:ok, [_, _]} = Isolation.call(library, :make_refs, [2], timeout: @deadline)
              assert {:ok, {^n, ref}} = Isolation.call(library, :echo, [{n, make_ref()}], timeout: @deadline)
              assert is_reference(ref)
            end
          end)
        end

      Task.await_many(callers, 60_000)
    end
  end

  describe "watched processes" do
    test "end, and the library is told" do
      library = load!(:services)
      pids = for _ <- 1..50, do: sleeper()
      watches = for pid <- pids, _ <- 1..2, do: call!(library, :watch, [pid, self()])
      for pid <- pids, do: Process.exit(pid, :kill)
      for pid <- pids, _ <- 1..2, do: assert_receive({:ended, ^pid, true}, @deadline)
      for watch <- watches, do: assert(call!(library, :unwatch, [watch]) == false)
      assert messages() == []
    end

    test "that have ended already, or are not watched any more" do
      library = load!(:services)
      {dead, monitor} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^monitor, _, _, _}
      assert call!(library, :watch, [dead, self()]) == false
      pid = sleeper()
      watch = call!(library, :watch, [pid, self()])
      assert call!(library, :unwatch, [watch]) == true
      eventually(fn -> Process.info(pid, :monitored_by) == {:monitored_by, []} end)
      Process.exit(pid, :kill)
      assert is_reference(call!(library, :echo, [watch]))
      assert messages() == []
    end

    test "are watched no longer than the library lives" do
      library = load!(:services)
      pid = sleeper()
      assert is_reference(call!(library, :watch, [pid, self()]))
      assert {:monitored_by, [_]} = Process.info(pid, :monitored_by)
      Isolation.unload(library)
      assert {:monitored_by, []} = Process.info(pid, :monitored_by)
    end

    test "live, or do not" do
      library = load!(:services)
      pid = sleeper()
      port = port()
      assert call!(library, :alive, [pid]) == true
      assert call!(library, :alive, [port]) == true
      Process.exit(pid, :kill)
      Port.close(port)
      eventually(fn -> not Process.alive?(pid) end)
      assert call!(library, :alive, [pid]) == false
      assert call!(library, :alive, [port]) == false
    end
  end

  test "ports get iodata and nothing else, of which nothing is logged" do
    library = load!(:services, port_command: true)
    port = port()

    log =
      capture_log(fn ->
        for term <- [:atom, [1, 256], ["x" | 1], {:large, List.duplicate(1, 100_000)}],
            do: assert(call!(library, :command, [port, term]) == false)
      end)

    assert log == ""
    assert call!(library, :command, [port, ["a", [?b | "c"]]]) == true
    assert_receive {^port, {:data, "abc"}}, @deadline
  end

  describe "without a grant" do
    test "names are not looked up, and ports get nothing, which is said once" do
      library = load!(:services, workers: 2)
      port = port()

      log =
        capture_log(fn ->
          for _ <- 1..20 do
            assert call!(library, :whereis, [:init]) == :undefined
            assert call!(library, :command, [port, "x"]) == false
          end

          eventually(fn -> :ets.match(library.table, {{:denied, :"$1"}, true}) |> length() == 2 end)
        end)

      assert [_, _] = String.split(log, "enif_whereis_pid was refused")
      assert [_, _] = String.split(log, "enif_port_command was refused")
      assert log =~ "port_command: true"
      refute_receive {^port, _}, 20
    end
  end

  describe "with a grant" do
    test "of names, those are looked up and no others" do
      library = load!(:services, whereis: [:init, :nobody_is_that])
      assert call!(library, :whereis, [:init]) == Process.whereis(:init)
      assert call!(library, :whereis, [:nobody_is_that]) == :undefined
      assert call!(library, :whereis, [:kernel_sup]) == :undefined
      everybody = load!(:services, whereis: :all)
      assert call!(everybody, :whereis, [:kernel_sup]) == Process.whereis(:kernel_sup)
      assert call!(everybody, :whereis, [:"näme ∀"]) == :undefined
      Process.register(self(), :"näme ∀")
      assert call!(everybody, :whereis, [:"näme ∀"]) == self()
      port = port()
      Process.register(port, :a_port)
      assert call!(everybody, :whereis_port, [:a_port]) == true
      assert call!(everybody, :whereis_port, [:kernel_sup]) == :undefined
      assert call!(everybody, :whereis, [:a_port]) == :undefined
    end

    test "of ports, they are sent to" do
      library = load!(:services, port_command: true)
      port = port()
      assert call!(library, :command, [port, ["all ", [?o, "f"], " it"]]) == true
      assert_receive {^port, {:data, "all of it"}}, @deadline
      Port.close(port)
      assert call!(library, :command, [port, "x"]) == false
    end
  end

  test "atoms exist when they do in the VM" do
    library = load!(:services, workers: 2)
    existing = &call!(library, :existing, [&1])
    assert existing.('only in the' ++ ' VM') == :"only in the VM"

    # Not made by asking, and there as soon as the VM has it.
    name = "made later #{System.unique_integer([:positive])}"
    for _ <- 1..4, do: assert(existing.(to_charlist(name)) == 0)
    assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    atom = String.to_atom(name)
    for _ <- 1..4, do: assert(existing.(to_charlist(name)) == atom)
  end

  test "integers that are unique" do
    library = load!(:services)
    integers = for n <- 1..200, do: call!(library, :unique, [rem(n, 4)])
    assert Enum.all?(integers, &is_integer/1)
    assert length(Enum.uniq(integers)) == 200
    assert call!(library, :unique, [1]) > 0
    monotonic = for _ <- 1..50, do: call!(library, :unique, [2])
    assert monotonic == Enum.sort(monotonic)
  end

  test "what comes of a message is the same in the VM" do
    module = NativeFixture.load_into_vm(:services)
    library = load!(:services)

    for run <- [&apply(module, &1, &2), &call!(library, &1, &2)] do
      assert run.(:send, [self(), {:a, 1}]) == true
      assert messages() == [{:a, 1}]
      assert run.(:send_many, [self(), "x", 3]) == 3
      assert messages() == [{1, "x"}, {2, "x"}, {3, "x"}]
      pid = spawn(fn -> Process.sleep(:infinity) end)
      watch = run.(:watch, [pid, self()])
      Process.exit(pid, :kill)
      assert_receive {:ended, ^pid, true}, @deadline
      assert run.(:unwatch, [watch]) == false
      assert run.(:alive, [pid]) == false
      assert_raise_or_error(fn -> run.(:send, [:no_pid, 1]) end)
    end
  end

  defp assert_raise_or_error(fun) do
    fun.()
    flunk("it went well")
  rescue
    _ in [ArgumentError, Error] -> :ok
  end
end
