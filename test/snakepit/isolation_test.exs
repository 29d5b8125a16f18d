defmodule Snakepit.IsolationTest do
  use Snakepit.IsolationCase, async: false

  describe "loading" do
    test "gives the module and the functions that the library has; unload ends its process" do
      library = load!(:adder)
      assert library.module == :snakepit_adder
      assert Enum.sort(library.functions) == Enum.sort(NativeFixture.functions(:adder))
      assert library in Isolation.list()

      os_pid = os_pid(library)
      assert {:ok, ^os_pid} = Isolation.call(library, :os_pid, [])
      assert :ok = Isolation.unload(library)
      refute alive?(os_pid)
      refute library in Isolation.list()

      assert {:error, %Error{reason: :not_loaded} = error} = Isolation.call(library, :add, [1, 2])
      assert Exception.message(error) =~ "unloaded"
      assert {:error, %Error{reason: :not_loaded}} = Isolation.unload(library)
      assert {:error, %Error{reason: :not_loaded}} = Isolation.info(library)
    end

    test "without sandbox: :none it is not loaded, and the error says so" do
      for options <- [[], [sandbox: :strict]] do
        assert {:error, %Error{reason: :not_loaded} = error} = Isolation.load(NativeFixture.path(:adder), options)
        assert Exception.message(error) =~ "Pass sandbox: :none"
      end
    end

    test "the load callback gets load_info" do
      library = load!(:adder, load_info: 42)
      assert {:ok, 42} = Isolation.call(library, :load_info, [])
    end

    test "a path as a charlist, and one inside an application" do
      assert {:ok, library} = Isolation.load(to_charlist(NativeFixture.path(:adder)), sandbox: :none)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])

      directory = Application.app_dir(:snakepit_shm)
      relative = Path.join("..", "adder-#{System.unique_integer([:positive])}")
      copy = Path.expand(relative <> ".so", directory)
      File.cp!(NativeFixture.path(:adder) <> ".so", copy)
      on_exit(fn -> File.rm(copy) end)
      assert {:ok, library} = Isolation.load({:snakepit_shm, relative}, sandbox: :none)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    end

    test "a library with a name is called by it; a name belongs to one" do
      library = load!(:adder, name: :adder_by_name)
      assert {:ok, 3} = Isolation.call(:adder_by_name, :add, [1, 2])
      assert {:ok, %{name: :adder_by_name}} = Isolation.info(:adder_by_name)

      assert %Error{reason: :not_loaded} = error = refused(:adder, name: :adder_by_name)
      assert Exception.message(error) =~ "already"

      assert :ok = Isolation.unload(:adder_by_name)
      assert {:error, %Error{reason: :not_loaded}} = Isolation.call(:adder_by_name, :add, [1, 2])
      assert {:error, %Error{reason: :not_loaded}} = Isolation.call(library, :add, [1, 2])
    end

    test "by its id too, and an unknown one is not loaded" do
      library = load!(:adder)
      assert {:ok, 3} = Isolation.call(library.id, :add, [1, 2])
      assert {:error, %Error{reason: :not_loaded}} = Isolation.call("nobody", :add, [1, 2])
      assert {:error, %Error{reason: :invalid_option}} = Isolation.call(17, :add, [1, 2])
    end

    test "whoever has it loaded and dies before it is leaves nothing" do
      path = NativeFixture.path(:constructor_hang)
      pid = spawn(fn -> Isolation.load(path, sandbox: :none, load_timeout: 60_000) end)
      [os_pid] = eventually(fn -> with([] <- children(Warden.os_pid()), do: nil) end)
      Process.exit(pid, :kill)
      gone(os_pid)
    end

    test "two of one library do not share anything" do
      [one, two] = [load!(:adder), load!(:adder)]
      assert {:ok, 1} = Isolation.call(one, :count, [])
      assert {:ok, 2} = Isolation.call(one, :count, [])
      assert {:ok, 1} = Isolation.call(two, :count, [])
    end
  end

  describe "in a supervision tree" do
    test "starts with it, is called by its name, ends with it" do
      options = [name: :supervised_adder, path: NativeFixture.path(:adder), sandbox: :none, workers: 2]
      {:ok, supervisor} = Supervisor.start_link([{Isolation, options}], strategy: :one_for_one)
      assert {:ok, 3} = Isolation.call(:supervised_adder, :add, [1, 2])
      os_pids = for n <- 1..2, do: os_pid(:supervised_adder, n)

      assert {:error, %Error{reason: :invalid_option} = error} = Isolation.unload(:supervised_adder)
      assert Exception.message(error) =~ "supervision tree"

      Supervisor.stop(supervisor)
      refute Enum.any?(os_pids, &alive?/1)
    end

    test "a library that cannot be loaded does not start" do
      Process.flag(:trap_exit, true)
      options = [path: NativeFixture.path(:no_init), sandbox: :none]
      assert {:error, %Error{reason: :not_loaded}} = Isolation.start_link(options)
      assert {:error, %Error{reason: :not_loaded}} = Isolation.start_link(path: "/nowhere", sandbox: :none)
      assert {:error, %Error{reason: :invalid_option}} = Isolation.start_link(sandbox: :none)
      assert {:error, _} = Supervisor.start_link([{Isolation, options}], strategy: :one_for_one)
      eventually(fn -> children(Warden.os_pid()) == [] end)
    end

    test "one whose supervisor has started it again is found by those who have the old one" do
      options = [name: :again_adder, path: NativeFixture.path(:adder), sandbox: :none]
      {:ok, supervisor} = Supervisor.start_link([{Isolation, options}], strategy: :one_for_one)
      [old] = Isolation.list()
      [{id, _, _, _}] = Supervisor.which_children(supervisor)
      :ok = Supervisor.terminate_child(supervisor, id)
      {:ok, _} = Supervisor.restart_child(supervisor, id)
      assert {:ok, 3} = Isolation.call(old, :add, [1, 2])
      assert {:ok, [ok: 3]} = Isolation.call_many(old, :add, [[1, 2]])
      Supervisor.stop(supervisor)
    end
  end

  describe "calls" do
    @terms [
      0,
      -1,
      1.5,
      -0.0,
      123_456_789_012_345_678_901_234_567_890,
      -(2 ** 300),
      :atom,
      :grüße,
      nil,
      "",
      "binary",
      <<1::3>>,
      [],
      [1 | 2],
      'charlist',
      {},
      {1, {2, {3}}},
      %{},
      %{"a" => [1, %{b: 2.0}], {1} => :c}
    ]

    test "take and give any term" do
      library = load!(:adder)
      for term <- @terms, do: assert({:ok, ^term} = Isolation.call(library, :echo, [term]))

      big = %{list: Enum.to_list(1..10_000), map: Map.new(1..1_000, &{&1, &1}), binary: :binary.copy("x", 1_000_000)}
      assert {:ok, ^big} = Isolation.call(library, :echo, [big])
    end

    test "local pids, ports, references and funs come back as what they were" do
      library = load!(:adder)
      [port | _] = Port.list()
      fun = fn x -> x + 1 end
      name = {self(), make_ref(), port, fun, [self(), self()]}
      assert {:ok, ^name} = Isolation.call(library, :echo, [name])
      assert {:ok, pid} = Isolation.call(library, :caller, [])
      assert pid == self()
    end

    test "are of functions that it has, with options that there are" do
      library = load!(:adder)
      assert {:error, %Error{reason: :undefined_function} = error} = Isolation.call(library, :ad, [1, 2])
      assert Exception.message(error) =~ "add/2"
      assert {:error, %Error{reason: :undefined_function}} = Isolation.call(library, :add, [1])

      for bad <- [[timeout: -1], [timeout: "x"], [tiemout: 1], :x, [timeout: 1, timeout: 2]] do
        assert {:error, %Error{reason: :invalid_option, details: %{got: ^bad}}} =
                 Isolation.call(library, :add, [1, 2], bad)
      end

      assert {:error, %Error{reason: :invalid_option}} = Isolation.call(library, "add", [1, 2])
      assert {:error, %Error{reason: :invalid_option}} = Isolation.call(library, :add, {1, 2})
      assert {:error, %Error{reason: :invalid_option}} = Isolation.call(library, :add, 1)
    end

    test "that raise give the exception; call! raises the error" do
      library = load!(:adder)

      assert {:error, %Error{reason: :raised, exception: {:bad, 1}, function: {:raise, 1}}} =
               Isolation.call(library, :raise, [{:bad, 1}])

      assert {:error, %Error{reason: :raised, exception: :stays}} = Isolation.call(library, :raise_and_return, [:stays])
      assert {:error, %Error{reason: :raised, exception: :badarg}} = Isolation.call(library, :add, [1, :two])
      assert 3 = Isolation.call!(library, :add, [1, 2])
      assert_raise Error, ~r/raised :badarg/, fn -> Isolation.call!(library, :badarg, []) end
    end

    test "work for many callers at a time, each with its own answers" do
      library = load!(:adder, workers: 2, concurrency: 2)

      tasks =
        for n <- 1..40 do
          Task.async(fn ->
            for i <- 1..50 do
              {:ok, {^n, ^i}} = Isolation.call(library, :echo, [{n, i}])
            end
          end)
        end

      Enum.each(tasks, &Task.await(&1, 60_000))
      assert info!(library).in_flight == 0
    end

    test "a short one overtakes a long one" do
      library = load!(:adder, concurrency: 2)
      long = call_in_process(library, :sleep_forever, [], timeout: :infinity)
      begun(library, 1)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
      refute_received {^long, _}
    end

    test "run at the same time, as many as concurrency: says" do
      library = load!(:adder, concurrency: 3)
      calls = for _ <- 1..3, do: Isolation.call_async(library, :together, [300])
      assert Enum.map(calls, &Isolation.await/1) |> Enum.map(&elem(&1, 1)) |> Enum.max() > 1
      single = load!(:adder)
      calls = for _ <- 1..3, do: Isolation.call_async(single, :together, [5])
      assert [{:ok, 1}, {:ok, 1}, {:ok, 1}] = Enum.map(calls, &Isolation.await/1)
    end

    test "go to the least busy worker" do
      library = load!(:adder, workers: 2)
      call_in_process(library, :sleep_forever, [], timeout: :infinity)
      begun(library, 1)
      for _ <- 1..100, do: assert({:ok, 3} = Isolation.call(library, :add, [1, 2]))
    end

    test "work inside handle_call of a busy server" do
      library = load!(:adder)

      defmodule Server do
        use GenServer
        def init(library), do: {:ok, library}
        def handle_call({a, b}, _from, library), do: {:reply, Isolation.call(library, :add, [a, b]), library}
        def handle_info(_, library), do: {:noreply, library}
      end

      {:ok, server} = GenServer.start_link(Server, library)
      :ok = :sys.suspend(server)
      for n <- 1..10_000, do: send(server, {:noise, n})
      tasks = for n <- 1..20, do: Task.async(fn -> {n, GenServer.call(server, {n, n}, 30_000)} end)
      :ok = :sys.resume(server)
      for task <- tasks, {n, result} = Task.await(task, 30_000), do: assert({:ok, n + n} == result)
      GenServer.stop(server)
    end

    test "rescheduled, with resources, and with binaries of one's own" do
      library = load!(:adder)
      assert {:ok, {25, :kept}} = Isolation.call(library, :reschedule, [25, :kept])
      {:ok, cell} = Isolation.call(library, :cell_new, [7])
      assert {:ok, 7} = Isolation.call(library, :cell_get, [cell])
      assert {:ok, _} = Isolation.call(library, :cell_put, [cell, 8])
      assert {:ok, 8} = Isolation.call(library, :cell_get, [cell])
      assert {:ok, "xxxx"} = Isolation.call(library, :fill, [4, ?x])
      assert {:ok, {6, 6}} = Isolation.call(library, :sum, [[<<1, 1>>, [1 | <<1, 1, 1>>]]])
    end

    test "an object finds its worker, whichever is the least busy" do
      library = load!(:adder, workers: 2)
      [{:ok, one}, {:ok, two}] = for n <- 1..2, do: Isolation.call(library, :cell_new, [n])
      call_in_process(library, :sleep, [200], timeout: :infinity)

      for _ <- 1..20 do
        assert {:ok, 1} = Isolation.call(library, :cell_get, [one])
        assert {:ok, 2} = Isolation.call(library, :cell_get, [two])
      end
    end

    test "what is larger than the bounds is refused, and the worker lives on" do
      library = load!(:adder, spill_size: 65_536, slot_size: 1_024)
      os_pid = os_pid(library)
      fits = :binary.copy("x", 60_000)
      assert {:ok, ^fits} = Isolation.call(library, :echo, [fits])

      for {function, arguments} <- [echo: [:binary.copy("x", 100_000)], fill: [100_000, 1], fill: [50_000_000, 1]] do
        assert {:error, %Error{reason: :quota_exceeded} = error} = Isolation.call(library, function, arguments)
        assert Exception.message(error) =~ "spill_size"
      end

      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
      assert os_pid == os_pid(library)
    end

    test "large ones at the same time wait for each other's memory" do
      library = load!(:adder, spill_size: 1_048_576, concurrency: 2)
      data = :binary.copy("x", 600_000)
      tasks = for _ <- 1..10, do: Task.async(fn -> Isolation.call(library, :size, [data], timeout: 60_000) end)
      for task <- tasks, do: assert({:ok, 600_000} = Task.await(task, 60_000))
    end

    test "with more names than a worker may know at a time" do
      library = load!(:adder, max_names: 64)
      many = for _ <- 1..100, do: make_ref()
      assert {:error, %Error{reason: :quota_exceeded} = error} = Isolation.call(library, :echo, [many])
      assert Exception.message(error) =~ "max_names"
      few = Enum.take(many, 20)
      for _ <- 1..20, do: assert({:ok, ^few} = Isolation.call(library, :echo, [few]))
    end

    test "an object of a worker that has gone is stale" do
      library = load!(:adder)
      {:ok, cell} = Isolation.call(library, :cell_new, [7])
      old = os_pid(library)
      signal(old)
      successor(library, old)
      assert {:error, %Error{reason: :stale}} = Isolation.call(library, :cell_get, [cell])
    end

    test "an object is released when nobody has it any more" do
      library = load!(:adder)

      pid =
        spawn(fn ->
          for n <- 1..10, do: Isolation.call(library, :cell_new, [n])
        end)

      monitor = Process.monitor(pid)
      assert_receive {:DOWN, ^monitor, _, _, _}, 10_000
      eventually(fn -> Isolation.call(library, :cells, []) == {:ok, 0} end)
    end
  end

  describe "asynchronous calls" do
    test "are awaited, in any order, without messages or processes in between" do
      library = load!(:adder, workers: 2)
      processes = length(Process.list())
      calls = for n <- 1..20, do: {n, Isolation.call_async(library, :add, [n, 1])}
      assert length(Process.list()) <= processes
      for {n, call} <- Enum.reverse(calls), do: assert({:ok, n + 1} == Isolation.await(call))
      assert_no_messages()
    end

    test "have a deadline that runs from the start" do
      library = load!(:adder)
      call = Isolation.call_async(library, :sleep_forever, [], timeout: 50)
      assert {:error, %Error{reason: :timeout}} = Isolation.await(call)
      assert_no_messages()
      call = Isolation.call_async(library, :sleep_forever, [])
      assert {:error, %Error{reason: :timeout}} = Isolation.await(call, 20)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    end

    test "one that is thrown away leaves no slot taken" do
      library = load!(:adder, slots: 1)

      for _ <- 1..10 do
        {pid, monitor} = spawn_monitor(fn -> Isolation.call_async(library, :add, [1, 2]) end)
        assert_receive {:DOWN, ^monitor, _, ^pid, :normal}, 10_000
        assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
      end
    end

    test "are awaited by those who made them" do
      library = load!(:adder)
      me = self()
      spawn_link(fn -> send(me, Isolation.call_async(library, :add, [1, 2])) end)
      assert_receive %Isolation.Async{} = call
      assert_raise ArgumentError, ~r/awaited by the process that made it/, fn -> Isolation.await(call) end
    end

    test "errors come when it is awaited" do
      assert {:error, %Error{reason: :not_loaded}} = Isolation.await(Isolation.call_async(:nobody, :add, [1, 2]))
      library = load!(:adder)
      assert {:error, %Error{reason: :undefined_function}} = Isolation.await(Isolation.call_async(library, :no, []))
      assert {:error, %Error{reason: :raised}} = Isolation.await(Isolation.call_async(library, :badarg, []))
    end
  end

  describe "many calls" do
    test "give their results in order, more than there are slots" do
      library = load!(:adder, workers: 2, slots: 16)
      lists = for n <- 1..5_000, do: [n, 1]
      {:ok, results} = Isolation.call_many(library, :add, lists)
      assert results == for(n <- 1..5_000, do: {:ok, n + 1})
      assert {:ok, []} = Isolation.call_many(library, :add, [])
      assert_no_messages()
    end

    test "each has its own outcome" do
      library = load!(:adder)

      assert {:ok, [{:ok, 3}, {:error, %Error{reason: :raised, exception: :badarg}}, {:ok, 5}]} =
               Isolation.call_many(library, :add, [[1, 2], [1, :two], [2, 3]])

      assert {:error, %Error{reason: :undefined_function}} = Isolation.call_many(library, :add, [[1], [2]])
      assert {:error, %Error{reason: :invalid_option}} = Isolation.call_many(library, :add, [[1, 2], [2]])
      assert {:error, %Error{reason: :invalid_option}} = Isolation.call_many(library, :add, [:x])
    end

    test "large results come in order among small ones" do
      library = load!(:adder)
      sizes = for n <- 1..200, do: if(rem(n, 3) == 0, do: 100_000 + n, else: n)
      {:ok, results} = Isolation.call_many(library, :fill, for(size <- sizes, do: [size, 7]))
      assert for({:ok, bytes} <- results, do: byte_size(bytes)) == sizes
      assert_no_messages()
    end

    test "results that do not all have room at a time are waited for, and none is lost" do
      library = load!(:adder, workers: 1, spill_size: 4 * 1024 * 1024)
      lists = List.duplicate([1_000_000, 7], 60)
      {:ok, results} = Isolation.call_many(library, :fill, lists, timeout: 60_000)
      assert for({:ok, bytes} <- results, do: byte_size(bytes)) == List.duplicate(1_000_000, 60)
      assert {:error, %Error{reason: :quota_exceeded}} = Isolation.call(library, :fill, [5_000_000, 7])
      assert_no_messages()
    end

    test "large results that have come when the deadline passes are given" do
      library = load!(:adder, workers: 1)
      lists = List.duplicate([1_000_000, 7], 25)
      {:ok, results} = Isolation.call_many(library, :fill, lists, timeout: 5)
      assert length(results) == 25

      for result <- results do
        case result do
          {:ok, bytes} -> assert byte_size(bytes) == 1_000_000
          {:error, %Error{reason: reason}} -> assert reason in [:timeout, :crashed]
        end
      end

      assert_no_messages()
    end

    test "get the slot of a call whose caller has died, without a deadline too" do
      library = load!(:adder, slots: 1)

      for _ <- 1..10 do
        pid = call_in_process(library, :sleep, [20], timeout: :infinity)
        begun(library, 1)
        spawn(fn -> Process.sleep(5) && kill(pid) end)
        assert {:ok, [ok: 3, ok: 5]} = Isolation.call_many(library, :add, [[1, 2], [2, 3]], timeout: :infinity)
      end

      assert_no_messages()
    end

    test "are :overloaded when too many callers wait for a slot" do
      library = load!(:adder, slots: 1, max_waiting: 1)
      call_in_process(library, :sleep_forever, [], timeout: :infinity)
      begun(library, 1)
      call_in_process(library, :add, [1, 2], timeout: :infinity)
      eventually(fn -> info!(library).waiting == 1 end)
      {:ok, results} = Isolation.call_many(library, :add, [[1, 2], [2, 3]], timeout: :infinity)
      assert [{:error, %Error{reason: :overloaded}}, {:error, %Error{reason: :overloaded} = error}] = results
      assert Exception.message(error) =~ "max_waiting"
    end

    test "wait without spinning when only the memory for arguments is full" do
      library = load!(:adder, slot_size: 4_096, spill_size: 65_536)
      large = :binary.copy("x", 50_000)
      call_in_process(library, :sleep, [400], timeout: :infinity)
      begun(library, 1)
      call_in_process(library, :size, [large], timeout: :infinity)
      eventually(fn -> info!(library).in_flight == 2 end)
      {:reductions, before} = Process.info(self(), :reductions)
      assert {:ok, [ok: _, ok: _]} = Isolation.call_many(library, :size, [[large], [large]], timeout: :infinity)
      {:reductions, later} = Process.info(self(), :reductions)
      assert later - before < 400_000
    end

    test "have one deadline; what hangs is killed" do
      library = load!(:adder)
      old = os_pid(library)
      {:ok, results} = Isolation.call_many(library, :sleep_forever, [[], [], []], timeout: 100)
      assert length(results) == 3
      for result <- results, do: assert({:error, %Error{reason: :timeout}} = result)
      successor(library, old)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
      assert_no_messages()
    end

    test "those that a dead worker had not begun are made by another" do
      library = load!(:adder, workers: 1)
      old = os_pid(library)
      test = self()

      spawn(fn ->
        send(test, {:results, Isolation.call_many(library, :spin, List.duplicate([2_000], 500), timeout: 60_000)})
      end)

      begun(library, 1)
      signal(old)
      assert_receive {:results, {:ok, results}}, 60_000
      assert length(results) == 500
      {crashed, done} = Enum.split_with(results, &match?({:error, _}, &1))
      # The one that it was at, if it was at one.
      assert length(crashed) <= 1
      for error <- crashed, do: assert({:error, %Error{reason: :crashed, signal: :SIGKILL}} = error)
      assert Enum.all?(done, &(&1 == {:ok, :ok}))
    end
  end

  test "info tells what there is" do
    library = load!(:adder, workers: 2, name: :told)
    {:ok, 3} = Isolation.call(library, :add, [1, 2])

    assert %{
             id: :told,
             name: :told,
             module: :snakepit_adder,
             state: :ready,
             error: nil,
             calls: 1,
             in_flight: 0,
             waiting: 0,
             missing: [],
             workers: [%{position: 1, state: :ready, restarts: 0, hung: 0}, %{position: 2}]
           } = info = Isolation.info(library) |> elem(1)

    assert info.path == NativeFixture.path(:adder)
    assert info.warden == Warden.os_pid()
    assert Enum.sort(children(info.warden)) == Enum.sort(for w <- info.workers, do: w.os_pid)
    for worker <- info.workers, do: assert(worker.heartbeat_age >= 0)
  end

  test "a worker says how many objects of its library are alive" do
    library = load!(:adder)
    {:ok, kept} = Isolation.call(library, :cell_new, [0])
    spawn_link(fn -> for n <- 1..5, do: {:ok, _} = Isolation.call(library, :cell_new, [n]) end)
    # The next heartbeats.
    eventually(fn -> worker(library).calls == 6 and worker(library).objects == 1 end, 20_000)
    assert {:ok, 0} = Isolation.call(library, :cell_get, [kept])
  end

  test "functions that the library imports and we do not have are told once, and fail the call that needs them" do
    log = ExUnit.CaptureLog.capture_log(fn -> send(self(), load!(:unimplemented, workers: 2)) end)
    assert_received library
    assert [_] = Regex.scan(~r/enif_of_tomorrow/, log)
    assert "enif_of_tomorrow" in info!(library).missing
    assert {:ok, _} = Isolation.call(library, :fine, [])
    assert {:error, %Error{reason: :not_implemented} = error} = Isolation.call(library, :hash, [])
    assert Exception.message(error) =~ "enif_hash"
    assert {:ok, _} = Isolation.call(library, :fine, [])
  end
end
