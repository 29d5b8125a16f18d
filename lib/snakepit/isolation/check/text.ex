defmodule Snakepit.Isolation.Check.Text do
  @moduledoc false
  # A check, to be read.

  alias Snakepit.Isolation.Check

  # In one line.
  @most 12

  @spec render(Check.t()) :: String.t()
  def render(%Check{} = check) do
    [
      headline(check),
      facts(check),
      section(check, "What isolation asks for", :asks),
      section(check, "What differs", :differs)
    ]
    |> Enum.concat()
    |> Enum.join("\n")
    |> printable()
  end

  @doc "Names, and how many more there are."
  @spec some([String.t()]) :: String.t()
  def some(names) do
    case Enum.split(names, @most) do
      {names, []} -> Enum.join(names, ", ")
      {names, more} -> "#{Enum.join(names, ", ")} and #{length(more)} more"
    end
  end

  defp headline(%{verdict: :yes, loaded: %{}} = check), do: ["#{name(check)} can be isolated: a worker has loaded it."]

  defp headline(%{verdict: :yes} = check),
    do: ["#{name(check)} can be isolated, as far as can be seen without running it."]

  defp headline(%{verdict: :no} = check),
    do: ["#{name(check)} cannot be isolated:" | for(%{text: text} <- check.problems, do: "  - " <> text)]

  defp headline(%{verdict: :unknown, problems: [%{text: text}]} = check),
    do: ["#{name(check)} may be isolated, as far as can be seen without running it; it was not loaded:", "  - " <> text]

  defp headline(%{verdict: :unknown, searched: files} = check) do
    found = Enum.filter(files, &File.regular?/1)

    [
      "#{name(check)}: not known whether it can be isolated. Its code can be; which library it loads, only its code knows."
    ] ++
      if(found == files and match?([_, _ | _], files),
        do: ["Several may be it; check each by its path:"],
        else: ["No library that names the module was found. Check it by its path. Looked at:"]
      ) ++ for(file <- files, do: "  - " <> file)
  end

  defp name(%{target: target}) when is_binary(target), do: target
  defp name(%{target: target}), do: inspect(target)

  # ── Facts ─────────────────────────────────────────────────────────────────────────────────────────────────────

  defp facts(%{path: nil}), do: []

  defp facts(check) do
    lines = [
      {"library", check.path},
      {"made with", check.rustler && "Rustler #{check.rustler}"},
      {"for module", check.module},
      {"NIF version", check.nif_version && "#{check.nif_version}#{check.min_erts && " (#{check.min_erts} or later)"}"},
      {"functions", functions(check)},
      {"callbacks", check.callbacks && Enum.map_join(check.callbacks, ", ", &Atom.to_string/1)},
      {"symbols", symbols(check)},
      {"weak symbols", weak(check)},
      {"looked up", looked_up(check)},
      {"libraries", check.needed != [] && some(for {name, _} <- check.needed, do: name)},
      {"loaded", loaded(check.loaded)}
    ]

    [""] ++
      for {what, text} when text not in [nil, false, ""] <- lines, do: "  #{String.pad_trailing(what, 13)} #{text}"
  end

  defp functions(%{functions: nil, imports: []}), do: nil
  defp functions(%{functions: nil}), do: "known only when it is loaded: it makes their table then (--load)"

  defp functions(%{functions: functions}) do
    names =
      for %{name: name, arity: arity, dirty: dirty} <- functions, do: "#{name}/#{arity}#{if dirty, do: " (dirty)"}"

    "#{length(names)}: #{some(names)}"
  end

  defp symbols(%{imports: imports}) do
    imports
    |> Enum.reject(&(&1.weak and &1.from == :nobody))
    |> Enum.group_by(& &1.from, & &1.name)
    |> Enum.sort_by(fn {from, _} -> {is_binary(from), from} end)
    |> Enum.map_join(", ", fn
      {:worker, names} -> "#{length(names)} of the VM's that workers have"
      {:vm, names} -> "#{length(names)} of the VM's that workers have not"
      {:nobody, names} -> "#{length(names)} that nobody has"
      {library, names} -> "#{length(names)} of #{library}"
    end)
  end

  # Compilers add others to each library.
  defp weak(%{imports: imports}) do
    case for %{name: "e" <> _ = name, weak: true, from: from} when from in [:vm, :nobody] <- imports, do: name do
      [] -> nil
      names -> "#{some(names)}: not here, and the library does without"
    end
  end

  defp looked_up(%{looked_up: []}), do: nil

  defp looked_up(%{looked_up: names}) do
    case for {name, false} <- names, do: name do
      [] -> "#{length(names)} functions by their names, all of them here; which of them it uses is not known"
      absent -> "#{length(names)} functions by their names; not here: #{some(absent)}"
    end
  end

  defp loaded(nil), do: nil

  defp loaded(loaded) do
    names = for %{name: name, arity: arity} <- loaded.functions, do: "#{name}/#{arity}"
    "for #{loaded.module}, NIF #{loaded.nif_version}, #{length(names)} functions: #{some(names)}"
  end

  # ── What is different ─────────────────────────────────────────────────────────────────────────────────────────

  defp section(check, title, kind) do
    case for %{kind: ^kind} = difference <- check.differences, do: line(difference) do
      [] -> []
      lines -> ["", title <> ":"] ++ lines
    end
  end

  defp line(%{text: text, because: []}), do: "  - " <> text
  defp line(%{text: text, because: because}), do: "  - #{text} (#{some(because)})"

  # Names come out of somebody's file, and this goes to a terminal.
  defp printable(text) do
    for <<character::utf8 <- text>>, into: "" do
      if character == ?\n or String.printable?(<<character::utf8>>), do: <<character::utf8>>, else: "?"
    end
  end
end
