defmodule Snakepit.Isolation.RestartTest do
  # Which workers are started again: restart:, in the words of supervisors.
  use Snakepit.IsolationCase, async: false

  # What ends a worker; whether that is in order.
  @ends [{:exit, [0], true}, {:exit, [3], false}, {:quick_exit, [0], true}, {:segv, [], false}, {:signal, [9], false}]

  for restart <- [:permanent, :transient, :temporary], {function, arguments, normal?} <- @ends do
    again? = restart == :permanent or (restart == :transient and not normal?)

    test "#{restart}: after #{function}(#{Enum.join(arguments, ", ")}) there is #{if again?, do: "another", else: "none"}" do
      library = load!(:crasher, restart: unquote(restart))
      old = os_pid(library)

      assert {:error, %Error{reason: :crashed}} =
               Isolation.call(library, unquote(function), unquote(Macro.escape(arguments)))

      if unquote(again?), do: in_service(library), else: out_of_service(library, unquote(restart))
      gone(old)
    end
  end

  defp in_service(library) do
    assert {:ok, :ok} = Isolation.call(library, :fine, [])
    assert %{restarts: 1, state: :ready} = worker(library)
  end

  defp out_of_service(library, restart) do
    assert {:error, %Error{reason: :not_loaded, function: {:fine, 0}} = error} = Isolation.call(library, :fine, [])
    assert Exception.message(error) =~ "is not started again (restart: #{inspect(restart)})"
    assert %{state: :failed, workers: [%{restarts: 0, os_pid: nil}]} = info!(library)
    assert :ok = Isolation.unload(library)
  end

  test "temporary: nor when a deadline of ours has ended it" do
    library = load!(:crasher, restart: :temporary)
    assert {:error, %Error{reason: :timeout}} = Isolation.call(library, :loop, [], timeout: 50)
    out_of_service(library, :temporary)
  end

  test "transient: another, when a deadline of ours has ended it" do
    library = load!(:crasher, restart: :transient)
    assert {:error, %Error{reason: :timeout}} = Isolation.call(library, :loop, [], timeout: 50)
    in_service(library)
  end

  test "temporary: nor when the process that watched it was killed, or the warden" do
    for victim <- [fn library -> kill(server(library)) end, fn _library -> signal(Warden.os_pid()) end] do
      library = load!(:crasher, restart: :temporary)
      old = os_pid(library)
      victim.(library)
      eventually(fn -> info!(library).state == :failed end)
      out_of_service(library, :temporary)
      gone(old)
    end

    # The next warden comes with the next worker: the tests that follow count descriptors.
    assert :ok = Isolation.unload(load!(:adder))
  end

  test "one that is not started again leaves the others in service" do
    library = load!(:crasher, restart: :temporary, workers: 2)
    assert {:error, %Error{reason: :crashed}} = Isolation.call(library, :segv, [])
    eventually(fn -> info!(library).state == :degraded end)
    for _ <- 1..5, do: assert({:ok, :ok} = Isolation.call(library, :fine, []))
  end

  test "in a supervision tree, the library ends, and its supervisor decides" do
    path = NativeFixture.path(:crasher)
    child = {Isolation, path: path, name: :temporary_one, sandbox: :none, restart: :temporary}
    start_supervised!(child)
    assert {:error, %Error{reason: :crashed}} = Isolation.call(:temporary_one, :segv, [])
    eventually(fn -> Isolation.call(:temporary_one, :fine, []) == {:ok, :ok} end)
    stop_supervised!({Isolation, :temporary_one})
  end

  test "a module's calls raise it" do
    module = Snakepit.DropInFixture.erlang()
    :ok = Isolation.isolate(module, sandbox: :none, restart: :temporary)
    assert_raise Error, ~r/SIGSEGV/, fn -> module.crash() end
    assert_raise Error, ~r/not started again/, fn -> module.add(1, 2) end
    assert :ok = Isolation.restore(module)
  end
end
