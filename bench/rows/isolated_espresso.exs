defmodule Bench.Rows.IsolatedEspresso do
  # The Espresso minimizer, isolated by us through the drop-in, and as its own crate did it in version 2.6.1: a process for each
  # call. Text of a PLA in, text of the minimized one out, on both sides.

  alias Bench.{Measure, Peer, Report, Text}
  alias Snakepit.{EspressoFixture, Isolation}

  def title, do: "Espresso, isolated"

  # The crate's first example: exclusive or.
  @small ".i 2\n.o 1\n.type f\n01 1\n10 1\n.e\n"
  # A large one of its example files, whose time is the minimizer's own.
  @large "examples/alu2"
  # At least 20 times the throughput, call after call. Of several callers at the same time there is no bar: then the forks of the other side share
  # the processors, and of our time most is the minimizer's own.
  @bar {:at_most, 1 / 20}
  @callers 4
  @workers 2
  # Longer than the small one takes (some 14 us by the crate alone): with the default of 10 us a caller would go to sleep just before
  # each answer.
  @spin 50

  def run(context) do
    directory = Path.join(System.tmp_dir!(), "bench-espresso-#{System.pid()}")
    File.mkdir_p!(directory)
    module = EspressoFixture.module(directory)
    :ok = Isolation.isolate(module, sandbox: :none, workers: @workers, spin: @spin)
    peer = Peer.espresso()

    try do
      small = Path.join(directory, "small.pla")
      File.write!(small, @small)
      large = Path.join(Peer.espresso_source(), @large)
      same!(module, peer, small, directory)

      one(context, module, peer, small, 2_000, "exclusive or", @bar) ++
        many(context, module, peer, small) ++
        one(context, module, peer, large, 40, "#{Path.basename(@large)}, #{lines(large)} cubes", nil)
    after
      Peer.stop(peer)
      :ok = Isolation.restore(module)
      EspressoFixture.remove(directory)
      File.rm_rf!(directory)
    end
  end

  defp one(context, module, peer, file, count, what, bar) do
    text = File.read!(file)
    {:ok, _} = module.minimize(text)
    count = context.runs.(count)

    figures =
      Measure.interleave(
        %{
          ours: fn -> Measure.alone(count, 0, fn -> {:ok, _} = module.minimize(text) end) end,
          theirs: fn -> Peer.run(peer, ["each", max(div(count, 10), 4), file]) end
        },
        context.rounds
      )

    row = %{group: title(), name: what, bytes: byte_size(text)}
    [Report.row(Map.merge(row, %{ours: figures.ours, against: {"a process a call", figures.theirs}, bar: bar}))]
  end

  # As time a call: the time of all by their number.
  defp many(context, module, peer, file) do
    text = File.read!(file)
    calls = context.runs.(8_000)
    theirs = max(div(calls, 20), @callers)

    figures =
      Measure.interleave(
        %{
          ours: fn -> {:means, [together(module, text, calls)]} end,
          theirs: fn ->
            [nanoseconds] = Peer.run(peer, ["together", @callers, theirs, file])
            {:means, [nanoseconds / theirs]}
          end
        },
        context.rounds
      )

    rate = Text.count(round(1_000_000_000 / figures.ours.p50))
    name = "the same, #{@callers} callers, #{@workers} workers: #{rate}/s"

    [
      Report.row(%{
        group: title(),
        name: name,
        ours: figures.ours,
        against: {"#{@callers} threads", figures.theirs}
      })
    ]
  end

  defp together(module, text, calls) do
    start = Measure.now()

    List.duplicate(div(calls, @callers), @callers)
    |> Enum.map(fn count -> Task.async(fn -> for(_ <- 1..count, do: {:ok, _} = module.minimize(text)) && :ok end) end)
    |> Task.await_many(:infinity)

    (Measure.now() - start) / calls
  end

  # Both do the work: the same cubes.
  defp same!(module, peer, file, directory) do
    out = Path.join(directory, "out.pla")
    [] = Peer.run(peer, ["result", file, out])
    {:ok, ours} = module.minimize(File.read!(file))
    true = cubes(ours) == cubes(File.read!(out))
  end

  defp cubes(pla), do: ~r/^[01-]+ [01~-]+$/m |> Regex.scan(pla) |> Enum.sort()
  defp lines(file), do: length(cubes(File.read!(file)))
end
