# Measures what bench/README.md says. `make bench` runs this; `mix run bench/run.exs --help` tells the options.

Code.require_file("../test/support/native_fixture.ex", __DIR__)

for file <- ~w(text python memory regions measure report peer isolated ping hung json before),
    do: Code.require_file("support/#{file}.exs", __DIR__)

rows =
  ~w(allocate record copy view array holder foreign) ++
    ~w(isolated_add isolated_asleep isolated_payload isolated_rate isolated_send isolated_life isolated_jiffy isolated_busy) ++
    ~w(isolated_crypto isolated_terms)

for file <- rows, do: Code.require_file("rows/#{file}.exs", __DIR__)

defmodule Bench.Run do
  alias Bench.{Before, Memory, Peer, Python, Regions, Report, Rows}
  alias Snakepit.NativeFixture

  @regions [Rows.Allocate, Rows.Record, Rows.Copy, Rows.View, Rows.Array, Rows.Holder, Rows.Foreign]
  @calls [Rows.IsolatedAdd, Rows.IsolatedAsleep, Rows.IsolatedPayload, Rows.IsolatedRate, Rows.IsolatedSend]
  @workers [Rows.IsolatedLife, Rows.IsolatedJiffy, Rows.IsolatedBusy]
  @libraries [Rows.IsolatedCrypto, Rows.IsolatedTerms]
  @groups @regions ++ @calls ++ @workers ++ @libraries
  @gib 1024 * 1024 * 1024
  @open_files 12_000

  @help """
  mix run bench/run.exs [options]

    --quick          fewer rounds and runs: shows that everything works, and no more
    --only PATTERN   only groups whose title has it: #{Enum.map_join(@groups, ", ", & &1.title())}
    --before FILE    also prints the rows of an earlier run, a file of bench/results, beside those of this one
    --help           this
  """

  def main(arguments) do
    case OptionParser.parse(arguments, strict: [quick: :boolean, only: :string, before: :string, help: :boolean]) do
      {[help: true], [], []} ->
        IO.puts(@help)

      {options, [], []} ->
        if enough_files?(), do: measure(Map.new(options)), else: again(arguments)

      {_, rest, bad} ->
        IO.puts(:stderr, "Not understood: #{Enum.join(rest ++ Enum.map(bad, &elem(&1, 0)), " ")}\n\n#{@help}")
        System.halt(2)
    end
  end

  # ── Limits ────────────────────────────────────────────────────────────────────────────────────────────────────

  # 10,000 regions need as many descriptors. The limit cannot be raised for a VM that runs: it is read at the start.
  defp enough_files?, do: System.get_env("BENCH_FILES_RAISED") != nil or open_files() >= @open_files

  defp open_files do
    [_, soft] = Regex.run(~r/^Max open files\s+(\S+)/m, File.read!("/proc/self/limits"))
    if soft == "unlimited", do: @open_files, else: String.to_integer(soft)
  end

  defp again(arguments) do
    command =
      ["elixir"] ++
        Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)]) ++ [Path.join(__DIR__, "run.exs") | arguments]

    raise_limit = "ulimit -n #{@open_files} 2>/dev/null || ulimit -n $(ulimit -Hn); exec \"$@\""
    environment = [{"BENCH_FILES_RAISED", "1"}]

    {_, status} =
      System.cmd("sh", ["-c", raise_limit, "sh" | command], env: environment, into: IO.stream(:stdio, :line))

    System.halt(status)
  end

  # ── Measuring ─────────────────────────────────────────────────────────────────────────────────────────────────

  defp measure(options) do
    groups = Enum.filter(@groups, &String.contains?(String.downcase(&1.title()), String.downcase(options[:only] || "")))
    if groups == [], do: raise(Python.Failed, "No group has #{inspect(options.only)} in its title.\n\n#{@help}")

    before = if options[:before], do: Before.read!(options.before)
    # Workers are killed and hang on purpose.
    Logger.configure(level: :error)
    Python.require!(["numpy", "pycountry"])
    Peer.build()
    {:ok, instance} = Regions.start()
    context = context(options)
    Report.header()

    rows = Enum.flat_map(groups, &run(&1, context))
    Supervisor.stop(instance)
    NativeFixture.remove()
    Report.summary(rows)
    if before, do: Before.print(before, rows)
    path = Report.save(rows, machine(options), Path.join(__DIR__, "results"))
    IO.puts("Written to #{Path.relative_to_cwd(path)}.")
  end

  # A process for each: its regions and garbage end with it.
  defp run(group, context) do
    Report.group(group.title())
    Task.await(Task.async(fn -> group.run(%{context | peer: Peer.start()}) end), :infinity)
  end

  defp context(options) do
    quick? = options[:quick] || false
    # The largest rows have the data up to three times: in Elixir, in a region, in Python or a file.
    largest = if Memory.available() >= 5 * @gib and not quick?, do: @gib, else: 64 * 1024 * 1024

    if largest < @gib and not quick?,
      do: Report.notice("less than 5 GiB of memory available: rows of 1 GiB are left out")

    %{
      peer: nil,
      rounds: if(quick?, do: 3, else: 11),
      runs: if(quick?, do: &max(div(&1, 10), 1), else: & &1),
      largest: largest,
      open_files: open_files(),
      worker: Path.join(__DIR__, "peers/worker.py"),
      holder: Path.join(__DIR__, "support/holder.py")
    }
  end

  defp machine(options) do
    %{
      kernel: "/proc/sys/kernel/osrelease" |> File.read!() |> String.trim(),
      processors: System.schedulers_online(),
      otp: System.otp_release(),
      elixir: System.version(),
      quick: options[:quick] || false,
      at: DateTime.to_iso8601(DateTime.utc_now())
    }
  end
end

try do
  Bench.Run.main(System.argv())
  # In order: its socket and key go with the instance.
  Logger.configure(level: :error)
  Application.stop(:snakepit_shm)
rescue
  error in [Bench.Python.Failed, Snakepit.SharedMemory.Error, Snakepit.Isolation.Error] ->
    IO.puts(:stderr, "\nThe benchmark failed: #{Exception.message(error)}")
    System.halt(1)
end
