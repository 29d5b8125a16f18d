defmodule Snakepit.Isolation.ReleaseTest do
  # Modules as a release has them: rewritten when it was built, loaded long before anybody isolates them. A whole release:
  # test/house/isolated_test.exs.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.DropInFixture
  alias Snakepit.Isolation.{DropIn, Release}

  # As Mix.Release has it.
  defp release(directory, options \\ []) do
    applications = %{
      fixture: [path: to_charlist(Path.join(directory, "build")), vsn: ~c"1", otp_app?: false],
      snakepit_shm: [path: ~c"/nowhere", vsn: ~c"1"],
      stdlib: [path: :code.lib_dir(:stdlib), vsn: ~c"1"]
    }

    %{applications: applications, path: Path.join(directory, "release"), options: options}
  end

  # The module's beam moves from the code path into a build, and what is made of it into the code path.
  defp assemble(module, options \\ []) do
    directory = temporary_directory("release")
    [build, ebin] = for part <- ["build/ebin", "release/lib/fixture-1/ebin"], do: Path.join(directory, part)
    Enum.each([build, ebin], &File.mkdir_p!/1)
    installed = to_string(:code.which(module))
    File.cp!(installed, Path.join(build, "#{module}.beam"))
    {:ok, stripped} = Mix.Release.strip_beam(File.read!(installed))
    File.write!(Path.join(ebin, "#{module}.beam"), stripped)
    release = release(directory, options)
    rewritten(release, module)
    File.cp!(Path.join(ebin, "#{module}.beam"), installed)
    %{release: release, beam: Path.join(ebin, "#{module}.beam"), installed: installed, stripped: stripped}
  end

  defp rewritten(release, modules) do
    ExUnit.CaptureIO.capture_io(fn -> assert Release.rewrite(release, List.wrap(modules)) == release end)
  end

  defp mapped?, do: File.read!("/proc/self/maps") =~ "drop_in.so"
  defp here?(module), do: module.os_pid() == String.to_integer(System.pid())

  test "at the boot nothing is loaded, and stubs say why" do
    module = DropInFixture.erlang()
    assemble(module)
    assert {:module, ^module} = :code.load_file(module)
    assert module.loads() == 0

    assert {:error, %Error{reason: :not_loaded, details: %{because: :rewritten}} = error, [{:not_loaded, 1} | _]} =
             DropInFixture.outcome(module, :os_pid, [])

    assert Exception.message(error) =~ "config :snakepit_shm, isolate:"
    # What is not a stub, or has a body of its own, is as it was.
    assert module.classify(1) == :positive
    assert module.origin() == :erlang
    refute mapped?()
  end

  test "isolated it is what it would be in a running VM" do
    module = DropInFixture.erlang()
    before = for key <- [:exports, :attributes], do: module.module_info(key)
    DropInFixture.unload(module)
    assemble(module)
    {:module, ^module} = :code.load_file(module)
    assert Isolation.isolate(module, sandbox: :none) == :ok
    # One load was that of the first line.
    assert {module.loads(), module.in_on_load(), module.load_info()} == {2, :library, {:info, [1]}}
    assert module.whisper("word") == {:library, "word"}
    assert module.os_pid() == os_pid(module)
    assert for(key <- [:exports, :attributes], do: module.module_info(key)) == before
    assert {:error, %Error{reason: :already_isolated}} = Isolation.isolate(module, sandbox: :none)
    refute mapped?()
  end

  test "of Elixir too, and not loaded before" do
    module = DropInFixture.elixir()
    assemble(module)
    assert Isolation.isolate(module, sandbox: :none) == :ok
    assert module.add(1, 2) == 3
    refute mapped?()
  end

  test "loaded from its file again it stays isolated" do
    module = DropInFixture.erlang()
    assemble(module)
    :ok = Isolation.isolate(module, sandbox: :none)
    os_pid = module.os_pid()
    ExUnit.CaptureLog.capture_log(fn -> assert {:error, :on_load_failure} = :code.load_file(module) end)
    assert module.os_pid() == os_pid
  end

  test "restored it is the assembled original; loaded again from its file it waits; and it can be isolated again" do
    module = DropInFixture.erlang()
    %{stripped: stripped} = assemble(module)
    :ok = Isolation.isolate(module, sandbox: :none)
    assert Isolation.restore(module) == :ok
    assert here?(module)
    {:ok, {^module, md5}} = :beam_lib.md5(stripped)
    assert module.module_info(:md5) == md5

    :code.purge(module)
    assert {:module, ^module} = :code.load_file(module)
    assert %Error{details: %{because: :rewritten}} = catch_error(module.os_pid())
    assert Isolation.isolate(module, sandbox: :none) == :ok
    refute here?(module)
  end

  test "a library that cannot be loaded leaves the module closed, also when on_load does not mind" do
    module = DropInFixture.erlang()
    assemble(module)
    {:module, ^module} = :code.load_file(module)

    for lax <- [false, true] do
      DropInFixture.settings(module, load_info: 17, lax: lax)

      ExUnit.CaptureLog.capture_log(fn ->
        assert {:error, %Error{reason: :not_loaded} = error} = Isolation.isolate(module, sandbox: :none)
        assert Exception.message(error) =~ "returned 17"
      end)

      assert %Error{details: %{because: :rewritten}} = catch_error(module.os_pid())
    end

    refute mapped?()
  end

  test "another version does not look into the gates of the one that is isolated" do
    module = DropInFixture.erlang()
    %{installed: installed} = assemble(module)
    :ok = Isolation.isolate(module, sandbox: :none)
    old = module.os_pid()

    # The other one's functions are at other places.
    DropInFixture.compile(Path.dirname(installed), "snakepit_drop_in", [:debug_info, {:d, :ON_LOAD}, {:d, :NIFS}])
    assemble(module)
    assert {:module, ^module} = :code.load_file(module)
    assert %Error{reason: :not_loaded, details: %{because: :rewritten}} = catch_error(module.os_pid())
    assert module.classify(1) == :positive

    assert Isolation.isolate(module, sandbox: :none) == :ok
    assert module.add(1, 2) == 3
    gone(old)
  end

  test "false in the configuration puts the original in place" do
    module = DropInFixture.erlang()
    assemble(module)
    {:module, ^module} = :code.load_file(module)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :isolate) end)
    Application.put_env(:snakepit_shm, :isolate, [{module, false}])
    # The second time there is nothing to do.
    for _ <- 1..2, do: assert(DropIn.Start.run() == :ignore)
    assert here?(module)
  end

  # ── The step ──────────────────────────────────────────────────────────────────────────────────────────────────

  test "takes the configuration's list, and does the same a second time" do
    module = DropInFixture.erlang()
    %{release: release, beam: beam} = assemble(module)
    once = File.read!(beam)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :isolate) end)
    Application.put_env(:snakepit_shm, :isolate, [{module, sandbox: :none}, {:nope, false}])
    assert ExUnit.CaptureIO.capture_io(fn -> Release.rewrite(release) end) =~ "rewriting"
    assert File.read!(beam) == once
  end

  test "keeps what mix release keeps" do
    for {options, kept?} <- [{[], false}, {[strip_beams: [keep: ["Docs"]]], false}, {[strip_beams: false], true}] do
      module = DropInFixture.erlang()
      %{beam: beam} = assemble(module, options)
      {:ok, _, chunks} = :beam_lib.all_chunks(to_charlist(beam))
      assert {kept?, List.keymember?(chunks, ~c"CInf", 0)} == {kept?, kept?}
    end
  end

  for {modules, reason, words} <- [
        {[:nope], :unsupported_module, ~r/no application of the release has it/},
        {[:lists], :unsupported_module, ~r/sticky directory/},
        {[Snakepit.Native], :unsupported_module, ~r/no application of the release/},
        {:jiffy, :invalid_option, ~r/:modules: expected a list of modules, got :jiffy/},
        {[jiffy: [sandbox: :none]], :invalid_option, ~r/expected a list of modules/}
      ] do
    test "refuses #{inspect(modules)}" do
      {modules, reason, words} = unquote(Macro.escape({modules, reason, words}))
      error = assert_raise Error, fn -> Release.rewrite(release("/nowhere"), modules) end
      assert {error.reason, Exception.message(error) =~ words} == {reason, true}
    end
  end

  test "refuses a module without debug_info, one that was not assembled, and a release without us" do
    module = DropInFixture.erlang()
    %{release: release, beam: beam, stripped: stripped} = assemble(module)
    File.rm!(beam)
    assert Exception.message(assert_raise(Error, fn -> Release.rewrite(release, [module]) end)) =~ "after :assemble"
    File.write!(beam, stripped)
    File.write!(Path.join(release.applications.fixture[:path], "ebin/#{module}.beam"), stripped)
    assert Exception.message(assert_raise(Error, fn -> Release.rewrite(release, [module]) end)) =~ "debug_info"

    without = update_in(release.applications, &Map.delete(&1, :snakepit_shm))
    assert Exception.message(assert_raise(Error, fn -> Release.rewrite(without, [module]) end)) =~ "snakepit_shm among"
  end

  test "refuses to do nothing, unless told to" do
    assert %Error{details: %{key: :isolate}} = assert_raise(Error, fn -> Release.rewrite(release("/nowhere")) end)
    rewritten(release("/nowhere"), [])
  end

  test "what another version of snakepit_shm has rewritten is refused" do
    module = DropInFixture.erlang()
    %{installed: installed} = assemble(module)
    {:ok, ^module, chunks} = :beam_lib.all_chunks(to_charlist(installed))

    {:ok, beam} =
      :beam_lib.build_module(List.keyreplace(chunks, ~c"Snpk", 0, {~c"Snpk", :erlang.term_to_binary({2, :other})}))

    File.write!(installed, beam)
    assert {:error, %Error{reason: :unsupported_module} = error} = Isolation.isolate(module, sandbox: :none)
    assert Exception.message(error) =~ "another version of snakepit_shm"
    # Its on_load waits for ever.
    assert {:module, ^module} = :code.load_file(module)
    refute mapped?()
  end
end
