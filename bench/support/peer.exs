defmodule Bench.Peer do
  # The Rust program in bench/peers: what we compare with, timed by itself. And those in C, which are behind Ports.

  @root Path.expand("../..", __DIR__)
  @deadline 300_000

  @target Path.join(@root, "_build/bench_peers")
  @espresso Path.join(@root, "bench/peers/espresso")
  @espresso_target Path.join(@root, "_build/bench_espresso")
  @echo Path.join(@target, "port_echo")
  @send Path.join(@target, "port_send")

  @doc "Builds it, if need be."
  @spec build() :: :ok
  def build do
    cargo!("bench/peers", @target, [])

    for program <- [@echo, @send] do
      source = Path.join(@root, "bench/peers/#{Path.basename(program)}.c")
      run!(System.get_env("CC", "cc"), ["-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-o", program, source], [])
    end

    :ok
  end

  defp cargo!(crate, target, environment) do
    manifest = Path.join([@root, crate, "Cargo.toml"])
    arguments = ["build", "--release", "--locked", "--quiet", "--manifest-path", manifest]
    run!("cargo", arguments, [{"CARGO_TARGET_DIR", target} | environment])
  end

  defp run!(command, arguments, environment) do
    case System.cmd(command, arguments, env: environment, into: IO.stream(:stderr, :line)) do
      {_, 0} -> :ok
      {_, status} -> raise "#{command} ended with status #{status} in bench/peers; its own words are above"
    end
  end

  @doc "A Port that gives back what it gets, written in C."
  @spec echo() :: port()
  def echo, do: Port.open({:spawn_executable, @echo}, [:binary, :exit_status, {:packet, 4}])

  @doc "There and back."
  @spec echo(port(), iodata()) :: binary()
  def echo(port, data) do
    Port.command(port, data)

    receive do
      {^port, {:data, data}} -> data
      {^port, {:exit_status, status}} -> raise "port_echo ended with status #{status}"
    after
      @deadline -> raise "port_echo does not answer"
    end
  end

  @doc "A Port that sends by itself when it is asked to, written in C."
  @spec sender() :: port()
  def sender, do: Port.open({:spawn_executable, @send}, [:binary, :exit_status, {:packet, 4}])

  @spec start() :: port()
  def start do
    program = Path.join(@target, "release/bench_peers")
    Port.open({:spawn_executable, program}, [:binary, :exit_status, {:line, 1_048_576}])
  end

  @doc "The crate espresso-logic 2.6.1, built if need be, which runs each call in a process. Commands as for the others."
  @spec espresso() :: port()
  def espresso do
    # libclang reads C for bindgen; the headers of a compiler, which Debian has in another package, are the C compiler's here.
    {headers, 0} = System.cmd(System.get_env("CC", "cc"), ["-print-file-name=include"])
    arguments = System.get_env("BINDGEN_EXTRA_CLANG_ARGS", "-I" <> String.trim(headers))
    cargo!("bench/peers/espresso", @espresso_target, [{"BINDGEN_EXTRA_CLANG_ARGS", arguments}])
    program = Path.join(@espresso_target, "release/bench_espresso")
    Port.open({:spawn_executable, program}, [:binary, :exit_status, {:line, 1_048_576}])
  end

  @doc "Its sources, with its examples."
  @spec espresso_source() :: Path.t()
  def espresso_source, do: Snakepit.EspressoFixture.source(@espresso, "espresso-logic")

  @doc "A command and its numbers, nanoseconds."
  @spec run(port(), [term()]) :: [non_neg_integer()]
  def run(port, words) do
    Port.command(port, Enum.join(words, " ") <> "\n")
    numbers(port)
  end

  @doc "The numbers of the command that has been sent."
  @spec numbers(port()) :: [non_neg_integer()]
  def numbers(port) do
    receive do
      {^port, {:data, {:eol, "ok" <> numbers}}} -> for text <- String.split(numbers), do: String.to_integer(text)
      {^port, {:data, {:eol, "error " <> error}}} -> raise "bench_peers: #{error}"
      {^port, {:exit_status, status}} -> raise "bench_peers ended with status #{status}"
    after
      @deadline -> raise "bench_peers does not answer"
    end
  end

  @spec stop(port()) :: true
  def stop(port), do: Port.close(port)
end
