defmodule Bench.Isolated do
  # Libraries in processes of their own, and what stands beside them: the same library in this VM, another node.

  alias Snakepit.{Isolation, NativeFixture}

  @doc "Runs `work` with a library of test/support/fixtures (or `{application, path}`), and unloads it."
  @spec with_library(atom() | {atom(), Path.t()}, keyword(), (Isolation.Library.t() -> result)) :: result
        when result: term()
  def with_library(name, options \\ [], work) do
    lib = load(name, options)

    try do
      work.(lib)
    after
      :ok = Isolation.unload(lib)
    end
  end

  @spec load(atom() | {atom(), Path.t()}, keyword()) :: Isolation.Library.t()
  def load(name, options \\ []) do
    path = if is_atom(name), do: NativeFixture.path(name), else: name
    {:ok, lib} = Isolation.load(path, Keyword.merge([sandbox: :none], options))
    lib
  end

  @doc "The same library in this VM."
  @spec in_vm() :: module()
  def in_vm, do: NativeFixture.load_into_vm(:adder)

  @doc "Runs `work` with a node beside this one. Distribution and its port mapper are there for as long as that lasts."
  @spec with_node((node() -> result)) :: result when result: term()
  def with_node(work) do
    {_, mapper} = System.cmd("epmd", ["-names"], stderr_to_stdout: true)
    if mapper != 0, do: System.cmd("epmd", ["-daemon"])
    distribute(50)

    try do
      {:ok, peer, node} =
        :peer.start_link(%{
          name: :"bench_peer_#{System.pid()}",
          host: ~c"127.0.0.1",
          longnames: true,
          args: [~c"-setcookie", Atom.to_charlist(Node.get_cookie())]
        })

      result = work.(node)
      :peer.stop(peer)
      result
    after
      :net_kernel.stop()
      # Refuses where somebody else has a name there.
      if mapper != 0, do: System.cmd("epmd", ["-kill"], stderr_to_stdout: true)
    end
  end

  # The port mapper that was started a moment ago may not listen yet.
  defp distribute(tries) do
    case :net_kernel.start([:"bench_#{System.pid()}@127.0.0.1", :longnames]) do
      {:ok, _} -> :ok
      {:error, _} when tries > 0 -> Process.sleep(20) && distribute(tries - 1)
      {:error, reason} -> raise "no distribution: #{inspect(reason)}"
    end
  end
end
