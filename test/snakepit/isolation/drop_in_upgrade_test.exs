defmodule Snakepit.Isolation.DropInUpgradeTest do
  # New versions of a module that is isolated: what the VM does with their libraries, in the same processes.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.DropInFixture
  alias Snakepit.Isolation.DropIn

  @module :snakepit_tenant_a

  defp isolate(options \\ []), do: Isolation.isolate(@module, [sandbox: :none] ++ options)

  # Through apply: the module is there while the test runs.
  defp here(function, arguments \\ []), do: apply(@module, function, arguments)

  defp user do
    user = spawn_link(fn -> here(:loop) end)
    on_exit(fn -> Process.exit(user, :kill) end)
    user
  end

  defp ask(user, function, arguments \\ []) do
    send(user, {self(), :apply, function, arguments})
    assert_receive {^user, answer}, 10_000
    answer
  end

  defp numbers, do: for(entry <- Library.entries(DropIn.library(@module).table), do: entry.number)

  defp tenant(defines \\ [ON_LOAD: true]) do
    {@module, directory} = DropInFixture.tenant(:tenant_a, defines)
    directory
  end

  defp next(directory, library, options \\ []) do
    defines = [CODE: options[:code] || 2] ++ if(options[:on_load] == false, do: [], else: [ON_LOAD: true])
    DropInFixture.tenant_version(directory, library, defines, options[:load_info] || 0)
  end

  test "stand beside the version before, whose data and objects they take over" do
    directory = tenant()
    assert :ok = isolate(workers: 2)
    user = user()
    before = os_pid(@module)
    object = here(:make, [5])
    for _ <- 1..20, do: here(:count)

    next(directory, :tenant_a2)
    assert :ok = isolate(workers: 2)
    assert {here(:code), here(:version)} == {2, 2}
    assert os_pid(@module) == before
    assert numbers() == [0, 1]
    assert [%{name: @module, path: path}] = Isolation.list()
    assert Path.basename(path) == "tenant_a2"

    # Old code, old library, shared data.
    assert {ask(user, :code), ask(user, :version)} == {1, 1}
    assert here(:count) > 1
    assert here(:value, [object]) == 5
    assert here(:dynamic, [@module, object]) == 205
    assert {:error, {:old_code, _}} = ask(user, :load, [NativeFixture.path(:tenant_a), 0])

    send(user, :upgrade)
    assert {ask(user, :code), ask(user, :version)} == {2, 2}
    assert :code.soft_purge(@module)
    # Nobody tells that; it is found out.
    eventually(fn -> numbers() == [1] end)
    assert here(:version) == 2
    assert here(:value, [object]) == 5

    # A worker that is started again has the new one alone, which is loaded and not upgraded.
    signal(before)
    successor(@module, before)
    for _ <- 1..10, do: assert(here(:version) == 2)
    assert :ok = Isolation.restore(@module)
    assert {here(:code), here(:version)} == {2, 2}
    assert Isolation.list() == []
  end

  test "a restarted worker has both, and upgrades again" do
    directory = tenant()
    assert :ok = isolate()
    user = user()
    next(directory, :tenant_a2)
    assert :ok = isolate()
    for _ <- 1..3, do: here(:count)
    old = os_pid(@module)
    assert {:EXIT, {%Error{reason: :crashed}, _}} = catch_exit_of(fn -> here(:crash) end)
    successor(@module, old)
    assert {ask(user, :version), here(:version)} == {1, 2}
    # Of one piece of data, which is new.
    assert [ask(user, :count), here(:count), ask(user, :count)] == [1, 2, 3]
  end

  defp catch_exit_of(function) do
    function.()
  rescue
    error -> {:EXIT, {error, __STACKTRACE__}}
  end

  test "without a change in the file, or with other options, it is isolated already" do
    directory = tenant()
    assert :ok = isolate()
    assert {:error, %Error{reason: :already_isolated}} = isolate()
    next(directory, :tenant_a2)
    assert {:error, %Error{reason: :already_isolated}} = isolate(workers: 2)
    assert {here(:code), here(:version)} == {1, 1}
    assert :ok = isolate()
    assert here(:version) == 2
  end

  test "whose upgrade fails leave the version before as it was" do
    directory = tenant()
    assert :ok = isolate()
    object = here(:make, [5])
    here(:count)

    for {library, info, code} <- [{:tenant_a2, 13, 13}, {:tenant_a3, 0, 0}] do
      next(directory, library, load_info: info)

      assert {:error, %Error{reason: :not_loaded, details: %{stage: :upgrade_callback, code: ^code}} = error} =
               isolate()

      assert Exception.message(error) =~ "upgrade"
      assert {here(:code), here(:version), here(:value, [object])} == {1, 1, 5}
      assert numbers() == [0]
      assert [%{name: @module}] = Isolation.list()
    end

    assert here(:dynamic, [@module, object]) == 105
    assert here(:count) == 2
    next(directory, :tenant_a2)
    assert :ok = isolate()
    assert {here(:version), here(:count)} == {2, 3}
  end

  test "answer as load_nif does when it is called by hand" do
    path = &NativeFixture.path/1
    directory = tenant([])
    assert :ok = isolate()
    assert here(:version) == :none
    assert {:error, {:load, 'Library load-call unsuccessful (3).'}} = here(:load, [path.(:tenant_a), 3])
    assert :ok = here(:load, [path.(:tenant_a), 0])
    assert {:error, {:reload, _}} = here(:load, [path.(:tenant_a2), 0])
    user = user()
    assert ask(user, :version) == 1

    next(directory, :tenant_a2, on_load: false)
    assert :ok = isolate()
    assert {here(:version), ask(user, :version)} == {:none, 1}
    assert {:error, {:upgrade, 'Library upgrade-call unsuccessful (4).'}} = here(:load, [path.(:tenant_a2), 4])
    assert {:error, {:upgrade, 'Upgrade not supported by this NIF library.'}} = here(:load, [path.(:tenant_a3), 0])
    assert {:error, {:bad_lib, 'Library module name' ++ _}} = here(:load, [path.(:tenant_b), 0])
    assert {:error, {:load_failed, _}} = here(:load, [path.(:missing), 0])
    assert {here(:version), ask(user, :version)} == {:none, 1}
    assert :ok = here(:load, [path.(:tenant_a2), 0])
    assert {here(:version), ask(user, :version)} == {2, 1}

    # The third, when the first is gone.
    next(directory, :tenant_a, on_load: false, code: 3)
    assert {:error, %Error{reason: :in_use, details: %{pids: [^user]}}} = isolate()
    send(user, :upgrade)
    assert ask(user, :version) == 2
    assert :ok = isolate()
    # Its predecessor's library is unloaded at once when it is loaded and old code is purged.
    assert {ask(user, :version), here(:version)} == {2, :none}
    send(user, :upgrade)
    assert ask(user, :version) == :none
    assert :code.soft_purge(@module)
    assert :ok = here(:load, [path.(:tenant_a), 0])
    assert here(:count) == 1
  end

  test "of a module that was deleted meanwhile" do
    directory = tenant()
    assert :ok = isolate()
    user = user()
    assert ask(user, :count) == 1
    true = :code.delete(@module)
    next(directory, :tenant_a2)
    assert :ok = isolate()
    assert {ask(user, :version), here(:version), here(:count)} == {1, 2, 2}
  end

  test "a module that is deleted and purged is not isolated any more" do
    tenant()
    assert :ok = isolate()
    os_pid = os_pid(@module)
    true = :code.delete(@module)
    true = :code.soft_purge(@module)
    eventually(fn -> DropIn.fetch(@module) == nil end, 10_000)
    gone(os_pid)
    assert Isolation.list() == []
  end

  test "in the processes of another library" do
    other = load!(:tenant_b, name: :other)
    directory = tenant()
    assert {:error, %Error{reason: :invalid_option, details: %{key: :workers}}} = isolate(with: :other, workers: 2)
    assert :ok = isolate(with: :other)
    assert os_pid(@module) == os_pid(other)
    pointer = here(:data)
    here(:count)
    assert Isolation.call!(other, :peek, [pointer]) == 1
    object = here(:make, [5])
    assert Isolation.call!(other, :dynamic, [@module, object]) == 105

    next(directory, :tenant_a2)
    assert :ok = isolate(with: :other)
    assert Isolation.call!(other, :dynamic, [@module, object]) == 205
    # Nobody is in the old code, which nobody has purged yet.
    assert numbers() == [0, 1, 2]
    assert :ok = Isolation.restore(@module)
    assert Isolation.call!(other, :version, []) == 7
    assert %{with: []} = info!(other)
  end

  test "a process that ends takes no version with it" do
    directory = tenant()
    assert :ok = isolate()
    next(directory, :tenant_a2)
    assert :ok = isolate()
    sweeper = Process.whereis(DropIn.Sweeper)
    kill(sweeper)
    eventually(fn -> Process.whereis(DropIn.Sweeper) not in [nil, sweeper] end)
    assert numbers() == [0, 1]
    assert :code.soft_purge(@module)
    eventually(fn -> numbers() == [1] end)
  end
end
