defmodule Snakepit.Native.IsolationHostileTest do
  # What reviews have found: each of these went wrong once.
  use Snakepit.IsolationCase, async: false

  import Snakepit.NativeWorker, only: [warden: 0, serve: 5]

  @deadline 10_000

  # ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────

  test "a function whose name is longer than an atom can be is not loaded, and makes no word that is no term" do
    error = refused(:long_names)
    assert error.reason == :not_loaded
    assert is_binary(Exception.message(error))
    # The VM still has all its atoms.
    assert {:ok, 3} = Isolation.call(load!(:adder), :add, [1, 2])
  end

  test "a library's name of any length: what the warden takes is cut" do
    for name <- [String.to_atom(String.duplicate("x", 255)), String.to_atom(String.duplicate("日", 255))] do
      library = load!(:adder, name: name)
      assert {:ok, 3} = Isolation.call(name, :add, [1, 2])
      assert :ok = Isolation.unload(library)
    end
  end

  # ── Funs ──────────────────────────────────────────────────────────────────────────────────────────────────────

  # A fun that carries a list of so many elements.
  defp heavy(count) do
    list = Enum.to_list(1..count)
    fn -> list end
  end

  test "a fun that comes back many times is copied once" do
    library = load!(:cpp)
    fun = heavy(10_000)
    assert {:ok, funs} = Isolation.call(library, :repeat, [fun, 2_000])
    assert length(funs) == 2_000
    assert Enum.all?(funs, &(&1 === fun))
    # Shared: a cell for each, and one copy.
    assert :erts_debug.size(funs) < 2 * 2_000 + 2 * :erts_debug.size(fun)
  end

  test "copies of funs count for max_words" do
    library = load!(:cpp, max_words: 4_096)
    assert {:ok, [_, _]} = Isolation.call(library, :repeat, [heavy(100), 2])
    assert {:error, %Error{reason: :quota_exceeded}} = Isolation.call(library, :repeat, [heavy(10_000), 1])
    # Several that are small enough each.
    funs = for n <- 1..40, do: heavy(100 + n)
    assert {:error, %Error{reason: :quota_exceeded}} = Isolation.call(library, :repeat, [funs, 1])
    assert {:ok, 0} = Isolation.call(library, :tables, [])
  end

  # ── Objects ───────────────────────────────────────────────────────────────────────────────────────────────────

  test "objects in answers that are refused are released once" do
    # The names of its functions are atoms from then on.
    :ok = Isolation.unload(load!(:cpp))
    library = load!(:cpp, max_atoms: 0)
    table = Isolation.call!(library, :table_new, [])
    {:ok, :ok} = Isolation.call(library, :table_put, [table, "x", 1])

    for n <- 1..50 do
      text = "refused_#{n}_#{System.unique_integer([:positive])}"
      # The table is decoded, the atom behind it is not.
      assert {:error, %Error{reason: :quota_exceeded}} = Isolation.call(library, :with_atom, [table, text])
    end

    native = server_native(library)
    eventually(fn -> :erlang.garbage_collect() && Native.worker_status(native).releases == 0 end)
    # Released once too often, it would be gone.
    assert {:ok, 1} = Isolation.call(library, :table_get, [table, "x"])
    assert {:ok, 1} = Isolation.call(library, :tables, [])
  end

  test "objects in answers that the short way refuses are released once" do
    load!(:cpp)
    {warden, _} = warden()
    {:ok, pool} = Native.pool_new(1)
    worker = serve(pool, 0, warden, :cpp, %{atoms: Native.atoms_new(0)})
    on_exit(fn -> Native.worker_close(worker, {:crashed, %{}}) end)

    # Short enough for it, and with time to be answered. Nobody sends releases to this worker: they are all there.
    for n <- 1..20 do
      text = "short#{n}#{System.unique_integer([:positive])}"
      assert {:error, {:too_many_atoms, _}} = outcome(pool, :table_with_atom, [text])
    end

    eventually(fn -> :erlang.garbage_collect() && Native.worker_status(worker).releases >= 20 end)
    assert Native.worker_status(worker).releases == 20
    assert {:ok, 20} = outcome(pool, :tables, [])
  end

  defp outcome(pool, function, arguments) do
    case Native.call(pool, function, arguments, 1_000) do
      {:pending, ticket} -> result(ticket)
      answer -> answer
    end
  end

  defp server_native(library), do: Library.lookup(library.table, {:worker, 1}).native

  test "objects are released as fast as they are made" do
    library = load!(:adder)
    # More than go into one message to the worker.
    spawn_link(fn -> for n <- 1..100_000, do: {:ok, _} = Isolation.call(library, :cell_new, [n]) end)
    eventually(fn -> Isolation.call(library, :cells, []) == {:ok, 0} and worker(library).calls > 100_000 end, 60_000)
    native = server_native(library)
    # What came last goes with the next look at the worker.
    assert eventually(fn -> Native.worker_status(native).releases == 0 end)
  end

  # ── Those who wait ────────────────────────────────────────────────────────────────────────────────────────────

  test "a caller that is killed while it takes its answer loses nobody who waits for its slot" do
    {warden, _} = warden()
    {:ok, pool} = Native.pool_new(1)
    worker = serve(pool, 0, warden, :adder, %{slots: 2, spill_bytes: 8_388_608})
    # Its doorbell is watched until then.
    on_exit(fn -> Native.worker_close(worker, {:crashed, %{}}) end)
    large = Enum.to_list(1_000_000..1_200_000)

    for round <- 1..50 do
      {caller, monitor} = spawn_monitor(takes_when_told(pool, large))
      assert_receive {^caller, :answered}, @deadline
      # The other slot.
      assert {:pending, held} = Native.call(pool, :sleep, [40], 0)
      ref = make_ref()
      assert :waiting = Native.wait_slot(pool, ref, 10)
      send(caller, :take)
      # The answer is decoded on a dirty scheduler, for some milliseconds; then its slot is given away.
      busy(rem(round * 173, 6_000))
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, _, _}, @deadline
      # By that slot, or by the other one: nobody has been forgotten.
      assert {:ok, :ok} = result(held)
      assert_receive {^ref, :slot}, @deadline
      eventually(fn -> Native.pool_info(pool).in_flight == [{0, 0}] end)
    end
  end

  # A process whose call is answered; it takes the answer when it is told.
  defp takes_when_told(pool, argument) do
    test = self()

    fn ->
      ticket = ticket(pool, argument)
      ref = make_ref()
      if Native.park(ticket, ref) == :parked, do: assert_receive({^ref, :done}, @deadline)
      send(test, {self(), :answered})

      receive do
        :take -> Native.take(ticket)
      end
    end
  end

  # Some are answered while they are being submitted.
  defp ticket(pool, argument) do
    case Native.call(pool, :echo, [argument], 0) do
      {:pending, ticket} -> ticket
      {:ok, _} -> ticket(pool, argument)
    end
  end

  defp result(ticket) do
    ref = make_ref()
    if Native.park(ticket, ref) == :parked, do: assert_receive({^ref, :done}, @deadline)
    Native.take(ticket)
  end

  defp busy(microseconds), do: busy_until(System.monotonic_time(:microsecond) + microseconds)
  defp busy_until(time), do: if(System.monotonic_time(:microsecond) < time, do: busy_until(time))

  test "a call that finds room, and none for its arguments, waits without spinning" do
    library = load!(:adder, slot_size: 4_096, spill_size: 65_536)
    large = :binary.copy("x", 50_000)
    call_in_process(library, :sleep, [400], timeout: :infinity)
    begun(library, 1)
    call_in_process(library, :size, [large], timeout: :infinity)
    in_flight(library, 2)
    {:reductions, before} = Process.info(self(), :reductions)
    assert {:ok, 50_000} = Isolation.call(library, :size, [large], timeout: :infinity)
    {:reductions, later} = Process.info(self(), :reductions)
    # Some attempts, not one after the other for 400 ms, which are millions.
    assert later - before < 400_000
  end

  # ── Lies and signals ──────────────────────────────────────────────────────────────────────────────────────────

  # Looks all the time: the lie is there only while the function runs.
  defp looked(ticket), do: with(:pending <- Native.take(ticket), do: looked(ticket))

  test "a worker that has lied to a caller that tells nobody is found and replaced" do
    library = load!(:hostile, max_restarts: :infinity)
    old = os_pid(library)
    # No term at all, as the answer. The caller hears of it and says nothing, as if it had been killed then.
    lie = [<<255, 255>>, 0, 2, 0, 50]

    eventually(fn ->
      case Native.call(library.native, :answer, lie, 0) do
        {:pending, ticket} -> match?({:error, {:protocol, _}}, looked(ticket))
        # The lie was there at the first look.
        answer -> match?({:error, {:protocol, _}}, answer)
      end
    end)

    gone(old)
    successor(library, old)
    assert %{last_exit: %{because: :protocol}} = worker(library)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
  end

  test "a signal that the warden's socket has no room for is sent when it has" do
    library = load!(:adder)
    [warden, old] = [Warden.os_pid(), os_pid(library)]
    native = :sys.get_state(Warden).native
    signal(warden, "STOP")
    # Signals to nobody, as many as the socket takes.
    assert {:error, {:busy, _}} =
             Stream.repeatedly(fn -> Native.warden_kill(native, 0, 1) end) |> Enum.find(&(&1 != :ok))

    call = call_in_process(library, :spin_forever, [], timeout: 50)
    # Its Worker has it killed, and the Warden cannot say so yet.
    assert {:error, %Error{reason: :timeout}} = result_of(call)
    eventually(fn -> worker(library).state != :ready end)
    assert alive?(old)
    signal(warden, "CONT")
    gone(old)
    successor(library, old)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
  end
end
