# The Mix compiler of the native library, required by mix.exs (a compiler under lib/ cannot build its own project).
#
#   sources (native/) ──cargo──▶ target directory under the consumer's _build ──▶ priv/native ──▶ releases
#   SNAKEPIT_SHM_NATIVE=DIR, made with `make dist` ───────────────────────────▶
#
# Mix links `_build/ENV/lib/snakepit_shm/priv` to the checkout's own priv/, so every consumer of one checkout shares
# priv/native. What lies there is therefore a *bundle*: the library, the executable of the isolated workers, and a
# MANIFEST that says from which sources they were built and for which target. A consumer that finds a bundle of its own sources takes it as it is; one that does not
# builds under a lock and puts the files in place by rename, never by writing into a file that a VM may have mapped.

defmodule Snakepit.NativeBuild.Target do
  @moduledoc false
  # What a library is built for, as `arch-os` or, on Linux, `arch-linux-libc`. Erlang and Rust spell their triples
  # differently (x86_64-pc-linux-gnu, x86_64-unknown-linux-gnu); this is what they have in common.

  @spec wanted() :: String.t()
  def wanted do
    case System.get_env("CARGO_BUILD_TARGET", "") do
      "" -> host(:os.type())
      triple -> parse(triple)
    end
  end

  @spec parse(String.t()) :: String.t()
  def parse(triple) do
    [arch | _] = String.split(triple, "-")
    Enum.join([arch(arch) | system(triple)], "-")
  end

  @doc "The library's name in priv/native. `erlang:load_nif/2` wants .so on macOS too."
  @spec library(String.t()) :: String.t()
  def library(target), do: if(target =~ "windows", do: "snakepit_nif.dll", else: "snakepit_nif.so")

  @doc "The executable of the warden and the workers, beside the library."
  @spec worker(String.t()) :: String.t()
  def worker(target), do: if(target =~ "windows", do: "snakepit_worker.exe", else: "snakepit_worker")

  # On Windows the VM's system_architecture is the bare word `win32`.
  defp host({:win32, _}), do: parse(System.get_env("PROCESSOR_ARCHITECTURE", "x86_64") <> "-windows")
  defp host(_unix), do: parse(List.to_string(:erlang.system_info(:system_architecture)))

  defp arch(name) do
    case String.downcase(name) do
      amd64 when amd64 in ["amd64", "x86_64"] -> "x86_64"
      arm64 when arm64 in ["arm64", "aarch64"] -> "aarch64"
      "arm" <> _version -> "arm"
      <<"i", _generation, "86">> -> "x86"
      other -> other
    end
  end

  defp system(triple) do
    cond do
      triple =~ "linux" -> ["linux", if(triple =~ "musl", do: "musl", else: "gnu")]
      triple =~ ~r/darwin|macos/ -> ["macos"]
      triple =~ ~r/windows|win32/ -> ["windows"]
      true -> triple |> String.split("-") |> Enum.drop(1)
    end
  end
end

defmodule Snakepit.NativeBuild.Sources do
  @moduledoc false
  # The files that the library is made of, and one hash over all of them.

  # Directories of a package that are not part of its library.
  @not_library ~w(tests benches examples fuzz target)

  @doc "Paths relative to `native`, sorted. More than cargo reads, rather than less."
  @spec list(Path.t()) :: [Path.t()]
  def list(native), do: native |> walk("") |> Enum.sort()

  @doc "SHA-256, hexadecimal, over names and contents."
  @spec digest(Path.t()) :: String.t()
  def digest(native) do
    native
    |> list()
    |> Enum.reduce(:crypto.hash_init(:sha256), fn path, hash ->
      contents = File.read!(Path.join(native, path))
      :crypto.hash_update(hash, [path, 0, <<byte_size(contents)::64>>, contents])
    end)
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
  end

  @doc "`rust-version` of the workspace, if it says one."
  @spec rust_version(Path.t()) :: String.t() | nil
  def rust_version(native), do: captured(native, "Cargo.toml", ~r/^rust-version\s*=\s*"([\d.]+)"/m)

  @doc "The version of the NIF interface that the library asks rustler for."
  @spec nif_version(Path.t()) :: String.t()
  def nif_version(native) do
    # rustler's own default is 2.15.
    (captured(native, "nif/Cargo.toml", ~r/nif_version_(\d+_\d+)/) || "2.15") |> String.replace("_", ".")
  end

  defp captured(native, file, regex) do
    case Regex.run(regex, File.read!(Path.join(native, file))) do
      [_, value] -> value
      nil -> nil
    end
  end

  defp walk(root, dir) do
    entries = File.ls!(Path.join(root, dir))
    package? = "Cargo.toml" in entries

    Enum.flat_map(entries, fn entry ->
      path = Path.join(dir, entry)

      case File.stat(Path.join(root, path)) do
        {:ok, %{type: :directory}} -> if directory?(entry, package?), do: walk(root, path), else: []
        {:ok, %{type: :regular}} -> if file?(entry), do: [path], else: []
        _ -> []
      end
    end)
  end

  defp directory?(".cargo", _package?), do: true
  defp directory?("." <> _, _package?), do: false
  defp directory?(name, package?), do: not (package? and name in @not_library)

  defp file?("." <> _), do: false
  defp file?(name), do: Path.extname(name) not in [".md", ".exs"] and not String.ends_with?(name, "~")
end

defmodule Snakepit.NativeBuild.Bundle do
  @moduledoc false
  # A directory with the library, the executable and a MANIFEST of `key: value` lines. priv/native is one, and so is what
  # `make dist` makes and SNAKEPIT_SHM_NATIVE names.

  alias Snakepit.NativeBuild.Target

  @manifest "MANIFEST"
  @keys ~w(app version target nif sources library_sha256 worker_sha256)

  @type t :: %{String.t() => String.t()}
  @typedoc "Where the files of a bundle come from."
  @type built :: %{library: Path.t(), worker: Path.t()}

  @spec files(String.t()) :: [Path.t()]
  def files(target), do: [Target.library(target), Target.worker(target), @manifest]

  @spec new(built(), keyword()) :: t()
  def new(built, fields) do
    fields
    |> Map.new(fn {key, value} -> {Atom.to_string(key), value} end)
    |> Map.merge(%{
      "app" => "snakepit_shm",
      "library_sha256" => sha256!(built.library),
      "worker_sha256" => sha256!(built.worker)
    })
  end

  @doc "The files of the bundle that lies in `dir`."
  @spec built(Path.t(), String.t()) :: built()
  def built(dir, target),
    do: %{library: Path.join(dir, Target.library(target)), worker: Path.join(dir, Target.worker(target))}

  @doc "What the MANIFEST says, or why it cannot be read."
  @spec read(Path.t()) :: {:ok, t()} | {:error, String.t()}
  def read(dir) do
    with {:ok, text} <- File.read(Path.join(dir, @manifest)),
         bundle = for([_, key, value] <- Regex.scan(~r/^(\w+): (\S+)\s*$/m, text), into: %{}, do: {key, value}),
         [] <- @keys -- Map.keys(bundle) do
      {:ok, bundle}
    else
      {:error, reason} -> {:error, "its #{@manifest} cannot be read: #{:file.format_error(reason)}"}
      missing -> {:error, "its #{@manifest} does not say #{Enum.join(missing, ", ")}"}
    end
  end

  @doc "Whether `dir` holds what `bundle` says, for this version, target and VM; if not, why."
  @spec check(t(), Path.t(), String.t(), String.t()) :: :ok | {:error, String.t()}
  def check(bundle, dir, version, target) do
    cond do
      bundle["app"] != "snakepit_shm" -> {:error, "it is made for #{bundle["app"]}, not for snakepit_shm"}
      bundle["version"] != version -> {:error, "it is version #{bundle["version"]}; this is #{version}"}
      bundle["target"] != target -> {:error, "it is made for #{bundle["target"]}; this VM runs on #{target}"}
      not loads?(bundle["nif"]) -> {:error, "it needs NIF version #{bundle["nif"]}; this VM has #{vm_nif_version()}"}
      true -> check_files(bundle, built(dir, target))
    end
  end

  defp check_files(bundle, built) do
    Enum.find_value(built, :ok, fn {kind, path} ->
      cond do
        not File.regular?(path) ->
          {:error, "it has no #{Path.basename(path)}"}

        sha256!(path) != bundle["#{kind}_sha256"] ->
          {:error, "the SHA-256 of #{Path.basename(path)} is not its MANIFEST's"}

        true ->
          nil
      end
    end)
  end

  @doc """
  Puts library, executable and manifest into `dir` by rename. The manifest comes last: a crash in between leaves one that
  does not fit, which is not taken for a bundle.
  """
  @spec install!(t(), built(), Path.t()) :: :ok
  def install!(bundle, built, dir) do
    File.mkdir_p!(dir)
    # Left behind by an installer that was killed; the lock says that none is at work.
    for left <- Path.wildcard(Path.join(dir, ".*.{new,old}"), match_dot: true), do: File.rm(left)

    for {kind, path} <- built(dir, bundle["target"]), not same?(path, bundle["#{kind}_sha256"]) do
      replace!(path, fn new ->
        File.cp!(Map.fetch!(built, kind), new)
        # An unpacked archive may have lost it.
        if kind == :worker, do: File.chmod!(new, 0o755)
      end)
    end

    manifest = Path.join(dir, @manifest)
    text = for key <- @keys, into: "", do: "#{key}: #{Map.fetch!(bundle, key)}\n"
    unless File.read(manifest) == {:ok, text}, do: replace!(manifest, &File.write!(&1, text))
    :ok
  end

  defp replace!(path, make) do
    hidden = Path.join(Path.dirname(path), ".#{Path.basename(path)}.#{System.pid()}")
    make.(hidden <> ".new")

    with {:error, _} <- File.rename(hidden <> ".new", path) do
      # Windows does not rename over a library that is loaded, but lets it be renamed away.
      File.rename!(path, hidden <> ".old")
      File.rename!(hidden <> ".new", path)
    end
  end

  defp same?(path, sha256), do: File.regular?(path) and sha256!(path) == sha256

  defp sha256!(path), do: :crypto.hash(:sha256, File.read!(path)) |> Base.encode16(case: :lower)

  # A library loads into a VM of the same major version and the same or a newer minor one.
  defp loads?(version) do
    with [major, minor] <- version(version),
         [^major, has] <- version(vm_nif_version()) do
      minor <= has
    else
      _ -> false
    end
  end

  defp vm_nif_version, do: List.to_string(:erlang.system_info(:nif_version))

  defp version(text), do: for(part <- String.split(text, "."), {number, ""} <- [Integer.parse(part)], do: number)
end

defmodule Snakepit.NativeBuild.Lock do
  @moduledoc false
  # One builder at a time for a directory. On Linux the lock is a name in the abstract socket namespace: the kernel
  # frees it with its holder, however that ends. Elsewhere there is no lock; two builders then do the same work twice,
  # and the last rename stands.

  @deadline_ms :timer.minutes(20)
  @poll_ms 100

  @spec hold(Path.t(), (() -> result)) :: result when result: var
  def hold(dir, fun) do
    socket = acquire(name(dir), System.monotonic_time(:millisecond) + @deadline_ms, dir)

    try do
      fun.()
    after
      if socket, do: :gen_tcp.close(socket)
    end
  end

  # Device and inode: one directory has many paths.
  defp name(dir) do
    %{major_device: device, inode: inode} = File.stat!(dir)
    <<0, "snakepit_shm.build.#{device}.#{inode}">>
  end

  defp acquire(name, deadline, dir) do
    case :os.type() == {:unix, :linux} && :gen_tcp.listen(0, ifaddr: {:local, name}) do
      {:ok, socket} -> socket
      {:error, :eaddrinuse} -> wait(name, deadline, dir)
      _no_such_sockets -> nil
    end
  end

  defp wait(name, deadline, dir) do
    if System.monotonic_time(:millisecond) > deadline do
      Mix.raise("snakepit_shm: another build has been at work on #{dir} for too long. End it and compile again.")
    end

    Process.sleep(@poll_ms)
    acquire(name, deadline, dir)
  end
end

defmodule Snakepit.NativeBuild.Cargo do
  @moduledoc false
  # Runs cargo, and says what is missing where cargo's own words do not.

  alias Snakepit.NativeBuild.Sources

  @doc "Builds library and executable and answers where they lie. cargo's own output goes to the terminal."
  @spec build!(Path.t(), Path.t(), instead :: String.t()) :: Snakepit.NativeBuild.Bundle.built()
  def build!(native, target_dir, instead) do
    cargo = cargo!(native, instead)
    forget_other_checkouts(target_dir)
    locked = if File.exists?(Path.join(native, "Cargo.lock")), do: ["--locked"], else: []

    packages = ~w(--package snakepit_nif --package snakepit_worker --lib --bins)
    args = ~w(build --release --message-format=json-render-diagnostics) ++ packages ++ locked

    case System.cmd(cargo, args, cd: native, env: [{"CARGO_TARGET_DIR", target_dir}]) do
      {messages, 0} -> built!(messages)
      {_messages, status} -> Mix.raise(failure(status, instead))
    end
  end

  defp cargo!(native, instead) do
    needs = "Rust #{Sources.rust_version(native)}"
    cargo = System.find_executable("cargo")
    rustc = System.find_executable(System.get_env("RUSTC", "rustc"))

    unless cargo && rustc do
      missing = if cargo, do: "rustc", else: "cargo"

      Mix.raise("""
      snakepit_shm builds its native library with #{missing}, and there is none on PATH.
      Install #{needs} or newer (rustup does), or #{instead}.
      """)
    end

    {said, status} = System.cmd(rustc, ["--version"], cd: native, stderr_to_stdout: true)

    case {status, Regex.run(~r/^rustc (\d+\.\d+\.\d+)/, said)} do
      {0, [_, found]} ->
        if older?(found, Sources.rust_version(native)) do
          Mix.raise("""
          snakepit_shm needs #{needs} or newer; #{rustc} is #{found}.
          Update it (rustup update), put a newer one first on PATH, or #{instead}.
          """)
        end

      _ ->
        Mix.raise("""
        snakepit_shm needs #{needs} or newer, and #{rustc} does not run (status #{status}):
        #{String.trim(said)}
        Repair it, or #{instead}.
        """)
    end

    cargo
  end

  defp older?(_found, nil), do: false

  defp older?(found, needed) do
    parts = fn version -> version |> String.split(".") |> Enum.map(&String.to_integer/1) end
    parts.(found) < parts.(needed)
  end

  # A cdylib's file name carries no hash. In a target directory that other checkouts use too (a CARGO_TARGET_DIR of
  # the user's), cargo would call another checkout's library fresh and hand it over as ours.
  defp forget_other_checkouts(target_dir) do
    for pattern <- ["release/deps/*snakepit_nif.*", "*/release/deps/*snakepit_nif.*"],
        path <- Path.wildcard(Path.join(target_dir, pattern)),
        Path.extname(path) in [".so", ".dylib", ".dll"],
        do: File.rm(path)

    # The executable's own name is a link to a hashed one, and goes the same way.
    for pattern <- ["release/snakepit_worker", "*/release/snakepit_worker"],
        path <- Path.wildcard(Path.join(target_dir, pattern <> "{,.exe}")),
        do: File.rm(path)
  end

  # Not guessed from the target directory: a target set in a cargo configuration moves it.
  defp built!(messages) do
    lists = Regex.scan(~r/"filenames":\[([^\]]*)\]/, messages, capture: :all_but_first)
    quoted = Regex.scan(~r/"((?:[^"\\]|\\.)*)"/, Enum.join(List.flatten(lists), ","), capture: :all_but_first)
    paths = for [path] <- quoted, do: String.replace(path, ~r/\\(.)/, "\\1")

    %{
      library: built!(paths, ~r/^(lib)?snakepit_nif\.(so|dylib|dll)$/, "shared library snakepit_nif"),
      worker: built!(paths, ~r/^snakepit_worker(\.exe)?$/, "executable snakepit_worker")
    }
  end

  defp built!(paths, name, what) do
    Enum.find(paths, &(Path.basename(&1) =~ name)) ||
      Mix.raise("snakepit_shm: cargo built no #{what}. Is it still made under native/?")
  end

  defp failure(status, instead) do
    if is_nil(System.find_executable("cc")) and not match?({:win32, _}, :os.type()) do
      """
      snakepit_shm: cargo failed (status #{status}), and there is no C compiler on PATH, which Rust needs to link.
      Install one (Debian: gcc and libc6-dev), or #{instead}.
      """
    else
      """
      snakepit_shm: cargo failed (status #{status}); its own words are above.
      The first build fetches crates, so it needs a network or a filled cargo cache. Without either, #{instead}.
      """
    end
  end
end

defmodule Mix.Tasks.Compile.SnakepitNative do
  @moduledoc false
  use Mix.Task.Compiler

  alias Snakepit.NativeBuild.{Bundle, Cargo, Lock, Sources, Target}

  @recursive true
  @variable "SNAKEPIT_SHM_NATIVE"

  @impl true
  def run(args) do
    {opts, _, _} = OptionParser.parse(args, switches: [force: :boolean])
    force? = Keyword.get(opts, :force, false)
    build = build()

    if not force? and remembered?(build) do
      {:noop, []}
    else
      Lock.hold(build.root, fn ->
        # Looked at before the work: what changes meanwhile is seen as a change the next time.
        began = System.os_time(:second)
        inputs = inputs(build)
        status = provide(build, force?)
        remember(%{began: began, inputs: inputs, installed: installed(build)})
        {status, []}
      end)
    end
  end

  @impl true
  def manifests, do: [memory()]

  @impl true
  def clean do
    build = build()
    File.rm(memory())
    File.rm_rf!(build.bundle)
    # Only the directory that is ours alone: one named by CARGO_TARGET_DIR may be shared.
    File.rm_rf!(own_target_dir())
  end

  @doc """
  Makes a directory, and a tarball beside it, that `SNAKEPIT_SHM_NATIVE` takes on a machine without Rust. Answers the
  directory. The project must have been compiled.
  """
  @spec dist(Path.t()) :: Path.t()
  def dist(into) do
    build = build()

    with {:ok, bundle} <- Bundle.read(build.bundle),
         :ok <- Bundle.check(bundle, build.bundle, build.version, build.target) do
      name = "snakepit_shm-#{build.version}-#{build.target}"
      dir = Path.join(into, name)
      Bundle.install!(bundle, Bundle.built(build.bundle, build.target), dir)

      entries =
        for file <- Bundle.files(build.target) do
          {String.to_charlist(Path.join(name, file)), String.to_charlist(Path.join(dir, file))}
        end

      :ok = :erl_tar.create(String.to_charlist(dir <> ".tar.gz"), entries, [:compressed])
      dir
    else
      {:error, why} -> Mix.raise("snakepit_shm: priv/native cannot be packed, #{why}. Compile first.")
    end
  end

  # All that a build depends on. Read at run time: this module may have been compiled from another checkout.
  defp build do
    root = Path.dirname(Mix.Project.project_file())
    native = Path.join(root, "native")

    unless File.regular?(Path.join(native, "Cargo.toml")) do
      Mix.raise("snakepit_shm: #{root} has no native/Cargo.toml. The checkout is incomplete; fetch it again.")
    end

    %{
      root: root,
      native: native,
      bundle: Path.join(root, "priv/native"),
      version: Mix.Project.config()[:version],
      target: Target.wanted(),
      prebuilt: prebuilt_dir()
    }
  end

  defp prebuilt_dir do
    case System.get_env(@variable, "") do
      "" -> nil
      dir -> if Path.type(dir) == :absolute, do: dir, else: refuse(dir, "it is not an absolute path")
    end
  end

  defp refuse(dir, why) do
    Mix.raise("""
    snakepit_shm cannot use #{@variable}=#{dir}: #{why}.
    Make one with `make dist` in a checkout of the same version on the same kind of machine, or unset #{@variable} to
    build from source.
    """)
  end

  defp provide(%{prebuilt: nil} = build, force?) do
    sources = Sources.digest(build.native)

    with false <- force?,
         {:ok, %{"sources" => ^sources} = bundle} <- Bundle.read(build.bundle),
         :ok <- Bundle.check(bundle, build.bundle, build.version, build.target) do
      :noop
    else
      _ ->
        compile(build, sources)
        :ok
    end
  end

  defp provide(%{prebuilt: dir} = build, _force?) do
    with {:ok, bundle} <- Bundle.read(dir),
         :ok <- Bundle.check(bundle, dir, build.version, build.target) do
      if bundle["sources"] != Sources.digest(build.native) do
        Mix.shell().error("snakepit_shm: #{@variable}=#{dir} was made from other sources than this checkout's native/")
      end

      Bundle.install!(bundle, Bundle.built(dir, build.target), build.bundle)
      :ok
    else
      {:error, why} -> refuse(dir, why)
    end
  end

  defp compile(build, sources) do
    target_dir = target_dir(build)
    File.mkdir_p!(target_dir)
    locked? = File.exists?(Path.join(build.native, "Cargo.lock"))
    Mix.shell().info("Compiling native/ (cargo build --release)")

    # The second lock is for checkouts that share a CARGO_TARGET_DIR. Always taken after the first.
    Lock.hold(target_dir, fn ->
      built = Cargo.build!(build.native, target_dir, "set #{@variable} to a directory made with `make dist`")

      built
      |> Bundle.new(
        version: build.version,
        target: build.target,
        nif: Sources.nif_version(build.native),
        # Without a Cargo.lock before, cargo has just written one, and it counts.
        sources: if(locked?, do: sources, else: Sources.digest(build.native))
      )
      |> Bundle.install!(built, build.bundle)
    end)
  end

  # Under the consumer's _build, where `mix deps.clean` finds it.
  defp own_target_dir, do: Path.join(Mix.Project.app_path(), "native")

  defp target_dir(build) do
    case System.get_env("CARGO_TARGET_DIR", "") do
      "" -> own_target_dir()
      dir -> Path.expand(dir, build.native)
    end
  end

  # ── Memory: most runs compare times and sizes and read nothing ────────────────────────────────────────────────

  defp remembered?(build) do
    with {:ok, bytes} <- File.read(memory()),
         %{began: began, inputs: inputs, installed: installed} <- :erlang.binary_to_term(bytes) do
      # A file touched in the second of that run, or later, may have changed again with the same time and size.
      inputs == inputs(build) and installed == installed(build) and
        Enum.all?(inputs.files ++ installed, fn {_path, %{mtime: m, ctime: c}} -> max(m, c) < began end)
    else
      _ -> false
    end
  end

  defp remember(seen) do
    File.mkdir_p!(Path.dirname(memory()))
    File.write!(memory(), :erlang.term_to_binary(seen))
  end

  defp memory, do: Path.join(Mix.Project.manifest_path(), "compile.snakepit_native")

  defp inputs(%{prebuilt: nil} = build) do
    %{
      from: :sources,
      version: build.version,
      target: build.target,
      files: stats(build.native, Sources.list(build.native))
    }
  end

  defp inputs(%{prebuilt: dir} = build) do
    %{from: dir, version: build.version, target: build.target, files: stats(dir, Bundle.files(build.target))}
  end

  defp installed(build), do: stats(build.bundle, Bundle.files(build.target))

  defp stats(dir, files) do
    for file <- files, {:ok, stat} <- [File.stat(Path.join(dir, file), time: :posix)] do
      {file, Map.take(stat, [:size, :mtime, :ctime, :inode])}
    end
  end
end
