defmodule Snakepit.Isolation.Check.Text do
  @moduledoc false
  # A check, to be read.

  alias Snakepit.Isolation.Check

  # In one line.
  @most 12
  # Of a name's characters. C++ has longer ones.
  @longest 256

  @spec render(Check.t()) :: String.t()
  def render(%Check{} = check) do
    [
      headline(check),
      facts(check),
      section(check, "What isolation asks for", :asks),
      section(check, "What differs", :differs)
    ]
    |> Enum.concat()
    # Before they are joined: then each end of a line is ours.
    |> Enum.map_join("\n", &plain/1)
  end

  @doc """
  Text for a terminal, in one line: names come out of somebody's file, who may have made them to say something else than they are. Control characters,
  ends of lines, what has no width or turns the direction of the text, and what is not UTF-8 are escaped. Doing it twice changes nothing.
  """
  @spec plain(binary()) :: String.t()
  def plain(text) when is_binary(text), do: text |> plain([]) |> IO.iodata_to_binary()

  defp plain(<<character::utf8, rest::binary>>, done),
    do: plain(rest, [done | if(plain?(character), do: <<character::utf8>>, else: escaped(character))])

  defp plain(<<byte, rest::binary>>, done), do: plain(rest, [done | escaped(byte)])
  defp plain("", done), do: done

  @doc "Whether a character shows as itself."
  @spec plain?(char()) :: boolean()
  def plain?(character) when character in 32..126, do: true
  def plain?(character) when character <= 160, do: false
  # Control, format, not assigned, of private use; separators of lines and paragraphs.
  def plain?(character), do: not Regex.match?(~r/[\p{C}\p{Zl}\p{Zp}]/u, <<character::utf8>>)

  defp escaped(character) when character <= 255, do: "\\x" <> hexadecimal(character)
  defp escaped(character), do: "\\x{#{hexadecimal(character)}}"

  defp hexadecimal(number), do: number |> Integer.to_string(16) |> String.pad_leading(2, "0")

  @doc "Names, and how many more there are."
  @spec some([String.t()]) :: String.t()
  def some(names) do
    case Enum.split(names, @most) do
      {names, []} -> Enum.map_join(names, ", ", &short/1)
      {names, more} -> "#{Enum.map_join(names, ", ", &short/1)} and #{length(more)} more"
    end
  end

  defp short(name) do
    name = plain(name)
    if String.length(name) <= @longest, do: name, else: String.slice(name, 0, @longest) <> "..."
  end

  defp headline(%{verdict: :yes, loaded: %{}} = check), do: ["#{name(check)} can be isolated: a worker has loaded it."]

  defp headline(%{verdict: :yes} = check),
    do: ["#{name(check)} can be isolated, as far as can be seen without running it."]

  defp headline(%{verdict: :no} = check),
    do: ["#{name(check)} cannot be isolated:" | for(%{text: text} <- check.problems, do: "  - " <> text)]

  defp headline(%{verdict: :unknown, problems: [%{id: id, text: text}]} = check) when id in [:no_file, :too_long],
    do: ["#{name(check)}: not known whether it can be isolated:", "  - " <> text]

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

  # Only what makes the table when it is loaded has it then.
  defp functions(%{functions: nil, imports: []}), do: nil

  defp functions(%{functions: nil, problems: problems}) do
    unless Enum.any?(problems, &(&1.id in [:no_init, :other_module])),
      do: "known only when it is loaded: it makes their table then (--load)"
  end

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
end
