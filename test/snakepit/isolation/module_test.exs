defmodule Snakepit.Isolation.ModuleTest do
  # A module of one's own, whose library is isolated or not, as an option says.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureIO, only: [capture_io: 2]
  import Snakepit.DropInFixture, only: [outcome: 3]

  alias Snakepit.{DropInFixture, OwnFixture}

  defp here?(module), do: module.os_pid() == String.to_integer(System.pid())
  defp isolated?(module), do: module.os_pid() == os_pid(module)
  defp mapped?, do: File.read!("/proc/self/maps") =~ "own.so"

  # ── The two ways ──────────────────────────────────────────────────────────────────────────────────────────────

  @calls [
    add: [1, 2],
    add: [-9_223_372_036_854_775_807, 1],
    add: [:a, 1],
    raise: [:reason],
    raise: [{:badmatch, %{"a" => [1.5]}}],
    raise: [%ArgumentError{message: "an exception of Elixir"}],
    whisper: [],
    whisper: ["word"],
    origin: [],
    load_info: [],
    absent: [1, [2]],
    absent: [1, []],
    absent: [1, 2],
    classify: [7],
    classify: [[{1, 1}]],
    classify: [%{}]
  ]

  defp outcomes(module), do: for({function, arguments} <- @calls, do: outcome(module, function, arguments))

  test "isolated or not, results, exceptions and stack traces are the same" do
    module = OwnFixture.module(load_info: {:info, [1]})
    isolated = outcomes(module)
    assert isolated?(module)
    refute mapped?()

    OwnFixture.configure(isolated: false)
    OwnFixture.reload()
    in_vm = outcomes(module)
    assert here?(module)
    assert mapped?()

    for {{call, expected}, got} <- @calls |> Enum.zip(in_vm) |> Enum.zip(isolated),
        do: assert({call, got} == {call, expected})

    assert {:ok, {:info, [1]}} in in_vm
    assert {:ok, {:library, "default"}} in in_vm
    assert_no_messages()
  end

  test "the library is loaded by the first call, and not before" do
    module = OwnFixture.module([])
    {:module, ^module} = Code.ensure_loaded(module)
    assert Isolation.list() == []
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.info(module)
    assert Exception.message(error) =~ "called for the first time"
    assert module.add(1, 2) == 3
    assert [%Library{name: ^module, timeout: :infinity}] = Isolation.list()
  end

  test "by many first calls at the same time, once" do
    module = OwnFixture.module([])
    tasks = for n <- 1..16, do: Task.async(fn -> module.add(n, n) end)
    assert Task.await_many(tasks, 30_000) == for(n <- 1..16, do: 2 * n)
    assert length(Isolation.list()) == 1
  end

  test "or by load/1" do
    module = OwnFixture.module(workers: 2)
    assert Isolation.Module.load(module) == :ok
    assert %{workers: [%{os_pid: os_pid}, _], calls: 0} = info!(module)
    assert Isolation.Module.load(module) == :ok
    assert %{workers: [%{os_pid: ^os_pid}, _]} = info!(module)
  end

  test "in the VM, it is no isolated library" do
    module = OwnFixture.module(isolated: false, workers: 2)
    assert Isolation.Module.load(module) == :ok
    assert here?(module)
    assert Isolation.list() == []
    assert {:error, %Error{reason: :not_loaded} = error} = Isolation.info(module)
    assert Exception.message(error) =~ "isolated: false"
  end

  test "the functions of Snakepit.Isolation take the module" do
    module = OwnFixture.module([])
    :ok = Isolation.Module.load(module)
    assert Isolation.call(module, :add, [1, 2]) == {:ok, 3}
    assert Isolation.call!(module, :secret, [1]) == {:library, 1}
    assert %{module: ^module, state: :ready} = info!(module)
  end

  test "in the processes of another library" do
    other = load!(:adder, name: :other)
    module = OwnFixture.module(with: :other, load_info: :beside)
    assert {module.add(1, 2), module.load_info()} == {3, :beside}
    assert module.os_pid() == os_pid(other)
    OwnFixture.reload()
    assert module.add(1, 2) == 3
    assert module.os_pid() == os_pid(other)
    assert {:ok, 3} = Isolation.call(other, :add, [1, 2])
    assert :ok = Isolation.unload(other)
  end

  # ── Crashes, ends ─────────────────────────────────────────────────────────────────────────────────────────────

  test "a crash is an exception of the caller alone, and the next call works" do
    module = OwnFixture.module([])
    assert module.add(1, 2) == 3

    assert {:error, %Error{reason: :crashed, signal: :SIGSEGV, function: {:crash, 0}}, [{:crash, 0} | _]} =
             outcome(module, :crash, [])

    assert module.add(1, 2) == 3
    assert %{workers: [%{restarts: 1}]} = info!(module)
  end

  test "a deadline that is asked for" do
    module = OwnFixture.module(timeout: 1_000)
    # Which has none.
    :ok = Isolation.Module.load(module)
    assert {:error, %Error{reason: :timeout}, [{:hang, 0} | _]} = outcome(module, :hang, [])
    eventually(fn -> info!(module).state == :ready end)
    assert module.add(1, 2) == 3
  end

  test "unloaded, it raises that until it is loaded again" do
    module = OwnFixture.module([])
    old = module.os_pid()
    assert Isolation.unload(module) == :ok
    for _ <- 1..2, do: assert_raise(Error, ~r/has been unloaded/, fn -> module.add(1, 2) end)
    assert Isolation.Module.load(module) == :ok
    assert module.add(1, 2) == 3
    refute module.os_pid() == old
    gone(old)
  end

  test "the same, given up" do
    module = OwnFixture.module(max_restarts: 0)
    assert {:error, %Error{reason: :crashed}, _} = outcome(module, :crash, [])
    assert_raise Error, ~r/given up/, fn -> module.add(1, 2) end
    assert Isolation.Module.load(module) == :ok
    assert module.add(1, 2) == 3
  end

  # ── Code ──────────────────────────────────────────────────────────────────────────────────────────────────────

  test "compiled and loaded anew, it has another library" do
    module = OwnFixture.module(load_info: :first)
    assert module.load_info() == :first
    old = module.os_pid()

    OwnFixture.compile(load_info: :second, workers: 2)
    assert Isolation.list() == []
    gone(old)
    assert module.load_info() == :second
    assert %{workers: [_, _]} = info!(module)

    # The same code once more, which finds its slot empty.
    old = module.os_pid()
    OwnFixture.reload()
    assert module.load_info() == :second
    refute module.os_pid() == old
  end

  test "in the VM the library is upgraded" do
    module = OwnFixture.module(isolated: false, load_info: :first)
    assert module.load_info() == :first
    OwnFixture.compile(isolated: false, load_info: :second)
    assert {module.load_info(), here?(module)} == {:second, true}
  end

  test "from the VM to isolation and back" do
    module = OwnFixture.module([])

    for {isolated, _} <- Enum.zip(Stream.cycle([true, false]), 1..4) do
      OwnFixture.configure(isolated: isolated)
      OwnFixture.reload()
      assert here?(module) == not isolated
    end
  end

  test "it is traced, and says of itself what it said" do
    module = OwnFixture.module([])
    exports = module.module_info(:exports)
    assert {:add, 2} in exports and {:whisper, 1} in exports and {:secret, 1} not in exports
    assert {:docs_v1, _, _, _, _, _, docs} = Code.fetch_docs(module_beam(module))

    assert {_, _, ["add(left, right)"], %{"en" => "A sum."}, _} = List.keyfind(docs, {:function, :add, 2}, 0)

    assert {:ok, specs} = Code.Typespec.fetch_specs(module)
    assert List.keymember?(specs, {:add, 2}, 0)
    assert {:__isolation__, 0} in exports

    test = self()
    traced = spawn_link(fn -> receive(do: (:go -> module.whisper("word"))) end)
    :erlang.trace_pattern({module, :_, :_}, true, [:local])
    :erlang.trace(traced, true, [:call, {:tracer, test}])
    send(traced, :go)
    assert_receive {:trace, ^traced, :call, {^module, :whisper, ["word"]}}
    assert_receive {:trace, ^traced, :call, {^module, :secret, ["word"]}}
  end

  for isolated <- [true, false] do
    test "compiled for coverage it works as before, isolated: #{isolated}" do
      module = OwnFixture.module(isolated: unquote(isolated))
      {:ok, cover} = :cover.start()
      # Its process is of the runtime's tools, not of this test.
      on_exit(fn -> if Process.alive?(cover), do: :cover.stop() end)
      assert {:ok, ^module} = :cover.compile_beam(module)
      assert {module.add(1, 2), module.whisper("word"), module.classify(1)} == {3, {:library, "word"}, :positive}
      assert here?(module) == not unquote(isolated)
      assert {:ok, lines} = :cover.analyse(module, :calls, :function)
      assert {{module, :classify, 1}, 1} in lines
    end
  end

  defp module_beam(module), do: module |> :code.which() |> to_string()

  # ── A release ─────────────────────────────────────────────────────────────────────────────────────────────────

  test "in embedded mode, where on_load runs before any application" do
    module = OwnFixture.module([])
    root = DropInFixture.directory()
    boot = Path.join(root, "start")

    versions =
      for app <- [:kernel, :stdlib, :compiler, :elixir, :logger, :crypto, :snakepit_shm, OwnFixture.app()] do
        Application.load(app)
        {app, Application.spec(app, :vsn)}
      end

    Application.unload(OwnFixture.app())
    release = {:release, {'own', '1'}, {:erts, :erlang.system_info(:version)}, versions}
    File.write!(boot <> ".rel", :io_lib.format("~p.~n", [release]))
    options = [:silent, :no_warn_sasl, :local, path: :code.get_path()]
    {:ok, _, _} = :systools.make_script(to_charlist(boot), options)

    # As config/config.exs would say it.
    File.write!(
      boot <> ".config",
      :io_lib.format("~p.~n", [[{OwnFixture.app(), [{module, [load_info: :configured]}]}]])
    )

    code = """
    embedded = code:get_mode(),
    true = erlang:module_loaded('#{module}'),
    [] = 'Elixir.Snakepit.Isolation':list(),
    configured = '#{module}':load_info(),
    {ok, #{"\#{workers := [\#{os_pid := Pid}]}"}} = 'Elixir.Snakepit.Isolation':info('#{module}'),
    Pid = '#{module}':os_pid(),
    false = Pid =:= list_to_integer(os:getpid()),
    {ok, Maps} = file:read_file("/proc/self/maps"),
    nomatch = binary:match(Maps, <<"own.so">>),
    io:format("all as it should be~n"),
    init:stop().
    """

    arguments = ["-noinput", "-mode", "embedded", "-boot", boot, "-config", boot, "-eval", code]
    assert {output, 0} = System.cmd(Path.join(:code.root_dir(), "bin/erl"), arguments, stderr_to_stdout: true)
    assert output =~ "all as it should be"
  end

  test "before the application runs, a call says so" do
    module = OwnFixture.module([])
    paths = Enum.map_join([module_directory(), :code.lib_dir(:snakepit_shm, :ebin)], ", ", &inspect/1)

    {output, 0} =
      SubVm.run("""
      :code.add_pathsa([#{paths}])
      add = fn -> try(do: #{inspect(module)}.add(1, 2), rescue: (error -> Exception.message(error))) end
      IO.puts(add.())
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      IO.inspect(add.(), label: "the sum")
      """)

    assert output =~ "snakepit_shm is not running"
    assert output =~ "the sum: 3"
  end

  defp module_directory, do: :code.lib_dir(OwnFixture.app(), :ebin)

  # ── What is wrong ─────────────────────────────────────────────────────────────────────────────────────────────

  for {options, words} <- [
        {[workers: 0], ~r/:workers: expected an integer from 1 to 64, got 0/},
        {[worker: 1], ~r/did you mean :workers\?/},
        {[isolated: :yes], ~r/:isolated: expected true or false, got :yes/},
        {[otp_app: "own"], ~r/:otp_app: expected the application/},
        {[library: :own], ~r/:library: expected a path/},
        {[sandbox: :strict], ~r/:strict is not known/},
        {:nonsense, ~r/keyword list/}
      ] do
    test "options #{inspect(options)} are refused when the module is compiled" do
      {options, words} = unquote(Macro.escape({options, words}))

      assert_raise Error, words, fn ->
        compile(options, quote(do: def(add(_, _), do: :erlang.nif_error(:x))))
      end
    end
  end

  for {what, code, words} <- [
        {"has no stub", quote(do: def(add(a, b), do: a + b)), ~r/no stub/},
        {"declares what it does not define", quote(do: @nifs(add: 2)), ~r/@nifs names add\/2, which is not defined/},
        {"declares what is no function", quote(do: @nifs([:add])), ~r/expected names with arities/}
      ] do
    test "a module that #{what} is not compiled" do
      assert_raise CompileError, unquote(Macro.escape(words)), fn -> compile([], unquote(Macro.escape(code))) end
    end
  end

  defp compile(options, code) do
    options = if is_list(options), do: Keyword.merge([otp_app: :kernel, library: "priv/x"], options), else: options

    Code.eval_quoted(
      quote do
        defmodule Snakepit.Fixture.Refused do
          use Snakepit.Isolation.Module, unquote(options)
          unquote(code)
        end
      end
    )
  end

  test "declared functions are NIFs, whatever their bodies are" do
    path = NativeFixture.path(:own)

    # An atom: within this module the name would be another one.
    {:module, module, _, _} =
      defmodule :"Elixir.Snakepit.Fixture.Own" do
        use Snakepit.Isolation.Module, otp_app: :snakepit_shm, library: path, sandbox: :none
        @nifs [add: 2, secret: 1, os_pid: 0, load_info: 0, raise: 1, crash: 0, hang: 0]
        @nifs origin: 0
        import Kernel, except: [raise: 1]

        def add(a, b) when is_integer(a), do: {:elixir, [a | b]}
        def add(%{a: a}, "b" <> _ = b), do: %{a => fn x -> {x, b} end}
        def secret(word), do: {:elixir, word}
        def origin, do: :elixir
        def os_pid, do: :none
        def load_info, do: exit(:none)
        def raise(reason), do: :erlang.error(reason)
        def crash, do: no()
        def hang, do: no()
        def stub, do: :erlang.nif_error(:no_nif)
        defp no, do: :erlang.nif_error(:nif_not_loaded)
      end

    on_exit(fn ->
      Isolation.DropIn.drop(module)
      DropInFixture.unload(module)
    end)

    assert {module.add(1, 2), module.secret(1), module.origin()} == {3, {:library, 1}, :library}
    assert_raise ErlangError, ~r/no_nif/, fn -> module.stub() end
  end

  for isolated <- [true, false] do
    test "a library with a function that is not declared, isolated: #{isolated}" do
      options = [otp_app: :snakepit_shm, library: NativeFixture.path(:own), sandbox: :none, isolated: unquote(isolated)]

      {:module, module, _, _} =
        defmodule :"Elixir.Snakepit.Fixture.Own" do
          use Snakepit.Isolation.Module, options
          @nifs [add: 2]
          def add(_, _), do: :erlang.nif_error(:nif_not_loaded)
          def os_pid, do: :erlang.nif_error(:nif_not_loaded)
        end

      on_exit(fn -> DropInFixture.unload(module) end)
      assert_raise Error, ~r/not declared as nif/, fn -> module.add(1, 2) end
      assert Isolation.list() == []
    end
  end

  test "what the configuration says wrong is the error of the call" do
    module = OwnFixture.module([])
    OwnFixture.configure(workers: :many)
    error = assert_raise Error, ~r/:workers: expected/, fn -> module.add(1, 2) end
    assert %Error{reason: :invalid_option, library: ^module, details: %{key: :workers, got: :many}} = error
    OwnFixture.configure(workers: 2)
    assert module.add(1, 2) == 3
  end

  for isolated <- [true, false] do
    test "a library that is not there, isolated: #{isolated}: each call says so, until it is there" do
      module = OwnFixture.module(isolated: unquote(isolated), library: "priv/not_yet")
      priv = :code.lib_dir(OwnFixture.app(), :priv)
      for _ <- 1..2, do: assert_raise(Error, ~r/not_yet/, fn -> module.add(1, 2) end)
      assert {:error, %Error{reason: :not_loaded, library: library}} = Isolation.Module.load(module)
      assert library in [module, "not_yet"]
      File.cp!(Path.join(priv, "own.so"), Path.join(priv, "not_yet.so"))
      assert module.add(1, 2) == 3
    end
  end

  test "a library of another module" do
    module = OwnFixture.module(library: NativeFixture.path(:adder))
    assert_raise Error, ~r/'snakepit_adder' does not match calling module/, fn -> module.add(1, 2) end
    assert Isolation.list() == []
  end

  test "without sandbox: it is not isolated" do
    module = OwnFixture.module([])
    OwnFixture.configure(sandbox: :missing)
    assert_raise Error, ~r/sandbox/, fn -> module.add(1, 2) end
  end

  test "it isolates itself, and no other way" do
    module = OwnFixture.module([])

    for _ <- 1..2 do
      assert {:error, %Error{reason: :unsupported_module} = error} = Isolation.isolate(module, sandbox: :none)
      assert Exception.message(error) =~ "isolated:"
      assert module.add(1, 2) == 3
    end

    assert {:error, %Error{reason: :unsupported_module}} = Isolation.restore(module)
    assert {:error, %Error{reason: :not_loaded}} = Isolation.Module.load(Snakepit.Isolation)
    assert {:error, %Error{reason: :not_loaded}} = Isolation.Module.load(:no_such_module)
    assert {:error, %Error{reason: :invalid_option}} = Isolation.Module.load("a module")
  end

  # ── Old code ──────────────────────────────────────────────────────────────────────────────────────────────────

  test "who runs in old code has the new library, if the definition is the same, and is told so if not" do
    module = OwnFixture.module([])
    assert module.add(1, 2) == 3

    for {options, expected} <- [{[], {:library, "word"}}, {[load_info: :another], %Error{reason: :not_loaded}}] do
      old = spawn_link(fn -> module.linger() end)
      eventually(fn -> Process.info(old, :current_function) == {:current_function, {module, :linger, 0}} end)
      OwnFixture.compile(options)
      send(old, self())
      assert_receive {^old, answer}, 20_000

      case expected do
        %Error{} -> assert Exception.message(answer) =~ "has been replaced"
        _ -> assert answer == expected
      end
    end
  end

  test "no warning comes of what is generated" do
    assert capture_io(:stderr, fn -> OwnFixture.module([]) end) == ""
  end
end
