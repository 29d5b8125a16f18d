defmodule Snakepit.Differential.Reference do
  @moduledoc false
  # The reference's side: a process in the peer node that calls the library in its own VM. Without an application, and
  # without our native code.

  use GenServer

  alias Snakepit.Differential.Objects

  @spec start() :: GenServer.on_start()
  def start, do: GenServer.start(__MODULE__, nil, name: __MODULE__)

  @doc "One call; its objects are forgotten."
  @spec call(pid(), module(), atom(), [term()]) :: Snakepit.Differential.outcome()
  def call(peer, module, function, arguments), do: ask(peer, {:call, module, function, arguments})

  @doc "One call of a script, whose objects are there for those that follow."
  @spec step(pid(), module(), atom(), [term()]) :: Snakepit.Differential.outcome()
  def step(peer, module, function, arguments), do: ask(peer, {:step, module, function, arguments})

  @doc "A script begins: there are no objects yet."
  @spec begin(pid()) :: :ok
  def begin(peer), do: ask(peer, :begin)

  defp ask(peer, request), do: :peer.call(peer, GenServer, :call, [__MODULE__, request, :infinity], :infinity)

  @impl true
  def init(nil), do: {:ok, Objects.new()}

  @impl true
  def handle_call(:begin, _from, _objects) do
    :erlang.garbage_collect()
    {:reply, :ok, Objects.new()}
  end

  def handle_call({:call, module, function, arguments}, _from, objects) do
    {outcome, _} = outcome(module, function, arguments, Objects.new())
    {:reply, outcome, objects}
  end

  def handle_call({:step, module, function, arguments}, _from, objects) do
    {outcome, objects} = outcome(module, function, arguments, objects)
    {:reply, outcome, objects}
  end

  @doc "What a call gives or raises, with the module's own part of the stack trace, without places in files."
  @spec outcome(module(), atom(), [term()], Objects.t()) :: {tuple(), Objects.t()}
  def outcome(module, function, arguments, objects) do
    {value, objects} = module |> apply(function, Objects.put_back(arguments, objects)) |> Objects.take_out(objects)
    {{:ok, value}, objects}
  catch
    class, reason ->
      frames = for {^module, name, arguments, _} <- __STACKTRACE__, do: {name, arguments}
      {{reason, frames}, objects} = Objects.take_out({reason, frames}, objects)
      {{:raised, class, reason, frames}, objects}
  end
end
