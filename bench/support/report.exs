defmodule Bench.Report do
  # The table, row by row as they are measured, and the file for machines.

  alias Bench.Text

  @type bar ::
          {:at_most, float()} | {:rate_at_least, float()} | {:within, most :: pos_integer()} | nil
  # Ratio and verdict are of the median unless the row says `by: :p99`; figures are nanoseconds unless it says `unit: :bytes`.
  @type row :: %{
          required(:group) => String.t(),
          required(:name) => String.t(),
          required(:ours) => Bench.Measure.figure(),
          optional(:against) => {String.t(), Bench.Measure.figure()} | nil,
          optional(:bar) => bar(),
          optional(:by) => :p50 | :p99,
          optional(:unit) => :time | :bytes,
          optional(:bytes) => pos_integer() | nil
        }

  @name 47
  @ours 10
  @p99 9
  @p999 9
  @other 32
  @ratio 8
  @bar 12

  @spec header() :: :ok
  def header do
    line("", "median", "p99", "p99.9", "against", "ratio", "bar", "")
    IO.puts(String.duplicate("─", @name + @ours + @p99 + @p999 + @other + @ratio + @bar + 14))
  end

  @spec group(String.t()) :: :ok
  def group(title), do: IO.puts("\n#{title}")

  @spec notice(String.t()) :: :ok
  def notice(text), do: IO.puts("  (#{text})")

  @doc "Prints the row, and completes it with ratio and verdict."
  @spec row(row()) :: map()
  def row(row) do
    row = Map.merge(%{against: nil, bar: nil, by: :p50, unit: :time, bytes: nil}, row)
    amount = if row.unit == :bytes, do: &Text.bytes/1, else: &Text.time/1
    ns = Map.fetch!(row.ours, row.by)
    ratio = with {_, figure} <- row.against, do: ns / Map.fetch!(figure, row.by)
    verdict = verdict(row.bar, ns, ratio)

    line(
      "  " <> row.name,
      amount.(row.ours.p50),
      if(row.ours.p99, do: amount.(row.ours.p99), else: ""),
      if(row.ours.p999, do: amount.(row.ours.p999), else: ""),
      against(row.against, row.by, amount),
      if(ratio, do: "#{Text.three(ratio)}x", else: ""),
      bar(row.bar, amount),
      verdict
    )

    Map.merge(row, %{ratio: ratio, verdict: verdict})
  end

  defp against(nil, _by, _amount), do: ""
  defp against({what, figure}, by, amount), do: "#{amount.(Map.fetch!(figure, by))} #{what}"

  # "At least 90 % of the rate" is "at most 1 / 0.9 of the time".
  defp verdict(nil, _ns, _ratio), do: ""
  defp verdict({:at_most, limit}, _ns, ratio), do: pass(ratio <= limit)
  defp verdict({:rate_at_least, share}, _ns, ratio), do: pass(1 / ratio >= share)
  defp verdict({:within, limit}, amount, _ratio), do: pass(amount <= limit)

  defp pass(true), do: "PASS"
  defp pass(false), do: "MISS"

  defp bar(nil, _amount), do: ""
  defp bar({:at_most, limit}, _amount), do: "<= #{Text.three(limit)}x"
  defp bar({:rate_at_least, share}, _amount), do: "<= #{Text.three(1 / share)}x"
  defp bar({:within, most}, amount), do: "<= #{amount.(most)}"

  defp line(name, ours, p99, p999, other, ratio, bar, verdict) do
    [
      String.pad_trailing(name, @name),
      String.pad_leading(ours, @ours),
      String.pad_leading(p99, @p99),
      String.pad_leading(p999, @p999),
      "   ",
      String.pad_trailing(other, @other),
      String.pad_leading(ratio, @ratio),
      "  ",
      String.pad_trailing(bar, @bar),
      verdict
    ]
    |> IO.iodata_to_binary()
    |> String.trim_trailing()
    |> IO.puts()
  end

  @spec summary([map()]) :: :ok
  def summary(rows) do
    missed = for %{verdict: "MISS"} = row <- rows, do: row
    passed = Enum.count(rows, &(&1.verdict == "PASS"))

    IO.puts(
      "\n#{passed} bars held, #{length(missed)} missed, #{length(rows) - passed - length(missed)} rows without a bar."
    )

    for row <- missed, do: IO.puts("  missed: #{row.group}: #{row.name}")
    :ok
  end

  # ── The file ──────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "A JSON object with a row a line."
  @spec save([map()], map(), Path.t()) :: Path.t()
  def save(rows, machine, directory) do
    File.mkdir_p!(directory)
    path = Path.join(directory, "#{Calendar.strftime(DateTime.utc_now(), "%Y%m%dT%H%M%SZ")}.json")
    lines = rows |> Enum.map(&json(plain(&1))) |> Enum.intersperse(",\n")
    File.write!(path, ["{\"machine\": ", json(machine), ",\n\"unit\": \"ns\",\n\"rows\": [\n", lines, "\n]}\n"])
    path
  end

  defp plain(row) do
    {what, figure} = row.against || {nil, nil}
    bar = with {kind, limit} <- row.bar, do: %{kind => limit}

    %{
      group: row.group,
      name: row.name,
      ours: row.ours,
      against: what,
      other: figure,
      ratio: row.ratio,
      by: row.by,
      unit: row.unit,
      bar: bar,
      verdict: if(row.verdict == "", do: nil, else: row.verdict),
      bytes: row.bytes
    }
  end

  defp json(term) do
    {:ok, text} = Snakepit.Native.json_encode(term)
    text
  end
end
