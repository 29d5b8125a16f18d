defmodule Snakepit.EspressoFixture do
  @moduledoc false
  # The Espresso minimizer of the crate espresso-logic as a module with NIFs: test/support/fixtures/espresso. And the inputs that the crate itself
  # has in its examples and tests. For tests and the benchmark.

  alias Snakepit.NativeFixture

  @crate Path.expand("fixtures/espresso", __DIR__)
  @module :snakepit_espresso

  @doc "Compiles the module into a directory of the code path, and does not load it."
  @spec module(Path.t()) :: module()
  def module(directory) do
    :persistent_term.put({@module, :path}, to_charlist(NativeFixture.path(:espresso)))
    source = to_charlist(Path.join(@crate, "snakepit_espresso.erl"))
    {:ok, @module} = :compile.file(source, [:debug_info, :return_errors, outdir: to_charlist(directory)])
    true = :code.add_patha(to_charlist(directory))
    @module
  end

  @doc "Takes the module out of the VM and the code path."
  @spec remove(Path.t()) :: :ok
  def remove(directory) do
    :code.purge(@module)
    :code.delete(@module)
    :code.purge(@module)
    :code.del_path(to_charlist(directory))
    :persistent_term.erase({@module, :path})
    :ok
  end

  @doc """
  The PLAs in the crate's sources (those of its tests that are malformed on purpose among them): literals that begin with a
  declaration and go on to the end mark.
  """
  @spec examples() :: [String.t()]
  def examples do
    # It is there when the library has been built.
    _ = NativeFixture.path(:espresso)

    for file <- Path.wildcard(Path.join(source(@crate, "espresso-logic"), "{examples,src,tests}/**/*.rs")),
        [literal] <- Regex.scan(~r/"(\.(?:i|type)\b[^"]*\.e[^"]*)"/, File.read!(file), capture: :all_but_first),
        uniq: true,
        do: literal |> String.replace(~r/\\\n\s*/, "") |> String.replace("\\n", "\n")
  end

  @doc "Where cargo has put the sources of a crate that the crate in `directory` depends on."
  @spec source(Path.t(), String.t()) :: Path.t()
  def source(directory, name) do
    arguments = ["metadata", "--format-version", "1", "--locked", "--offline"]
    {metadata, 0} = System.cmd("cargo", arguments, cd: directory)
    [_, path] = Regex.run(~r/"manifest_path":"([^"]*\/#{name}-[0-9][^"\/]*)\/Cargo\.toml"/, metadata)
    path
  end
end
