defmodule Snakepit.SubVm do
  @moduledoc false
  # A second VM with our code, for tests that kill one or start it with other limits.

  defstruct [:port, :os_pid]

  @doc "Runs code in a new VM, which then waits. `prefix` is put in front of the command (`ulimit`, `setpriv`)."
  def start(code, options \\ []) do
    ready = "ready #{System.unique_integer([:positive])}"
    code = code <> "\nIO.puts(#{inspect(ready)})\nIO.read(:line)\n"
    port = open(code, options)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    vm = %__MODULE__{port: port, os_pid: os_pid}
    ExUnit.Callbacks.on_exit(fn -> System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true) end)
    await(vm, ready, "")
  end

  defp await(vm, ready, seen) do
    receive do
      {port, {:data, data}} when port == vm.port ->
        seen = seen <> data
        if String.contains?(seen, ready), do: vm, else: await(vm, ready, seen)

      {port, {:exit_status, status}} when port == vm.port ->
        raise "the VM ended with #{status}: #{seen}"
    after
      60_000 -> raise "the VM does not get ready: #{seen}"
    end
  end

  def kill(%__MODULE__{port: port, os_pid: os_pid}) do
    System.cmd("kill", ["-9", "#{os_pid}"])

    receive do
      {^port, {:exit_status, _}} -> :ok
    after
      10_000 -> raise "process #{os_pid} does not die"
    end
  end

  def run_and_kill(code, options \\ []), do: code |> start(options) |> kill()

  @doc "Runs code to its end and gives what it printed, and its exit status."
  def run(code, options \\ []) do
    collect(open(code, options), "")
  end

  defp collect(port, seen) do
    receive do
      {^port, {:data, data}} -> collect(port, seen <> data)
      {^port, {:exit_status, status}} -> {seen, status}
    after
      120_000 -> raise "the VM does not end: #{seen}"
    end
  end

  defp open(code, options) do
    # exec, so that the process id is the VM's. Code paths, not Mix: nothing is compiled, no application is started.
    ebin = Keyword.get(options, :ebin, to_string(:code.lib_dir(:snakepit_shm, :ebin)))
    file = Path.join(System.tmp_dir!(), "subvm-#{System.pid()}-#{System.unique_integer([:positive])}.exs")
    # A loaded application knows its priv directory.
    File.write!(file, ["Application.load(:snakepit_shm)\n", code])
    ExUnit.Callbacks.on_exit(fn -> File.rm(file) end)
    command = "#{Keyword.get(options, :before, "")} exec elixir -pa #{ebin} #{file}"
    Port.open({:spawn_executable, "/bin/sh"}, [:binary, :exit_status, :stderr_to_stdout, args: ["-c", command]])
  end
end
