defmodule Bench.Rows.IsolatedAdd do
  # add(1, 2), the worker awake: what a call costs that does nothing, and what else one could do instead.

  alias Bench.{Isolated, Measure, Peer, Report}
  alias Snakepit.Isolation

  def title, do: "isolated call"

  @own_work 5_000
  # No slower than iceoryx2 between two Rust programs, in the same run. The aim was half of the 0.6 us that it took where a cache line
  # went to and fro in 0.1 us.
  @bar {:at_most, 1.0}
  @aim {:at_most, 3.0}
  @batch 1_000
  @worked "5 us of work before each"

  def run(context) do
    Isolated.with_library(:adder, [workers: 2], fn lib ->
      Isolated.with_node(fn node -> measure(context, lib, node) end)
    end)
  end

  defp measure(context, lib, node) do
    fast = context.runs.(20_000)
    slow = context.runs.(1_000)
    peer = context.peer
    vm = Isolated.in_vm()
    port = Peer.echo()
    three = fn -> {:ok, 3} = Isolation.call(lib, :add, [1, 2]) end

    figures =
      Measure.interleave(
        %{
          isolated: fn -> Measure.alone(fast, 0, three) end,
          batches: fn -> Measure.batch(max(div(fast, @batch), 1), @batch, three) end,
          isolated_worked: fn -> Measure.alone(fast, @own_work, three) end,
          vm: fn -> Measure.alone(fast, 0, fn -> 3 = vm.add(1, 2) end) end,
          clock: fn -> Measure.alone(fast, 0, fn -> 3 end) end,
          port: fn -> Measure.alone(slow, 0, fn -> [1, 2] = through_port(port) end) end,
          port_worked: fn -> Measure.alone(slow, @own_work, fn -> [1, 2] = through_port(port) end) end,
          erpc: fn -> Measure.alone(slow, 0, fn -> 3 = :erpc.call(node, :erlang, :+, [1, 2]) end) end,
          iceoryx: fn -> Peer.run(peer, ["iceoryx", fast, 0]) end,
          iceoryx_worked: fn -> Peer.run(peer, ["iceoryx", fast, @own_work]) end,
          line: fn -> Peer.run(peer, ["line", fast, 0]) end
        },
        context.rounds
      )

    Port.close(port)

    [
      row("add(1, 2), awake", figures.isolated, {"iceoryx2", figures.iceoryx}, @bar),
      row("add(1, 2), awake, #{@worked}", figures.isolated_worked, {"iceoryx2", figures.iceoryx_worked}, @bar),
      row("add(1, 2), awake, without the clock", figures.batches, {"one cache line", figures.line}, @aim),
      row("  in the VM", figures.vm),
      row("  a Port, echo in C", figures.port),
      row("  the same, #{@worked}", figures.port_worked),
      row("  :erpc to a :peer", figures.erpc),
      row("  iceoryx2, Rust to Rust", figures.iceoryx),
      row("  the same, #{@worked}", figures.iceoryx_worked),
      row("  one cache line to and fro", figures.line),
      row("  nothing: the clock alone", figures.clock)
    ]
  end

  # The arguments as they would travel.
  defp through_port(port), do: port |> Peer.echo(:erlang.term_to_binary([1, 2])) |> :erlang.binary_to_term()

  defp row(name, ours, against \\ nil, bar \\ nil),
    do: Report.row(%{group: title(), name: name, ours: ours, against: against, bar: bar})
end
