defmodule Snakepit.Isolation.ErrorTest do
  use ExUnit.Case, async: true

  alias Snakepit.Isolation.Error

  @reasons ~w(crashed timeout raised overloaded not_loaded stale quota_exceeded protocol not_implemented
              sandbox_violation undefined_function unsupported_term invalid_option)a

  test "every reason has a sentence and a remedy" do
    for reason <- @reasons do
      error = Error.new(reason, "lib-1", {:f, 2}, %{message: "text", key: :key, timeout: 5})
      assert Exception.message(error) =~ ~r/\Alib-1: f\/2: .+\. \S.+/s
      assert Error.remedy(error) != ""
    end
  end

  test "crashes name the function and how the process ended" do
    crashed = fn status, because ->
      Exception.message(Error.new(:crashed, :jiffy, {:decode, 1}, Map.put(Error.status(status), :because, because)))
    end

    assert crashed.({:signal, 11}, :exited) =~ ~r/:jiffy: decode\/1: .*SIGSEGV/
    assert crashed.({:signal, 64}, :exited) =~ "64"
    assert crashed.({:exit, 3}, :exited) =~ "exit(3)"
    assert crashed.({:signal, 9}, :hung) =~ "deadline"
    assert crashed.({:signal, 9}, :protocol) =~ "protocol"
    assert crashed.({:signal, 9}, :heartbeat) =~ "sign of life"
    assert crashed.(nil, :warden) =~ "warden"
  end

  test "what native functions answer becomes a reason" do
    assert %{reason: :stale} = Error.from_native({:stale, %{}}, "l", {:f, 1})
    assert %{reason: :quota_exceeded} = Error.from_native({:too_large, %{}}, "l", {:f, 1})
    assert %{reason: :crashed, signal: :SIGBUS} = Error.from_native({:crashed, %{signal: :SIGBUS}}, "l", {:f, 1})
    assert %{reason: :protocol, details: %{native: :whatever}} = Error.from_native({:whatever, %{}}, "l", {:f, 1})
  end

  test "a crash in Snakepit's form" do
    snakepit = fn details -> Error.to_snakepit(Error.new(:crashed, "l", {:f, 1}, details)) end

    assert snakepit.(%{signal: :SIGSEGV, because: :exited}) ==
             {:worker_crash, %{reason: :SIGSEGV, exit_code: 139, classification: :segfault}}

    assert {:worker_crash, %{exit_code: 135, classification: :segfault}} =
             snakepit.(%{signal: :SIGBUS, because: :exited})

    assert {:worker_crash, %{exit_code: 134, classification: :abort}} = snakepit.(%{signal: :SIGABRT, because: :exited})
    assert {:worker_crash, %{exit_code: 137, classification: :oom}} = snakepit.(%{signal: :SIGKILL, because: :exited})
    assert {:worker_crash, %{exit_code: 137, classification: :timeout}} = snakepit.(%{signal: :SIGKILL, because: :hung})
    assert {:worker_crash, %{exit_code: 162, classification: :unknown}} = snakepit.(%{signal: 34, because: :exited})

    assert snakepit.(%{exit_code: 3, because: :exited}) ==
             {:worker_crash, %{reason: {:exit, 3}, exit_code: 3, classification: :exit}}

    late = Error.new(:timeout, "l", {:f, 1}, %{started: true, timeout: 5})
    assert {:worker_crash, %{classification: :timeout}} = Error.to_snakepit(late)
    assert {:overloaded, text} = Error.to_snakepit(Error.new(:overloaded, "l", {:f, 1}, %{timeout: 5}))
    assert text =~ "slots"
  end
end
