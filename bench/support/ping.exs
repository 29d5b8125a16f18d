defmodule Bench.Ping do
  # How long an ordinary GenServer takes to answer: what else is felt of a busy VM.

  use GenServer

  @impl true
  def init(nothing), do: {:ok, nothing}

  @impl true
  def handle_call(:ping, _from, nothing), do: {:reply, :pong, nothing}

  @doc "Asks again and again for so many milliseconds; nanoseconds."
  @spec sample(pos_integer()) :: [non_neg_integer()]
  def sample(milliseconds) do
    {:ok, server} = GenServer.start_link(__MODULE__, nil)
    samples = ask(server, :erlang.monotonic_time(:nanosecond) + milliseconds * 1_000_000, [])
    GenServer.stop(server)
    samples
  end

  defp ask(server, deadline, samples) do
    start = :erlang.monotonic_time(:nanosecond)
    :pong = GenServer.call(server, :ping, :infinity)
    now = :erlang.monotonic_time(:nanosecond)
    if now < deadline, do: ask(server, deadline, [now - start | samples]), else: [now - start | samples]
  end
end
