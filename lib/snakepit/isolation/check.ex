defmodule Snakepit.Isolation.Check do
  @moduledoc """
  Says whether a native library or a module can be isolated, and what will be different then. Nothing of it is run: the library's file is
  read, and the module's beam. For `mix snakepit.nif.check`, and for a release:

      bin/app eval "System.halt(Snakepit.Isolation.Check.print(:jiffy))"

  `Snakepit.Isolation.check/2` gives a `%Snakepit.Isolation.Check{}`:

    * `verdict` - `:yes`, as far as can be seen without running it; `:no`, and `problems` says why; `:unknown`: a module whose library is not
      found, or which may have several (`searched` says where it was looked for), or whose application has more of them than can be read in a
      minute; or, with `load:`, one whose load callback wants another load info
    * `target`, `path` - what was asked for, and the library's file
    * `module`, `nif_version`, `min_erts`, `functions`, `callbacks` - what its `ErlNifEntry` says. `functions` have `name`, `arity` and `dirty`
      (`nil`, `:cpu` or `:io`). All of them are `nil` if the library makes its entry when it is loaded, as those of Rustler do
    * `rustler` - the version of Rustler, if it is made with that
    * `imports` - the symbols that it needs: `name`, `weak` (it does without), and `from`: `:worker` (they are here), the name of a library,
      `:vm` (the VM's executable has it, a worker has not), `:nobody`
    * `looked_up` - names of `enif_` functions that it has among its constants, to look them up when it runs, and whether they are here
    * `needed` - libraries that it needs, directly or not, and where they are (`nil`: nowhere where a worker looks)
    * `differences` - what isolation asks for (`kind: :asks`), what is not as in the VM (`:differs`): each with an `id`, a `text`, and `because` of which
      symbols
    * `problems` - why it cannot be isolated: each with an `id` and a `text`
    * `loaded` - with `load:`, what it said when it was loaded in a worker

  A module that uses `Snakepit.Isolation.Module` is judged by the library that its options and the configuration name, and by its NIFs.

  Names are as the file has them, whatever they would do to a terminal. In each `text`, and in what `print/2` prints, they are escaped.
  """

  alias Snakepit.Isolation
  alias Snakepit.Isolation.Check.{Differences, Json, Reader, Text}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source}
  alias Snakepit.Isolation.{Error, Options}

  # The newest version that a worker speaks (native/worker/src/host/entry.rs).
  @newest_minor 18
  # Files of a module's application that are looked at.
  @most_files 200

  @enforce_keys [:target]
  defstruct [
    :target,
    :path,
    :verdict,
    :module,
    :nif_version,
    :min_erts,
    :functions,
    :callbacks,
    :rustler,
    :loaded,
    imports: [],
    looked_up: [],
    needed: [],
    differences: [],
    problems: [],
    searched: []
  ]

  @type function_entry :: %{name: String.t(), arity: arity(), dirty: nil | :cpu | :io}
  @type t :: %__MODULE__{
          target: module() | Path.t() | {Application.app(), Path.t()},
          path: Path.t() | nil,
          verdict: :yes | :no | :unknown,
          module: String.t() | nil,
          nif_version: String.t() | nil,
          min_erts: String.t() | nil,
          functions: [function_entry()] | nil,
          callbacks: [:load | :reload | :upgrade | :unload] | nil,
          rustler: String.t() | nil,
          loaded: map() | nil,
          imports: [%{name: String.t(), weak: boolean(), from: :worker | :vm | :nobody | String.t()}],
          looked_up: [{String.t(), boolean()}],
          needed: [{String.t(), Path.t() | nil}],
          differences: [%{id: atom(), kind: :asks | :differs, text: String.t(), because: [String.t()]}],
          problems: [%{id: atom(), text: String.t()}],
          searched: [Path.t()]
        }

  @doc false
  @spec check(term(), term()) :: {:ok, t()} | {:error, Error.t()}
  def check(target, options) do
    with {:ok, load} <- options(options),
         {:ok, check} <- look(target),
         do: {:ok, check |> loaded(load) |> verdict()}
  end

  @doc """
  Prints what `Snakepit.Isolation.check/2` says, and gives the exit code for it: 0 can be isolated, 1 cannot, 2 not known (no such file or
  module, a module whose library is not found). `json: true` prints one line of JSON instead.
  """
  @spec print(module() | Path.t() | {Application.app(), Path.t()}, keyword()) :: 0 | 1 | 2
  def print(target, options \\ []) do
    {json, options} = if Keyword.keyword?(options), do: Keyword.pop(options, :json, false), else: {false, options}

    case check(target, options) do
      {:ok, check} ->
        IO.puts(if json, do: Json.encode(check), else: Text.render(check))
        code(check)

      {:error, error} ->
        IO.puts(:stderr, error |> Exception.message() |> Text.plain())
        2
    end
  end

  @doc "The exit code of a verdict."
  @spec code(t()) :: 0 | 1 | 2
  def code(%__MODULE__{verdict: :yes}), do: 0
  def code(%__MODULE__{verdict: :no}), do: 1
  def code(%__MODULE__{verdict: :unknown}), do: 2

  defp options(options) do
    cond do
      not Keyword.keyword?(options) -> Error.invalid(:options, "a keyword list", options)
      (unknown = Keyword.keys(options) -- [:load]) != [] -> Error.invalid(hd(unknown), "one of [:load]", options)
      options[:load] == nil or Keyword.keyword?(options[:load]) -> {:ok, options[:load]}
      true -> Error.invalid(:load, "options of load/2, sandbox: :none among them", options[:load])
    end
  end

  # ── A library ─────────────────────────────────────────────────────────────────────────────────────────────────

  defp look(module) when is_atom(module) and module not in [nil, true, false], do: module(module)

  defp look(target) do
    with {:ok, path} <- path(target),
         {:ok, file} <- file(path),
         {:ok, read} <- Reader.read(file, "") do
      {:ok, described(%__MODULE__{target: target, path: file}, read, nil)}
    end
  end

  defp path({application, path}) when is_atom(application) and is_binary(path) do
    {:ok, Application.app_dir(application, path)}
  rescue
    ArgumentError ->
      {:error, Error.new(:not_loaded, nil, nil, %{because: :no_application, application: application})}
  end

  defp path(path) when is_binary(path) and path != "" do
    if String.contains?(path, <<0>>), do: unusable(path), else: {:ok, Path.expand(path)}
  end

  defp path(other), do: unusable(other)

  defp unusable(target),
    do: Error.invalid(:target, "a path, with or without .so, {application, path}, or a module", target)

  # As it is, or as erlang:load_nif/2 takes it. What is there and no file is told by who reads it.
  defp file(path) do
    places = for place <- [path, path <> ".so"], do: {place, File.stat(place)}
    there = for {place, {:ok, %File.Stat{type: type}}} <- places, do: {place, type}
    # Not that there is none: links in a circle, a directory that is somebody else's.
    hidden = for {place, {:error, reason}} when reason not in [:enoent, :enotdir] <- places, do: {place, reason}

    case {List.keyfind(there, :regular, 1) || List.first(there), hidden} do
      {{file, _type}, _} ->
        {:ok, file}

      {nil, [{file, reason} | _]} ->
        not_there(file, %{because: :not_reached, message: to_string(:file.format_error(reason))})

      {nil, []} ->
        not_there(path, %{because: :no_file, as_given: true})
    end
  end

  defp not_there(path, details),
    do: {:error, Error.new(:not_loaded, Path.basename(path), nil, Map.put(details, :path, path))}

  # ── A module ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp module(module) do
    case {:code.which(module), Source.own(module)} do
      {:non_existing, _} -> Source.refuse(module, :non_existing)
      {_file, {:ok, nifs, options}} -> own(module, nifs, options)
      {file, :error} -> other(module, file)
    end
  end

  # It says which library it loads, and needs no code made anew.
  defp own(module, nifs, options) do
    with {:ok, %{library: library}} <- Options.module(module, Isolation.Module.configured(options, module)),
         {:ok, path} <- Options.path(library) do
      file = path <> ".so"
      check = %__MODULE__{target: module, searched: [file]}

      if File.regular?(file) do
        with {:ok, read} <- Reader.read(file, Atom.to_string(module)),
             do: {:ok, described(%{check | path: file}, read, about(module, nifs, :own))}
      else
        {:ok, %{check | problems: [problem(:no_file, "its library is not there: #{file}")]}}
      end
    end
  end

  defp other(module, file) do
    {rewritten, functions} = rewritten(module)

    with {:ok, check} <- library_of(%__MODULE__{target: module}, module, file, functions),
         do: {:ok, %{check | problems: rewritten ++ check.problems}}
  end

  # What a library is compared with.
  defp about(module, functions, kind),
    do: %{name: Atom.to_string(module), functions: functions && Enum.map(functions, &written/1), kind: kind}

  defp written({name, arity}), do: {Atom.to_string(name), arity}

  # Its beam only: whether its code can be made anew, and which functions it has for the library.
  defp rewritten(module) do
    with {:ok, source} <- Source.find(module),
         {:ok, rewritten} <- Rewriter.rewrite(source) do
      {[], Map.keys(rewritten.functions)}
    else
      {:error, error} -> {[problem(:module, Exception.message(error))], nil}
    end
  end

  # Where its library is, its code knows, and that is not run. So it is looked for in the module's application.
  defp library_of(check, module, file, functions) do
    name = Atom.to_string(module)
    files = candidates(file)

    with {:ok, read, left} <- Reader.read_all(files, name) do
      reports = for {file, {:ok, report}} <- read, do: {file, report}
      named = Enum.filter(reports, fn {_, report} -> entry(report, name) != nil end)
      # Of those that make their entry when they are loaded.
      mentioned =
        Enum.filter(reports, fn {_, report} -> report.nif_init and report.entries == [] and report.mentions end)

      case if(named == [], do: mentioned, else: named) do
        # One of those that are left may be another one of its name.
        _some when left != [] ->
          {:ok, %{check | searched: files -- left, problems: [problem(:too_long, too_long(left, files))]}}

        [{found, report}] ->
          about = about(module, functions, :other)
          {:ok, described(%{check | path: found, searched: files}, {:ok, report}, about)}

        [] ->
          {:ok, %{check | searched: looked_in(file, files)}}

        several ->
          {:ok, %{check | searched: for({found, _} <- several, do: found)}}
      end
    end
  end

  defp too_long(left, files) do
    "#{length(left)} of the #{length(files)} libraries of its application were not read: that took too long. Check its library by its path"
  end

  defp candidates(file) when is_list(file) and file != [],
    do: file |> private() |> Path.join("**/*.so") |> Path.wildcard() |> Enum.take(@most_files)

  defp candidates(_file), do: []

  defp looked_in(file, []) when is_list(file) and file != [], do: [Path.join(private(file), "**/*.so")]
  defp looked_in(_file, files), do: files

  # Beside ebin, whatever the application is called there.
  defp private(file), do: file |> to_string() |> Path.dirname() |> Path.dirname() |> Path.join("priv")

  # ── What a file says ──────────────────────────────────────────────────────────────────────────────────────────

  defp described(check, {:error, stage, message}, _about) when is_atom(stage),
    do: %{check | problems: [problem(stage, "#{check.path}: #{message}")]}

  # `about` is the module that it is to be the library of, if that is known.
  defp described(check, {:ok, report}, about) do
    entry = entry(report, about && about.name)
    imports = for {name, weak, from} <- report.imports, do: %{name: name, weak: weak, from: from}

    check
    |> Map.merge(Map.take(report, [:rustler, :looked_up, :needed]))
    |> Map.put(:imports, imports)
    |> entered(entry)
    |> Map.put(:differences, Differences.of(report, entry, about && about.kind))
    |> Map.put(:problems, problems(report, entry, imports) ++ misfits(report, entry, about))
  end

  # Of several (libraries that were linked into one) that of the module.
  defp entry(%{entries: [entry]}, nil), do: entry
  defp entry(%{entries: entries}, name), do: Enum.find(entries, &(&1.module == name))

  defp entered(check, nil), do: check

  defp entered(check, entry) do
    functions = for {name, arity, dirty} <- entry.functions, do: %{name: name, arity: arity, dirty: dirty(dirty)}

    %{
      check
      | module: entry.module,
        nif_version: "2.#{entry.minor}",
        min_erts: entry.min_erts,
        functions: functions,
        callbacks: for(callback <- [:load, :reload, :upgrade, :unload], Map.fetch!(entry, callback), do: callback)
    }
  end

  defp dirty(0), do: nil
  defp dirty(1), do: :cpu
  defp dirty(2), do: :io

  # ── Why not ───────────────────────────────────────────────────────────────────────────────────────────────────

  # One line, with names out of the file in it.
  defp problem(id, text), do: %{id: id, text: Text.plain(text)}

  defp problems(report, entry, imports) do
    lost = for {name, nil} <- report.needed, do: name
    needed = fn from -> for %{name: name, weak: false, from: ^from} <- imports, do: name end
    absent = for {name, false} <- report.looked_up, do: name

    Enum.concat([
      unless_(report.nif_init, :no_init, "it has no function nif_init: it is a shared library, but not one with a NIF"),
      unless_(
        entry == nil or entry.minor <= @newest_minor,
        :nif_version,
        "it is made for version 2.#{entry && entry.minor} of the NIF interface, of which workers speak 2.0 to 2.#{@newest_minor}"
      ),
      unless_(
        lost == [],
        :needed,
        "libraries that it needs are nowhere where a worker looks: #{Text.some(lost)}"
      ),
      unless_(
        needed.(:vm) == [],
        :vm_symbols,
        "it takes symbols from the VM's executable that a worker does not have: #{Text.some(needed.(:vm))}"
      ),
      unless_(needed.(:nobody) == [], :symbols, "nobody has symbols that it needs: #{Text.some(needed.(:nobody))}"),
      # Rustler's look up all of them when they are loaded, and give up if one is missing.
      unless_(
        report.rustler == nil or absent == [],
        :looked_up,
        "it looks up functions of the NIF interface that this version does not have: #{Text.some(absent)}"
      )
    ])
  end

  defp unless_(true, _id, _text), do: []
  defp unless_(false, id, text), do: [problem(id, text)]

  # erlang:load_nif/2 would refuse it.
  defp misfits(%{entries: [_ | _] = entries}, nil, %{name: name}) do
    modules = for %{module: module} <- entries, do: module
    [problem(:other_module, "the library is not for the module #{name}, but for #{Text.some(modules)}")]
  end

  defp misfits(_report, %{functions: in_library}, %{name: name, functions: functions}) when is_list(functions) do
    lacking = for {function, arity, _} <- in_library, {function, arity} not in functions, do: "#{function}/#{arity}"
    unless_(lacking == [], :misfit, "the library has functions that the module #{name} has not: #{Text.some(lacking)}")
  end

  defp misfits(_report, _entry, _about), do: []

  # ── Loading it ────────────────────────────────────────────────────────────────────────────────────────────────

  defp loaded(check, nil), do: check
  defp loaded(%{path: nil} = check, _options), do: check

  defp loaded(check, options) do
    with {:ok, library} <- Isolation.load(Path.rootname(check.path, ".so"), options),
         {:ok, info} <- Isolation.info(library),
         :ok <- Isolation.unload(library) do
      functions = for {name, arity} <- info.functions, do: %{name: Atom.to_string(name), arity: arity}
      module = Atom.to_string(info.module)
      {major, minor} = info.nif_version

      %{
        check
        | loaded: %{module: module, nif_version: "#{major}.#{minor}", functions: functions, missing: info.missing}
      }
    else
      {:error, error} ->
        %{check | problems: check.problems ++ [problem(not_loaded(error, options), Exception.message(error))]}
    end
  end

  # Which load info a library wants only its module knows: that 0 is refused says nothing.
  defp not_loaded(%Error{details: %{stage: :load_callback}}, options),
    do: if(Keyword.has_key?(options, :load_info), do: :load, else: :load_info)

  defp not_loaded(_error, _options), do: :load

  defp verdict(%{problems: [%{id: id}]} = check) when id in [:load_info, :no_file, :too_long],
    do: %{check | verdict: :unknown}

  defp verdict(%{problems: [_ | _]} = check), do: %{check | verdict: :no}
  defp verdict(%{path: nil} = check), do: %{check | verdict: :unknown}
  defp verdict(check), do: %{check | verdict: :yes}
end
