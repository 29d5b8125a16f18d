defmodule Bench.Python do
  # A Python process at the other end of a Port. Requests and answers are lines of key=value (support/port.py).

  @enforce_keys [:port, :os_pid, :script]
  defstruct [:port, :os_pid, :script]

  @type t :: %__MODULE__{port: port(), os_pid: pos_integer(), script: String.t()}

  @deadline 120_000
  @root Path.expand("../..", __DIR__)

  defmodule Failed do
    defexception [:message]
  end

  @doc "The interpreter: SNAKEPIT_PYTHON, or that of the virtual environment that `make setup` makes."
  @spec executable() :: String.t()
  def executable do
    own = Path.join(@root, "_build/venv/bin/python")

    cond do
      python = System.get_env("SNAKEPIT_PYTHON") ->
        System.find_executable(python) || raise Failed, "SNAKEPIT_PYTHON=#{python} is no program that can be run."

      File.exists?(own) ->
        own

      true ->
        raise Failed, "No Python. `make setup` makes a virtual environment; or set SNAKEPIT_PYTHON."
    end
  end

  @doc "Raises with the remedy unless the interpreter has these packages."
  @spec require!([String.t()]) :: :ok
  def require!(packages) do
    python = executable()
    program = "import importlib.util, sys; print(*[p for p in sys.argv[1:] if not importlib.util.find_spec(p)])"

    case System.cmd(python, ["-c", program | packages], stderr_to_stdout: true) do
      {"\n", 0} ->
        :ok

      {missing, 0} ->
        raise Failed,
              "#{python} has no #{missing |> String.split() |> Enum.join(" and no ")}. `make demo` and `make bench` " <>
                "make an environment that has it; for this one:\n  #{python} -m pip install -r bench/requirements.txt"

      {output, status} ->
        raise Failed, "#{python} ended with status #{status}: #{output}"
    end
  end

  @doc "Runs a script to its end, for what it prints: lines of key=value."
  @spec run!(String.t(), [String.t()]) :: %{String.t() => String.t()}
  def run!(script, arguments \\ []) do
    case System.cmd(executable(), [script | arguments], env: environment()) do
      {output, 0} -> fields(output)
      {_, status} -> raise Failed, "#{script} ended with status #{status}; its own words are above."
    end
  end

  @doc "Starts a worker for as long as `work` runs. Whatever happens there, the process is gone afterwards."
  @spec with_worker(String.t(), (t() -> result)) :: result when result: term()
  def with_worker(script, work) do
    worker = start(script)

    try do
      result = work.(worker)
      stop(worker)
      result
    after
      kill(worker)
    end
  end

  @spec start(String.t()) :: t()
  def start(script) do
    options = [:binary, :exit_status, {:packet, 4}, {:args, [script]}, {:env, port_environment()}]
    port = Port.open({:spawn_executable, executable()}, options)
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    %__MODULE__{port: port, os_pid: os_pid, script: Path.relative_to_cwd(script)}
  end

  @doc "A request and its answer."
  @spec call(t(), keyword()) :: %{String.t() => String.t()}
  def call(worker, request) do
    send_frame(worker, Enum.map_intersperse(request, "\n", fn {key, value} -> "#{key}=#{value}" end))
    answer(worker)
  end

  @spec send_frame(t(), iodata()) :: true
  def send_frame(%{port: port} = worker, data) do
    Port.command(port, data)
  rescue
    ArgumentError -> ended(worker)
  end

  @spec answer(t()) :: %{String.t() => String.t()}
  def answer(%{port: port} = worker) do
    receive do
      {^port, {:data, text}} ->
        case fields(text) do
          %{"error" => error} -> raise Failed, "#{worker.script}: #{error}"
          answer -> answer
        end

      {^port, {:exit_status, status}} ->
        raise Failed, "#{worker.script} ended with status #{status}; its own words are above."
    after
      @deadline -> raise Failed, "#{worker.script} has not answered for #{div(@deadline, 1000)} s."
    end
  end

  defp ended(%{port: port} = worker) do
    receive do
      {^port, {:exit_status, status}} -> raise Failed, "#{worker.script} ended with status #{status}."
    after
      0 -> raise Failed, "#{worker.script} is not running."
    end
  end

  @doc "The times in an answer."
  @spec nanoseconds(%{String.t() => String.t()}) :: [non_neg_integer()]
  def nanoseconds(%{"ns" => ns}), do: for(text <- String.split(ns), do: String.to_integer(text))

  @doc "Asks the worker to leave, and waits until it has."
  @spec stop(t()) :: :ok
  def stop(%{port: port} = worker) do
    if Port.info(port) do
      send_frame(worker, "op=quit")

      receive do
        {^port, {:exit_status, 0}} -> :ok
        {^port, {:exit_status, status}} -> raise Failed, "#{worker.script} ended with status #{status}."
      after
        10_000 -> raise Failed, "#{worker.script} was told to leave and did not."
      end
    end

    :ok
  end

  @doc "Waits until a worker that somebody has killed has ended."
  @spec await_killed(t()) :: :ok
  def await_killed(%{port: port} = worker) do
    receive do
      {^port, {:exit_status, 137}} -> :ok
      {^port, {:exit_status, status}} -> raise Failed, "#{worker.script} was killed and ended with status #{status}."
    after
      10_000 -> raise Failed, "#{worker.script} was killed and has not ended."
    end
  end

  @doc "SIGKILL, unless it has ended already."
  @spec kill(t()) :: :ok
  def kill(%{port: port, os_pid: os_pid}) do
    # While the Port is open the number is not given to another process.
    if Port.info(port), do: System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true)
    :ok
  end

  defp fields(text) do
    for line <- String.split(text, "\n", trim: true), into: %{} do
      [key, value] = String.split(line, "=", parts: 2)
      {key, value}
    end
  end

  defp port_environment, do: for({key, value} <- environment(), do: {to_charlist(key), to_charlist(value)})

  defp environment do
    path =
      [Path.join(@root, "priv/python"), Path.join(@root, "bench/support"), System.get_env("PYTHONPATH", "")]
      |> Enum.reject(&(&1 == ""))
      |> Enum.join(":")

    [{"PYTHONPATH", path}, {"PYTHONDONTWRITEBYTECODE", "1"}]
  end
end
