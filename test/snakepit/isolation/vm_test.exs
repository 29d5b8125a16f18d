defmodule Snakepit.Isolation.VmTest do
  # VMs of their own: how they start without what isolation needs, and what is left when they go.
  use Snakepit.IsolationCase, async: false

  @moduletag timeout: 180_000

  # A VM with two libraries in service, one of them in a call that never ends; the processes it has.
  defp start_vm(options \\ []) do
    file = Path.join(temporary_directory("vm"), "os_pids")

    code = """
    {:ok, _} = Application.ensure_all_started(:snakepit_shm)
    alias Snakepit.Isolation
    {:ok, one} = Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none, workers: 2)
    {:ok, two} = Isolation.load(#{inspect(NativeFixture.path(:crasher))}, sandbox: :none)
    spawn(fn -> Isolation.call(one, :spin_forever, [], timeout: :infinity) end)
    {:ok, 3} = Isolation.call(one, :add, [1, 2])
    {:ok, :ok} = Isolation.call(two, :fine, [])
    workers = for library <- [one, two], {:ok, info} = Isolation.info(library), worker <- info.workers, do: worker.os_pid
    File.write!(#{inspect(file)}, :erlang.term_to_binary([Isolation.Warden.os_pid() | workers]))
    """

    vm = SubVm.start(code <> Keyword.get(options, :then, ""), options)
    os_pids = :erlang.binary_to_term(File.read!(file))
    {vm, os_pids}
  end

  test "killed" do
    {vm, os_pids} = start_vm()
    assert length(os_pids) == 4
    assert Enum.all?(os_pids, &alive?/1)
    SubVm.kill(vm)
    gone(os_pids)
  end

  for {how, code} <- [
        {"ended in order", "System.stop(0)"},
        {"halted", ":erlang.halt(0)"},
        {"halted without flushing", ":erlang.halt(1, flush: false)"},
        {"aborted", ":erlang.halt(:abort)"},
        {"with the application stopped", "Logger.configure(level: :error); :ok = Application.stop(:snakepit_shm)"}
      ] do
    test how do
      {vm, os_pids} = start_vm(then: "spawn(fn -> IO.read(:line); #{unquote(code)} end)\n")
      assert Enum.all?(os_pids, &alive?/1)
      Port.command(vm.port, "go\n")
      gone(os_pids)
    end
  end

  test "without distribution" do
    refute Node.alive?()

    {output, 0} =
      SubVm.run("""
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      {:ok, library} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none)
      IO.inspect({Node.alive?(), Snakepit.Isolation.call(library, :add, [1, 2])})
      """)

    assert output =~ "{false, {:ok, 3}}"
  end

  test "with regions disabled, and on one scheduler" do
    {output, 0} =
      SubVm.run(
        """
        Application.put_env(:snakepit_shm, :enabled, false)
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:ok, library} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none)
        for _ <- 1..4, do: spawn(fn -> Snakepit.Isolation.call(library, :spin_forever, [], timeout: 300) end)
        {:error, %{reason: reason}} = Snakepit.Isolation.call(library, :spin_forever, [], timeout: 100)
        IO.inspect({reason, Snakepit.Isolation.call(library, :add, [1, 2])})
        """,
        before: "export ELIXIR_ERL_OPTIONS='+S 1 +fnu';"
      )

    assert output =~ "{:timeout, {:ok, 3}}"
  end

  test "nothing is started before the first library" do
    {output, 0} =
      SubVm.run("""
      {:ok, _} = Application.ensure_all_started(:snakepit_shm)
      IO.inspect({:warden, Snakepit.Isolation.Warden.os_pid(), Snakepit.Isolation.list()})
      """)

    assert output =~ "{:warden, nil, []}"
  end

  # A copy of the compiled application with another priv directory.
  defp application_with(priv) do
    directory = temporary_directory("application")
    ebin = Path.join([directory, "snakepit_shm", "ebin"])
    File.mkdir_p!(ebin)
    File.cp_r!(to_string(:code.lib_dir(:snakepit_shm, :ebin)), ebin)
    native = Path.join([directory, "snakepit_shm", "priv", "native"])
    File.mkdir_p!(native)
    for name <- priv, do: File.cp!(Path.join(Path.dirname(Native.library()), name), Path.join(native, name))
    ebin
  end

  test "without the native library the application starts, and load says why it does not" do
    {output, 0} =
      SubVm.run(
        """
        Logger.configure(level: :none)
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:error, error} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none)
        IO.inspect(error.reason)
        IO.puts(Exception.message(error))
        """,
        ebin: application_with([])
      )

    assert output =~ ":not_loaded"
    assert output =~ "snakepit_nif.so"
    assert output =~ "SNAKEPIT_SHM_NATIVE"
  end

  test "without the executable too" do
    {output, 0} =
      SubVm.run(
        """
        Logger.configure(level: :none)
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:error, error} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none)
        IO.inspect(error.reason)
        IO.puts(Exception.message(error))
        """,
        ebin: application_with(["snakepit_nif.so"])
      )

    assert output =~ ":not_loaded"
    assert output =~ "snakepit_worker could not be started"
  end

  test "without the application running" do
    {output, 0} =
      SubVm.run("""
      {:error, error} = Snakepit.Isolation.load(#{inspect(NativeFixture.path(:adder))}, sandbox: :none)
      IO.puts(Exception.message(error))
      """)

    assert output =~ "application snakepit_shm is not running"
  end
end
