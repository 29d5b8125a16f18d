# A compiler under lib/ cannot build its own project, so this one is required here. The guard is for projects that reach
# this file twice, for instance two applications of an umbrella with a dependency directory each.
unless Code.ensure_loaded?(Mix.Tasks.Compile.SnakepitNative) do
  Code.require_file("native/compiler.exs", __DIR__)
end

defmodule Snakepit.SharedMemory.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :snakepit_shm,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      compilers: [:snakepit_native] ++ Mix.compilers(),
      aliases: aliases(),
      deps: [],
      # What only test/support uses, which is there when tests run.
      xref: [exclude: [:proper, :proper_types, :public_key, :asn1rt_nif]],
      name: "snakepit_shm",
      description: "Shared memory and native isolation for the BEAM.",
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [
      mod: {Snakepit.SharedMemory.Application, []},
      extra_applications: [:logger, :crypto]
    ]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # `mix fmt` and `mix lint` do for both languages what `mix format` does for one. `make test` runs the same checks.
  defp aliases do
    [
      fmt: ["format", "cmd --cd native cargo fmt --all"],
      lint: [
        "format --check-formatted",
        "cmd --cd native cargo fmt --all --check",
        "cmd --cd native cargo clippy --workspace --all-targets --locked -- -D warnings"
      ]
    ]
  end

  defp package do
    [
      licenses: ["MIT"],
      links: %{},
      files: ~w(lib native priv/python mix.exs .formatter.exs README.md CHANGELOG.md LICENSE)
    ]
  end

  defp docs do
    [
      main: "readme",
      extras: Enum.filter(~w(README.md CHANGELOG.md LICENSE), &File.exists?/1),
      groups_for_modules: [
        Regions: ~r/^Snakepit\.SharedMemory/,
        "Isolated libraries": ~r/^Snakepit\.Isolation/
      ]
    ]
  end
end
