defmodule Bench.Peer do
  # The Rust program in bench/peers: what we compare with, timed by itself.

  @root Path.expand("../..", __DIR__)
  @deadline 300_000

  @target Path.join(@root, "_build/bench_peers")

  @doc "Builds it, if need be."
  @spec build() :: :ok
  def build do
    manifest = Path.join(@root, "bench/peers/Cargo.toml")
    arguments = ["build", "--release", "--locked", "--quiet", "--manifest-path", manifest]
    environment = [{"CARGO_TARGET_DIR", @target}]

    case System.cmd("cargo", arguments, env: environment, into: IO.stream(:stderr, :line)) do
      {_, 0} -> :ok
      {_, status} -> raise "cargo build of bench/peers ended with status #{status}; its own words are above"
    end
  end

  @spec start() :: port()
  def start do
    program = Path.join(@target, "release/bench_peers")
    Port.open({:spawn_executable, program}, [:binary, :exit_status, {:line, 1_048_576}])
  end

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
