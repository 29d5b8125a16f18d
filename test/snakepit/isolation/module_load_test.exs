defmodule Snakepit.Isolation.ModuleLoadTest do
  # Who loads a module's library, and what becomes of it when he, those who wait, or the house end meanwhile.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.{DropInFixture, OwnFixture}
  alias Snakepit.Isolation.{Directory, DropIn, Fit, Options}
  alias Snakepit.Isolation.DropIn.Loader
  alias Snakepit.Isolation.Module.Loads

  defp appeared(name) do
    with :error <- Directory.fetch(name) do
      :erlang.yield()
      appeared(name)
    end
  end

  defp waiting(module) do
    %{waiting: waiting} = :sys.get_state(Loads)
    length(waiting[{module, module.__isolation__().slot}] || [])
  end

  # Each has a number of its own.
  defp workers_started, do: :sys.get_state(Warden).next

  # ── Callers that are killed ───────────────────────────────────────────────────────────────────────────────────

  test "a first caller that is killed when the library is there leaves it to the module" do
    module = OwnFixture.module([])

    for _ <- 1..5 do
      caller = spawn(fn -> module.add(1, 2) end)
      appeared(module)
      kill(caller)
      assert module.add(1, 2) == 3
      assert [%Library{name: ^module}] = Isolation.list()
      OwnFixture.reload()
    end
  end

  test "one that is killed before lets the others wait for the same library" do
    module = OwnFixture.module([])
    started = workers_started()

    # Nobody loads as long as we are alone.
    other =
      Loader.alone(module, fn ->
        caller = spawn(fn -> module.add(1, 2) end)
        eventually(fn -> waiting(module) == 1 end)
        other = Task.async(fn -> module.add(2, 2) end)
        eventually(fn -> waiting(module) == 2 end)
        kill(caller)
        other
      end)

    assert Task.await(other, 30_000) == 4
    assert workers_started() == started + 1
  end

  test "a library of the module's name that nobody knows is unloaded, and the module's own loaded" do
    module = OwnFixture.module([])
    %{nifs: nifs} = module.__isolation__()
    {:ok, options} = Options.load(NativeFixture.path(:own), name: module, sandbox: :none)
    {:ok, orphan} = Isolation.load_checked(%{options | fits: Fit.new(module, nifs, true)})
    old = os_pid(orphan)
    assert module.add(1, 2) == 3
    assert [library] = Isolation.list()
    refute library.native == orphan.native
    gone(old)
  end

  test "somebody else's of that name is not" do
    module = OwnFixture.module([])
    {:ok, other} = Isolation.load(NativeFixture.path(:adder), name: module, sandbox: :none)
    assert_raise Error, ~r/there is a library of the name .*Own already/, fn -> module.add(1, 2) end
    assert Isolation.list() == [other]
  end

  test "who calls load_nif in an isolated module and is killed leaves the library to the module" do
    module = DropInFixture.erlang([])
    :ok = Isolation.isolate(module, sandbox: :none)
    path = to_charlist(NativeFixture.path(:drop_in))
    caller = spawn(fn -> module.load(path, 0) end)
    appeared(module)
    kill(caller)
    eventually(fn -> DropIn.library(module) != nil end)
    assert module.os_pid() == os_pid(module)
    assert {:error, {:reload, _}} = module.load(path, 0)
  end

  # ── Callers that wait ─────────────────────────────────────────────────────────────────────────────────────────

  test "nobody waits for a lock to hear that the library is there" do
    {own, other} = {OwnFixture.module([]), DropInFixture.erlang()}
    assert own.add(1, 2) == 3
    :ok = Isolation.isolate(other, sandbox: :none)

    for {module, function} <- [{own, fn -> Isolation.Module.load(own) end}, {other, fn -> other.load('any', 0) end}] do
      answer = Loader.alone(module, fn -> Task.await(Task.async(function), 30_000) end)
      assert answer == :ok or match?({:error, {:reload, _}}, answer)
    end
  end

  test "a load that fails is everybody's error who waited for it, once; and each call has its own deadline" do
    module = OwnFixture.module(library: NativeFixture.path(:constructor_hang), load_timeout: 3_000)
    OwnFixture.configure(timeout: 100)
    started = workers_started()

    {waiters, errors} =
      Loader.alone(module, fn ->
        waiters = for _ <- 1..8, do: Task.async(fn -> Isolation.Module.load(module) end)
        eventually(fn -> waiting(module) == 8 end)
        callers = for _ <- 1..4, do: Task.async(fn -> catch_error(module.add(1, 2)) end)
        {waiters, Task.await_many(callers, 30_000)}
      end)

    for error <- errors do
      assert %Error{reason: :timeout, library: ^module, details: %{because: :loading, started: false}} = error
      assert Exception.message(error) =~ "had not been loaded within 100 ms. Call again"
    end

    assert [{:error, %Error{reason: :not_loaded, details: %{because: :load_timeout}}}] =
             waiters |> Task.await_many(60_000) |> Enum.uniq()

    assert workers_started() == started + 1

    # The next one tries again.
    OwnFixture.configure(library: "priv/own")
    assert Isolation.Module.load(module) == :ok
    assert module.add(1, 2) == 3
  end

  test "when who loads is killed, those who wait are told; when who lets load is, they load themselves" do
    module = OwnFixture.module([])

    told =
      Loader.alone(module, fn ->
        told = Task.async(fn -> catch_error(module.add(1, 2)) end)
        eventually(fn -> waiting(module) == 1 end)
        {:links, links} = Process.info(Process.whereis(Loads), :links)
        for pid <- links, pid != Process.whereis(Isolation.Supervisor), do: kill(pid)
        told
      end)

    assert %Error{reason: :not_loaded, details: %{because: :start, message: message}} = Task.await(told, 30_000)
    assert message =~ "killed"

    caller =
      Loader.alone(module, fn ->
        caller = Task.async(fn -> module.add(1, 2) end)
        eventually(fn -> waiting(module) == 1 end)
        kill(Process.whereis(Loads))
        caller
      end)

    assert Task.await(caller, 30_000) == 3
    assert length(Isolation.list()) == 1
  end

  # ── The application ───────────────────────────────────────────────────────────────────────────────────────────

  test "a library that ended with the application, or with the supervisor of libraries, comes back" do
    module = OwnFixture.module([])

    paths =
      Enum.map_join([:code.lib_dir(OwnFixture.app(), :ebin), :code.lib_dir(:snakepit_shm, :ebin)], ", ", &inspect/1)

    {output, status} =
      SubVm.run("""
      Logger.configure(level: :none)
      :code.add_pathsa([#{paths}])
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      IO.inspect({:first, #{inspect(module)}.add(1, 2)})
      Application.stop(:snakepit_shm)
      %{reason: reason} = try(do: #{inspect(module)}.add(1, 2), rescue: (error -> error))
      IO.inspect({:stopped, reason})
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      IO.inspect({:again, #{inspect(module)}.add(1, 3)})

      libraries = fn -> Process.whereis(Snakepit.Isolation.Libraries) end
      before = libraries.()
      Process.exit(before, :kill)
      wait = fn wait -> if libraries.() in [nil, before], do: wait.(wait) end
      wait.(wait)
      IO.inspect({:killed, #{inspect(module)}.add(1, 4)})
      """)

    assert {status, output} == {0, "{:first, 3}\n{:stopped, :not_loaded}\n{:again, 4}\n{:killed, 5}\n"}
  end
end
