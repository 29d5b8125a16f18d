defmodule Snakepit.Isolation.DeadlineTest do
  use Snakepit.IsolationCase, async: false

  test "a call past its deadline is :timeout; its worker is killed and replaced" do
    library = load!(:adder)
    old = os_pid(library)
    started = System.monotonic_time(:millisecond)

    assert {:error, %Error{reason: :timeout, function: {:spin_forever, 0}, details: %{started: true, timeout: 100}}} =
             Isolation.call(library, :spin_forever, [], timeout: 100)

    assert System.monotonic_time(:millisecond) - started >= 100
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    assert successor(library, old)
    gone(old)
    assert %{hung: 1, restarts: 1, last_exit: %{because: :hung}} = worker(library)
    assert_no_messages()
  end

  test "the library's own deadline is the default" do
    library = load!(:adder, timeout: 50)
    assert {:error, %Error{reason: :timeout, details: %{timeout: 50}}} = Isolation.call(library, :sleep_forever, [])
    assert {:ok, :ok} = Isolation.call(library, :sleep, [100], timeout: :infinity)
  end

  test "calls that had not begun run on the next worker, those that had are :crashed" do
    library = load!(:adder, concurrency: 2)
    beside = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    hung = call_in_process(library, :sleep_forever, [], timeout: 300)
    begun(library, 2)
    waiting = for n <- 1..5, do: {n, call_in_process(library, :add, [n, 1], timeout: 60_000)}

    assert {:error, %Error{reason: :timeout}} = result_of(hung)

    assert {:error, %Error{reason: :crashed, function: {:sleep_forever, 0}, details: %{because: :hung}}} =
             result_of(beside)

    for {n, pid} <- waiting, do: assert({:ok, n + 1} == result_of(pid))
  end

  test "a call whose deadline passes before it has begun kills nobody" do
    library = load!(:adder)
    os_pid = os_pid(library)
    long = call_in_process(library, :sleep, [500], timeout: :infinity)
    begun(library, 1)

    assert {:error, %Error{reason: :timeout, details: %{started: false}}} =
             Isolation.call(library, :add, [1, 2], timeout: 20)

    assert {:ok, :ok} = result_of(long)
    assert os_pid == os_pid(library)
    assert %{hung: 0, restarts: 0} = worker(library)
  end

  test "a full ring is :overloaded at the deadline, and free again afterwards" do
    library = load!(:adder, slots: 2)
    busy = for _ <- 1..2, do: call_in_process(library, :sleep, [300], timeout: :infinity)
    in_flight(library, 2)
    started = System.monotonic_time(:millisecond)
    assert {:error, %Error{reason: :overloaded} = error} = Isolation.call(library, :add, [1, 2], timeout: 50)
    assert Exception.message(error) =~ "slots"
    assert System.monotonic_time(:millisecond) - started >= 50

    # Those that can wait get their turn.
    waiting = for n <- 1..10, do: {n, call_in_process(library, :add, [n, 1], timeout: 60_000)}
    for pid <- busy, do: assert({:ok, :ok} == result_of(pid))
    for {n, pid} <- waiting, do: assert({:ok, n + 1} == result_of(pid))
    assert %{in_flight: 0, waiting: 0} = info!(library)
    assert_no_messages()
  end

  test "too many that wait are :overloaded at once" do
    library = load!(:adder, slots: 1, max_waiting: 2)
    call_in_process(library, :sleep_forever, [], timeout: :infinity)
    in_flight(library, 1)
    for _ <- 1..2, do: call_in_process(library, :add, [1, 2], timeout: :infinity)
    eventually(fn -> info!(library).waiting == 2 end)
    assert {:error, %Error{reason: :overloaded} = error} = Isolation.call(library, :add, [1, 2], timeout: :infinity)
    assert Exception.message(error) =~ "max_waiting"
  end

  test "a caller that dies leaves no slot taken" do
    library = load!(:adder, slots: 1)

    for _ <- 1..20 do
      pid = call_in_process(library, :sleep, [5], timeout: :infinity)
      in_flight(library, 1)
      kill(pid)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    end

    assert info!(library).in_flight == 0
  end

  test "a hanging call whose caller has died does not keep the worker for ever" do
    library = load!(:adder, timeout: 1_000)
    old = os_pid(library)
    pid = call_in_process(library, :sleep_forever, [])
    begun(library, 1)
    kill(pid)
    eventually(fn -> match?(%{state: :ready, os_pid: new} when new != old, worker(library)) end, 20_000)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
  end

  test "a worker that is stopped shows no sign of life and is replaced" do
    library = load!(:adder, heartbeat_timeout: 1_000)
    old = os_pid(library)
    signal(old, "STOP")
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 30_000)
    refute old == os_pid(library)
    assert %{last_exit: %{because: :heartbeat}} = worker(library)
  end

  @tag timeout: 300_000
  test "10,000 timeouts with 100,000 messages queued leave the mailbox unchanged" do
    test = self()

    # The measured mailbox is a process of its own: the test's own has other visitors.
    spawn_link(fn ->
      for n <- 1..100_000, do: send(self(), {:queued, n})
      library = load!(:adder, slots: 256)
      blocker = spawn(fn -> Isolation.call(library, :sleep_forever, [], timeout: :infinity) end)
      begun(library, 1)

      # Not begun, while there are slots; then none free.
      for n <- 1..9_700 do
        {:error, %Error{reason: reason}} = Isolation.call(library, :add, [n, 1], timeout: rem(n, 2))
        true = reason in [:timeout, :overloaded]
      end

      Process.exit(blocker, :kill)
      library = load!(:adder)

      # Answer and deadline at about the same time, and begun.
      for n <- 1..300 do
        case Isolation.call(library, :spin, [900 + n], timeout: 1) do
          {:ok, :ok} -> :ok
          {:error, %Error{reason: reason}} when reason in [:timeout, :overloaded] -> :ok
        end
      end

      {:messages, messages} = Process.info(self(), :messages)
      send(test, {:unchanged, messages == for(n <- 1..100_000, do: {:queued, n})})
    end)

    assert_receive {:unchanged, true}, 280_000
  end

  test "asynchronous and many calls leave no message either" do
    library = load!(:adder)

    for n <- 1..30 do
      call = Isolation.call_async(library, :spin, [800 + 10 * n], timeout: 1)
      Isolation.await(call)
      Isolation.call_many(library, :spin, List.duplicate([100], 10), timeout: 1)
    end

    ready(library)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    assert_no_messages()
  end
end
