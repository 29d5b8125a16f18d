defmodule Snakepit.Isolation.DropInTest do
  # Modules that know nothing of us, before, while and after their libraries are isolated.
  use Snakepit.IsolationCase, async: false

  import Snakepit.DropInFixture, only: [outcome: 3]

  alias Snakepit.DropInFixture

  @info {:info, [1]}

  defp isolate!(module, options \\ []), do: :ok = Isolation.isolate(module, [sandbox: :none] ++ options)
  defp here?(module), do: module.os_pid() == String.to_integer(System.pid())
  defp worker_of(module), do: os_pid(info!(module).id)

  # ── Isolated ──────────────────────────────────────────────────────────────────────────────────────────────────

  test "a module that is not loaded yet: its library never enters this VM" do
    module = DropInFixture.erlang()
    isolate!(module)
    assert module.add(1, 2) == 3
    assert module.os_pid() == worker_of(module)
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
    assert_no_messages()
  end

  test "a module that is in use: from now on its library runs elsewhere" do
    module = DropInFixture.erlang()
    assert here?(module)
    assert File.read!("/proc/self/maps") =~ "drop_in.so"
    isolate!(module)
    assert module.os_pid() == worker_of(module)
    refute File.read!("/proc/self/maps") =~ "drop_in.so"
  end

  test "on_load runs once, passes its load info, and may call the library" do
    module = DropInFixture.erlang()
    isolate!(module)
    assert module.loads() == 1
    assert module.load_info() == @info
    assert module.in_on_load() == :library
  end

  test "functions that are not exported, and functions that have a body of their own" do
    module = DropInFixture.erlang()
    isolate!(module)
    assert module.whisper("word") == {:library, "word"}
    assert module.origin() == :library
  end

  test "what the library does not have stays as it is" do
    module = DropInFixture.erlang()
    isolate!(module)
    assert for(argument <- [1, [{:x, :x}], %{a: 2}], do: module.classify(argument)) == [:positive, :twins, 2]
  end

  test "a module that declares its NIFs" do
    module = DropInFixture.erlang([:ON_LOAD, :NIFS])
    isolate!(module)
    assert {module.add(1, 2), module.whisper(1), module.classify(5)} == {3, {:library, 1}, :positive}
  end

  test "a module in Elixir" do
    module = DropInFixture.elixir()
    isolate!(module)
    assert {module.add(1, 2), module.origin(), module.load_info()} == {3, :library, @info}
    assert {module.whisper(), module.whisper(:word)} == {{:library, "default"}, {:library, :word}}
    assert struct(module, value: 7)[:key] == 7
    assert module.__info__(:macros) == [twice: 1]
    assert {:error, :reason, [{:raise, [:reason]} | _]} = outcome(module, :raise, [:reason])
  end

  test "exports, attributes and place stay" do
    module = DropInFixture.erlang()

    described = fn ->
      {Enum.sort(module.module_info(:exports)), module.module_info(:attributes), :code.which(module)}
    end

    before = described.()
    isolate!(module)
    assert described.() == before
    assert module.module_info(:attributes)[:vsn] == 'as given'
  end

  test "a parse transform does not run again" do
    directory = DropInFixture.directory()
    DropInFixture.compile(directory, "snakepit_drop_in_transform", [])
    true = :code.add_patha(to_charlist(directory))
    module = DropInFixture.erlang([:ON_LOAD, :TRANSFORM], [:debug_info, :export_all, :nowarn_export_all])
    DropInFixture.unload(:snakepit_drop_in_transform)
    :code.del_path(to_charlist(directory))
    isolate!(module)
    assert {module.transformed(), module.secret(1)} == {:once, {:library, 1}}
  end

  test "it is traced as before" do
    module = DropInFixture.erlang()
    isolate!(module)
    test = self()

    traced =
      spawn_link(fn ->
        receive do
          :go -> module.whisper(1)
        end
      end)

    :erlang.trace_pattern({module, :_, :_}, true, [:local])
    :erlang.trace(traced, true, [:call, {:tracer, test}])
    send(traced, :go)
    assert_receive {:trace, ^traced, :call, {^module, :whisper, [1]}}
    assert_receive {:trace, ^traced, :call, {^module, :secret, [1]}}
  end

  # ── As in the VM ──────────────────────────────────────────────────────────────────────────────────────────────

  test "results, exceptions and stack traces are those of the VM" do
    module = DropInFixture.erlang()

    calls = [
      add: [1, 2],
      add: [9_223_372_036_854_775_807, 1],
      add: [:a, 1],
      raise: [:reason],
      raise: [{:badmatch, %{"a" => [1.5]}}],
      raise: [%ArgumentError{message: "an exception of Elixir"}],
      whisper: [make_ref()],
      origin: [],
      load_info: [],
      classify: [0],
      classify: [[{1, 2}]],
      classify: [%{}],
      indirect: [:load_nif, ["path", 0]],
      load: [:no_path, 0],
      load_otherwise: [~c"path", 0]
    ]

    in_vm = for {function, arguments} <- calls, do: outcome(module, function, arguments)
    isolate!(module)
    isolated = for {function, arguments} <- calls, do: outcome(module, function, arguments)

    for {{call, expected}, got} <- calls |> Enum.zip(in_vm) |> Enum.zip(isolated),
        do: assert({call, got} == {call, expected})
  end

  test "a crash is an exception of the caller alone" do
    module = DropInFixture.erlang()
    isolate!(module)

    assert {:error, %Error{reason: :crashed, signal: :SIGSEGV, function: {:crash, 0}}, [{:crash, 0} | _]} =
             outcome(module, :crash, [])

    assert module.add(1, 2) == 3
    assert_raise Error, ~r/crash\/0: the library's process ended with SIGSEGV/, fn -> module.crash() end
    assert module.add(3, 4) == 7
  end

  test "there is no deadline but the one that is asked for" do
    module = DropInFixture.erlang()
    isolate!(module)
    assert Library.lookup(Isolation.DropIn.library(module).table, {:worker, 1}).state == :ready
    assert Isolation.DropIn.library(module).timeout == :infinity
    :ok = Isolation.restore(module)

    isolate!(module, timeout: 1_000)
    assert {:error, %Error{reason: :timeout}, [{:hang, 0} | _]} = outcome(module, :hang, [])
    eventually(fn -> info!(module).state == :ready end)
    assert module.add(1, 2) == 3
  end

  # ── Without on_load ───────────────────────────────────────────────────────────────────────────────────────────

  test "a library that is loaded later, by a call" do
    module = DropInFixture.erlang([])
    isolate!(module)
    assert module.origin() == :erlang
    assert module.whisper("word") == {:erlang, ?w}
    assert {:error, {:not_loaded, ^module, _}, [{:not_loaded, 1}]} = outcome(module, :add, [1, 2])
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.call(module, :add, [1, 2])
    assert Exception.message(error) =~ "has not loaded its library yet"

    assert module.load(NativeFixture.path(:drop_in), :later) == :ok
    assert {module.origin(), module.load_info(), module.whisper(1)} == {:library, :later, {:library, 1}}
    assert {:error, {:reload, [_ | _]}} = module.load(NativeFixture.path(:drop_in), :again)
    assert module.load_info() == :later
  end

  test "many processes load it, one of them does" do
    module = DropInFixture.erlang([])
    isolate!(module)

    answers =
      1..8
      |> Enum.map(fn i -> Task.async(fn -> module.load(NativeFixture.path(:drop_in), {:by, i}) end) end)
      |> Task.await_many(30_000)

    assert [:ok | others] = Enum.sort(answers)
    assert Enum.all?(others, &match?({:error, {:reload, _}}, &1))
    assert length(Isolation.list()) == 1
  end

  for {what, fixture, info, kind, words} <- [
        {"is not there", :missing, 0, :load_failed, ~r/no file/},
        {"is no library", :not_a_library, 0, :load_failed, ~r/not a shared library/},
        {"is another module's", :adder, 0, :bad_lib,
         ~r/'snakepit_adder' does not match calling module 'snakepit_drop_in'/},
        {"has no nif_init", :no_init, 0, :bad_lib, ~r/nif_init/},
        {"does not want to", :drop_in, 17, :load, ~r/Library load-call unsuccessful \(17\)/}
      ] do
    test "a library that #{what} is the error that the VM gives" do
      {fixture, info, kind, words} = unquote(Macro.escape({fixture, info, kind, words}))
      module = DropInFixture.erlang([])
      assert {:error, {^kind, [_ | _]}} = module.load(NativeFixture.path(fixture), info)
      isolate!(module)
      assert {:error, {^kind, text}} = module.load(NativeFixture.path(fixture), info)
      assert to_string(text) =~ words
      assert Isolation.list() == []
      # Then another one.
      assert module.load_otherwise(NativeFixture.path(:drop_in), :good) == :ok
      assert module.load_info() == :good
    end
  end

  # ── The other functions ───────────────────────────────────────────────────────────────────────────────────────

  test "the functions of Snakepit.Isolation take the module" do
    module = DropInFixture.erlang()
    isolate!(module, workers: 2)
    assert Isolation.call(module, :add, [1, 2]) == {:ok, 3}
    assert Isolation.call!(module, :secret, [1]) == {:library, 1}
    assert Isolation.call_many(module, :add, [[1, 2], [3, 4]]) == {:ok, [{:ok, 3}, {:ok, 7}]}
    assert module |> Isolation.call_async(:add, [1, 2]) |> Isolation.await() == {:ok, 3}
    assert %{module: ^module, workers: [_, _], state: :ready} = info!(module)
    assert :ok = Isolation.unload(module)
    assert_raise Error, ~r/has been unloaded/, fn -> module.add(1, 2) end
    assert :ok = Isolation.restore(module)
    assert here?(module)
  end

  test "also where its library has another name" do
    module = DropInFixture.erlang()
    isolate!(module, name: :another)
    assert Isolation.call(module, :add, [1, 2]) == {:ok, 3}
    assert Isolation.call(:another, :add, [1, 2]) == {:ok, 3}
    assert :ok = Isolation.unload(module)
  end

  # ── Restored ──────────────────────────────────────────────────────────────────────────────────────────────────

  test "restored, it is what it was" do
    module = DropInFixture.erlang()
    md5 = module.module_info(:md5)
    isolate!(module)
    os_pid = module.os_pid()
    assert module.module_info(:md5) != md5
    assert :ok = Isolation.restore(module)
    assert here?(module)
    assert module.module_info(:md5) == md5
    gone(os_pid)
    assert Isolation.list() == []
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.restore(module)
    assert Exception.message(error) =~ "not isolated"
  end

  test "also when the application has been stopped, and its library with it" do
    module = DropInFixture.erlang()
    beam = :code.which(module) |> to_string() |> Path.dirname()

    {output, 0} =
      SubVm.run("""
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      :persistent_term.put({:snakepit_drop_in, :settings}, #{inspect(:persistent_term.get({module, :settings}))})
      true = :code.add_patha(~c"#{beam}")
      :ok = Snakepit.Isolation.isolate(:snakepit_drop_in, sandbox: :none)
      3 = :snakepit_drop_in.add(1, 2)
      Logger.configure(level: :error)
      :ok = Application.stop(:snakepit_shm)
      %Snakepit.Isolation.Error{} = error = try(do: :snakepit_drop_in.add(1, 2), rescue: (error -> error))
      IO.puts(Exception.message(error))
      :ok = Snakepit.Isolation.restore(:snakepit_drop_in)
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      3 = :snakepit_drop_in.add(1, 2)
      IO.inspect({:here, :snakepit_drop_in.os_pid() == String.to_integer(System.pid())})
      """)

    assert output =~ "unloaded"
    assert output =~ "{:here, true}"
  end

  test "again and again" do
    module = DropInFixture.erlang()

    for _ <- 1..5 do
      isolate!(module)
      refute here?(module)
      :ok = Isolation.restore(module)
      assert here?(module)
    end
  end

  test "if its own on_load fails, it stays isolated" do
    module = DropInFixture.erlang()
    isolate!(module)
    DropInFixture.settings(module, path: NativeFixture.path(:missing))

    ExUnit.CaptureLog.capture_log(fn ->
      assert {:error, %Error{reason: :unsupported_module}} = Isolation.restore(module)
    end)

    assert module.os_pid() == worker_of(module)
  end

  test "somebody has loaded the module from its file: it can be isolated again" do
    module = DropInFixture.erlang()
    isolate!(module)
    os_pid = module.os_pid()
    :code.purge(module)
    {:module, ^module} = :code.load_file(module)
    assert here?(module)
    isolate!(module)
    assert module.os_pid() == worker_of(module)
    refute module.os_pid() == os_pid
    gone(os_pid)
  end

  # ── In use ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp ask(pid, function, arguments \\ []) do
    send(pid, {self(), function, arguments})
    assert_receive {^pid, answer}, 20_000
    answer
  end

  test "who runs in the module goes on in it, and is in the way of the next change" do
    module = DropInFixture.erlang()
    user = spawn_link(fn -> module.loop() end)
    vm = String.to_integer(System.pid())
    assert ask(user, :os_pid) == vm

    isolate!(module)
    assert module.os_pid() != vm
    assert ask(user, :os_pid) == vm

    assert {:error, %Error{reason: :in_use, details: %{pids: [^user]}} = error} = Isolation.restore(module)
    assert Exception.message(error) =~ inspect(user)
    assert module.os_pid() == worker_of(module)
    assert ask(user, :os_pid) == vm

    send(user, :upgrade)
    assert ask(user, :os_pid) == worker_of(module)
    assert :ok = Isolation.restore(module)

    # It runs in the isolated code, whose library has been unloaded.
    assert here?(module)
    assert {:error, %Error{reason: :not_loaded}} = ask(user, :os_pid)
    assert {:error, %Error{reason: :in_use}} = Isolation.isolate(module, sandbox: :none)
    assert here?(module)

    send(user, :upgrade)
    assert ask(user, :os_pid) == vm
    assert :ok = Isolation.isolate(module, sandbox: :none)
    send(user, :stop)
  end

  test "who runs in the module lives on when its library cannot be loaded, and on_load does not mind" do
    module = DropInFixture.erlang()
    user = spawn_link(fn -> module.loop() end)
    vm = String.to_integer(System.pid())
    assert ask(user, :os_pid) == vm
    # More than can be sent to another process.
    DropInFixture.settings(module, load_info: Enum.to_list(1..50_000), lax: true)

    assert {:error, %Error{reason: :invalid_option, details: %{not_undone: in_the_way}}} =
             Isolation.isolate(module, sandbox: :none)

    assert %Error{reason: :in_use, details: %{pids: [^user]}} = in_the_way
    assert ask(user, :os_pid) == vm
    assert Isolation.list() == []
    assert {:error, %Error{reason: :in_use}} = Isolation.restore(module)
    send(user, :stop)
    eventually(fn -> Isolation.restore(module) == :ok end)
    assert here?(module)
  end

  test "while it is called all the time, no call fails" do
    module = DropInFixture.erlang()
    module.add(0, 0)
    test = self()

    callers =
      for _ <- 1..2 do
        spawn_link(fn -> hammer(module, test, 0) end)
      end

    for _ <- 1..2 do
      eventually(fn -> Isolation.isolate(module, sandbox: :none) == :ok end)
      calls = info!(module).calls
      eventually(fn -> info!(module).calls > calls + 100 end)
      # Calls that run in the isolated library when it is unloaded are errors: they end first.
      for caller <- callers, do: send(caller, {:pause, self()})
      for caller <- callers, do: assert_receive({^caller, :paused}, 10_000)
      eventually(fn -> Isolation.restore(module) == :ok end)
      for caller <- callers, do: send(caller, :go)
    end

    for caller <- callers, do: send(caller, :stop)
    for caller <- callers, do: assert_receive({^caller, :done, calls} when calls > 0, 10_000)
  end

  # Each call a new one from outside, so that nobody stays in old code.
  defp hammer(module, test, calls) do
    receive do
      :stop ->
        send(test, {self(), :done, calls})

      {:pause, from} ->
        send(from, {self(), :paused})

        receive do
          :go -> hammer(module, test, calls)
        end
    after
      0 ->
        ^calls = module.add(calls, 0)
        hammer(module, test, calls + 1)
    end
  end
end
