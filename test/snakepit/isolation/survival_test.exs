defmodule Snakepit.Isolation.SurvivalTest do
  # Each of our own processes can be killed at any time; so can the warden.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.Isolation.Directory

  test "the Pool: those who wait for a worker ask its successor" do
    library = load!(:adder)
    old = os_pid(library)
    signal(old, "STOP")
    pool = Library.lookup(library.table, :pool)
    kill(pool)
    signal(old)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 30_000)
    assert Library.lookup(library.table, :pool) != pool
    assert library in Isolation.list()
  end

  test "the Worker: its process ends, its callers are told, its successor goes on" do
    library = load!(:adder)
    old = os_pid(library)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    kill(server(library))
    assert {:error, %Error{reason: :crashed}} = result_of(call)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone(old)
    assert successor(library, old)
  end

  test "the doorbell: callers that sleep are woken by its successor" do
    library = load!(:adder)

    for _ <- 1..20 do
      call = call_in_process(library, :sleep, [20], timeout: :infinity)
      begun(library, 1)
      {:links, links} = Process.info(server(library), :links)
      doorbell = Enum.find(links, &(is_pid(&1) and Process.info(&1, :priority) == {:priority, :high}))
      Process.exit(doorbell, :kill)
      assert {:ok, :ok} = result_of(call)
    end
  end

  test "our side of the warden: workers end and are started by the next one" do
    library = load!(:adder, workers: 2)
    warden = Warden.os_pid()
    old = for n <- 1..2, do: os_pid(library, n)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    kill(Process.whereis(Warden))
    assert {:error, %Error{reason: :crashed}} = result_of(call)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone([warden | old])
    ready(library)
    assert Warden.os_pid() != warden
  end

  test "Worker and Warden, and neither has done anything about the other: nobody waits for ever, nothing is executed twice" do
    library = load!(:adder, slots: 2)
    path = Path.join(temporary_directory("notes"), "notes")
    old = os_pid(library)
    begun = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    queued = call_in_process(library, :note, [path, "queued"], timeout: :infinity)
    in_flight(library, 2)
    without_slot = call_in_process(library, :add, [1, 2], timeout: :infinity)
    eventually(fn -> info!(library).waiting == 1 end)
    pids = [server(library), Process.whereis(Warden)]
    Enum.each(pids, &:sys.suspend/1)
    Enum.each(pids, &kill/1)

    for call <- [begun, queued] do
      assert {:error, %Error{reason: :not_loaded, details: %{because: :abandoned}} = error} = result_of(call)
      assert Exception.message(error) =~ "were killed"
    end

    assert result_of(without_slot) == {:ok, 3}
    gone(old)
    refute File.exists?(path)
  end

  # Whoever is suspended hears of nothing until it is killed.
  test "the Worker, after its process has ended: what it was told is not lost with it" do
    library = load!(:adder)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    server = server(library)
    :sys.suspend(server)
    signal(os_pid(library))
    told(server)
    kill(server)
    assert {:error, %Error{reason: :crashed, signal: :SIGKILL}} = result_of(call)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
  end

  test "the Worker, after the warden has ended: nobody waits for ever, nothing is executed twice" do
    library = load!(:adder, slots: 2)
    path = Path.join(temporary_directory("notes"), "notes")
    begun = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    queued = call_in_process(library, :note, [path, "queued"], timeout: :infinity)
    in_flight(library, 2)
    server = server(library)
    :sys.suspend(server)
    signal(Warden.os_pid())
    told(server)
    kill(server)

    for call <- [begun, queued],
        do: assert({:error, %Error{reason: :not_loaded, details: %{because: :abandoned}}} = result_of(call))

    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    refute File.exists?(path)
  end

  test "the Worker, and its process has ended before Warden hears of either" do
    [library, other] = for _ <- 1..2, do: load!(:adder)
    [old, of_other] = for library <- [library, other], do: os_pid(library)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    warden = Process.whereis(Warden)
    :sys.suspend(warden)
    # It hears of another process, and reads all that there is, before it hears that the owner has ended.
    signal(of_other)
    eventually(fn -> Enum.any?(messages(warden), &match?({:select, _, _, _}, &1)) end)
    server = server(library)
    kill(server)
    eventually(fn -> Enum.any?(messages(warden), &match?({:DOWN, _, _, ^server, _}, &1)) end)
    # It ends by itself, and is reaped.
    eventually(fn -> not File.exists?("/proc/#{old}") end)
    :sys.resume(warden)
    assert {:error, %Error{reason: :crashed}} = result_of(call)
    for library <- [library, other], do: assert({:ok, 3} = Isolation.call(library, :add, [1, 2]))
  end

  defp messages(pid), do: pid |> Process.info(:messages) |> elem(1)

  # Warden has told it, and has nothing to do with it any more.
  defp told(server) do
    eventually(fn -> Enum.any?(messages(server), &match?({Warden, _, _}, &1)) end)
    :sys.get_state(Warden)
  end

  test "the application's supervisor: calls without a deadline end, and the next start works" do
    {output, status} =
      SubVm.run("""
      Logger.configure(level: :none)
      alias Snakepit.Isolation

      for round <- 1..3 do
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:ok, library} = Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none, slots: 8, spin: 1_000)
        calls = fn -> Stream.repeatedly(fn -> Isolation.call(library, :sleep, [1], timeout: :infinity) end) end
        callers = for _ <- 1..20, do: Task.async(fn -> Enum.find(calls.(), &match?({:error, _}, &1)) end)
        stuck = Task.async(fn -> Isolation.call(library, :sleep_forever, [], timeout: :infinity) end)
        {:ok, %{workers: [%{calls: _}]}} = Isolation.info(library)
        {:ok, _} = Isolation.call(library, :add, [1, 2], timeout: 1) |> case do
          {:error, %{reason: reason}} when reason in [:timeout, :overloaded] -> {:ok, reason}
          other -> other
        end

        top = Process.whereis(Snakepit.SharedMemory.Application)
        monitor = Process.monitor(top)
        Process.exit(top, :kill)
        receive do {:DOWN, ^monitor, _, _, _} -> :ok end
        reasons = for {:error, error} <- Task.await_many([stuck | callers], :infinity), uniq: true, do: error.reason
        IO.inspect({round, length(reasons) > 0, reasons -- [:not_loaded, :crashed]})
        # Until the application's end is known, a start changes nothing.
        ended = fn ended ->
          if List.keymember?(Application.started_applications(), :snakepit_shm, 0), do: Process.sleep(1) && ended.(ended)
        end
        ended.(ended)
      end
      """)

    assert {status, output} == {0, Enum.map_join(1..3, &"{#{&1}, true, []}\n")}
  end

  test "the house: a library in somebody else's tree goes on, and is known again" do
    name = :in_a_tree
    start_supervised!({Isolation, path: NativeFixture.path(:adder), name: name, sandbox: :none})
    {house, old} = {Process.whereis(Snakepit.Isolation.Supervisor), os_pid(name)}
    kill(house)
    eventually(fn -> match?({:ok, %{state: :ready}}, Isolation.info(name)) end)
    gone(old)
    assert {:ok, 3} = Isolation.call(name, :add, [1, 2])
    assert [%Library{name: ^name}] = Isolation.list()
    assert Process.whereis(Snakepit.Isolation.Supervisor) not in [nil, house]
    stop_supervised!({Isolation, name})
  end

  test "the supervisor of all libraries: they end, and the name of one is free" do
    library = load!(:adder, name: :survivor, workers: 2)
    house = Process.whereis(Snakepit.Isolation.Supervisor)
    warden = Warden.os_pid()
    old = for n <- 1..2, do: os_pid(library, n)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    libraries = Process.whereis(Snakepit.Isolation.Libraries)
    kill(libraries)
    assert {:error, %Error{reason: :not_loaded}} = result_of(call)
    eventually(fn -> Process.whereis(Snakepit.Isolation.Libraries) not in [nil, libraries] end)
    assert {:ok, 3} = Isolation.call(load!(:adder, name: :survivor), :add, [1, 2])
    gone(old)
    assert {Process.whereis(Snakepit.Isolation.Supervisor), Warden.os_pid()} == {house, warden}
  end

  test "the warden itself" do
    library = load!(:adder, workers: 2)
    warden = Warden.os_pid()
    old = for n <- 1..2, do: os_pid(library, n)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    signal(warden)
    assert {:error, %Error{reason: :crashed} = error} = result_of(call)
    assert Exception.message(error) =~ "warden"
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone([warden | old])
    ready(library)
  end

  test "the warden, with calls in its workers' queues: none is executed twice" do
    library = load!(:adder, workers: 2)
    path = Path.join(temporary_directory("notes"), "notes")

    for round <- 1..5 do
      parent = self()
      warden = eventually(&Warden.os_pid/0)

      callers =
        for n <- 1..100 do
          spawn_link(fn ->
            text = "#{round}-#{n}"
            result = Isolation.call(library, :note, [path, text <> "\n"], timeout: 30_000)
            send(parent, {self(), text, result})
          end)
        end

      eventually(fn -> File.exists?(path) end)
      signal(warden)

      results =
        for caller <- callers do
          receive do
            {^caller, text, result} -> {text, result}
          end
        end

      written = path |> File.read!() |> String.split("\n", trim: true)
      assert written == Enum.uniq(written)
      for {text, {:ok, :ok}} <- results, do: assert(text in written)
      for {_, {:error, error}} <- results, do: assert(error.reason == :crashed)
      eventually(fn -> Warden.os_pid() not in [warden, nil] end)
      ready(library)
      File.rm!(path)
    end
  end

  test "the library's supervisor: it is gone, and nothing of it is left" do
    library = load!(:adder, workers: 2)
    os_pids = for n <- 1..2, do: os_pid(library, n)
    {:ok, _, supervisor} = Directory.fetch(library.id)
    kill(supervisor)
    gone(os_pids)
    # It stands under a supervisor, which starts it again.
    eventually(fn -> match?({:ok, 3}, Isolation.call(library, :add, [1, 2])) end)
  end

  test "signals to the VM's process group do not reach warden and workers" do
    library = load!(:adder)

    for os_pid <- [Warden.os_pid(), os_pid(library)] do
      refute process_group(os_pid) == process_group("self")
    end

    old = Warden.os_pid()
    for name <- ["INT", "TERM", "HUP", "PIPE"], do: signal(old, name)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    assert Warden.os_pid() == old
  end
end
