defmodule Snakepit.Isolation.EspressoTest do
  # A library with global state, through the drop-in, used by many processes: each worker is a copy of that state, and with
  # `concurrency: 1` one call at a time has it. That its results are those of the library in a VM is a row of
  # `Snakepit.Differential.Libraries`; here they are under load.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.{Differential, EspressoFixture}

  # The library may have to be built first, and that takes a while on a busy machine.
  @moduletag timeout: 900_000

  setup do
    directory = temporary_directory("espresso")
    module = EspressoFixture.module(directory)

    on_exit(fn ->
      if Isolation.DropIn.fetch(module), do: :ok = Isolation.restore(module)
      EspressoFixture.remove(directory)
    end)

    %{module: module}
  end

  defp isolate!(module, options) do
    :ok = Isolation.isolate(module, [sandbox: :none] ++ options)
    ready(module)
    module
  end

  test "the crate's own examples, by many processes at the same time", %{module: module} do
    isolate!(module, workers: 4)
    examples = EspressoFixture.examples()
    assert length(examples) > 40

    peer = Differential.start_reference()
    :ok = :peer.call(peer, :persistent_term, :put, [{module, :path}, :persistent_term.get({module, :path})])
    there = for example <- examples, do: :peer.call(peer, module, :minimize, [example], 60_000)
    assert Enum.count(there, &match?({:ok, _}, &1)) > 20

    tasks = for _ <- 1..8, do: Task.async(fn -> Enum.map(examples, &module.minimize/1) end)
    for here <- Task.await_many(tasks, :infinity), do: assert(here == there)
    used = for worker <- info!(module).workers, worker.calls > 0, do: worker.os_pid
    assert length(used) > 1
  end

  @sizes [{2, 1}, {3, 1}, {4, 2}, {5, 3}]

  test "four workers are four copies of the global state", %{module: module} do
    isolate!(module, workers: 4)
    set_up = together(module, for({i, o} <- @sizes, do: fn pipe -> {{i, o}, module.set_up(i, o, pipe)} end))
    size_of = Map.new(set_up, fn {size, {:ok, os_pid}} -> {os_pid, size} end)
    assert map_size(size_of) == 4

    # Each of them goes on with what it has, and with no other's: a problem of another size is refused where it is not.
    visits = together(module, for(_ <- @sizes, do: fn pipe -> module.visit(pipe, ".i 2\n.o 1\n01 1\n11 1\n.e\n") end))
    assert Map.new(visits, fn {:ok, {os_pid, size, _, _}} -> {os_pid, size} end) == size_of

    for {:ok, {_, size, _, result}} <- visits do
      if size == {2, 1},
        do: assert({:ok, ".i 2" <> _} = result),
        else: assert({:error, _} = result)
    end

    # And a new process begins with none.
    {os_pid, size} = Enum.random(size_of)
    signal(os_pid)
    gone(os_pid)
    ready(module)
    visits = together(module, for(_ <- @sizes, do: fn pipe -> module.visit(pipe, "") end))
    assert Enum.sort(for({:ok, {_, size, _, _}} <- visits, do: size)) == Enum.sort([nil | @sizes -- [size]])
  end

  test "concurrency: 1 serialises each worker", %{module: module} do
    isolate!(module, workers: 4, concurrency: 1)
    visits = together(module, for(_ <- 1..12, do: fn pipe -> module.visit(pipe, "") end), 4)
    assert [1] = Enum.uniq(for {:ok, {_, _, most, _}} <- visits, do: most)
    assert 4 = visits |> Enum.uniq_by(fn {:ok, {os_pid, _, _, _}} -> os_pid end) |> length()
  end

  test "a higher concurrency does not", %{module: module} do
    isolate!(module, workers: 1, concurrency: 3)
    visits = together(module, for(_ <- 1..3, do: fn pipe -> module.visit(pipe, "") end))
    assert [3] = Enum.uniq(for {:ok, {_, _, most, _}} <- visits, do: most)
  end

  # Calls that wait for a named pipe each, begun one after the other, as many at the same time as `most`, so that each goes to a worker
  # that is not busy as long as there is one. Then all pipes are written. What they gave, in their order.
  defp together(module, calls, most \\ 64) do
    directory = temporary_directory("espresso-pipes")

    begun =
      for {call, n} <- Enum.with_index(calls, 1) do
        pipe = Path.join(directory, "#{n}")
        {_, 0} = System.cmd("mkfifo", [pipe])
        task = Task.async(fn -> call.(pipe) end)
        in_flight(module, n)
        begun(module, min(n, most))
        {task, pipe}
      end

    # The shell waits until the library has opened it, too.
    writers = for {_, pipe} <- begun, do: Task.async(fn -> {_, 0} = System.cmd("sh", ["-c", ": > #{pipe}"]) end)
    results = Task.await_many(for({task, _} <- begun, do: task), :infinity)
    Task.await_many(writers, :infinity)
    results
  end
end
