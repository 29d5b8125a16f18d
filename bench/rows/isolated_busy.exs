defmodule Bench.Rows.IsolatedBusy do
  # What the rest of a VM feels: a GenServer's ping-pong while others hammer a worker, and while workers hang.

  alias Bench.{Hung, Isolated, Measure, Ping, Report}
  alias Snakepit.{Isolation, NativeFixture}

  def title, do: "a busy VM"

  @callers 4
  @hung {:at_most, 2.0}
  @late {:within, 5_000_000}
  @timeout 300

  def run(context), do: hammered(context) ++ hung(context)

  # ── Hammered ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp hammered(context) do
    vm = Isolated.in_vm()

    Isolated.with_library(:adder, [workers: 2], fn lib ->
      call = fn -> {:ok, 3} = Isolation.call(lib, :add, [1, 2]) end
      milliseconds = context.runs.(300)

      figures =
        Measure.interleave(
          %{
            idle: fn -> Ping.sample(milliseconds) end,
            isolated: fn -> while(call, fn -> Ping.sample(milliseconds) end) end,
            vm: fn -> while(fn -> 3 = vm.add(1, 2) end, fn -> Ping.sample(milliseconds) end) end
          },
          min(context.rounds, 5)
        )

      name = "ping-pong, #{@callers} callers hammering a pool of 2"
      row = &Report.row(Map.put(&1, :group, title()))

      [
        row.(%{name: "ping-pong, nothing else", ours: figures.idle}),
        row.(%{name: name, ours: figures.isolated, against: {"idle", figures.idle}}),
        row.(%{name: name, ours: figures.isolated, against: {"by p99: same loops in the VM", figures.vm}, by: :p99})
      ]
    end)
  end

  defp while(call, work) do
    callers = for _ <- 1..@callers, do: spawn_link(fn -> forever(call) end)
    result = work.()

    for caller <- callers do
      Process.unlink(caller)
      monitor = Process.monitor(caller)
      Process.exit(caller, :kill)

      receive do
        {:DOWN, ^monitor, _, _, _} -> :ok
      end
    end

    result
  end

  defp forever(call) do
    call.()
    forever(call)
  end

  # ── Hung ──────────────────────────────────────────────────────────────────────────────────────────────────────

  defp hung(context) do
    rounds = max(context.runs.(20), 2)
    path = NativeFixture.path(:adder)
    here = Hung.measure(path, rounds)
    one = in_vm_of_one(path, rounds)

    rows("", here) ++ rows(", +S 1", one)
  end

  defp rows(where, samples) do
    [idle, hung, late] = for key <- [:idle, :hung, :late], do: Measure.figure_of(samples[key])
    row = &Report.row(Map.put(&1, :group, title()))

    [
      row.(%{
        name: "ping-pong with 4 hung workers#{where}",
        ours: hung,
        against: {"by p99: idle", idle},
        by: :p99,
        bar: @hung
      }),
      row.(%{name: "timeout of #{@timeout} ms, too late by#{where}", ours: late, bar: @late})
    ]
  end

  defp in_vm_of_one(path, rounds) do
    program = Path.expand("../support/hung_vm.exs", __DIR__)
    paths = Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
    arguments = ["--erl", "+S 1:1"] ++ paths ++ [program, path, "#{rounds}"]

    case System.cmd("elixir", arguments) do
      {output, 0} ->
        [_, figures] = Regex.run(~r/^figures (.*)$/m, output)
        figures |> Base.decode64!() |> :erlang.binary_to_term()

      {output, status} ->
        raise "the VM with one scheduler ended with status #{status}: #{output}"
    end
  end
end
