Code.require_file("throwaway.exs", __DIR__)

defmodule Snakepit.House.ConsumerTest do
  # Projects of others: what they compile, run and release.
  use ExUnit.Case

  import Snakepit.House.Throwaway

  @moduletag :slow
  @moduletag timeout: 300_000

  @compiling "Compiling native/"
  @rust ~w(cargo rustc rustup)

  setup_all do
    checkout = checkout!("checkout")
    {output, 0} = run(checkout, ~w(mix compile))
    assert output =~ @compiling

    pack = "IO.puts(Mix.Tasks.Compile.SnakepitNative.dist(#{inspect(dir!("dist"))}))"
    {output, 0} = run(checkout, ["mix", "run", "--no-start", "-e", pack])
    dist = output |> String.split("\n", trim: true) |> List.last()
    %{checkout: checkout, dist: dist, by_path: inspect([{:snakepit_shm, path: checkout}])}
  end

  # Tests take the library out of the checkout. This puts it back as it was, without cargo.
  defp built(%{checkout: checkout, dist: dist}) do
    {_, 0} = run(checkout, ~w(mix compile), [{"SNAKEPIT_SHM_NATIVE", dist}])
    :ok
  end

  defp not_built(%{checkout: checkout}) do
    File.rm_rf!(Path.join(checkout, "priv/native"))
    :ok
  end

  describe "a dependency" do
    setup :built

    test "by path compiles without cargo when the checkout has been built, and runs", %{by_path: deps} do
      project = project!("by_path", deps)
      path = path_with!("no_cargo", "cargo", "echo cargo was called; exit 9")
      {output, status} = run(project, ["mix", "run", "-e", "ByPath.call()"], [{"PATH", path}])
      assert {status, output =~ "used shared memory"} == {0, true}, output
      refute output =~ @compiling
    end

    test "from git compiles and runs", %{checkout: checkout} do
      origin = dir!("origin")
      File.cp_r!(checkout, origin)
      as = ~w(-c user.name=house -c user.email=house@localhost)

      for command <- [~w(init -q), ~w(add .), as ++ ~w(commit -q -m house)] do
        {_, 0} = run(origin, ["git" | command])
      end

      project = project!("by_git", inspect([{:snakepit_shm, git: "file://" <> origin}]))
      {output, status} = run(project, ["mix", "do", "deps.get,", "run", "-e", "ByGit.call()"])
      assert {status, output =~ "used shared memory"} == {0, true}, output
      assert output =~ @compiling
      refute output =~ "Hex"
    end

    test "of two applications of an umbrella compiles and runs", %{by_path: deps} do
      umbrella = dir!("umbrella")

      File.write!(Path.join(umbrella, "mix.exs"), """
      defmodule Umbrella.MixProject do
        use Mix.Project
        def project, do: [apps_path: "apps", deps: []]
      end
      """)

      for app <- ~w(one two) do
        File.mkdir_p!(Path.join([umbrella, "apps", app]))
        project!(app, deps, Path.join([umbrella, "apps", app]))
      end

      {output, status} = run(umbrella, ["mix", "run", "-e", "One.call(); Two.call()"])
      assert {status, length(String.split(output, "used shared memory"))} == {0, 3}, output
    end

    test "goes into a release as a file of its own, without sources", %{by_path: deps} do
      project = project!("released", deps)
      {output, status} = run(project, ~w(mix release --quiet), [{"MIX_ENV", "prod"}])
      assert status == 0, output

      release = Path.join(project, "_build/prod/rel/released")
      # Away from where it was built: nothing of it may point back.
      moved = Path.join(dir!("moved"), "released")
      File.rename!(release, moved)

      assert [library] = Path.wildcard(Path.join(moved, "lib/snakepit_shm-*/priv/native/snakepit_nif.*"))
      assert [] == for(path <- parents(library, moved), File.lstat!(path).type not in [:regular, :directory], do: path)
      assert [] == Path.wildcard(Path.join(moved, "**/{*.rs,*.rlib,Cargo.*,compiler.exs}"))

      {output, status} = run(moved, ["bin/released", "eval", "Released.call()"])
      assert {status, output =~ "used shared memory"} == {0, true}, output
    end
  end

  describe "two consumers of one checkout" do
    setup :not_built

    test "that compile at once build once, and both run", %{by_path: deps} do
      projects = for name <- ~w(left right), do: {project!(name, deps), Macro.camelize(name)}

      results =
        projects
        |> Enum.map(fn {dir, module} ->
          Task.async(fn -> run(dir, ["mix", "run", "-e", "#{module}.call()"]) end)
        end)
        |> Task.await_many(:infinity)

      for {output, status} <- results, do: assert({status, output =~ "used shared memory"} == {0, true}, output)
      assert [_] = for({output, 0} <- results, output =~ @compiling, do: output)
    end
  end

  describe "two checkouts with one cargo target directory" do
    setup :not_built

    test "get a library each", %{checkout: checkout} do
      other = checkout!("other_checkout")
      mark = "built from the other checkout"
      source = Path.join(other, "native/nif/src/lib.rs")
      declaration = ~s(#[used]\nstatic MARK: [u8; #{byte_size(mark)}] = *b"#{mark}";\n)
      File.write!(source, File.read!(source) <> "\n" <> declaration)

      {_, 0} = run(other, ~w(mix compile))
      # Nothing has changed in this one, so cargo alone would hand over what lies there: the other's.
      {_, 0} = run(checkout, ~w(mix compile))

      marked? = fn dir -> File.read!(library(dir)) =~ mark end
      assert {marked?.(other), marked?.(checkout)} == {true, false}
    end
  end

  describe "a change" do
    setup :built

    test "of a Rust source builds again, and nothing else does", %{checkout: checkout, by_path: deps} do
      project = project!("changing", deps)
      compiles? = fn -> with {output, 0} <- run(project, ~w(mix compile)), do: output =~ @compiling end
      source = Path.join(checkout, "native/nif/src/lib.rs")
      text = File.read!(source)
      on_exit(fn -> File.write!(source, text) end)

      assert compiles?.() == false
      File.touch!(source)
      assert compiles?.() == false

      File.mkdir_p!(Path.join(checkout, "native/nif/tests"))
      File.write!(Path.join(checkout, "native/nif/tests/house.rs"), "")
      File.write!(Path.join(checkout, "native/house.md"), "")
      assert compiles?.() == false

      File.write!(source, text <> "\n// changed\n")
      assert compiles?.() == true
      assert compiles?.() == false
    end
  end

  describe "without" do
    setup :not_built
    setup %{by_path: deps}, do: %{project: project!("without", deps)}

    test "cargo, the compiler says so and what to do", %{project: project} do
      {output, status} = run(project, ~w(mix compile), [{"PATH", path_without!("no_rust", @rust)}])
      assert status != 0
      assert output =~ "builds its native library with cargo, and there is none on PATH"
      assert output =~ "SNAKEPIT_SHM_NATIVE"
    end

    test "a C compiler, the compiler says so", %{project: project} do
      # An empty target directory: there cargo links, and fails, within a second.
      env = [{"PATH", path_without!("no_cc", ~w(cc))}, {"CARGO_TARGET_DIR", dir!("no_cc_target")}]
      {output, status} = run(project, ~w(mix compile), env)
      assert status != 0
      assert output =~ "no C compiler on PATH"
    end

    test "a new enough Rust, the compiler names both versions", %{project: project} do
      path = path_with!("old_rust", "rustc", "echo 'rustc 1.60.0 (7737e0b5c 2022-04-04)'")
      {output, status} = run(project, ~w(mix compile), [{"PATH", path}])
      assert status != 0
      assert output =~ ~r/needs Rust [\d.]+ or newer; .*rustc is 1\.60\.0/
    end
  end

  describe "SNAKEPIT_SHM_NATIVE" do
    setup :not_built

    setup %{dist: packed, by_path: deps} do
      dist = dir!("prebuilt_artefacts")
      File.cp_r!(packed, dist)

      compile = fn dir ->
        env = [{"PATH", path_without!("no_rust", @rust)}, {"SNAKEPIT_SHM_NATIVE", dir}]
        run(project!("prebuilt", deps), ["mix", "run", "-e", "Prebuilt.call()"], env)
      end

      %{packed: packed, dist: dist, compile: compile}
    end

    test "needs no Rust", %{dist: dist, compile: compile} do
      {output, status} = compile.(dist)
      assert {status, output =~ "used shared memory"} == {0, true}, output
    end

    test "is also packed as a tarball", %{packed: packed} do
      {:ok, names} = :erl_tar.table(String.to_charlist(packed <> ".tar.gz"), [:compressed])
      assert Enum.sort(names) == Enum.sort(for file <- File.ls!(packed), do: ~c"#{Path.basename(packed)}/#{file}")
    end

    for {what, key, value, says} <- [
          {"another library", "library_sha256", String.duplicate("0", 64), "the SHA-256 of snakepit_nif"},
          {"another executable", "worker_sha256", String.duplicate("0", 64), "the SHA-256 of snakepit_worker"},
          {"another version", "version", "0.0.9", "it is version 0.0.9; this is"},
          {"another machine", "target", "sparc-solaris2", "made for sparc-solaris2; this VM runs on"},
          {"a newer VM", "nif", "2.999", "needs NIF version 2.999; this VM has"}
        ] do
      test "for #{what} is refused", %{checkout: checkout, dist: dist, compile: compile} do
        manifest = Path.join(dist, "MANIFEST")
        line = ~r/^#{unquote(key)}: .*$/m
        File.write!(manifest, String.replace(File.read!(manifest), line, "#{unquote(key)}: #{unquote(value)}"))

        {output, status} = compile.(dist)
        assert status != 0
        assert output =~ unquote(says)
        refute File.exists?(Path.join(checkout, "priv/native/MANIFEST"))
      end
    end

    test "that is no such directory is refused", %{dist: dist, compile: compile} do
      {output, status} = compile.(dist <> "-not")
      assert status != 0
      assert output =~ "MANIFEST cannot be read"

      {output, status} = compile.("dist")
      assert status != 0
      assert output =~ "not an absolute path"
    end
  end

  defp library(checkout), do: checkout |> Path.join("priv/native/snakepit_nif.*") |> Path.wildcard() |> hd()

  defp parents(path, top) when path == top, do: [top]
  defp parents(path, top), do: [path | parents(Path.dirname(path), top)]
end
