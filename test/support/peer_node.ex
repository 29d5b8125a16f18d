defmodule Snakepit.PeerNode do
  @moduledoc false
  # Another node for one test, connected to this one.

  import Snakepit.ShmCase, only: [eventually: 1]

  @doc "Distribution, and the port mapper, only where they do not run already; both go again. For `setup_all`."
  @spec distribute() :: :ok
  def distribute do
    unless Node.alive?() do
      {_, mapper} = System.cmd("epmd", ["-names"], stderr_to_stdout: true)
      if mapper != 0, do: System.cmd("epmd", ["-daemon"])
      name = :"snakepit_test_#{System.pid()}@127.0.0.1"
      eventually(fn -> match?({:ok, _}, :net_kernel.start([name, :longnames])) end)

      ExUnit.Callbacks.on_exit(fn ->
        :net_kernel.stop()
        if mapper != 0, do: eventually(fn -> match?({_, 0}, System.cmd("epmd", ["-kill"], stderr_to_stdout: true)) end)
      end)
    end

    # The runtime's resolver is a program of its own, which stays: it is there before descriptors are counted.
    {:ok, _} = :inet.getaddr(~c"localhost", :inet)
    :ok
  end

  @doc "A node with our code. For `setup`."
  @spec start() :: %{peer: pid(), node: node()}
  def start do
    {:ok, peer, node} =
      :peer.start(%{
        name: :"snakepit_peer_#{System.unique_integer([:positive])}",
        host: ~c"127.0.0.1",
        longnames: true,
        connection: :standard_io,
        args: [~c"-setcookie", Atom.to_charlist(Node.get_cookie())]
      })

    :peer.call(peer, :code, :add_paths, [:code.get_path()])
    true = Node.connect(node)
    ExUnit.Callbacks.on_exit(fn -> try(do: :peer.stop(peer), catch: (_, _ -> :ok)) end)
    %{peer: peer, node: node}
  end
end
