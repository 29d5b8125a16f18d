defmodule Snakepit.Isolation.PoolTest do
  use Snakepit.IsolationCase, async: false

  alias Snakepit.Isolation.Pool

  test "a load that asks between the workers' last word and the pool's next look waits for that" do
    library = load!(:adder, workers: 2)
    pool = Library.lookup(library.table, :pool)
    # As it is just before it looks: its rows are complete, and it does not know it yet.
    :sys.replace_state(pool, &%{&1 | library: nil})
    load = Task.async(fn -> Pool.loaded(pool) end)
    eventually(fn -> :sys.get_state(pool).loaders != %{} end)
    send(pool, :changed)
    assert {:ok, %Library{id: id}} = Task.await(load)
    assert id == library.id
  end

  test "libraries that load quickly, one after the other and side by side" do
    load = fn -> for _ <- 1..25, do: Isolation.unload(load!(:adder, workers: 2)) end
    results = 1..3 |> Enum.map(fn _ -> Task.async(load) end) |> Task.await_many(60_000) |> List.flatten()
    assert Enum.uniq(results) == [:ok]
  end
end
