defmodule Snakepit.Isolation.CrashTest do
  use Snakepit.IsolationCase, async: false

  for {function, arguments, expected} <- [
        {:segv, [], {:signal, :SIGSEGV}},
        {:segv_in_thread, [], {:signal, :SIGSEGV}},
        {:abort, [], {:signal, :SIGABRT}},
        {:bus, [], {:signal, :SIGBUS}},
        {:overflow, [], {:signal, :SIGSEGV}},
        {:exit, [0], {:exit_code, 0}},
        {:exit, [3], {:exit_code, 3}},
        {:quick_exit, [7], {:exit_code, 7}},
        {:signal, [9], {:signal, :SIGKILL}},
        {:signal, [4], {:signal, :SIGILL}},
        {:double_free, [], {:signal, :SIGABRT}}
      ] do
    test "#{function}(#{Enum.join(arguments, ", ")}) is :crashed, and the next call works" do
      {function, arguments, {key, value}} = unquote(Macro.escape({function, arguments, expected}))
      library = load!(:crasher)
      old = os_pid(library)
      assert {:error, %Error{reason: :crashed} = error} = Isolation.call(library, function, arguments)
      assert error.function == {function, length(arguments)}
      assert Map.fetch!(error, key) == value
      assert error.details.because == :exited
      assert Exception.message(error) =~ "#{function}/#{length(arguments)}"
      assert {:worker_crash, %{exit_code: code}} = Error.to_snakepit(error)
      assert is_integer(code)

      assert {:ok, :ok} = Isolation.call(library, :fine, [])
      refute alive?(old)
      assert %{restarts: 1, last_exit: %{because: :exited}} = worker(library)
      assert_no_messages()
    end
  end

  test "a damaged heap ends in an error too" do
    library = load!(:crasher)
    assert {:error, %Error{reason: :crashed, signal: signal}} = Isolation.call(library, :heap, [], timeout: 30_000)
    assert signal in [:SIGABRT, :SIGSEGV]
    assert {:ok, :ok} = Isolation.call(library, :fine, [])
  end

  test "an endless loop is :timeout" do
    library = load!(:crasher)
    assert {:error, %Error{reason: :timeout}} = Isolation.call(library, :loop, [], timeout: 100)
    assert {:ok, :ok} = Isolation.call(library, :fine, [])
  end

  test "kill -9 from outside" do
    library = load!(:adder)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    signal(os_pid(library))
    assert {:error, %Error{reason: :crashed, signal: :SIGKILL} = error} = result_of(call)
    assert {:worker_crash, %{classification: :oom}} = Error.to_snakepit(error)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
  end

  test "one worker's death fails no call on the others" do
    library = load!(:adder, workers: 2)
    [one, two] = for n <- 1..2, do: os_pid(library, n)
    calls = for _ <- 1..2, do: call_in_process(library, :sleep, [300], timeout: :infinity)
    begun(library, 2)
    signal(one)
    results = Enum.map(calls, &result_of/1)
    assert [{:error, %Error{reason: :crashed}}] = results -- [{:ok, :ok}]
    assert two == os_pid(library, 2)
    for n <- 1..100, do: assert({:ok, n + 1} == Isolation.call(library, :add, [n, 1]))
  end

  test "calls go on while workers are shot" do
    library = load!(:adder, workers: 2, max_restarts: :infinity)

    callers =
      for _ <- 1..8 do
        Task.async(fn ->
          for n <- 1..500, reduce: 0 do
            crashed ->
              case Isolation.call(library, :echo, [{n, self()}], timeout: 60_000) do
                {:ok, {^n, pid}} when pid == self() -> crashed
                {:error, %Error{reason: :crashed}} -> crashed + 1
              end
          end
        end)
      end

    for round <- 1..20 do
      position = rem(round, 2) + 1
      old = successor(library, nil, position)
      signal(old)
      successor(library, old, position)
    end

    for caller <- callers, do: assert(is_integer(Task.await(caller, 120_000)))
    ready(library)
    assert info!(library).in_flight == 0
  end

  test "a worker that crashes too often is given up, and says so" do
    library = load!(:crasher, max_restarts: 3)

    for _ <- 1..4 do
      assert {:error, %Error{reason: :crashed}} = Isolation.call(library, :abort, [])
    end

    assert {:error, %Error{reason: :not_loaded, function: {:fine, 0}} = error} = Isolation.call(library, :fine, [])
    assert Exception.message(error) =~ "4 times within 10 seconds"
    assert Exception.message(error) =~ "SIGABRT"
    assert %{state: :failed, error: %Error{reason: :not_loaded}} = info!(library)
    assert {:error, %Error{reason: :not_loaded}} = Isolation.call_many(library, :fine, [[]])
    assert :ok = Isolation.unload(library)
  end

  test "one worker that is given up leaves the other in service" do
    library = load!(:adder, workers: 2, max_restarts: 0)
    signal(os_pid(library, 1))
    eventually(fn -> match?(%{state: :failed}, worker(library, 1)) end)
    assert info!(library).state == :degraded
    for _ <- 1..10, do: assert({:ok, 3} = Isolation.call(library, :add, [1, 2]))
  end

  test "a library in a supervision tree ends when it is given up" do
    Process.flag(:trap_exit, true)
    path = NativeFixture.path(:crasher)
    {:ok, pid} = Isolation.start_link(path: path, name: :giver, sandbox: :none, max_restarts: 0)
    assert {:error, %Error{reason: :crashed}} = Isolation.call(:giver, :abort, [])
    assert_receive {:EXIT, ^pid, _}, 10_000
    assert {:error, %Error{reason: :not_loaded}} = Isolation.call(:giver, :fine, [])
  end
end
