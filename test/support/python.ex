defmodule Snakepit.Python do
  @moduledoc false
  # A real Python process with the client: runs lines of code when told to, answers each with one JSON line.

  defstruct [:port, :os_pid]

  @driver """
  import json, sys, os, traceback
  import snakepit_shm
  scope = {"snakepit_shm": snakepit_shm, "os": os, "json": json}
  for line in sys.stdin:
      code = json.loads(line)
      try:
          try:
              value = eval(compile(code, "<test>", "eval"), scope)
          except SyntaxError:
              exec(compile(code, "<test>", "exec"), scope)
              value = scope.pop("result", None)
          answer = {"ok": value}
      except Exception as error:
          answer = {"error": type(error).__name__, "reason": getattr(error, "reason", None), "text": str(error)}
      print(json.dumps(answer), flush=True)
  """

  @doc "The interpreter of the tests, with NumPy (made by the set-up)."
  def executable do
    System.get_env("SNAKEPIT_PYTHON") || raise "SNAKEPIT_PYTHON is not set: run the tests with make test"
  end

  def start do
    client = Path.expand("priv/python")
    path = Enum.join([client | List.wrap(System.get_env("PYTHONPATH"))], ":")

    port =
      Port.open({:spawn_executable, executable()}, [
        :binary,
        :exit_status,
        {:line, 1_000_000},
        args: ["-u", "-c", @driver],
        env: [{~c"PYTHONPATH", String.to_charlist(path)}, {~c"PYTHONDONTWRITEBYTECODE", ~c"1"}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    ExUnit.Callbacks.on_exit(fn -> System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true) end)
    %__MODULE__{port: port, os_pid: os_pid}
  end

  @doc "Runs an expression (or statements that set `result`). `{:ok, value}` or `{:error, class, reason, text}`."
  def run(python, code) do
    send_code(python, code)
    answer(python)
  end

  @doc "Starts it and does not wait: `answer/1` does."
  def send_code(%__MODULE__{port: port}, code) do
    {:ok, line} = Snakepit.Native.json_encode(code)
    Port.command(port, [line, "\n"])
  end

  def answer(%__MODULE__{port: port}) do
    receive do
      {^port, {:data, {:eol, line}}} ->
        case Snakepit.Native.json_decode(line) do
          {:ok, %{"ok" => value}} -> {:ok, value}
          {:ok, %{"error" => class, "reason" => reason, "text" => text}} -> {:error, class, reason, text}
        end

      {^port, {:exit_status, status}} ->
        {:exit, status}
    after
      30_000 -> raise "Python does not answer"
    end
  end

  def run!(python, code) do
    {:ok, value} = run(python, code)
    value
  end

  @doc "A Python string literal of a handle."
  def literal(handle) do
    {:ok, json} = Snakepit.SharedMemory.Handle.to_json(handle)
    {:ok, quoted} = Snakepit.Native.json_encode(json)
    quoted
  end

  @doc "Kills the process; its children live."
  def kill(%__MODULE__{os_pid: os_pid}, signal \\ "-9") do
    System.cmd("kill", [signal, "#{os_pid}"])
    Snakepit.ShmCase.eventually(fn -> not alive?(os_pid) end, 10_000)
    :ok
  end

  defp alive?(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> stat |> String.split(") ") |> List.last() |> String.first() != "Z"
      {:error, _} -> false
    end
  end
end
