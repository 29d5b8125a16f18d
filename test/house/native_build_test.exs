defmodule Snakepit.House.NativeBuildTest do
  use ExUnit.Case, async: true

  # Defined by native/compiler.exs, which mix.exs requires.
  alias Snakepit.NativeBuild.{Bundle, Sources, Target}

  @moduletag :tmp_dir

  test "Erlang's and Rust's names of one target agree" do
    for {erlang, rust, same} <- [
          {"x86_64-pc-linux-gnu", "x86_64-unknown-linux-gnu", "x86_64-linux-gnu"},
          {"x86_64-alpine-linux-musl", "x86_64-unknown-linux-musl", "x86_64-linux-musl"},
          {"arm-unknown-linux-gnueabihf", "armv7-unknown-linux-gnueabihf", "arm-linux-gnu"},
          {"aarch64-apple-darwin23.1.0", "aarch64-apple-darwin", "aarch64-macos"},
          {"AMD64-windows", "x86_64-pc-windows-msvc", "x86_64-windows"}
        ] do
      assert {Target.parse(erlang), Target.parse(rust)} == {same, same}
    end
  end

  test "the sources are what the library is built from", %{tmp_dir: dir} do
    for path <- ~w(Cargo.toml Cargo.lock README.md compiler.exs .cargo/config.toml .git/HEAD nif/Cargo.toml nif/build.rs
          nif/src/lib.rs nif/src/tests/mod.rs nif/tests/all.rs nif/benches/all.rs target/release/x.rs nif/.lib.rs.swp
          nif/src/table.json) do
      File.mkdir_p!(Path.join(dir, Path.dirname(path)))
      File.write!(Path.join(dir, path), path)
    end

    assert Sources.list(dir) ==
             ~w(.cargo/config.toml Cargo.lock Cargo.toml nif/Cargo.toml nif/build.rs nif/src/lib.rs nif/src/table.json
                nif/src/tests/mod.rs)
  end

  test "the digest changes with a name and with contents", %{tmp_dir: dir} do
    File.write!(Path.join(dir, "ab"), "c")
    one = Sources.digest(dir)
    File.rename!(Path.join(dir, "ab"), Path.join(dir, "a"))
    two = Sources.digest(dir)
    File.write!(Path.join(dir, "a"), "bc")
    three = Sources.digest(dir)
    assert 3 == length(Enum.uniq([one, two, three]))
  end

  test "an installed library is replaced, never written into", %{tmp_dir: dir} do
    target = Target.wanted()
    installed = Path.join([dir, "installed", Target.library(target)])
    put = fn contents -> install(dir, contents, target) end

    put.("one")
    mapped = File.open!(installed)
    inode = File.stat!(installed).inode
    put.("one")
    assert File.stat!(installed).inode == inode

    put.("two")
    assert IO.binread(mapped, :eof) == "one"
    assert File.read!(installed) == "two"
    assert Enum.sort(File.ls!(Path.dirname(installed))) == Enum.sort(Bundle.files(target))
  end

  test "the executable can be executed, whatever the archive lost", %{tmp_dir: dir} do
    target = Target.wanted()
    install(dir, "one", target)
    assert Bitwise.band(File.stat!(Path.join([dir, "installed", Target.worker(target)])).mode, 0o111) == 0o111
  end

  test "a bundle says what is wrong with it", %{tmp_dir: dir} do
    target = Target.wanted()
    bundle = install(dir, "one", target)
    installed = Path.join(dir, "installed")
    assert {:ok, ^bundle} = Bundle.read(installed)
    assert :ok = Bundle.check(bundle, installed, "1.0.0", target)

    for file <- [Target.library(target), Target.worker(target)] do
      File.write!(Path.join(installed, file), "two")
      wrong = "the SHA-256 of #{file} is not its MANIFEST's"
      assert {:error, ^wrong} = Bundle.check(bundle, installed, "1.0.0", target)

      File.rm!(Path.join(installed, file))
      assert {:error, "it has no " <> ^file} = Bundle.check(bundle, installed, "1.0.0", target)
      assert ^bundle = install(dir, "one", target)
    end

    assert {:error, "it is made for other" <> _} =
             Bundle.check(%{bundle | "app" => "other"}, installed, "1.0.0", target)

    File.write!(Path.join(installed, "MANIFEST"), "app: snakepit_shm\n")
    assert {:error, "its MANIFEST does not say version" <> _} = Bundle.read(installed)
  end

  defp install(dir, contents, target) do
    built = %{library: Path.join(dir, "library"), worker: Path.join(dir, "worker")}
    for {_kind, path} <- built, do: File.write!(path, contents)
    bundle = Bundle.new(built, version: "1.0.0", target: target, nif: "2.14", sources: "none")
    :ok = Bundle.install!(bundle, built, Path.join(dir, "installed"))
    bundle
  end
end
