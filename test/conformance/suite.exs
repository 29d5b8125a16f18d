defmodule Conformance.Suite do
  @moduledoc false
  # OTP's suite, fetched, compiled and built: its module twice, as it is and with isolated helper modules, and its libraries.

  @here Path.dirname(__ENV__.file)

  # The C files of fetch.sh, and what is made of each of them.
  @plain ~w(nif_SUITE.1 nif_mod.1 nif_mod.2 nif_mod.3 nif_mod.4 nif_mod.5 nif_mod.1.2_0 nif_mod.2.2_0 nif_mod.3.2_0 nif_mod.1.2_4
            nif_mod.2.2_4 nif_mod.3.2_4 echo_drv)
  # Those of the driver suite, with its names replaced.
  @of_drivers ~w(basic rwlock tsd)

  @doc "Everything under a directory. What is there already is kept."
  def make(directory) do
    run!(Path.join(@here, "fetch.sh"), [directory], [])
    tests = Path.join(directory, "suite/erts/emulator/test")
    data = Path.join(directory, "data")

    # Made anew when this file has changed, by which it is made.
    made = Path.join(directory, "made")
    version = __ENV__.file |> File.read!() |> :erlang.md5() |> Base.encode16()

    unless File.read(made) == {:ok, version} do
      for part <- [data, Path.join(directory, "vm"), Path.join(directory, "isolated")], do: File.rm_rf!(part)
      File.cp_r!(Path.join(tests, "nif_SUITE_data"), data)
      headers(directory)
      for name <- @plain, do: library(data, name)
      for name <- @of_drivers, do: translate(tests, data, name) && library(data, name)
      compile(directory, Path.join(tests, "nif_SUITE.erl"))
      File.write!(made, version)
    end

    :ok
  end

  @doc "Where the modules of a mode are."
  def ebin(directory, mode), do: Path.join([directory, mode, "ebin"])

  @doc "For ERL_LIBS: the headers of common_test, which the suite includes."
  def libraries(directory), do: Path.join(directory, "lib")

  defp headers(directory) do
    application = Path.join(libraries(directory), "common_test")
    File.mkdir_p!(Path.join(application, "ebin"))
    File.cp_r!(Path.join(directory, "suite/lib/common_test/include"), Path.join(application, "include"))
    true = :code.add_patha(to_charlist(Path.join(application, "ebin")))
  end

  # ── C ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  defp library(data, name) do
    include = Path.join(:code.root_dir(), "usr/include")
    flags = ~w(-O1 -g -w -fPIC -shared -pthread -D_THREAD_SAFE -D_REENTRANT -I) ++ [include]
    run!(System.get_env("CC", "cc"), flags ++ ["-o", "#{name}.so", "#{name}.c", "-lm"], cd: data)
  end

  # As the suite's own makefile does it.
  defp translate(tests, data, name) do
    text = File.read!(Path.join(tests, "erl_drv_thread_SUITE_data/#{name}.c"))

    text =
      for {from, to} <- [{"erl_drv_", "enif_"}, {"driver_", "enif_"}, {"ErlDrv", "ErlNif"}],
          reduce: text,
          do: (text -> String.replace(text, from, to))

    [head, tail] = for part <- ["head.txt", "tail.txt"], do: File.read!(Path.join(data, part))
    File.write!(Path.join(data, "#{name}.c"), [head, text, tail])
    true
  end

  # ── Erlang ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp compile(directory, source) do
    {:ok, forms} = :epp.parse_file(to_charlist(source), [])

    for {mode, forms} <- [{"vm", forms}, {"isolated", redirect(forms)}] do
      # With ensure_lib_loaded/1, which cases rely on others to have called.
      {:ok, :nif_SUITE, beam} = :compile.forms(forms, [:debug_info, :export_all, :nowarn_export_all])
      File.mkdir_p!(ebin(directory, mode))
      File.write!(Path.join(ebin(directory, mode), "nif_SUITE.beam"), beam)
    end
  end

  # Modules that are compiled and loaded inside of tests are isolated too: the functions that do so are those of case.exs.
  defp redirect({:call, anno, {:remote, at, {:atom, _, module}, {:atom, _, name}}, arguments} = call) do
    case {module, name, length(arguments)} do
      {:erlang, :load_module, 2} -> redirected(anno, at, :load_module, arguments)
      {:code, :load_binary, 3} -> redirected(anno, at, :load_binary, arguments)
      {:compile, :file, 2} -> redirected(anno, at, :compile_file, arguments)
      {:erts_debug, :set_internal_state, 2} -> redirected(anno, at, :set_internal_state, arguments)
      {:erlang, :purge_module, 1} -> redirected(anno, at, :purge_module, arguments)
      {:erlang, :system_info, 1} -> redirected(anno, at, :system_info, arguments)
      {:code, :purge, 1} -> redirected(anno, at, :purge, arguments)
      {:code, :soft_purge, 1} -> redirected(anno, at, :soft_purge, arguments)
      _ -> call |> Tuple.to_list() |> redirect() |> List.to_tuple()
    end
  end

  defp redirect(form) when is_tuple(form), do: form |> Tuple.to_list() |> redirect() |> List.to_tuple()
  defp redirect([head | tail]), do: [redirect(head) | redirect(tail)]
  defp redirect(other), do: other

  defp redirected(anno, at, name, arguments),
    do: {:call, anno, {:remote, at, {:atom, at, :conformance}, {:atom, at, name}}, redirect(arguments)}

  # ── Cases ─────────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "Its cases in its order, as `{group or nil, case}`."
  def cases(directory) do
    path = to_charlist(ebin(directory, "vm"))
    true = :code.add_patha(path)
    # Not by their names: they are not there when this is compiled.
    groups = Map.new(apply(:nif_SUITE, :groups, []), fn {name, _options, cases} -> {name, cases} end)

    cases =
      Enum.flat_map(apply(:nif_SUITE, :all, []), fn
        {:group, group} -> Enum.map(Map.fetch!(groups, group), &{group, &1})
        name -> [{nil, name}]
      end)

    :code.del_path(path)
    cases
  end

  defp run!(command, arguments, options) do
    case System.cmd(command, arguments, [stderr_to_stdout: true] ++ options) do
      {_, 0} ->
        :ok

      {output, status} ->
        IO.puts(:stderr, "#{command} ended with #{status}:\n#{output}")
        System.halt(2)
    end
  end
end
