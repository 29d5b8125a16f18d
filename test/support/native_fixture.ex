defmodule Snakepit.NativeFixture do
  @moduledoc false
  # The native libraries that tests and benchmarks call: test/support/fixtures. They are compiled when they are first
  # asked for, once in a run, into a temporary directory. Paths are as `erlang:load_nif/2` takes them, without ".so".

  @fixtures Path.expand("fixtures", __DIR__)
  @flags ~w(-O2 -Wall -Wextra -Werror -fPIC -shared -pthread)
  @c ~w(-std=c11 -D_DEFAULT_SOURCE)
  @cpp ~w(-std=c++17)
  @rustlers [:rustler_0_29, :rustler_0_33, :rustler_0_36, :rustler_0_39]

  @doc """
  The path of a library: the name of a file in fixtures/isolation, or one of

    * `:rustler_0_29` and the others of `rustlers/0`: one library with several versions of Rustler
    * `:espresso`: a minimizer of logic in C, behind Rustler
    * `:not_a_library`: a text file
    * `:wrong_architecture`: a library for another kind of processor
    * `:truncated`: the first page of a library
    * `:missing`: nothing is there
  """
  @spec path(atom()) :: Path.t()
  def path(name) do
    made = Path.join(directory(), Atom.to_string(name))

    # One process makes it; the others wait, and find it.
    unless File.exists?(made <> ".so") do
      :global.trans({{__MODULE__, name}, self()}, fn -> File.exists?(made <> ".so") || make(name, made) end, [node()])
    end

    made
  end

  @spec rustlers() :: [atom()]
  def rustlers, do: @rustlers

  @doc "Where this VM's libraries are. Whoever has asked for one removes it at the end (`remove/0`)."
  @spec directory() :: Path.t()
  def directory, do: Path.join(System.tmp_dir!(), "snakepit-fixtures-#{System.pid()}")

  @spec remove() :: :ok
  def remove do
    File.rm_rf!(directory())
    :ok
  end

  @doc "The module that a library is written for: `:snakepit_adder` of adder.c."
  @spec module(atom()) :: module()
  def module(name) when name in @rustlers, do: :snakepit_rustler
  def module(name), do: String.to_atom("snakepit_#{name}")

  @doc "The functions in the table of a library, by its source."
  @spec functions(atom()) :: [{atom(), arity()}]
  def functions(name) when name in @rustlers or name == :espresso do
    source = if name == :espresso, do: "espresso/src/lib.rs", else: "rustler_fixture/src/functions.rs"
    source = File.read!(Path.join(@fixtures, source))

    for [_, function, parameters] <- Regex.scan(~r/#\[rustler::nif.*\]\nfn (\w+)[^(]*\(([^)]*)\)/, source) do
      # `env` is not an argument; commas inside <> do not separate.
      parameters = Regex.replace(~r/<[^>]*>/, parameters, "")
      names = for parameter <- String.split(parameters, ",", trim: true), not (parameter =~ "Env"), do: parameter
      {String.to_atom(function), length(names)}
    end
  end

  def functions(name) do
    for [_, function, arity] <- Regex.scan(~r/\{"(\w+)", (\d+), fun_\w+, \w+\}/, File.read!(source(name))),
        do: {String.to_atom(function), String.to_integer(arity)}
  end

  @doc """
  Loads a library into this VM, in a module made for it, which is returned. For those that do no harm: `:adder`, and one of
  the Rustler ones. What it does isolated, it should do here.
  """
  @spec load_into_vm(atom(), term()) :: module()
  def load_into_vm(name, load_info \\ 0) do
    module = module(name)
    :global.trans({{__MODULE__, module}, self()}, fn -> load_once(module, name, load_info) end, [node()])
    module
  end

  defp load_once(module, name, load_info) do
    unless :code.is_loaded(module), do: :ok = load_module(module, functions(name), path(name), load_info)
  end

  @doc "Loads a library into this VM, in a module of stubs that takes the place of one of that name."
  @spec load_module(module(), [{atom(), arity()}], Path.t(), term()) :: :ok | {:error, {atom(), charlist()}}
  def load_module(module, functions, path, load_info) do
    # A NIF library is loaded by a function of its own module.
    exports = [{:snakepit_load, 2} | functions]

    stubs =
      for {function, arity} <- functions do
        arguments = for _ <- 1..arity//1, do: {:var, 1, :_}
        body = {:call, 1, {:remote, 1, {:atom, 1, :erlang}, {:atom, 1, :nif_error}}, [{:atom, 1, :not_loaded}]}
        {:function, 1, function, arity, [{:clause, 1, arguments, [], [body]}]}
      end

    variables = [{:var, 1, :Path}, {:var, 1, :Info}]
    loading = {:call, 1, {:remote, 1, {:atom, 1, :erlang}, {:atom, 1, :load_nif}}, variables}
    load = {:function, 1, :snakepit_load, 2, [{:clause, 1, variables, [], [loading]}]}
    forms = [{:attribute, 1, :module, module}, {:attribute, 1, :export, exports}, load | stubs]

    {:ok, ^module, code} = :compile.forms(forms)
    {:module, ^module} = :code.load_binary(module, ~c"native_fixture", code)
    apply(module, :snakepit_load, [to_charlist(path), load_info])
  end

  # ── Making them ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp make(:missing, _made), do: :ok
  defp make(:not_a_library, made), do: put(made, "This is a text. It is no library.\n")

  # The field e_machine of the header says aarch64, or x86-64 there.
  defp make(:wrong_architecture, made) do
    <<start::binary-size(18), machine::little-16, rest::binary>> = File.read!(path(:adder) <> ".so")
    put(made, <<start::binary, if(machine == 183, do: 62, else: 183)::little-16, rest::binary>>)
  end

  defp make(:truncated, made) do
    <<page::binary-size(4096), _::binary>> = File.read!(path(:adder) <> ".so")
    put(made, page)
  end

  defp make(name, made) when name in @rustlers do
    "rustler_" <> version = Atom.to_string(name)
    crate = Path.join("rustler_fixture", String.replace(version, "_", "."))
    put(made, cargo(crate, "rustler_fixture", "lib#{name}.so"))
  end

  defp make(:espresso, made), do: put(made, cargo("espresso", "espresso_fixture", "libsnakepit_espresso.so"))

  defp make(name, made) do
    source = source(name)
    {compiler, flags} = if Path.extname(source) == ".cc", do: {cc("CXX", "c++"), @cpp}, else: {cc("CC", "cc"), @c}
    include = Path.join(:code.root_dir(), "usr/include")
    unfinished = "#{made}.#{System.unique_integer([:positive])}"
    File.mkdir_p!(directory())
    run!(compiler, flags ++ @flags ++ ["-I", include, "-o", unfinished, source], [])
    File.rename!(unfinished, made <> ".so")
  end

  # In the project's own build directory: what crates.io gave is not built again in each run.
  defp cargo(crate, target, library) do
    target = Path.join([Path.expand("../..", __DIR__), "_build", target])
    arguments = ["build", "--release", "--locked", "--quiet"]
    environment = [{"CARGO_TARGET_DIR", target}, {"RUSTFLAGS", nil}]
    run!("cargo", arguments, cd: Path.join(@fixtures, crate), env: environment)
    File.read!(Path.join([target, "release", library]))
  end

  defp cc(variable, default), do: System.get_env(variable, default)

  defp source(name) do
    candidates = for ending <- ["c", "cc"], do: Path.join([@fixtures, "isolation", "#{name}.#{ending}"])
    Enum.find(candidates, &File.exists?/1) || raise ArgumentError, "there is no fixture #{inspect(name)}"
  end

  # Whoever sees the file sees all of it.
  defp put(made, content) do
    File.mkdir_p!(directory())
    unfinished = "#{made}.#{System.unique_integer([:positive])}"
    File.write!(unfinished, content)
    File.rename!(unfinished, made <> ".so")
  end

  defp run!(command, arguments, options) do
    case System.cmd(command, arguments, [stderr_to_stdout: true] ++ options) do
      {_, 0} -> :ok
      {output, status} -> raise "#{command} #{Enum.join(arguments, " ")} ended with #{status}:\n#{output}"
    end
  end
end
