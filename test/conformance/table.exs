defmodule Conformance.Table do
  @moduledoc false
  # Results as a table: on the terminal, and between two marks in README.md. There the reasons are written by hand; a reason
  # stays as long as its case does not pass.

  @from "<!-- results -->"
  @to "<!-- end of results -->"
  @by_chance "by chance"
  @head ["case", "in the VM", "isolated", "why not"]

  @doc "What README.md says: of each case by its name the words of its columns."
  def read(file) do
    for line <- file |> File.read!() |> between(),
        ["", name, vm, isolated, reason, ""] <- [line |> String.split(~r/(?<!\\)\|/) |> Enum.map(&String.trim/1)],
        name = String.trim(name, "`"),
        into: %{},
        do: {name, %{vm: vm, isolated: isolated, reason: reason}}
  end

  defp between(text) do
    case String.split(text, [@from, @to]) do
      [_, table, _] -> table |> String.split("\n", trim: true) |> Enum.drop(2)
      _ -> []
    end
  end

  @doc "The table of all cases (`names`), those of `rows` anew."
  def write(file, names, rows, before) do
    [head, _, tail] = file |> File.read!() |> String.split([@from, @to])
    new = Map.new(rows, &{&1.name, cells(&1, before, :markdown)})
    old = fn name -> with %{vm: vm, isolated: isolated, reason: reason} <- before[name], do: [vm, isolated, reason] end
    lines = for name <- names, cells = new[name] || old.(name), do: ["`#{name}`" | cells]
    table = Enum.map_join([@head, List.duplicate("---", 4) | lines], "\n", &"| #{Enum.join(&1, " | ")} |")
    File.write!(file, [head, @from, "\n", table, "\n", @to, tail])
  end

  @doc "`upgrade (api_2_4)`"
  def name({nil, name}), do: "#{name}"
  def name({group, name}), do: "#{name} (#{group})"

  def word(:passed), do: "passed"
  def word(:timeout), do: "timeout"
  def word({:skipped, _}), do: "skipped"
  def word({:ended, _}), do: "VM ended"
  def word({:failed, _}), do: "failed"

  @doc "The table for a terminal."
  def text(rows, before), do: aligned([@head | Enum.map(rows, &[&1.name | cells(&1, before, :terminal)])])

  # What README.md says to happen by chance stays so, whatever happened this time.
  defp cells(row, before, form) do
    case before[row.name] do
      %{isolated: @by_chance, reason: reason} when form == :markdown -> [word(row.vm), @by_chance, reason]
      old -> [word(row.vm), word(row.isolated), reason(row, old, form)]
    end
  end

  defp aligned(lines) do
    widths = for column <- 0..2, do: lines |> Enum.map(&String.length(Enum.at(&1, column))) |> Enum.max()

    Enum.map_join(lines, "\n", fn line ->
      line |> Enum.zip(widths ++ [0]) |> Enum.map_join("  ", fn {cell, width} -> String.pad_trailing(cell, width) end)
    end)
  end

  defp reason(%{isolated: :passed}, _before, _form), do: ""
  # What has been found out stays, what was seen does not.
  defp reason(_row, %{reason: reason}, :markdown) when reason != "", do: reason
  defp reason(row, _before, form), do: row.isolated |> seen() |> escape(form)

  defp seen({:failed, {:error, reason, [{module, name, arguments, where} | _]}}) do
    arity = if is_list(arguments), do: length(arguments), else: arguments
    "#{place(module, name, arity, where)}: #{words(reason)}"
  end

  defp seen({:failed, {class, reason, _}}), do: "#{class}: #{words(reason)}"
  defp seen({:failed, reason}), do: words(reason)
  defp seen({:skipped, reason}), do: words(reason)
  defp seen({:ended, status}), do: "status #{status}"
  defp seen(:timeout), do: "not in two minutes"

  defp place(module, name, arity, where), do: "#{inspect(module)}.#{name}/#{arity}" <> line(where[:line])
  defp line(nil), do: ""
  defp line(line), do: " line #{line}"

  defp words(%{__exception__: true} = error), do: shortened(Exception.message(error))
  defp words({%{__exception__: true} = error, _}), do: shortened(Exception.message(error))
  defp words(reason), do: reason |> inspect(limit: 8, printable_limit: 80) |> shortened()

  defp shortened(text) do
    text = text |> String.split() |> Enum.join(" ")
    if String.length(text) > 160, do: String.slice(text, 0, 160) <> "...", else: text
  end

  # Paths are of one machine.
  defp escape(text, form) do
    text = String.replace(text, ~r{/[^\s"']*/_build}, "_build")
    if form == :markdown, do: String.replace(text, "|", "\\|"), else: text
  end
end
