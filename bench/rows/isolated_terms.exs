defmodule Bench.Rows.IsolatedTerms do
  # Terms of many parts there and back: against the same library in the VM, where nothing is copied, and against what one would do without us:
  # external format, a Port, external format.

  alias Bench.{Isolated, Measure, Peer, Report}
  alias Snakepit.Isolation

  def title, do: "isolated call with many terms"

  def run(context) do
    port = Peer.echo()
    vm = Isolated.in_vm()

    rows =
      Isolated.with_library(:adder, [workers: 1], fn lib ->
        for {name, term} <- terms(), do: row(context, lib, vm, port, name, term)
      end)

    Port.close(port)
    List.flatten(rows)
  end

  defp terms do
    [
      {"a map of 1,000 binaries and integers", Map.new(1..1_000, &{"key #{&1}", &1})},
      {"a map of 1,000 atoms and floats", Map.new(1..1_000, &{:"bench_key_#{&1}", &1 / 3})},
      {"a list of 10,000 small tuples", for(n <- 1..10_000, do: {:item, n, n / 7})},
      {"a list of 10,000 short binaries", for(n <- 1..10_000, do: "number #{n}")}
    ]
  end

  defp row(context, lib, vm, port, name, term) do
    {:ok, ^term} = Isolation.call(lib, :echo, [term])
    ^term = through_port(port, term)
    ^term = vm.echo(term)
    count = context.runs.(200)

    figures =
      Measure.interleave(
        %{
          isolated: fn -> Measure.alone(count, 0, fn -> {:ok, _} = Isolation.call(lib, :echo, [term]) end) end,
          port: fn -> Measure.alone(count, 0, fn -> through_port(port, term) end) end,
          vm: fn -> Measure.alone(count, 0, fn -> vm.echo(term) end) end
        },
        context.rounds
      )

    row = &Report.row(Map.merge(%{group: title(), bytes: :erlang.external_size(term)}, &1))

    [
      row.(%{name: "#{name}, there and back", ours: figures.isolated, against: {"external, a Port", figures.port}}),
      row.(%{name: "  the same call in the VM", ours: figures.vm})
    ]
  end

  defp through_port(port, term), do: port |> Peer.echo(:erlang.term_to_binary(term)) |> :erlang.binary_to_term()
end
