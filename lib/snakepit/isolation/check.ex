defmodule Snakepit.Isolation.Check do
  @moduledoc """
  Says whether a native library or a module can be isolated, and what will be different then. Nothing of it is run: the library's file is
  read, and the module's beam. For `mix snakepit.nif.check`, and for a release:

      bin/app eval "System.halt(Snakepit.Isolation.Check.print(:jiffy))"

  `Snakepit.Isolation.check/2` gives a `%Snakepit.Isolation.Check{}`:

    * `verdict` - `:yes`, as far as can be seen without running it; `:no`, and `problems` says why; `:unknown`: a module whose library is not
      found, or which may have several (`searched` says where it was looked for); or, with `load:`, one whose
      load callback wants another load info
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
  """

  alias Snakepit.Isolation
  alias Snakepit.Isolation.Check.{Differences, Json, Reader, Text}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source}
  alias Snakepit.Isolation.Error

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
        IO.puts(:stderr, Exception.message(error))
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

  # As it is, or as erlang:load_nif/2 takes it.
  defp file(path) do
    case Enum.find([path, path <> ".so"], &File.regular?/1) || Enum.find([path], &File.exists?/1) do
      nil -> {:error, Error.new(:not_loaded, Path.basename(path), nil, %{because: :no_file, path: path})}
      file -> {:ok, file}
    end
  end

  # ── A module ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp module(module) do
    case :code.which(module) do
      :non_existing ->
        Source.refuse(module, :non_existing)

      file ->
        {rewritten, functions} = rewritten(module)

        with {:ok, check} <- library_of(%__MODULE__{target: module}, module, file, functions),
             do: {:ok, %{check | problems: rewritten ++ check.problems}}
    end
  end

  # Its beam only: whether its code can be made anew, and which functions it has for the library.
  defp rewritten(module) do
    with {:ok, source} <- Source.find(module),
         {:ok, rewritten} <- Rewriter.rewrite(source) do
      {[], for({name, arity} <- Map.keys(rewritten.functions), do: {Atom.to_string(name), arity})}
    else
      {:error, error} -> {[problem(:module, Exception.message(error))], nil}
    end
  end

  # Where its library is, its code knows, and that is not run. So it is looked for in the module's application.
  defp library_of(check, module, file, functions) do
    name = Atom.to_string(module)
    files = candidates(file)

    with {:ok, read} <- read_all(files, name) do
      reports = for {file, {:ok, report}} <- read, do: {file, report}
      named = Enum.filter(reports, fn {_, report} -> entry(report, name) != nil end)
      # Of those that make their entry when they are loaded.
      mentioned =
        Enum.filter(reports, fn {_, report} -> report.nif_init and report.entries == [] and report.mentions end)

      case if(named == [], do: mentioned, else: named) do
        [{found, report}] -> {:ok, described(%{check | path: found, searched: files}, {:ok, report}, {name, functions})}
        [] -> {:ok, %{check | searched: looked_in(file, files)}}
        several -> {:ok, %{check | searched: for({found, _} <- several, do: found)}}
      end
    end
  end

  defp read_all(files, name) do
    Enum.reduce_while(files, {:ok, []}, fn file, {:ok, read} ->
      case Reader.read(file, name) do
        {:ok, report} -> {:cont, {:ok, [{file, report} | read]}}
        {:error, error} -> {:halt, {:error, error}}
      end
    end)
  end

  defp candidates(file) when is_list(file) and file != [],
    do: file |> private() |> Path.join("**/*.so") |> Path.wildcard() |> Enum.take(@most_files)

  defp candidates(_file), do: []

  defp looked_in(file, []) when is_list(file) and file != [], do: [Path.join(private(file), "**/*.so")]
  defp looked_in(_file, files), do: files

  # Beside ebin, whatever the application is called there.
  defp private(file), do: file |> to_string() |> Path.dirname() |> Path.dirname() |> Path.join("priv")

  # ── What a file says ──────────────────────────────────────────────────────────────────────────────────────────

  defp described(check, {:error, stage, message}, _module) when is_atom(stage),
    do: %{check | problems: [problem(stage, "#{check.path}: #{message}")]}

  defp described(check, {:ok, report}, module) do
    entry = entry(report, module && elem(module, 0))
    imports = for {name, weak, from} <- report.imports, do: %{name: name, weak: weak, from: from}

    check
    |> Map.merge(Map.take(report, [:rustler, :looked_up, :needed]))
    |> Map.put(:imports, imports)
    |> entered(entry)
    |> Map.put(:differences, Differences.of(report, entry))
    |> Map.put(:problems, problems(report, entry, imports) ++ misfits(entry, module))
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

  defp problem(id, text), do: %{id: id, text: text}

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
        "libraries that it needs are nowhere where a worker looks: #{Enum.join(lost, ", ")}"
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
  defp misfits(%{functions: in_library}, {name, functions}) when is_list(functions) do
    lacking = for {function, arity, _} <- in_library, {function, arity} not in functions, do: "#{function}/#{arity}"
    unless_(lacking == [], :misfit, "the library has functions that the module #{name} has not: #{Text.some(lacking)}")
  end

  defp misfits(_entry, _module), do: []

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

  defp verdict(%{problems: [%{id: :load_info}]} = check), do: %{check | verdict: :unknown}
  defp verdict(%{problems: [_ | _]} = check), do: %{check | verdict: :no}
  defp verdict(%{path: nil} = check), do: %{check | verdict: :unknown}
  defp verdict(check), do: %{check | verdict: :yes}
end
