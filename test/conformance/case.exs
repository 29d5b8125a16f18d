# case.exs MODE DIRECTORY GROUP CASE ANSWER: one case of nif_SUITE, in this VM alone, which ends with it. The result is written to the
# file ANSWER. MODE is `vm`, or `isolated`: then the suite's module and those that it compiles are isolated.

# What the suite uses of common_test, which need not be installed.
defmodule :ct do
  def log(_format, _arguments), do: :ok
  def fail(reason), do: exit({:test_case_failed, reason})
  def fail(format, arguments), do: fail(:lists.flatten(:io_lib.format(format, arguments)))
end

defmodule :test_server do
  def lookup_config(key, config), do: :proplists.get_value(key, config)
end

# What stands in the isolated suite for the functions by which it loads modules.
defmodule :conformance do
  alias Snakepit.Isolation.{DropIn, Library}
  alias Snakepit.Native

  def compile_file(file, options), do: :compile.file(file, [:debug_info | options])
  def load_binary(module, file, beam), do: load(module, file, beam)
  def load_module(module, beam), do: load(module, ~c"conformance", beam)

  # Who is still in a call, which takes longer than in the VM, is not killed for it. Nobody waits here until the purge is noticed.
  def purge_module(module), do: swept(module, purge(module, 100))
  def purge(module), do: swept(module, :code.purge(module))
  def soft_purge(module), do: swept(module, :code.soft_purge(module))

  defp swept(module, result) do
    DropIn.sweep(module)
    result
  end

  defp purge(module, times) do
    cond do
      not :erlang.check_old_code(module) ->
        true

      times == 0 or not Enum.any?(Process.list(), &:erlang.check_process_code(&1, module)) ->
        :erlang.purge_module(module)

      true ->
        Process.sleep(10) && purge(module, times - 1)
    end
  end

  defp load(module, file, beam) do
    # In the process of the suite's own library: they pass pointers to each other.
    case DropIn.isolate_beam(module, to_charlist(file), beam, sandbox: :none, with: :nif_SUITE) do
      :ok -> isolated(module) && {:module, module}
      {:error, error} -> {:error, error}
    end
  end

  # What a library in the VM may do without being asked.
  def options, do: [sandbox: :none, output: :discard, whereis: :all, port_command: true]

  # An isolated library does not taint the VM. The suite asks for that to know whether a module has ever loaded one.
  def system_info(:taints), do: :persistent_term.get(:conformance, []) ++ :erlang.system_info(:taints)
  def system_info(key), do: :erlang.system_info(key)

  def isolated(module), do: :persistent_term.put(:conformance, [module | :persistent_term.get(:conformance, [])])

  # The suite waits for what the VM does later, such as the destructors of objects. So does the worker: it is told what was
  # collected, and has had a call's time for it when it has nothing to release any more.
  def set_internal_state(:wait, :aux_work) do
    :erts_debug.set_internal_state(:wait, :aux_work)

    for module <- [:nif_SUITE, :nif_mod],
        library = DropIn.library(module),
        row <- Library.rows(library.table),
        row.native do
      Native.worker_flush(row.native)
      settled(row.native, nil, 20)
    end

    true
  end

  def set_internal_state(key, value), do: :erts_debug.set_internal_state(key, value)

  # Until two looks in a row, a heartbeat apart, have the same number of objects.
  defp settled(_native, _before, 0), do: :ok

  defp settled(native, before, looks) do
    case Native.worker_status(native).status do
      %{objects: ^before} -> :ok
      %{objects: objects} -> Process.sleep(600) && settled(native, objects, looks - 1)
    end
  end
end

defmodule Conformance.Case do
  def main([mode, directory, group, name, answer]) do
    result =
      with :ok <- prepare(mode), do: run(directory, if(group != "-", do: String.to_atom(group)), String.to_atom(name))

    File.write!(answer, :erlang.term_to_binary(result))
    # Whatever threads and workers are left end with the VM.
    :erlang.halt(0, flush: false)
  end

  # As in a VM that has been at work for a while: some cases hold locks that loading a module needs.
  defp prepare("vm"), do: preload([:kernel, :stdlib])

  defp prepare("isolated") do
    Logger.configure(level: :error)
    {:ok, _} = Application.ensure_all_started(:snakepit_shm)
    preload([:kernel, :stdlib, :compiler, :elixir, :snakepit_shm])

    with {:error, error} <- Snakepit.Isolation.isolate(:nif_SUITE, :conformance.options()),
         do: {:failed, error},
         else: (:ok -> :conformance.isolated(:nif_SUITE))
  end

  defp preload(applications) do
    for application <- applications do
      Application.load(application)
      :code.ensure_modules_loaded(Application.spec(application, :modules))
    end

    :ok
  end

  defp run(directory, group, name) do
    config = [data_dir: to_charlist(Path.join(directory, "data")), priv_dir: to_charlist(directory)]
    {pid, monitor} = spawn_monitor(fn -> exit(result(config, group, name)) end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} -> ended(reason)
    end
  end

  defp ended({:result, result}), do: result
  # By a link, or by an exit of its own.
  defp ended(reason), do: {:failed, reason}

  defp result(config, group, name) do
    suite = :nif_SUITE
    config = suite.init_per_suite(config)

    with config when is_list(config) <- if(group, do: suite.init_per_group(group, config), else: config),
         config when is_list(config) <- suite.init_per_testcase(name, config),
         do: {:result, outcome(suite, name, config)},
         else: ({:skip, reason} -> {:result, {:skipped, reason}})
  end

  defp outcome(suite, name, config) do
    # The first case loads the library and looks at what that was; the others find it loaded.
    if name != :basic, do: {suite.ensure_lib_loaded(config), suite.call_history()}

    case apply(suite, name, [config]) do
      {skip, reason} when skip in [:skip, :skipped] -> {:skipped, reason}
      _ -> :passed
    end
  catch
    class, reason -> {:failed, {class, reason, __STACKTRACE__}}
  end
end

Conformance.Case.main(System.argv())
