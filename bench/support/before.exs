defmodule Bench.Before do
  # The rows of an earlier run beside those of this one. Two runs are two hours of a machine: where a row has a floor or peer, the ratios to it are
  # what can be compared.

  alias Bench.{Python, Text}
  alias Snakepit.Native

  @type key :: {group :: String.t(), name :: String.t(), pos_integer() | nil, against :: String.t() | nil}

  @spec read!(Path.t()) :: %{key() => map()}
  def read!(path) do
    with {:ok, text} <- File.read(path),
         [_ | _] = rows <- for("{\"against\"" <> _ = line <- String.split(text, "\n"), do: row(line)) do
      Map.new(rows, &{key(&1["group"], &1["name"], &1["bytes"], &1["against"]), &1})
    else
      {:error, reason} -> raise Python.Failed, "#{path} cannot be read: #{:file.format_error(reason)}"
      _ -> raise Python.Failed, "#{path} has no rows: it is not a file of bench/results"
    end
  end

  defp row(line) do
    case Native.json_decode(String.trim_trailing(line, ",")) do
      {:ok, %{"group" => _, "name" => _, "ours" => %{"p50" => _}} = row} -> row
      _ -> raise Python.Failed, "this is no row of a result: #{String.slice(line, 0, 80)}"
    end
  end

  # Some names end with the rate that was measured.
  defp key(group, name, bytes, against), do: {group, stem(name), bytes, against}
  defp stem(name), do: String.replace(name, ~r/: [\d,]+\/s$/, "")

  @spec print(%{key() => map()}, [map()]) :: :ok
  def print(before, rows) do
    line("\nbefore and now", "before", "now", "now/before", "ratio before", "ratio now")

    for row <- rows, earlier = before[of(row)] do
      amount = if row.unit == :bytes, do: &Text.bytes/1, else: &Text.time/1
      [was, is] = [earlier["ours"]["p50"], row.ours.p50]

      line(
        "  " <> stem(row.name),
        amount.(was),
        amount.(is),
        times(is / was),
        times(earlier["ratio"]),
        times(row.ratio)
      )
    end

    :ok
  end

  defp of(row), do: key(row.group, row.name, row.bytes, with({what, _} <- row.against, do: what))

  defp times(nil), do: ""
  defp times(ratio), do: "#{Text.three(ratio)}x"

  defp line(name, was, is, change, ratio_was, ratio_is) do
    columns =
      for {text, width} <- [{was, 10}, {is, 10}, {change, 12}, {ratio_was, 14}, {ratio_is, 11}],
          do: String.pad_leading(text, width)

    IO.puts(String.trim_trailing(String.pad_trailing(name, 56) <> Enum.join(columns)))
  end
end
