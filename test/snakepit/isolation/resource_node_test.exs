defmodule Snakepit.Isolation.ResourceNodeTest do
  # Handles of objects on another node, and back.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.PeerNode

  setup_all do
    PeerNode.distribute()
  end

  setup do
    PeerNode.start()
  end

  test "gives a handle back as it was, as long as somebody here has it", %{node: node} do
    library = load!(:cpp)
    table = Isolation.call!(library, :table_new, [])
    {:ok, :ok} = Isolation.call(library, :table_put, [table, "x", 5])
    keeper = :erpc.call(node, Agent, :start, [Function, :identity, [%{table: table}]]) |> elem(1)
    on_exit(fn -> Process.exit(keeper, :kill) end)

    %{table: back} = Agent.get(keeper, Function, :identity, [])
    assert back == table
    assert {:ok, 5} = Isolation.call(library, :table_get, [back, "x"])
    # A call that the other node has made here.
    assert {:ok, 5} = :erpc.call(node, :erpc, :call, [node(), Isolation, :call, [library, :table_get, [table, "x"]]])
  end

  test "does not keep an object: what comes back then is no object, as in the VM", %{node: node} do
    library = load!(:cpp)

    keeper =
      Task.async(fn ->
        table = Isolation.call!(library, :table_new, [])
        :erpc.call(node, Agent, :start, [Function, :identity, [table]]) |> elem(1)
      end)
      |> Task.await(30_000)

    eventually(fn -> Isolation.call!(library, :tables, []) == 0 end, 10_000)
    back = Agent.get(keeper, Function, :identity, [])
    assert is_reference(back)
    assert {:error, %Error{reason: :raised, exception: :badarg}} = Isolation.call(library, :table_get, [back, "x"])
  end
end
