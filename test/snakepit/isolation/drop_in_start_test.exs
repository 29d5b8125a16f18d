defmodule Snakepit.Isolation.DropInStartTest do
  # `config :snakepit_shm, isolate:`, and what becomes of a start that it stops.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureLog

  alias Snakepit.{DropInFixture, OwnFixture}
  alias Snakepit.Isolation.{DropIn, Options}
  alias Snakepit.Isolation.DropIn.Start

  @moduletag timeout: 120_000

  defp start(isolate) do
    Application.put_env(:snakepit_shm, :isolate, isolate)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :isolate) end)
    Start.run()
  end

  defp here?(module), do: module.os_pid() == String.to_integer(System.pid())
  defp worker_of(module), do: os_pid(module)

  # ── The list ──────────────────────────────────────────────────────────────────────────────────────────────────

  test "a misspelt option: what is allowed is what isolate/2 takes" do
    assert {:error, error} = start(jiffy: [sandbox: :none, worker: 2])
    message = Exception.message(error)
    assert message =~ ~r/:worker: expected one of .*did you mean :workers/
    assert message =~ "Snakepit.Isolation.load/2"
    refute message =~ "load_info"
  end

  test "is taken as it stands, in its order" do
    list = [{:jiffy, [workers: 2, sandbox: :none]}, {:b, false}, {:a, sandbox: :none}]
    assert Options.modules(list) == {:ok, list}
    assert Options.modules([]) == {:ok, []}
  end

  for {list, key, words} <- [
        {:jiffy, :isolate, ~r/^config :snakepit_shm, isolate: expected a list of modules.*, got :jiffy/},
        {[:jiffy], :isolate, ~r/got :jiffy\./},
        {[{:jiffy, []} | :b], :isolate, ~r/expected a list/},
        {%{jiffy: [sandbox: :none]}, :isolate, ~r/expected a list/},
        {[a: false, a: false], :isolate, ~r/each module once, got :a/},
        {[{"jiffy", [sandbox: :none]}], :module, ~r/:module: expected a module, got "jiffy"/},
        {[jiffy: [sandbox: :none, workers: 0]], :workers,
         ~r/^config :snakepit_shm, isolate: :jiffy: :workers: expected an integer from 1 to 64, got 0/},
        {[jiffy: true], :options, ~r/:jiffy: :options: expected a keyword list, got true/}
      ] do
    test "#{inspect(list)} is refused" do
      {list, key, words} = unquote(Macro.escape({list, key, words}))
      assert {:error, %Error{reason: :invalid_option, details: %{key: ^key}} = error} = start(list)
      assert Exception.message(error) =~ words
    end
  end

  test "the sandbox has to be named here too" do
    assert {:error, %Error{reason: :not_loaded} = error} = start(jiffy: [])
    assert Exception.message(error) =~ "Pass sandbox: :none"
  end

  # ── Modules ───────────────────────────────────────────────────────────────────────────────────────────────────

  test "modules are isolated, and one that is false is not" do
    {one, other} = {DropInFixture.erlang(), DropInFixture.elixir()}
    assert start([{one, sandbox: :none}, {other, false}]) == :ignore
    assert one.os_pid() == worker_of(one)
    assert DropIn.fetch(other) == nil
  end

  test "the list is checked before anything is isolated" do
    module = DropInFixture.erlang()
    assert {:error, _} = start([{module, sandbox: :none}, {:jiffy, workers: 2}])
    assert DropIn.fetch(module) == nil
  end

  test "what cannot be isolated is the start's error, and what was isolated before it stays so" do
    module = DropInFixture.erlang()

    assert {:error, %Error{reason: :unsupported_module} = error} =
             start([{module, sandbox: :none}, {:nope, sandbox: :none}])

    assert Exception.message(error) =~ ~r/^config .* :nope: there is no such module.* unnoticed/
    assert module.os_pid() == worker_of(module)
  end

  test "a module whose library was here before: the log says so" do
    module = DropInFixture.erlang()
    assert here?(module)
    log = capture_log(fn -> assert start([{module, sandbox: :none}]) == :ignore end)
    assert log =~ ~r/\[info\].*had been loaded before \(as Mix does/
    assert module.os_pid() == worker_of(module)
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
  end

  test "a module in which somebody runs, with its library here, stops the start" do
    module = DropInFixture.erlang()
    user = spawn_link(fn -> module.loop() end)
    send(user, {self(), :os_pid, []})
    assert_receive {^user, _}, 10_000

    assert {:error, %Error{reason: :in_use, details: %{pids: [^user]}} = error} = start([{module, sandbox: :none}])
    assert Exception.message(error) =~ "before snakepit_shm was started"
    # It is closed to everybody else.
    assert module.os_pid() == worker_of(module)
    send(user, :stop)
  end

  test "a second start takes the options that it finds, and false gives up" do
    module = DropInFixture.erlang()
    assert start([{module, sandbox: :none}]) == :ignore
    old = worker_of(module)
    log = capture_log(fn -> assert start([{module, sandbox: :none, workers: 2}]) == :ignore end)
    refute log =~ "had been loaded"
    assert length(info!(module).workers) == 2
    gone(old)
    assert start([{module, false}]) == :ignore
    assert here?(module)
  end

  test "false is no word against a module that has its library itself, whether it was called before or not" do
    module = OwnFixture.module([])
    assert start([{module, false}]) == :ignore
    assert module.os_pid() == worker_of(module)
    assert start([{module, false}]) == :ignore
    assert module.os_pid() == worker_of(module)
  end

  test "a module whose library was unloaded can be isolated again, without its library coming here" do
    module = DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none)
    :ok = Isolation.unload(module)
    assert {:not_loaded, _} = {catch_error(module.os_pid()).reason, module}
    assert :ok = Isolation.isolate(module, sandbox: :none)
    assert module.os_pid() == worker_of(module)
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
  end

  test "a module whose workers were given up can be isolated again, as the error says" do
    module = DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none, max_restarts: 0)
    signal(worker_of(module))
    eventually(fn -> info!(module).state == :failed end)
    error = catch_error(module.os_pid())
    assert %Error{reason: :not_loaded, details: %{because: :gave_up}} = error

    assert Exception.message(error) =~
             "Isolate the module again with Snakepit.Isolation.isolate(#{inspect(module)}, options)"

    assert :ok = Isolation.isolate(module, sandbox: :none)
    assert module.os_pid() == worker_of(module)
    assert {:error, %Error{reason: :already_isolated} = error} = Isolation.isolate(module, sandbox: :none)
    assert Exception.message(error) =~ "unload it first"
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
  end

  test "a module whose library was unloaded: info/1 says so" do
    module = DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none)
    :ok = Isolation.unload(module)
    assert {:error, %Error{details: %{because: :unloaded}} = error} = Isolation.info(module)
    assert Exception.message(error) =~ "Isolate the module again"
  end

  # ── Our own processes ─────────────────────────────────────────────────────────────────────────────────────────

  @libraries Snakepit.Isolation.Libraries

  test "the supervisor of all libraries is killed: modules are isolated again" do
    module = DropInFixture.erlang()
    assert start([{module, sandbox: :none}]) == :ignore
    {house, old} = {Process.whereis(Snakepit.Isolation.Supervisor), worker_of(module)}
    kill(Process.whereis(@libraries))
    # Meanwhile it raises, and nothing but that.
    eventually(fn -> called(module) not in [nil, old] end)
    assert module.os_pid() == worker_of(module)
    assert Process.whereis(Snakepit.Isolation.Supervisor) == house
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
    settled()
  end

  test "one that cannot be isolated again stops nothing: the log says so, and it is tried again" do
    module = DropInFixture.erlang()
    assert start([{module, sandbox: :none}]) == :ignore
    {house, old} = {Process.whereis(Snakepit.Isolation.Supervisor), worker_of(module)}
    # Its library is not to be had; another module does not wait for it.
    path = NativeFixture.path(:drop_in)
    DropInFixture.settings(module, path: path <> "_not_there")
    other = DropInFixture.elixir()
    Application.put_env(:snakepit_shm, :isolate, [{module, sandbox: :none}, {other, sandbox: :none}])

    log =
      capture_log(fn ->
        kill(Process.whereis(@libraries))
        eventually(fn -> called(other) == worker_of_or_nil(other) end)
        assert called(module) == nil
        gone(old)
        # What it says of an attempt it says at the end of it.
        :sys.get_state(again())
      end)

    assert log =~ ~r/\[error\] #{inspect(module)} could not be isolated again/
    assert other.os_pid() == worker_of(other)
    refute File.read!("/proc/self/maps") =~ "drop_in.so"

    log =
      capture_log(fn ->
        DropInFixture.settings(module, path: path)
        eventually(fn -> called(module) end)
        settled()
      end)

    refute log =~ "had been loaded before"

    assert module.os_pid() == worker_of(module)
    assert Process.whereis(Snakepit.Isolation.Supervisor) == house
  end

  defp worker_of_or_nil(module) do
    case Isolation.info(module) do
      {:ok, %{state: :ready, workers: [%{os_pid: os_pid}]}} -> os_pid
      _ -> nil
    end
  end

  defp called(module) do
    module.os_pid()
  rescue
    error in Error -> if error.reason == :not_loaded, do: nil, else: reraise(error, __STACKTRACE__)
  end

  # Nothing is left to be tried.
  defp settled, do: eventually(fn -> again() == :undefined end)

  # What tries again, while there is something to be tried.
  defp again do
    {_, inner, _, _} = List.keyfind(Supervisor.which_children(Snakepit.Isolation.Supervisor), :isolated, 0)
    {_, pid, _, _} = List.keyfind(Supervisor.which_children(inner), Start, 0)
    pid
  end

  # ── The application ───────────────────────────────────────────────────────────────────────────────────────────

  if match?({:error, _}, :code.lib_dir(:jiffy)), do: @tag(skip: "there is no jiffy (Debian: erlang-jiffy)")

  # Modules as values: what a script names, the compiler loads.
  test "the application's start isolates, so does its supervisor's successor; its end closes, its next start isolates again" do
    {output, status} =
      SubVm.run("""
      jiffy = :jiffy
      Application.put_env(:snakepit_shm, :isolate, [{jiffy, sandbox: :none, workers: 2}])
      # If it ended, so would this VM.
      {:ok, _} = Application.ensure_all_started(:snakepit_shm, :permanent)
      IO.inspect({:started, jiffy.encode([1])})
      Logger.configure(level: :none)

      # All libraries end with it, and its successor has them loaded again.
      warden = fn -> with({:ok, info} <- Snakepit.Isolation.info(jiffy), do: info.warden) end

      again = fn again, first, left ->
        try do
          true = is_integer(warden.()) and warden.() != first
          jiffy.encode([0])
        rescue
          error -> if left == 0, do: error, else: Process.sleep(10) && again.(again, first, left - 1)
        end
      end

      for _ <- 1..3 do
        first = warden.()
        Process.exit(Process.whereis(Snakepit.Isolation.Supervisor), :kill)
        IO.inspect({:killed, again.(again, first, 1_000)})
      end

      Application.stop(:snakepit_shm)
      %{reason: reason} = try do jiffy.encode([1]) rescue error -> error end
      IO.inspect({:stopped, reason})
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      IO.inspect({:again, jiffy.encode([2])})
      IO.inspect({:mapped, File.read!("/proc/self/maps") =~ "/jiffy.so"})
      """)

    assert {status, output} ==
             {0,
              ~s({:started, "[1]"}\n{:killed, "[0]"}\n{:killed, "[0]"}\n{:killed, "[0]"}\n{:stopped, :not_loaded}\n{:again, "[2]"}\n{:mapped, false}\n)}
  end

  test "crypto, which our own start needs" do
    {output, status} =
      SubVm.run("""
      crypto = :crypto
      Application.put_env(:snakepit_shm, :isolate, [{crypto, sandbox: :none}])
      # Without Mix, what was loaded before is a warning.
      3 = byte_size(crypto.strong_rand_bytes(3))
      Logger.configure_backend(:console, format: "$level $message\n", device: :standard_error)
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      Logger.flush()
      {:ok, _region} = Snakepit.SharedMemory.put("x")
      IO.inspect({byte_size(crypto.strong_rand_bytes(3)), File.read!("/proc/self/maps") =~ "/crypto.so"})
      """)

    assert status == 0
    assert output =~ ~r/^warn(ing)? :crypto is isolated now. It had been loaded before, so/m
    assert output =~ ~r/^{3, false}$/m
  end

  test "a start that is stopped says why, in words" do
    {output, 0} =
      SubVm.run("""
      Logger.configure(level: :none)
      Application.put_env(:snakepit_shm, :isolate, [:jiffy])
      {:error, reason} = Application.ensure_all_started(:snakepit_shm)
      IO.puts(Application.format_error(elem(reason, 1)))
      """)

    assert output =~ "** (Snakepit.Isolation.Error) config :snakepit_shm, isolate: expected a list"
  end
end
