defmodule Snakepit.Isolation.DropInRefusedTest do
  # Modules that cannot be isolated, and libraries that cannot be loaded: the error says why, and nothing is changed.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureLog

  alias Snakepit.DropInFixture

  defp not_isolated(module, options \\ [sandbox: :none]) do
    assert {:error, %Error{} = error} = Isolation.isolate(module, options)
    assert Isolation.DropIn.fetch(module) == nil
    assert Isolation.list() == []
    {error.reason, Exception.message(error)}
  end

  defp not_isolated(module, options, reason, words) do
    assert {^reason, text} = not_isolated(module, options)
    assert text =~ words
  end

  defp here?(module), do: module.os_pid() == String.to_integer(System.pid())

  # ── Modules ───────────────────────────────────────────────────────────────────────────────────────────────────

  for {module, words} <- [
        {:prim_file, ~r/part of the runtime system/},
        {:lists, ~r/sticky directory/},
        {Snakepit.Native, ~r/called through it/},
        {Snakepit.Isolation, ~r/does not call erlang:load_nif/},
        {:no_such_module, ~r/no such module/},
        {__MODULE__, ~r/made in memory/}
      ] do
    test "#{inspect(module)}" do
      assert {:unsupported_module, words} = not_isolated(unquote(module))
      assert words =~ unquote(Macro.escape(words))
    end
  end

  test "without debug_info" do
    module = DropInFixture.erlang([:ON_LOAD], [])
    assert {:unsupported_module, words} = not_isolated(module)
    assert words =~ "+debug_info"
    assert here?(module)
  end

  test "with encrypted debug_info" do
    module = DropInFixture.erlang([:ON_LOAD], [:debug_info, {:debug_info_key, 'a key'}])
    assert {:unsupported_module, words} = not_isolated(module)
    assert words =~ "encrypted"
  end

  test "compiled for coverage" do
    module = DropInFixture.erlang([])
    {:module, ^module} = :code.ensure_loaded(module)
    {:ok, cover} = :cover.start()
    # Its process is of the runtime's tools, not of this test.
    on_exit(fn -> if Process.alive?(cover), do: :cover.stop() end)
    assert {:ok, ^module} = :cover.compile_beam(module)
    assert {:unsupported_module, words} = not_isolated(module)
    assert words =~ "coverage"
  end

  test "compiled for coverage after it was isolated: that ends its isolation, as loading it from its file does" do
    module = DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none)
    os_pid = module.os_pid()
    {:ok, cover} = :cover.start()
    on_exit(fn -> if Process.alive?(cover), do: :cover.stop() end)
    assert {:ok, ^module} = :cover.compile_beam(module)
    assert here?(module)
    assert {:error, %Error{reason: :unsupported_module} = error} = Isolation.isolate(module, sandbox: :none)
    assert Exception.message(error) =~ "coverage"
    assert :ok = Isolation.restore(module)
    assert here?(module)
    gone(os_pid)
  end

  test "a file that is no beam, and one of another module" do
    module = DropInFixture.erlang()
    file = :code.which(module)
    beam = File.read!(file)
    File.write!(file, "no beam")
    assert {:unsupported_module, words} = not_isolated(module)
    assert words =~ "cannot be used"
    File.cp!(:code.which(:jiffy_utf8), file)
    assert {:unsupported_module, words} = not_isolated(module)
    assert words =~ "is the module :jiffy_utf8"
    File.write!(file, beam)
    assert Isolation.isolate(module, sandbox: :none) == :ok
  end

  test "isolated already" do
    module = DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none)
    os_pid = module.os_pid()
    assert {:error, %Error{reason: :already_isolated} = error} = Isolation.isolate(module, sandbox: :none, workers: 2)
    assert Exception.message(error) =~ "restore/1"
    assert module.os_pid() == os_pid
  end

  # ── Options ───────────────────────────────────────────────────────────────────────────────────────────────────

  for {options, reason, words} <- [
        {[], :not_loaded, ~r/sandbox: is not given/},
        {[sandbox: :strict], :not_loaded, ~r/:strict is not known/},
        {[sandbox: :none, worker: 2], :invalid_option, ~r/did you mean :workers/},
        {[sandbox: :none, workers: 0, slots: 3], :invalid_option, ~r/:slots.*\n.*:workers/},
        {[sandbox: :none, load_info: 1], :invalid_option, ~r/passes its own/},
        {:nonsense, :invalid_option, ~r/keyword list/}
      ] do
    test "options #{inspect(options)}" do
      {options, reason, words} = unquote(Macro.escape({options, reason, words}))
      module = DropInFixture.erlang()
      assert {^reason, text} = not_isolated(module, options)
      assert text =~ words
      refute :erlang.module_loaded(module)
    end
  end

  test "what is no module" do
    for other <- [nil, true, "jiffy", {:jiffy, 1}] do
      assert {:error, %Error{reason: :invalid_option}} = Isolation.isolate(other, sandbox: :none)
    end

    assert {:error, %Error{reason: :not_loaded}} = Isolation.restore(nil)
    assert {:error, %Error{reason: :invalid_option}} = Isolation.restore("jiffy")
  end

  # ── Libraries ─────────────────────────────────────────────────────────────────────────────────────────────────

  test "a library that cannot be loaded isolated: the module goes on as it was" do
    module = DropInFixture.erlang()
    assert here?(module)
    DropInFixture.settings(module, load_info: 17)
    capture_log(fn -> not_isolated(module, [sandbox: :none], :not_loaded, ~r/returned 17/) end)
    assert here?(module)
    assert module.load_info() == {:info, [1]}
  end

  test "the same, and on_load does not mind" do
    module = DropInFixture.erlang()
    assert here?(module)
    # More than can be sent to another process. Nothing is wrong with it in this VM, where the module is put back.
    load_info = Enum.to_list(1..50_000)
    DropInFixture.settings(module, load_info: load_info, lax: true)
    not_isolated(module, [sandbox: :none], :invalid_option, ~r/load_info/)
    assert here?(module)
    assert module.load_info() == load_info
  end

  test "the same, of a module that was not loaded" do
    module = DropInFixture.erlang()
    DropInFixture.settings(module, load_info: 17)
    capture_log(fn -> not_isolated(module, [sandbox: :none], :not_loaded, ~r/returned 17/) end)
    refute :erlang.module_loaded(module)
    DropInFixture.settings(module, lax: true)
    assert {:not_loaded, _} = not_isolated(module)
    refute :erlang.module_loaded(module)
  end

  test "on_load fails, and it is not the library's fault" do
    module = DropInFixture.erlang()
    :persistent_term.put({module, :settings}, %{no: :path})
    capture_log(fn -> not_isolated(module, [sandbox: :none], :unsupported_module, ~r/on_load function failed/) end)
    refute :erlang.module_loaded(module)
  end

  test "a name that is taken" do
    module = DropInFixture.erlang()
    library = load!(:adder, name: module)
    capture_log(fn -> assert {:error, %Error{reason: :not_loaded}} = Isolation.isolate(module, sandbox: :none) end)
    assert Isolation.list() == [library]
    refute :erlang.module_loaded(module)
  end
end
