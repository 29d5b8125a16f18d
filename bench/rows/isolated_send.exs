defmodule Bench.Rows.IsolatedSend do
  # Messages from a thread of a library to a process, and from a Port's program: how many a second, and how old one is when
  # it is received. The message is {nanoseconds, binary}; the Port's is in the external format.

  alias Bench.{Isolated, Measure, Peer, Report, Text}
  alias Snakepit.Isolation

  def title, do: "messages of an isolated library"

  @sizes [10, 1_000]
  # Microseconds.
  @pauses [100, 5_000]

  def run(context) do
    port = Peer.sender()

    rows =
      Isolated.with_library(:services, [workers: 1], fn lib ->
        subjects = [isolated: &ask(lib, &1, &2, &3), port: &ask(port, &1, &2, &3)]
        rates = for bytes <- @sizes, row <- rate(context, subjects, bytes), do: row
        rates ++ for(pause <- @pauses, row <- age(context, subjects, pause), do: row)
      end)

    Port.close(port)
    rows
  end

  defp rate(context, subjects, bytes) do
    count = context.runs.(100_000)

    figures =
      Measure.interleave(
        Map.new(subjects, fn {name, ask} ->
          {name,
           fn ->
             start = Measure.now()
             ask.(count, 0, bytes)
             receive_all(count)
             {:means, [(Measure.now() - start) / count]}
           end}
        end),
        context.rounds
      )

    name = &"#{&1}#{Text.count(count)} of #{bytes} bytes: #{Text.count(round(1_000_000_000 / &2.p50))}/s"
    both(figures, name.("", figures.isolated), name.("  a Port, sender in C, ", figures.port))
  end

  defp age(context, subjects, pause) do
    count = context.runs.(div(500_000, pause))

    figures =
      Measure.interleave(
        Map.new(subjects, fn {name, ask} ->
          {name,
           fn ->
             ask.(count, pause, 10)
             ages(count, [])
           end}
        end),
        min(context.rounds, 5)
      )

    name = "age of one, #{pause} us after the last"
    both(figures, name, "  a Port, sender in C, #{pause} us after the last")
  end

  defp both(figures, name, port_name) do
    row = &Report.row(Map.put(&1, :group, title()))

    [
      row.(%{name: name, ours: figures.isolated, against: {"a Port, sender in C", figures.port}}),
      row.(%{name: port_name, ours: figures.port})
    ]
  end

  defp ask(port, count, pause, bytes) when is_port(port), do: Port.command(port, <<count::32, pause::32, bytes::32>>)

  defp ask(lib, count, pause, bytes),
    do: {:ok, :ok} = Isolation.call(lib, :send_stamps, [self(), count, pause, bytes])

  defp receive_all(0), do: :ok

  defp receive_all(count) do
    next()
    receive_all(count - 1)
  end

  defp ages(0, ages), do: ages

  defp ages(count, ages) do
    {stamp, _binary} = next()
    # The clock of both is the machine's.
    ages(count - 1, [:os.perf_counter(:nanosecond) - stamp | ages])
  end

  defp next do
    receive do
      {port, {:data, data}} when is_port(port) -> :erlang.binary_to_term(data)
      {stamp, _binary} = message when is_integer(stamp) -> message
    end
  end
end
