defmodule Snakepit.Isolation.DropInDifferentialTest do
  # Modules with their libraries isolated: what their functions give and raise, with the stack trace as far as it is theirs, is what they give and
  # raise in a VM that never isolates anything. Which calls: `Snakepit.Differential.Modules`.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.{Differential, DropInFixture}
  alias Snakepit.Differential.{Modules, Reference}

  @moduletag timeout: 180_000

  # Of each function whose arguments are generated.
  @runs 60

  for name <- Modules.names() do
    @tag skip: if(name == :jiffy and match?({:error, _}, :code.lib_dir(:jiffy)), do: "there is no jiffy (erlang-jiffy)")
    test "#{name}" do
      spec = Modules.calls(unquote(name))
      peer = Differential.start_reference()
      module = with nil <- spec[:module], do: fixture(peer, unquote(name), spec[:load_info] || 0)
      on_exit(fn -> if Isolation.DropIn.fetch(module), do: restore(module) end)
      sides = Differential.open_module(peer, module)
      assert :ok = Differential.compare(sides, spec, @runs)
      assert info!(module).calls > 0
      # The other side is what it has to be.
      assert :peer.call(peer, Isolation.DropIn, :fetch, [module]) == nil
    end
  end

  test "a difference is found" do
    peer = Differential.start_reference()
    module = fixture(peer, :adder, 42)
    sides = Differential.open_module(peer, module)
    # Another load info on this side.
    assert :peer.call(peer, module, :load_info, []) == 42
    DropInFixture.settings(module, load_info: 43)
    :ok = Isolation.restore(module)
    :ok = Isolation.isolate(module, sandbox: :none)
    assert :ok = Differential.compare(sides, %{calls: [add: [1, 2]]}, 1)

    assert_raise ExUnit.AssertionError, ~r/load_info\(\)\s+isolated:  {:ok, 43}\s+in the VM: {:ok, 42}/, fn ->
      Differential.compare(sides, %{calls: [load_info: []]}, 1)
    end

    # And one of the stack trace alone.
    {{:raised, :error, :badarg, frames}, _} = Reference.outcome(module, :add, [:a, 1], Differential.Objects.new())
    assert [{:add, [:a, 1]}] = frames
  end

  defp restore(module), do: eventually(fn -> Isolation.restore(module) == :ok end)

  # On both sides.
  defp fixture(peer, name, load_info) do
    {module, directory} = DropInFixture.stubs(name, load_info)
    settings = {module, :settings}
    :ok = :peer.call(peer, :persistent_term, :put, [settings, :persistent_term.get(settings)])
    true = :peer.call(peer, :code, :add_patha, [to_charlist(directory)])
    module
  end
end
