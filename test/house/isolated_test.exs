Code.require_file("throwaway.exs", __DIR__)

defmodule Snakepit.House.IsolatedTest do
  # `config :snakepit_shm, isolate:` in projects of others, with Debian's jiffy: a project and its tests, an umbrella, a script,
  # a release. All of them use this checkout, whose native library has been built, and one build directory.
  use Snakepit.IsolationCase, async: false

  import Snakepit.House.Throwaway

  @moduletag :slow
  @moduletag timeout: 300_000

  if match?({:error, _}, :code.lib_dir(:jiffy)), do: @moduletag(skip: "there is no jiffy (Debian: erlang-jiffy)")

  # What user code sees: jiffy works, and where its library is open.
  @look """
  def look do
    %{"a" => [1, 2.5]} = :jiffy.decode(~s({"a": [1, 2.5]}), [:return_maps])
    {:ok, info} = Snakepit.Isolation.info(:jiffy)
    mapped = fn pid -> File.read!("/proc/\#{pid}/maps") =~ "/jiffy.so" end
    IO.puts("VM \#{mapped.(System.pid())}, workers \#{inspect(for worker <- info.workers, do: mapped.(worker.os_pid))}")
  end
  """
  @isolated "VM false, workers [true, true]"

  setup_all do
    # Read at each start of Mix, so that the tests can have another one without compiling anything again.
    config = """
    import Config
    others = "OTHERS" |> System.get_env("[]") |> Code.eval_string() |> elem(0)
    config :snakepit_shm, isolate: [jiffy: [workers: 2, sandbox: :none]] ++ others
    """

    build = [{"MIX_BUILD_PATH", dir!("isolated_build")}, {"MIX_ENV", "test"}]
    deps = inspect([{:snakepit_shm, path: Path.dirname(Mix.Project.project_file())}])
    context = %{config: config, build: build, deps: deps}
    Map.put(context, :consumer, consumer(context))
  end

  # Its application calls jiffy when it starts.
  defp consumer(%{deps: deps, config: config}) do
    dir = dir!("isolated")

    write(dir, %{
      "mix.exs" => """
      defmodule Isolated.MixProject do
        use Mix.Project
        @step &Snakepit.Isolation.Release.rewrite/1
        def project do
          [app: :isolated, version: "1.0.0", deps: #{deps}, releases: [isolated: [steps: [:assemble, @step]], plain: []]]
        end

        def application, do: [mod: {Isolated.Application, []}, extra_applications: [:logger, :jiffy, :asn1]]
      end
      """,
      "config/config.exs" => ~s(import Config\nif config_env\(\) == :test, do: import_config\("test.exs"\)\n),
      "config/test.exs" => config,
      "lib/isolated.ex" => "defmodule Isolated do\n#{@look}\nend\n",
      "lib/isolated/application.ex" => """
      defmodule Isolated.Application do
        use Application

        def start(_type, _arguments) do
          Isolated.look()
          {:ok, info} = Snakepit.Isolation.info(:jiffy)
          IO.puts("started \#{System.pid()} \#{info.warden} \#{Enum.map_join(info.workers, " ", & &1.os_pid)}")
          Supervisor.start_link([], strategy: :one_for_one)
        end
      end
      """,
      "lib/isolated/native.ex" => """
      defmodule Isolated.Native do
        @on_load :load
        def load, do: with({:error, _} <- :erlang.load_nif(~c"/nowhere", 0), do: :ok)
      end
      """,
      "test/test_helper.exs" => "ExUnit.start()",
      "test/isolated_test.exs" => """
      defmodule IsolatedTest do
        use ExUnit.Case

        test "jiffy" do
          assert :jiffy.encode(%{"a" => 1}) == ~s({"a":1})
          assert catch_error(:jiffy.decode("no json")) == {1, :invalid_literal}
          Isolated.look()
        end
      end
      """
    })
  end

  defp write(dir, files) do
    for {path, text} <- files do
      File.mkdir_p!(Path.dirname(Path.join(dir, path)))
      File.write!(Path.join(dir, path), text)
      # Older than anything built: Mix compiles all dependencies again when the configuration is newer.
      File.touch!(Path.join(dir, path), {{2020, 1, 1}, {0, 0, 0}})
    end

    dir
  end

  # ── mix run, mix test ─────────────────────────────────────────────────────────────────────────────────────────

  test "mix test of a project, with and without --cover", %{consumer: dir, build: env} do
    for command <- [~w(mix test), ~w(mix test --cover)] do
      {output, status} = run(dir, command, env)
      assert {status, output =~ "1 test, 0 failures"} == {0, true}, output
      # From the application's start and from the test.
      assert length(String.split(output, @isolated)) == 3, output
    end
  end

  test "modules of the project's own, under --cover: the start is stopped, and says what to do", %{
    consumer: dir,
    build: env
  } do
    own = {"OTHERS", "[{Isolated.Native, sandbox: :none}]"}
    {output, status} = run(dir, ~w(mix test --cover), [own | env])
    assert status != 0
    assert output =~ "isolate: Isolated.Native: it is compiled for coverage"
    refute output =~ "VM true"

    {output, status} = run(dir, ~w(mix test --cover), [{"OTHERS", "[{Isolated.Native, false}]"} | env])
    assert {status, output =~ "1 test, 0 failures"} == {0, true}, output
  end

  test "a child of an umbrella, from there and from above", %{deps: deps, config: config, build: env} do
    umbrella = dir!("isolated_umbrella")

    write(umbrella, %{
      "mix.exs" => """
      defmodule Above.MixProject do
        use Mix.Project
        def project, do: [apps_path: "apps", deps: []]
      end
      """,
      "config/config.exs" => config,
      "apps/child/mix.exs" => """
      defmodule Child.MixProject do
        use Mix.Project
        def project, do: [app: :child, version: "1.0.0", config_path: "../../config/config.exs", deps_path: "../../deps", lockfile: "../../mix.lock", deps: #{deps}]
        def application, do: [extra_applications: [:logger, :jiffy]]
      end
      """,
      "apps/child/lib/child.ex" => "defmodule Child do\n#{@look}\nend\n"
    })

    for dir <- [umbrella, Path.join(umbrella, "apps/child")] do
      {output, status} = run(dir, ["mix", "run", "-e", "Child.look()"], env)
      assert {status, output =~ @isolated} == {0, true}, output
    end
  end

  test "Mix.install with a path, without Hex", %{deps: deps, build: env} do
    dir = dir!("isolated_script")
    config = "[snakepit_shm: [isolate: [jiffy: [workers: 2, sandbox: :none]]]]"

    write(dir, %{
      "script.exs" => """
      Mix.install(#{deps}, config: #{config})
      defmodule Script do
      #{@look}
      end
      Script.look()
      """
    })

    home = [{"MIX_HOME", Path.join(dir, "home")}, {"MIX_INSTALL_DIR", Path.join(dir, "installs")}]
    {output, status} = run(dir, ~w(elixir script.exs), home ++ env)
    assert {status, output =~ @isolated} == {0, true}, output
    refute output =~ "Hex"
  end

  # ── A release ─────────────────────────────────────────────────────────────────────────────────────────────────

  describe "a release" do
    setup %{consumer: dir, build: env} do
      path = Path.join(dir, "release")
      # A module of OTP too.
      others = {"OTHERS", "[{:asn1rt_nif, sandbox: :none}]"}
      {output, status} = run(dir, ["mix", "release", "isolated", "--path", path], [others | env])
      assert {status, output =~ "rewriting"} == {0, true}, output
      # What was built stays where it was: nothing may be taken from there.
      moved = Path.join(dir!("isolated_moved"), "release")
      File.rename!(path, moved)
      on_exit(fn -> File.rm_rf!(moved) end)
      %{release: moved}
    end

    test "never opens the library in its VM, and leaves no process", %{release: release} do
      assert [beam] = Path.wildcard(Path.join(release, "lib/jiffy-*/ebin/jiffy.beam"))
      # Beams are stripped, this one too.
      without = [~c"Dbgi", ~c"CInf"]
      {:ok, {:jiffy, chunks}} = :beam_lib.chunks(to_charlist(beam), without, [:allow_missing_chunks])
      assert chunks == Enum.map(without, &{&1, :missing_chunk})

      {port, output} = start(release)
      assert output =~ @isolated

      [vm, warden | workers] =
        ~r/started (.*)/ |> Regex.run(output) |> List.last() |> String.split() |> Enum.map(&String.to_integer/1)

      assert Port.info(port, :os_pid) == {:os_pid, vm}

      # As the kernel says it, from outside.
      refute mapped?(vm) or mapped?(vm, "asn1rt_nif")
      assert Enum.map(workers, &mapped?/1) == [true, true]
      assert [asn1] = children(warden) -- workers
      assert mapped?(asn1, "asn1rt_nif")

      signal(vm, "TERM")
      assert_receive {^port, {:exit_status, 0}}, 30_000
      gone([vm, warden, asn1 | workers])
    end

    test "in which nothing is started: calls say so; started, it works; restored, the library is in the VM", %{
      release: release
    } do
      code = """
      try do
        :jiffy.encode([1])
      rescue
        error -> IO.puts(Exception.message(error))
      end

      {:ok, _} = Application.ensure_all_started(:isolated)
      :ok = Snakepit.Isolation.restore(:jiffy)
      [1] = :jiffy.decode("[1]")
      IO.puts("restored \#{File.read!("/proc/self/maps") =~ "/jiffy.so"}")
      """

      {output, status} = run(release, ["bin/isolated", "eval", code])
      assert status == 0, output
      assert output =~ ":jiffy: it is isolated when the application snakepit_shm is started, which is not running."
      assert output =~ @isolated
      assert output =~ "restored true"
    end
  end

  test "a release without the step does not start", %{consumer: dir, build: env} do
    release = Path.join(dir!("isolated_moved"), "release")
    on_exit(fn -> File.rm_rf!(release) end)
    {output, status} = run(dir, ["mix", "release", "plain", "--path", release], env)
    assert {status, output =~ "rewriting"} == {0, false}, output

    without_traces = [{"RELEASE_DISTRIBUTION", "none"}, {"ERL_CRASH_DUMP_SECONDS", "0"}]
    {output, status} = run(release, ["bin/plain", "start"], without_traces)
    assert status != 0
    assert output =~ "isolate: :jiffy:"
    assert output =~ "give releases the step Snakepit.Isolation.Release.rewrite/1"
    refute output =~ "started "
  end

  # In embedded mode, as a release is started in earnest; without a node, which would leave epmd behind.
  defp start(release) do
    port =
      Port.open({:spawn_executable, Path.join(release, "bin/isolated")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        args: ["start"],
        env: [{~c"RELEASE_DISTRIBUTION", ~c"none"}, {~c"RELEASE_MODE", ~c"embedded"}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true) end)
    {port, await(port, ~r/started .*\n/, "")}
  end

  defp await(port, pattern, seen) do
    if seen =~ pattern do
      seen
    else
      receive do
        {^port, {:data, data}} -> await(port, pattern, seen <> data)
        {^port, {:exit_status, status}} -> flunk("the release ended with #{status}: #{seen}")
      after
        60_000 -> flunk("the release does not start: #{seen}")
      end
    end
  end

  defp mapped?(os_pid, library \\ "jiffy"), do: File.read!("/proc/#{os_pid}/maps") =~ "/#{library}.so"
end
