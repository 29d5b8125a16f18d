defmodule Bench.Hung do
  # Four workers hang at once, again and again, while a GenServer answers pings. Here, or in a VM with one scheduler
  # (`bench/support/hung_vm.exs`).

  alias Bench.Ping
  alias Snakepit.Isolation
  alias Snakepit.Isolation.Error

  @workers 4
  @timeout 300

  @type figures :: %{idle: [non_neg_integer()], hung: [non_neg_integer()], late: [integer()]}

  @doc "Pings without and with hung workers, and by how much each timeout came later than it should have."
  @spec measure(Path.t(), pos_integer()) :: figures()
  def measure(path, rounds) do
    options = [sandbox: :none, workers: @workers, max_restarts: :infinity]
    {:ok, lib} = Isolation.load(path, options)

    try do
      Ping.sample(@timeout)

      Enum.reduce(1..rounds, %{idle: [], hung: [], late: []}, fn _, seen ->
        ready(lib)
        idle = Ping.sample(@timeout)
        callers = for _ <- 1..@workers, do: Task.async(fn -> hang(lib) end)
        # Ends a little before the timeouts do: what comes then is not the hanging but the restarts.
        hung = Ping.sample(@timeout - 20)
        late = Task.await_many(callers, 60_000)
        %{idle: idle ++ seen.idle, hung: hung ++ seen.hung, late: late ++ seen.late}
      end)
    after
      :ok = Isolation.unload(lib)
    end
  end

  defp hang(lib) do
    start = :erlang.monotonic_time(:nanosecond)
    {:error, %Error{reason: :timeout}} = Isolation.call(lib, :sleep_forever, [], timeout: @timeout)
    :erlang.monotonic_time(:nanosecond) - start - @timeout * 1_000_000
  end

  # All of them at once: each has to be there.
  defp ready(lib) do
    calls = for _ <- 1..@workers, do: Task.async(fn -> Isolation.call(lib, :together, [50], timeout: 30_000) end)
    for {:ok, _} <- Task.await_many(calls, 60_000), do: :ok
  end
end
