defmodule Snakepit.House.Throwaway do
  @moduledoc false
  # Copies of this checkout and projects that depend on one, under _build. They share the cargo target directory of the
  # project itself, so that crates from the registry are built once for all of them; the crates of a copy are built for it, its path being new.

  # What a fresh clone has, of the parts that a consumer uses.
  @parts ~w(mix.exs .formatter.exs .gitignore config lib native priv/python)

  # What is built is to work, not to be fast: each copy would be optimized by itself, for most of a minute.
  @quick_build [
    {"CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"},
    {"CARGO_PROFILE_RELEASE_LTO", "off"},
    {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"},
    {"CARGO_PROFILE_RELEASE_DEBUG", "none"}
  ]

  @doc "An empty directory. The same one in every run: cargo's target directory would grow with each new path."
  def dir!(name) do
    dir = Path.join([Mix.Project.build_path(), "house", name])
    File.rm_rf!(dir)
    File.mkdir_p!(dir)
    dir
  end

  @doc "A copy of this checkout."
  def checkout!(name) do
    root = Path.dirname(Mix.Project.project_file())
    dir = dir!(name)

    for part <- @parts, source = Path.join(root, part), File.exists?(source) do
      File.mkdir_p!(Path.dirname(Path.join(dir, part)))
      File.cp_r!(source, Path.join(dir, part))
    end

    dir
  end

  @doc "A Mix project `name` with these dependencies, given as the source text of `deps`."
  def project!(name, deps, into \\ nil) do
    dir = into || dir!(name)
    File.mkdir_p!(Path.join(dir, "lib"))

    File.write!(Path.join(dir, "mix.exs"), """
    defmodule #{Macro.camelize(name)}.MixProject do
      use Mix.Project
      def project, do: [app: :#{name}, version: "1.0.0", deps: #{deps}]
      def application, do: [extra_applications: [:logger]]
    end
    """)

    File.write!(Path.join(dir, "lib/#{name}.ex"), """
    defmodule #{Macro.camelize(name)} do
      def call do
        {:ok, _} = Application.ensure_all_started(:snakepit_shm)
        {:ok, region} = Snakepit.SharedMemory.put("through shared memory")
        {:ok, "through shared memory"} = Snakepit.SharedMemory.view(region)
        IO.puts("used shared memory")
      end
    end
    """)

    dir
  end

  @doc "Runs a program in `dir` without standard input, so that a prompt fails instead of waiting."
  def run(dir, command, env \\ []) do
    inherited = ~w(MIX_ENV MIX_TARGET MIX_EXS MIX_BUILD_PATH MIX_BUILD_ROOT MIX_DEPS_PATH SNAKEPIT_SHM_NATIVE)
    base = [{"CARGO_TARGET_DIR", target_dir()}, {"GIT_CONFIG_GLOBAL", "/dev/null"} | Enum.map(inherited, &{&1, nil})]
    env = (base ++ @quick_build) |> Map.new() |> Map.merge(Map.new(env)) |> Map.to_list()
    System.cmd("sh", ["-c", ~s(exec "$0" "$@" </dev/null) | command], cd: dir, env: env, stderr_to_stdout: true)
  end

  @doc "A directory of links to all that PATH offers, without the programs that `hidden` is about."
  def path_without!(name, hidden) do
    bin = dir!(name)

    for dir <- String.split(System.get_env("PATH"), ":"),
        {:ok, programs} <- [File.ls(dir)],
        program <- programs,
        program not in hidden,
        do: File.ln_s(Path.join(dir, program), Path.join(bin, program))

    bin
  end

  @doc "PATH with one program put in front, a shell script."
  def path_with!(name, program, script) do
    bin = dir!(name)
    File.write!(Path.join(bin, program), "#!/bin/sh\n" <> script)
    File.chmod!(Path.join(bin, program), 0o755)
    bin <> ":" <> System.get_env("PATH")
  end

  defp target_dir do
    case System.get_env("CARGO_TARGET_DIR", "") do
      "" -> Path.join(Mix.Project.app_path(), "native")
      dir -> Path.expand(dir)
    end
  end
end
