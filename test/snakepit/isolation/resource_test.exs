defmodule Snakepit.Isolation.ResourceTest do
  # Objects of a library: who may have their handles, which worker a call with one goes to, and when they end.
  use Snakepit.IsolationCase, async: false

  # How many there are in a worker, by the library's own count: constructors less destructors.
  defp tables(library), do: Isolation.call!(library, :tables, [])

  defp none_left(library) do
    eventually(
      fn ->
        :erlang.garbage_collect()
        tables(library) == 0
      end,
      10_000
    )
  end

  # In a process of its own: nothing of it is left on our heap.
  defp aside(work), do: work |> Task.async() |> Task.await(30_000)

  test "what the garbage collector takes is destroyed in the worker, and nothing else" do
    library = load!(:cpp)
    kept = Isolation.call!(library, :table_new, [])
    {:ok, :ok} = Isolation.call(library, :table_put, [kept, "kept", 1])

    # The process lives on; its garbage goes.
    owner =
      Task.async(fn ->
        made = for n <- 1..200, do: {n, Isolation.call!(library, :table_new, [])}
        assert tables(library) == 201
        some = for {n, table} <- made, n > 150, do: table
        {some, library} |> collected(151 - 100)
      end)

    assert Task.await(owner, 30_000) == 50
    eventually(fn -> tables(library) == 1 end, 10_000)
    assert {:ok, 1} = Isolation.call(library, :table_get, [kept, "kept"])
  end

  # Waits until there are only so many left, which are those in `some` and the one outside.
  defp collected({some, library}, left) do
    eventually(
      fn ->
        :erlang.garbage_collect()
        tables(library) == left
      end,
      10_000
    )

    for table <- some, do: {:ok, :ok} = Isolation.call(library, :table_put, [table, "still", 1])
    length(some)
  end

  test "an object that comes again is the same reference; the last of its terms counts" do
    library = load!(:cpp)

    again =
      aside(fn ->
        first = Isolation.call!(library, :table_new, [])
        {:ok, :ok} = Isolation.call(library, :table_put, [first, "x", 7])
        assert [^first, ^first] = again = Isolation.call!(library, :repeat, [first, 2])
        assert [%{^first => _}] = Isolation.call!(library, :repeat, [%{first => 1}, 1])
        refute first == Isolation.call!(library, :table_new, [])
        again
      end)

    # Often, and by many at a time: no reference is counted once too often, or not at all.
    callers =
      for _ <- 1..4, do: Task.async(fn -> for _ <- 1..500, do: Isolation.call!(library, :repeat, [again, 3]) end)

    for caller <- callers, lists <- Task.await(caller, 60_000), do: assert(lists == [again, again, again])
    eventually(fn -> tables(library) == 1 end, 10_000)
    assert {:ok, 7} = Isolation.call(library, :table_get, [hd(again), "x"])
    assert info!(library).workers |> hd() |> Map.fetch!(:restarts) == 0
  end

  test "objects that come while their handles end are there, and end when nobody has them" do
    library = load!(:cpp)
    keeper = Isolation.call!(library, :holder_new, [])

    callers =
      for _ <- 1..4 do
        Task.async(fn ->
          for n <- 1..2_000 do
            held = Isolation.call!(library, :holder_get, [keeper])
            {:ok, _} = Isolation.call(library, :table_put, [held, "x", n])
            if rem(n, 7) == 0, do: :erlang.garbage_collect()
          end
        end)
      end

    for caller <- callers, do: Task.await(caller, 60_000)
    assert tables(library) == 1
    assert info!(library).workers |> hd() |> Map.fetch!(:restarts) == 0
  end

  test "an object in an answer that nobody takes ends" do
    library = load!(:adder)
    cells = fn -> Isolation.call!(library, :cells, [], timeout: 10_000) end

    # Callers that are killed while their call runs, and one whose call is given up before it has begun.
    for _ <- 1..3 do
      caller = call_in_process(library, :cell_later, [1, 100], timeout: :infinity)
      begun(library, 1)
      Process.exit(caller, :kill)
      eventually(fn -> info!(library).in_flight == 0 end, 10_000)
    end

    busy = call_in_process(library, :sleep, [200], timeout: :infinity)
    begun(library, 1)
    assert {:error, %Error{reason: :timeout}} = Isolation.call(library, :cell_new, [1], timeout: 20)
    assert {:ok, :ok} = result_of(busy)
    eventually(fn -> cells.() == 0 end, 10_000)

    # One that is taken stays until its handle is collected.
    handle = Isolation.call!(library, :cell_later, [7, 0])
    assert cells.() == 1
    assert Isolation.call!(library, :cell_get, [handle]) == 7
    assert %{restarts: 0} = worker(library)
  end

  # The answers take more than a scheduler has time for, and are decoded again on a dirty one.
  test "objects in answers with many of them live until their handles are collected" do
    library = load!(:adder)

    handles =
      for _ <- 1..5, count <- [210, 290, 700] do
        {:ok, results} = Isolation.call_many(library, :cells_new, List.duplicate([count], 30))
        handles = for {:ok, handles} <- results, handle <- handles, do: handle
        assert length(handles) == 30 * count
        # What was given back in between would be gone by now.
        :erlang.garbage_collect()
        handles
      end

    count = length(List.flatten(handles))
    # One more that is dropped: when it has gone, so has whatever was given back before.
    aside(fn -> Isolation.call!(library, :cell_get, [Isolation.call!(library, :cell_new, [1])]) end)
    eventually(fn -> Isolation.call!(library, :cells, []) <= count end)
    assert Isolation.call!(library, :cells, []) == count
    for some <- handles, handle <- Enum.take_every(some, 100), do: Isolation.call!(library, :cell_get, [handle])
  end

  test "a caller that is killed while it takes an answer with many objects leaves none" do
    library = load!(:adder)

    for ms <- 0..20 do
      caller = spawn(fn -> for _ <- 1..100, do: Isolation.call(library, :cells_new, [3_000]) end)
      Process.sleep(ms)
      Process.exit(caller, :kill)
    end

    # 0 if no more than its own: a destructor runs after the answer that counts.
    eventually(fn -> Isolation.call!(library, :cells, [], timeout: 30_000) == 0 end, 30_000)
    assert %{restarts: 0} = worker(library)
  end

  test "a worker that does not read is told of dropped handles again at one pace" do
    library = load!(:adder, heartbeat_timeout: :infinity)

    holders =
      aside(fn ->
        handles = Isolation.call!(library, :cells_new, [60_000])
        for some <- Enum.chunk_every(handles, 1_000), do: spawn(fn -> hold(some) end)
      end)

    {server, os_pid} = {server(library), os_pid(library)}
    signal(os_pid, "STOP")
    :erlang.trace(server, true, [:receive])
    began = System.monotonic_time(:millisecond)

    for holder <- holders do
      Process.exit(holder, :kill)
      Process.sleep(5)
    end

    :erlang.trace(server, false, [:receive])
    # One each 10 ms, and the tick's.
    most = div(System.monotonic_time(:millisecond) - began, 10) + 2
    assert told_again(server, 0) in 2..most
    signal(os_pid, "CONT")
    eventually(fn -> Isolation.call!(library, :cells, []) == 0 end, 10_000)
  end

  defp hold(handles) do
    receive do
      :never -> handles
    end
  end

  defp told_again(server, count) do
    receive do
      {:trace, ^server, :receive, {:flush, _}} -> told_again(server, count + 1)
      {:trace, ^server, :receive, _} -> told_again(server, count)
    after
      0 -> count
    end
  end

  test "a handle that never leaves the worker is none" do
    library = load!(:cpp)

    for _ <- 1..100,
        do: aside(fn -> Isolation.call!(library, :repeat, [Isolation.call!(library, :table_new, []), 0]) end)

    none_left(library)
  end

  test "handles go through messages, processes, tables and terms" do
    library = load!(:cpp)
    store = :ets.new(:handles, [:public])
    test = self()

    # Its maker is gone, the table has it.
    aside(fn ->
      table = Isolation.call!(library, :table_new, [])
      {:ok, :ok} = Isolation.call(library, :table_put, [table, "x", 1])
      :ets.insert(store, {:table, table, %{in: [table]}})
    end)

    assert tables(library) == 1

    aside(fn ->
      [{:table, table, %{in: [same]}}] = :ets.lookup(store, :table)
      {:ok, 1} = Isolation.call(library, :table_get, [same, "x"])
      {:ok, :ok} = Isolation.call(library, :table_put, [table, "x", 2])
    end)

    # In a message, inside of a fun, through a persistent term.
    aside(fn ->
      [{:table, table, _}] = :ets.lookup(store, :table)
      :persistent_term.put(store, table)
      send(test, {:here, [table], fn -> table end})
    end)

    assert_receive {:here, [table], fun}
    assert {:ok, 2} = Isolation.call(library, :table_get, [table, "x"])
    assert {:ok, 2} = Isolation.call(library, :table_get, [fun.(), "x"])
    assert {:ok, 2} = Isolation.call(library, :table_get, [:persistent_term.get(store), "x"])
    assert {:ok, [{:ok, 2}, {:ok, 2}]} = Isolation.call_many(library, :table_get, [[table, "x"], [fun.(), "x"]])

    :persistent_term.erase(store)
    :ets.delete(store)
    assert tables(library) == 1
  end

  test "one that was only in a table ends with it" do
    library = load!(:cpp)
    store = :ets.new(:handles, [:public])
    aside(fn -> :ets.insert(store, {:table, Isolation.call!(library, :table_new, [])}) end)
    assert tables(library) == 1
    :ets.delete(store)
    none_left(library)
  end

  # Cells of both workers, each with its number in it.
  defp cells_of_both(library) do
    first = for n <- 1..10, do: {n, Isolation.call!(library, :cell_new, [n])}
    # Whoever is busy is not asked.
    held = call_in_process(library, :sleep, [100], timeout: :infinity)
    begun(library, 1)
    second = for n <- 11..20, do: {n, Isolation.call!(library, :cell_new, [n])}
    assert {:ok, :ok} = result_of(held)
    counts = for position <- 1..2, do: worker(library, position).calls
    assert Enum.all?(counts, &(&1 >= 10)), "one of the workers has no cells: #{inspect(counts)}"
    first ++ second
  end

  test "calls go to the worker that has the object, of whatever kind they are" do
    library = load!(:adder, workers: 2)
    cells = cells_of_both(library)

    for {n, cell} <- cells do
      assert {:ok, n} == Isolation.call(library, :cell_get, [cell])
      assert {:ok, n} == library |> Isolation.call_async(:cell_get, [cell]) |> Isolation.await()
      # Inside of a term too.
      assert {:ok, [%{cell: same}]} = Isolation.call(library, :echo, [[%{cell: cell}]])
      assert {:ok, n} == Isolation.call(library, :cell_get, [same])
    end

    {:ok, results} = Isolation.call_many(library, :cell_get, for({_, cell} <- cells, do: [cell]))
    assert results == for({n, _} <- cells, do: {:ok, n})

    # None of them has those of both.
    both = [elem(List.first(cells), 1), elem(List.last(cells), 1)]
    assert {:error, %Error{reason: :stale}} = Isolation.call(library, :echo, [both])
  end

  test "an object of a worker that has died is stale; those of the others are not" do
    library = load!(:adder, workers: 2)
    cells = cells_of_both(library)
    old = os_pid(library, 1)
    signal(old)
    successor(library, old, 1)

    outcomes = for {n, cell} <- cells, do: {n, cell, Isolation.call(library, :cell_get, [cell])}
    {stale, fine} = Enum.split_with(outcomes, &match?({_, _, {:error, %Error{reason: :stale}}}, &1))
    assert length(stale) == 10
    assert Enum.all?(fine, fn {n, _, result} -> result == {:ok, n} end)

    # However it is called, and in whatever term it stands.
    [{_, dead, {:error, error}} | _] = stale
    assert Exception.message(error) =~ "worker"
    assert {:error, %Error{reason: :stale}} = Isolation.call(library, :echo, [%{in: [{dead}]}])
    assert {:ok, [{:error, %Error{reason: :stale}}]} = Isolation.call_many(library, :cell_get, [[dead]])
    assert {:error, %Error{reason: :stale}} = library |> Isolation.call_async(:cell_get, [dead]) |> Isolation.await()
  end

  test "an object of another library is none of this one's" do
    [one, other] = [load!(:cpp), load!(:cpp)]
    table = Isolation.call!(one, :table_new, [])
    assert {:error, %Error{reason: :stale}} = Isolation.call(other, :table_get, [table, "x"])
    assert {:ok, :ok} = Isolation.call(one, :table_put, [table, "x", 1])
  end
end
