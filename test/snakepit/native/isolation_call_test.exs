defmodule Snakepit.Native.IsolationCallTest do
  # Calls by the native functions alone, with a real library in a real process.
  use ExUnit.Case, async: true

  import Snakepit.NativeWorker

  alias Snakepit.Native

  @deadline 10_000

  setup context do
    {warden, _} = warden()
    {:ok, pool} = Native.pool_new(2)
    worker = serve(pool, 0, warden, :adder, context[:spec] || %{})
    {:ok, warden: warden, pool: pool, worker: worker}
  end

  # A call's outcome, however it comes.
  defp call(pool, function, arguments) do
    case Native.call(pool, function, arguments, 10) do
      {:pending, ticket} -> await(ticket)
      answer -> answer
    end
  end

  defp await(ticket) do
    ref = make_ref()

    if Native.park(ticket, ref) == :parked do
      assert_receive {^ref, :done}, @deadline
    end

    Native.take(ticket)
  end

  defp pending(pool, function, arguments) do
    assert {:pending, ticket} = Native.call(pool, function, arguments, 0)
    ticket
  end

  # A call that is at work until it is shot.
  defp occupy(pool, worker) do
    ticket = pending(pool, :sleep_forever, [])
    begun(worker)
    ticket
  end

  defp begun(worker) do
    unless Enum.any?(Native.worker_status(worker).executors) do
      Process.sleep(1)
      begun(worker)
    end
  end

  defp idle(worker, tries \\ 1000) do
    if Native.worker_status(worker).in_flight > 0 do
      assert tries > 0, "slots are still taken"
      Process.sleep(5)
      idle(worker, tries - 1)
    end
  end

  defp no_messages, do: refute_receive(_, 20)

  describe "a call" do
    test "gives its value, its exception, or what there is not", %{pool: pool} do
      assert {:ok, 3} = call(pool, :add, [1, 2])
      assert {:ok, -1} = call(pool, :add, [-3, 2])
      assert {:raised, :badarg} = call(pool, :add, [:a, 2])
      assert {:raised, %{why: [1, "x"]}} = call(pool, :raise, [%{why: [1, "x"]}])
      assert :undefined = Native.call(pool, :add, [1], 10)
      assert :undefined = Native.call(pool, :nothing, [], 10)
      assert_raise ArgumentError, fn -> Native.call(pool, :add, [1 | 2], 10) end
      assert_raise ArgumentError, fn -> Native.call(pool, :add, :no_list, 10) end
      assert_raise ArgumentError, fn -> Native.call(pool, "add", [1, 2], 10) end
      assert_raise ArgumentError, fn -> Native.call(pool, :add, [1, 2], -1) end
    end

    test "brings back any term that it takes, names included", %{pool: pool} do
      terms = [self(), hd(Port.list()), make_ref(), fn -> 1 end, &is_atom/1, %{self() => [make_ref() | self()]}]
      for term <- terms, do: assert({:ok, ^term} = call(pool, :echo, [term]))

      property =
        :proper.forall(:proper_types.any(), fn term ->
          {:ok, back} = call(pool, :echo, [term])
          back === term
        end)

      assert :proper.quickcheck(property, [:quiet, numtests: 300, max_size: 60])
    end

    @tag spec: %{names: 16}
    test "knows its caller, also when there are more of them than names", %{pool: pool} do
      callers = Task.async_stream(1..200, fn _ -> {self(), call(pool, :caller, [])} end, max_concurrency: 4)
      for {:ok, {pid, answer}} <- callers, do: assert({:ok, ^pid} = answer)
      assert {:ok, self()} == call(pool, :caller, [])
    end

    @tag spec: %{names: 16}
    test "has no more names than the table", %{pool: pool} do
      refs = for _ <- 1..17, do: make_ref()
      assert {:error, {:too_many_names, %{limit: 16}}} = call(pool, :echo, [refs])
      # They leave with their call.
      for _ <- 1..100, do: assert({:ok, [_ | _]} = call(pool, :echo, [Enum.take(refs, 15)]))
    end

    test "takes and brings payloads of every size", %{pool: pool} do
      for size <- [0, 20, 40, 64, 4000, 4096, 5000, 65_000, 65_536, 70_000, 500_000, 1_000_000] do
        binary = :binary.copy(<<size::8>>, size)
        assert {:ok, ^binary} = call(pool, :echo, [binary])
      end

      # In small pieces, around what is encoded on a normal scheduler.
      for bytes <- 60_000..100_000//1_000 do
        list = Enum.to_list(1_000_000..(1_000_000 + div(bytes, 5)))
        assert {:ok, ^list} = call(pool, :echo, [list])
      end
    end

    test "is refused when it is too large, and the next one is not", %{pool: pool, worker: worker} do
      assert {:error, {:too_large, %{message: _}}} = call(pool, :echo, [:binary.copy("x", 1_100_000)])
      assert {:error, {:too_large, %{message: _}}} = call(pool, :echo, [Enum.to_list(1..600_000)])
      assert {:error, {:too_large, %{message: _}}} = call(pool, :echo, [Enum.reduce(1..2000, [], &[&1, &2])])
      assert {:error, {:too_large, %{message: _}}} = call(pool, :fill, [2_000_000, 1])
      assert {:ok, 3} = call(pool, :add, [1, 2])
      idle(worker)
    end
  end

  describe "a ticket" do
    test "is taken once, when it is ready", %{pool: pool} do
      ticket = pending(pool, :sleep, [50])
      assert :pending = Native.take(ticket)
      ref = make_ref()
      assert :parked = Native.park(ticket, ref)
      assert_receive {^ref, :done}, @deadline
      assert :ready = Native.cancel(ticket)
      assert {:ok, :ok} = Native.take(ticket)
      assert_raise ArgumentError, fn -> Native.take(ticket) end
      no_messages()
    end

    test "that is ready is not parked", %{pool: pool, worker: worker} do
      ticket = pending(pool, :sleep, [0])
      ref = make_ref()
      # Answered when its executor has nothing to do.
      :timer.sleep(50)
      refute Enum.any?(Native.worker_status(worker).executors)
      assert :ready = Native.park(ticket, ref)
      assert :ready = Native.cancel(ticket)
      assert {:ok, :ok} = Native.take(ticket)
      no_messages()
    end

    test "is cancelled, begun or not, and its slot comes back", %{pool: pool, worker: worker} do
      first = pending(pool, :sleep, [200])
      begun(worker)
      second = pending(pool, :sleep, [0])
      for ticket <- [first, second], do: assert(:parked = Native.park(ticket, make_ref()))
      assert {:cancelled, false, ^worker} = Native.cancel(second)
      assert {:cancelled, true, ^worker} = Native.cancel(first)
      assert {:cancelled, false, ^worker} = Native.cancel(first)
      assert %{in_flight: 2, orphans: [_]} = Native.worker_status(worker)
      idle(worker)
      assert %{orphans: []} = Native.worker_status(worker)
      no_messages()
    end

    test "that nobody has any more gives its slot back", %{pool: pool, worker: worker} do
      {pid, monitor} = spawn_monitor(fn -> for _ <- 1..8, do: pending(pool, :sleep, [10]) end)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
      idle(worker)
      no_messages()
    end

    test "races with its answer, and exactly one wins", %{pool: pool, worker: worker} do
      outcomes =
        for n <- 1..2000 do
          # Given-up calls hold their slots until they are answered.
          if rem(n, 4) == 0, do: idle(worker)

          case Native.call(pool, :spin, [rem(n, 40)], 0) do
            {:pending, ticket} -> race(ticket, rem(n * 7, 120))
            {:ok, :ok} -> :early
          end
        end

      idle(worker)
      no_messages()
      assert :cancelled in outcomes
    end

    defp race(ticket, after_us) do
      ref = make_ref()

      case Native.park(ticket, ref) do
        :ready ->
          assert {:ok, :ok} = Native.take(ticket)
          :early

        :parked ->
          busy(System.monotonic_time(:microsecond) + after_us)

          case Native.cancel(ticket) do
            {:cancelled, _, _} ->
              :cancelled

            :ready ->
              assert_receive {^ref, :done}, @deadline
              assert {:ok, :ok} = Native.take(ticket)
              :answered
          end
      end
    end

    defp busy(until), do: if(System.monotonic_time(:microsecond) < until, do: busy(until))
  end

  describe "a dead worker" do
    test "answers what it had begun with the reason, and the rest goes elsewhere", context do
      %{pool: pool, warden: warden, worker: worker} = context
      first = occupy(pool, worker)
      others = for _ <- 1..3, do: pending(pool, :add, [1, 2])
      refs = for ticket <- [first | others], do: {make_ref(), ticket}
      for {ref, ticket} <- refs, do: assert(:parked = Native.park(ticket, ref))
      slay(warden, 1)
      assert :ok = Native.worker_close(worker, {:crashed, %{signal: :SIGKILL}})
      for {ref, _} <- refs, do: assert_receive({^ref, :done}, @deadline)
      assert {:error, {:crashed, %{signal: :SIGKILL}}} = Native.take(first)
      for ticket <- others, do: assert(:retry = Native.take(ticket))
      assert :no_worker = Native.call(pool, :add, [1, 2], 10)
      assert :ok = Native.pool_take(pool, 0)
      assert %{workers: []} = Native.pool_info(pool)
      no_messages()
    end

    test "that still has tickets is no trouble for them", %{pool: pool, warden: warden, worker: worker} do
      first = occupy(pool, worker)
      second = pending(pool, :add, [1, 2])
      slay(warden, 1)
      assert :ok = Native.worker_close(worker, {:crashed, %{}})
      assert :ready = Native.park(first, make_ref())
      assert :ready = Native.park(second, make_ref())
      assert {:error, {:crashed, %{}}} = Native.take(first)
      assert {:cancelled, false, ^worker} = Native.cancel(second)
      no_messages()
    end
  end

  describe "a full ring" do
    @describetag spec: %{slots: 2}

    test "lets callers wait, so many and in order", %{pool: pool, worker: worker} do
      held = pending(pool, :sleep, [100])
      other = pending(pool, :sleep, [0])
      assert :full = Native.call(pool, :add, [1, 2], 10)
      [first, second, third] = for _ <- 1..3, do: make_ref()
      assert :waiting = Native.wait_slot(pool, first, 2)
      assert :waiting = Native.wait_slot(pool, second, 2)
      assert :full = Native.wait_slot(pool, third, 2)
      assert %{waiting: 2} = Native.pool_info(pool)
      assert :ok = Native.wait_slot_cancel(pool, second)
      assert {:ok, :ok} = await(held)
      assert_receive {^first, :slot}, @deadline
      assert :sent = Native.wait_slot_cancel(pool, first)
      assert {:ok, :ok} = await(other)
      assert :ready = Native.wait_slot(pool, make_ref(), 2)
      idle(worker)
      no_messages()
    end

    test "is left by a worker that dies", %{pool: pool, warden: warden, worker: worker} do
      held = [occupy(pool, worker), pending(pool, :add, [1, 2])]
      ref = make_ref()
      assert :waiting = Native.wait_slot(pool, ref, 2)
      slay(warden, 1)
      assert :ok = Native.worker_close(worker, {:crashed, %{}})
      assert_receive {^ref, :slot}, @deadline
      assert :no_worker = Native.call(pool, :add, [1, 2], 10)
      assert length(held) == 2
    end
  end

  test "payloads that find no room beside others wait for them", %{pool: pool, worker: worker} do
    large = :binary.copy("x", 600_000)
    held = pending(pool, :sleep, [100])
    begun(worker)
    first = pending(pool, :size, [large])
    assert :full = Native.call(pool, :size, [large], 0)
    ref = make_ref()
    assert :waiting = Native.wait_slot(pool, ref, 1)
    assert {:ok, :ok} = await(held)
    assert_receive {^ref, :slot}, @deadline
    assert {:ok, 600_000} = await(first)
    assert {:ok, 600_000} = call(pool, :size, [large])
  end

  describe "objects" do
    test "go back to the worker that they live in", %{pool: pool, warden: warden, worker: worker} do
      other = serve(pool, 1, warden, :adder)
      cells = for n <- 1..10, do: elem(call(pool, :cell_new, [n]), 1)
      # Whoever is idle is asked; the cells are elsewhere.
      held = pending(pool, :sleep, [300])
      for {cell, n} <- Enum.zip(cells, 1..10), do: assert({:ok, ^n} = call(pool, :cell_get, [cell]))
      assert {:ok, :ok} = await(held)
      slay(warden, 1)
      assert :ok = Native.worker_close(worker, {:crashed, %{}})
      stale = for cell <- cells, do: call(pool, :cell_get, [cell])
      assert Enum.any?(stale, &match?({:error, {:stale, %{message: _}}}, &1))
      assert {:ok, 3} = call(pool, :add, [1, 2])
      assert %{closed: false} = Native.worker_status(other)
    end

    test "end in the worker after they have ended here", %{pool: pool, worker: worker} do
      {pid, monitor} = spawn_monitor(fn -> for n <- 1..10, do: {:ok, _} = call(pool, :cell_new, [n]) end)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, @deadline
      # Its owner is told of the first, and not of the others before it has sent them.
      assert_receive :released, @deadline
      assert Enum.any?(1..200, fn _ -> Process.sleep(5) && Native.worker_status(worker).releases == 10 end)
      refute_received :released
      assert {:ok, 10} = call(pool, :cells, [])
      assert {:ok, 0} = Native.worker_flush(worker)
      assert Enum.any?(1..200, fn _ -> Process.sleep(5) && call(pool, :cells, []) == {:ok, 0} end)
      {pid, monitor} = spawn_monitor(fn -> {:ok, _} = call(pool, :cell_new, [1]) end)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, @deadline
      assert_receive :released, @deadline
    end
  end

  describe "a batch" do
    defp finish({:done, outcomes}), do: outcomes

    defp finish({more, batch}) when more in [:more, :full] do
      ref = make_ref()

      if Native.batch_park(batch, ref, 100) == :parked do
        assert_receive {^ref, :done}, @deadline
      end

      finish(Native.batch_next(batch))
    end

    test "gives outcomes in order, errors in their places", %{pool: pool} do
      lists = for n <- 1..5000, do: if(rem(n, 100) == 0, do: [n, :a], else: [n, n])
      outcomes = finish(Native.call_many(pool, :add, lists))

      expected = for n <- 1..5000, do: if(rem(n, 100) == 0, do: {:raised, :badarg}, else: {:ok, 2 * n})
      assert outcomes == expected
      no_messages()
    end

    test "takes what is no call for what it is", %{pool: pool} do
      assert :undefined = Native.call_many(pool, :nothing, [[]])
      assert {:done, []} = Native.call_many(pool, :add, [])
      assert_raise ArgumentError, fn -> Native.call_many(pool, :add, [[1, 2] | :tail]) end
      assert [{:ok, 3}, {:error, {:unsupported_term, _}}] = finish(Native.call_many(pool, :add, [[1, 2], [1]]))
    end

    test "is given up", %{pool: pool, worker: worker} do
      assert {:more, batch} = Native.call_many(pool, :sleep, [[60_000], [0], [0]])
      begun(worker)
      assert :parked = Native.batch_park(batch, make_ref(), 100)
      assert :waiting = Native.batch_unwait(batch)
      assert {[first | rest], [^worker], false} = Native.batch_cancel(batch)
      assert {:error, {:timeout, %{started: true}}} = first
      assert rest == List.duplicate({:error, {:timeout, %{started: false}}}, 2)
      no_messages()
    end

    test "outlives its worker", %{pool: pool, warden: warden, worker: worker} do
      assert {:more, batch} = Native.call_many(pool, :sleep_forever, [[], [], []])
      begun(worker)
      ref = make_ref()
      assert :parked = Native.batch_park(batch, ref, 100)
      slay(warden, 1)
      assert :ok = Native.worker_close(worker, {:crashed, %{}})
      assert_receive {^ref, :done}, @deadline
      assert [{:error, {:crashed, %{}}}, :retry, :retry] = finish(Native.batch_next(batch))
      no_messages()
    end
  end
end
