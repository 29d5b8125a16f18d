defmodule Snakepit.Isolation.CheckTest do
  # What is said of a library without running it, beside what it is when it is loaded.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureIO

  alias Snakepit.{DropInFixture, EspressoFixture, OwnFixture}
  alias Snakepit.Isolation.Check
  alias Snakepit.Isolation.Check.{Differences, Reader, Text}

  @executable Warden.executable()
  # Libraries of Rustler may have to be built first, and that takes a while on a busy machine.
  @moduletag timeout: 900_000

  defp check!(target, options \\ []) do
    {:ok, %Check{} = check} = Isolation.check(target, options)
    check
  end

  defp fixture!(name), do: check!(NativeFixture.path(name))

  defp problems(check), do: for(%{id: id} <- check.problems, do: id)
  defp differences(check, kind), do: for(%{id: id, kind: ^kind} <- check.differences, do: id)
  defp functions(check), do: check.functions |> Enum.map(&{String.to_atom(&1.name), &1.arity}) |> Enum.sort()

  # ── Libraries ─────────────────────────────────────────────────────────────────────────────────────────────────

  for name <- [:adder, :cpp, :services, :drop_in] do
    test "#{name}: its table is read as it is loaded" do
      check = fixture!(unquote(name))
      library = load!(unquote(name), load_info: load_info(unquote(name)))
      assert %{verdict: :yes, problems: [], rustler: nil} = check
      assert check.module == Atom.to_string(library.module)
      assert functions(check) == Enum.sort(library.functions)
      assert {2, minor} = info!(library).nif_version
      assert check.nif_version == "2.#{minor}"
      assert Check.code(check) == 0
    end
  end

  defp load_info(:drop_in), do: {:info, [1]}
  defp load_info(:services), do: self()
  defp load_info(_), do: 0

  for {application, path} <- [jiffy: "priv/jiffy", asn1: "priv/lib/asn1rt_nif", crypto: "priv/lib/crypto"] do
    @tag skip: match?({:error, _}, :code.lib_dir(application)) && "there is no #{application}"
    test "#{path} of #{application}" do
      check = check!({unquote(application), unquote(path)})
      assert %{verdict: :yes, problems: []} = check
      # What the module has for it.
      module = String.to_atom(check.module)
      Code.ensure_loaded!(module)
      assert functions(check) == Enum.sort(module.module_info(:nifs))
    end
  end

  test "dirty functions and callbacks" do
    check = fixture!(:adder)
    dirty = Map.new(check.functions, &{&1.name, &1.dirty})
    assert %{"add" => nil, "sleep_forever" => :io} = dirty
    assert check.callbacks == [:load, :upgrade]
    assert :upgrade in differences(check, :differs) and :dirty in differences(check, :differs)
    refute :upgrade in differences(fixture!(:services), :differs)
  end

  test "what has to be granted" do
    assert differences(fixture!(:services), :asks) == [:whereis, :port_command]
    assert differences(fixture!(:adder), :asks) == []
  end

  test "symbols that nobody has" do
    check = fixture!(:undefined_symbol)
    assert %{verdict: :no, problems: [%{id: :symbols, text: text}]} = check
    assert text =~ "enif_that_nobody_has"
    assert Check.code(check) == 1
    # The library does without.
    check = fixture!(:unimplemented)
    assert %{verdict: :yes} = check
    assert %{weak: true, from: :nobody} = Enum.find(check.imports, &(&1.name == "enif_of_tomorrow"))
  end

  test "no file that is no NIF library for this machine" do
    assert problems(fixture!(:no_init)) == [:no_init]
    assert problems(fixture!(:not_a_library)) == [:not_a_library]
    assert problems(fixture!(:truncated)) == [:not_a_library]
    assert problems(fixture!(:wrong_architecture)) == [:wrong_architecture]
    assert problems(check!(temporary_directory("check"))) == [:not_a_library]
    assert problems(check!("/dev/null")) == [:not_a_library]
    assert {:error, %Error{reason: :not_loaded, details: %{because: :no_file}}} = Isolation.check("/nowhere/at/all")
  end

  test "a path where nothing is, is named as it was given" do
    words = fn path ->
      {:error, %Error{} = error} = Isolation.check(path)
      Exception.message(error)
    end

    assert words.("/nowhere/jiffy.so") =~ "there is no file /nowhere/jiffy.so."
    assert words.("/nowhere/jiffy") =~ "there is no file /nowhere/jiffy, and none with the ending .so."
    circle = Path.join(temporary_directory("check"), "circle.so")
    File.ln_s!("circle.so", circle)
    assert words.(circle) =~ "no way to #{circle} (too many levels of symbolic links)"
    assert words.(Path.rootname(circle)) =~ "no way to #{circle} ("
  end

  test "only what makes its table when it is loaded has functions that are known then" do
    assert Text.render(check!(NativeFixture.path(:rustler_0_39))) =~ "known only when it is loaded"
    check = fixture!(:no_init)
    assert %{functions: nil, imports: [_ | _]} = check
    refute Text.render(check) =~ "known only when it is loaded"
  end

  test "what is not a target, and not an option" do
    for target <- [nil, "", 1, "a\0b", {:jiffy, 1}],
        do: assert({:error, %Error{reason: :invalid_option, details: %{key: :target}}} = Isolation.check(target))

    assert {:error, %Error{details: %{because: :no_application}}} = Isolation.check({:no_application, "priv/x"})
    assert {:error, %Error{details: %{key: :lod, expected: _}}} = Isolation.check("x", lod: true)
    assert {:error, %Error{details: %{key: :load}}} = Isolation.check("x", load: true)
  end

  test "a library of Rustler makes its table when it is loaded" do
    path = NativeFixture.path(:rustler_0_39)
    check = check!(path)
    assert %{verdict: :yes, rustler: "0.39" <> _, functions: nil, module: nil, nif_version: nil} = check
    check = check!(path, load: [sandbox: :none])
    assert %{verdict: :yes, loaded: %{module: "snakepit_rustler", missing: []}} = check
    loaded = for %{name: name, arity: arity} <- check.loaded.functions, do: {String.to_atom(name), arity}
    assert Enum.sort(loaded) == Enum.sort(NativeFixture.functions(:rustler_0_39))
    # Running it has to be asked for.
    assert problems(check!(path, load: [])) == [:load]
  end

  test "a load callback that wants something else than 0" do
    path = {:crypto, "priv/lib/crypto"}

    assert %{verdict: :unknown, problems: [%{id: :load_info, text: text}]} =
             check = check!(path, load: [sandbox: :none])

    assert Check.code(check) == 2
    assert Check.Text.render(check) =~ text
    fails = NativeFixture.path(:load_fails)
    assert %{verdict: :yes} = check!(fails, load: [sandbox: :none])
    assert problems(check!(fails, load: [sandbox: :none, load_info: 3])) == [:load]
  end

  # ── Modules ───────────────────────────────────────────────────────────────────────────────────────────────────

  @tag skip: match?({:error, _}, :code.lib_dir(:jiffy)) && "there is no jiffy"
  test "a module's library is found in its application, and the module is not loaded" do
    DropInFixture.unload(:jiffy)
    check = check!(:jiffy)
    assert %{verdict: :yes, module: "jiffy", target: :jiffy} = check
    assert check.path == to_string(Application.app_dir(:jiffy, "priv/jiffy.so"))
    refute :erlang.module_loaded(:jiffy)
  end

  test "a library that makes its table when it is loaded is found by its constants" do
    directory = temporary_directory("check")
    for part <- ["ebin", "priv"], do: File.mkdir_p!(Path.join(directory, part))
    ebin = Path.join(directory, "ebin")
    # Another one of Rustler beside it.
    for name <- [:espresso, :rustler_0_39],
        do: File.cp!(NativeFixture.path(name) <> ".so", Path.join(directory, "priv/#{name}.so"))

    on_exit(fn -> EspressoFixture.remove(ebin) end)
    check = check!(EspressoFixture.module(ebin))
    assert %{verdict: :yes, rustler: "0.39" <> _, functions: nil, searched: [_, _]} = check
    assert Path.basename(check.path) == "espresso.so"
  end

  test "a module whose library is not found" do
    module = DropInFixture.erlang()
    assert %{verdict: :unknown, path: nil, problems: [], searched: [_]} = check = check!(module)
    assert Check.code(check) == 2
  end

  test "modules that cannot be isolated" do
    for module <- [:erlang, :lists, Snakepit.Native] do
      assert %{verdict: :no, problems: [%{id: :module} | _]} = check!(module)
    end

    # Without debug_info.
    assert %{verdict: :no, problems: [%{id: :module, text: text}]} = check!(DropInFixture.erlang([:ON_LOAD], []))
    assert text =~ "debug_info"
    assert {:error, %Error{reason: :unsupported_module}} = Isolation.check(:snakepit_no_such_module)
  end

  test "a library that its module has not all functions for" do
    application(:snakepit_adder, [:adder])
    assert %{verdict: :no, problems: [%{id: :misfit, text: text}]} = check!(:snakepit_adder)
    assert text =~ "echo/1" and not (text =~ "add/2")
  end

  test "several libraries for a module" do
    application(:snakepit_adder, [:adder, :adder_again])
    assert %{verdict: :unknown, searched: [_, _]} = check!(:snakepit_adder)
  end

  # ── Modules of one's own ──────────────────────────────────────────────────────────────────────────────────────

  test "a module that has its library itself is judged by that, and is not loaded" do
    module = OwnFixture.module([])
    check = check!(module)
    assert %{verdict: :yes, target: ^module, problems: [], module: "Elixir.Snakepit.Fixture.Own"} = check
    assert Path.basename(check.path) == "own.so"
    assert Text.render(check) =~ "#{inspect(module)} can be isolated"
    # As in a release, which has its modules without debug_info.
    file = :code.where_is_file(~c"#{module}.beam")
    {:ok, beam, _} = :erl_prim_loader.get_file(file)
    {:ok, stripped} = Mix.Release.strip_beam(beam)
    File.write!(file, stripped)
    assert %{verdict: :yes, problems: []} = check!(module)
    # Not that it has none either.
    assert {:error, %Error{details: %{because: :isolates_itself}}} = Snakepit.Isolation.DropIn.Source.find(module)
    refute :erlang.module_loaded(module)
  end

  test "by the library that its configuration names" do
    module = OwnFixture.module([])
    OwnFixture.configure(library: "priv/not_built")
    assert %{verdict: :unknown, path: nil, problems: [%{id: :no_file, text: text}]} = check = check!(module)
    assert text =~ "priv/not_built.so" and Check.code(check) == 2
    assert Text.render(check) =~ text
    OwnFixture.configure(library: NativeFixture.path(:adder))
    assert %{verdict: :no, problems: [%{id: :other_module, text: text}]} = check = check!(module)
    assert text =~ "for snakepit_adder"
    refute Text.render(check) =~ "known only when it is loaded"
    OwnFixture.configure(libary: "priv/own")
    assert {:error, %Error{details: %{key: :libary}}} = Isolation.check(module)
  end

  test "and by its NIFs" do
    module = OwnFixture.module([])
    file = :code.where_is_file(~c"#{module}.beam")
    Code.put_compiler_option(:ignore_module_conflict, true)

    [{^module, beam}] =
      Code.compile_quoted(
        quote do
          defmodule unquote(module) do
            use Snakepit.Isolation.Module, otp_app: unquote(OwnFixture.app()), library: "priv/own", sandbox: :none
            @nifs [add: 2]
            def add(a, b), do: a + b
            def os_pid, do: :erlang.nif_error(:nif_not_loaded)
          end
        end
      )

    Code.put_compiler_option(:ignore_module_conflict, false)
    File.write!(file, beam)
    assert %{verdict: :no, problems: [%{id: :misfit, text: text}]} = check!(module)
    assert text =~ "os_pid/0" and not (text =~ "add/2")
  end

  # An application in the code path: a module with add/2 only, and copies of the library for it.
  defp application(module, copies) do
    directory = temporary_directory("check")
    for part <- ["ebin", "priv"], do: File.mkdir_p!(Path.join(directory, part))
    for copy <- copies, do: File.cp!(NativeFixture.path(:adder) <> ".so", Path.join(directory, "priv/#{copy}.so"))

    code = """
    -module(#{module}).
    -export([load/1, add/2]).
    load(Path) -> erlang:load_nif(Path, 0).
    add(_, _) -> erlang:nif_error(not_loaded).
    """

    forms = for text <- String.split(code, ".\n", trim: true), do: form(text <> ".")
    {:ok, ^module, beam} = :compile.forms(forms, [:debug_info])
    ebin = to_charlist(Path.join(directory, "ebin"))
    File.write!(Path.join(ebin, "#{module}.beam"), beam)
    # The fixture may have been loaded into this VM by another test.
    DropInFixture.unload(module)
    true = :code.add_patha(ebin)
    on_exit(fn -> :code.del_path(ebin) end)
  end

  defp form(text) do
    {:ok, tokens, _} = :erl_scan.string(to_charlist(text))
    {:ok, form} = :erl_parse.parse_form(tokens)
    form
  end

  # ── Hostile files ─────────────────────────────────────────────────────────────────────────────────────────────

  test "a pipe is not waited for" do
    pipe = Path.join(temporary_directory("check"), "pipe.so")
    {_, 0} = System.cmd("mkfifo", [pipe])
    assert problems(check!(pipe)) == [:not_a_library]
  end

  test "damaged libraries: a verdict, always" do
    whole = File.read!(NativeFixture.path(:adder) <> ".so")
    file = Path.join(temporary_directory("check"), "damaged.so")
    :rand.seed(:exsss, {1, 2, 3})

    for round <- 1..60 do
      File.write!(file, damaged(whole, round))
      assert check!(file).verdict in [:yes, :no]
    end
  end

  defp damaged(whole, round) when rem(round, 2) == 0, do: binary_part(whole, 0, :rand.uniform(byte_size(whole)))

  defp damaged(whole, _round) do
    Enum.reduce(1..8, whole, fn _, bytes ->
      at = :rand.uniform(min(byte_size(bytes), 4096)) - 1
      <<before::binary-size(at), _, rest::binary>> = bytes
      <<before::binary, :rand.uniform(256) - 1, rest::binary>>
    end)
  end

  test "a reader that was taken over" do
    directory = temporary_directory("check")
    atom = "snakepit_never_before_#{System.unique_integer([:positive])}"
    new_atom = <<131, 119, byte_size(atom), atom::binary>>
    # A term of 64 MiB in some bytes.
    compressed = :erlang.term_to_binary({:ok, :binary.copy(<<0>>, 67_108_864)}, [:compressed])

    for {answer, id} <- [
          {"", :unreadable},
          {"nonsense", :unreadable},
          {new_atom, :unreadable},
          {compressed, :unreadable},
          {:erlang.term_to_binary({:ok, %{nif_init: true}}), :unreadable},
          {:erlang.term_to_binary({:error, :because, "no"}), :unreadable},
          {:erlang.term_to_binary({:error, :open, "no"}), :open}
        ] do
      File.write!(Path.join(directory, "answer"), answer)
      executable = script(directory, "cat #{directory}/answer")
      assert {:ok, {:error, ^id, _}} = Reader.read("x.so", "", executable)
    end

    for {line, words} <- [{"kill -SEGV $$", "SIGSEGV"}, {"exit 3", "3"}, {"exec cat /dev/zero 2>/dev/null", "output"}] do
      assert {:ok, {:error, :unreadable, text}} = Reader.read("x.so", "", script(directory, line))
      assert text =~ words
    end

    assert {:error, %Error{reason: :not_loaded, details: %{because: :executable}}} =
             Reader.read("x.so", "", "/nowhere/reader")

    assert_no_messages()
  end

  test "a reader that comes to no end" do
    # It ends with its input.
    executable = script(temporary_directory("check"), "exec cat")
    assert {:ok, {:error, :too_long, text}} = Reader.read("x.so", "", executable, 1)
    assert text =~ "longer than 1 s"
    # The time is that of all together. On a busy machine not even the first has begun.
    directory = temporary_directory("check")
    executable = script(directory, "echo >> #{directory}/started; exec cat")
    files = ["a.so", "b.so", "c.so"]
    assert {:ok, [], ^files} = Reader.read_all(files, "", executable, 500)
    assert File.read(Path.join(directory, "started")) in [{:ok, "\n"}, {:error, :enoent}]
    executable = script(temporary_directory("check"), "exit 3")
    assert {:ok, [{"a.so", {:error, :unreadable, _}} | _], []} = Reader.read_all(files, "", executable)
    assert_no_messages()
  end

  # 20 bytes, as many as the name has that they replace: an end of the line, ESC, a control character of Unicode, one that turns
  # the direction of the text.
  @hostile "\nX is safe.\e[2J\u009B\u202E"

  test "names that would do something to a terminal" do
    file = Path.join(temporary_directory("check"), "hostile.so")
    bytes = File.read!(NativeFixture.path(:undefined_symbol) <> ".so")
    File.write!(file, String.replace(bytes, "enif_that_nobody_has", @hostile))
    check = check!(file)
    assert @hostile in for(%{name: name} <- check.imports, do: name)
    text = capture_io(fn -> assert Check.print(file) == 1 end)
    assert text =~ "\\x0AX is safe.\\x1B[2J\\x9B\\x{202E}"
    assert harmless?(text)
    refute text =~ ~r/^X is safe/m
    for %{text: text} <- check.problems, do: assert(harmless?(text) and not (text =~ "\n"))
    json = capture_io(fn -> assert Check.print(file, json: true) == 1 end)
    assert harmless?(json)
    assert {:ok, %{"imports" => imports}} = Native.json_decode(String.trim(json))
    assert @hostile in for(%{"name" => name} <- imports, do: name)
    # Also in what is said of a path.
    assert [line, ""] =
             capture_io(:stderr, fn -> assert Check.print("/nowhere/#{@hostile}") == 2 end) |> String.split("\n")

    assert harmless?(line)
  end

  defp harmless?(text), do: not (text =~ ~r/[\x{00}-\x{09}\x{0B}-\x{1F}\x{7F}-\x{9F}\x{202E}]/u)

  test "what is shown as it is, and what is not" do
    for text <- ["a\\b~", "é漢字"], do: assert(Text.plain(text) == text)

    for {text, shown} <- [
          {"a\xFFb", ~S(a\xFFb)},
          {"\a\b\t\v\f\r\d", ~S(\x07\x08\x09\x0B\x0C\x0D\x7F)},
          {"\u200B\u2028\uFEFF\u{10FFFF}", ~S(\x{200B}\x{2028}\x{FEFF}\x{10FFFF})}
        ] do
      assert Text.plain(text) == shown
      assert Text.plain(shown) == shown
    end

    assert Text.some([String.duplicate("y", 60_000)]) == String.duplicate("y", 256) <> "..."
  end

  defp script(directory, line) do
    path = Path.join(directory, "reader")
    File.write!(path, "#!/bin/sh\n#{line}\n")
    File.chmod!(path, 0o755)
    path
  end

  # ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────

  test "the rows are about functions that there are" do
    exported = File.read!(@executable)
    for "enif_" <> _ = name <- Differences.symbols(), do: assert(exported =~ name <> <<0>>, name)
  end

  @readme Path.expand("../../../lib/snakepit/isolation/README.md", __DIR__)
  # What in the documentation's table no symbol tells of.
  @no_symbol ["static variables", "calls at the same time", "no term", "large answers"]
  @rows %{
    "process" => [:process, :signals],
    "environment" => [:environment],
    "schedulers" => [:timeslice],
    "the VM's books" => [:memory],
    "time" => [:clock],
    "CPU time" => [:cpu_time],
    "new atoms" => [:new_atoms],
    "order of pairs" => [:map_order, :term_to_binary],
    "internal hash values" => [:hash],
    "phash2 of objects" => [:hash],
    "bytes of objects" => [:term_to_binary],
    "text of objects" => [:term_text],
    "order of objects" => [:compare],
    "names from bytes" => [:binary_to_term],
    "a part beyond a binary" => [:sub_binary],
    "destructors" => [:resources],
    "binaries of objects" => [:resource_binary],
    "who monitors" => [:monitors],
    "stopped descriptors" => [:select],
    "pids while it loads" => [:local_pids],
    "messages to the dead" => [:send],
    "registered names" => [:whereis],
    "commands to ports" => [:port_command]
  }

  test "each row of the documentation's table is seen by its symbols" do
    [_, table] = Regex.run(~r/^## Where a library can tell\n(.*?)^## /ms, File.read!(@readme))
    titles = for [_, title] <- Regex.scan(~r/^\| \*\*(.+?)\*\* \|/m, table), do: title
    assert Enum.sort(titles) == Enum.sort(@no_symbol ++ Map.keys(@rows))
    for {title, ids} <- @rows, id <- ids, do: assert(id in Differences.ids(), "#{title}: #{id}")
    named = for [name] <- Regex.scan(~r/enif_[a-z_]+[a-z]/, table), do: name
    assert Enum.uniq(named) -- Differences.symbols() == []
  end

  test "what becomes of an upgrade callback" do
    report = %{imports: [], looked_up: [], rustler: nil}
    entry = %{upgrade: true, functions: []}
    assert [%{id: :upgrade, text: text}] = Differences.of(report, entry, nil)
    assert text =~ "in each worker" and text =~ "isolate/2"
    assert [%{id: :upgrade, text: text}] = Differences.of(report, entry, :own)
    assert text =~ "not upgraded"
    assert Differences.of(report, %{entry | upgrade: false}, nil) == []
  end

  test "in words" do
    path = NativeFixture.path(:services)
    text = capture_io(fn -> assert Check.print(path) == 0 end)
    assert text =~ "can be isolated" and text =~ "whereis:" and text =~ "for module    snakepit_services"
    text = capture_io(fn -> assert Check.print(NativeFixture.path(:no_init)) == 1 end)
    assert text =~ "cannot be isolated" and text =~ "nif_init"
    text = capture_io(:stderr, fn -> assert Check.print("/nowhere/at/all") == 2 end)
    assert text =~ "/nowhere/at/all"
  end

  test "in JSON" do
    json = capture_io(fn -> assert Check.print(NativeFixture.path(:adder), json: true) == 0 end)
    assert {:ok, told} = Native.json_decode(String.trim(json))
    assert %{"verdict" => "yes", "module" => "snakepit_adder", "problems" => [], "rustler" => nil} = told
    assert %{"name" => "add", "arity" => 2, "dirty" => nil} in told["functions"]
    assert %{"libc.so.6" => "/" <> _} = told["needed"]
    odd = %Check{target: "a\"b\\c\n\u{1}\xFFé"}
    assert {:ok, %{"target" => "a\"b\\c\n\u{1}ÿ" <> _}} = Native.json_decode(Check.Json.encode(odd))
  end

  describe "mix snakepit.nif.check" do
    defp task(arguments) do
      Mix.Task.rerun("snakepit.nif.check", arguments)
    catch
      :exit, reason -> reason
    end

    test "its exit codes" do
      path = NativeFixture.path(:adder)
      assert capture_io(fn -> assert task([path]) == :ok end) =~ "can be isolated"
      assert capture_io(fn -> assert task([path <> ".so", "--json"]) == :ok end) =~ ~s("verdict":"yes")
      load = ["--load", "--sandbox", "none"]
      assert capture_io(fn -> assert task([path | load]) == :ok end) =~ ~r/loaded .*NIF 2\.\d+/
      capture_io(fn -> assert task([NativeFixture.path(:no_init)]) == {:shutdown, 1} end)
      # There is a directory of the name, and no module.
      assert capture_io(:stderr, fn -> assert task(["native"]) == {:shutdown, 2} end) =~ "no such module"
      assert capture_io(fn -> assert task([":lists"]) == {:shutdown, 1} end) =~ ":lists cannot be isolated"

      for arguments <- [[], ["a", "b"], [path, "--lod"], [path, "--load"], [path, "--sandbox", "none"], ["No.Such"]] do
        assert capture_io(:stderr, fn -> assert task(arguments) == {:shutdown, 2} end) != ""
      end
    end
  end
end
