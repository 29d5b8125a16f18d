# OTP's own NIF test suite as the referee: each case in a VM of its own, with its libraries in that VM and isolated.
#
#     make conformance                       all cases; fails when one that README.md lists as passed does not pass
#     make conformance ARGS=--update         the same, and writes the table of README.md (of the chosen cases: their rows)
#     make conformance ARGS="select send"    these cases only
#
# Everything lies under _build/conformance; nothing of OTP's is kept elsewhere.

Code.require_file("suite.exs", __DIR__)
Code.require_file("table.exs", __DIR__)

defmodule Conformance do
  alias Conformance.{Suite, Table}

  @root Path.expand("../..", __DIR__)
  @directory Path.join(@root, "_build/conformance")
  @readme Path.join(__DIR__, "README.md")
  # Of one case. In the VM the longest takes a few seconds.
  @patience 120_000

  def main(arguments) do
    {options, names} = OptionParser.parse!(arguments, strict: [update: :boolean])
    Suite.make(@directory)
    cases = Suite.cases(@directory)
    before = Table.read(@readme)
    chosen = if names == [], do: cases, else: Enum.filter(cases, fn {_, name} -> to_string(name) in names end)

    rows =
      for {{_, name} = test, number} <- Enum.with_index(chosen, 1) do
        IO.write(:stderr, "#{number}/#{length(chosen)} #{name} ")
        row = %{name: Table.name(test), vm: reference(test), isolated: run("isolated", test)}
        IO.puts(:stderr, Table.word(row.isolated))
        row
      end

    IO.puts(Table.text(rows, before))
    if options[:update], do: Table.write(@readme, Enum.map(cases, &Table.name/1), rows, before)
    exit_status(rows, before)
  end

  # A case that the VM does not pass here says nothing about isolation.
  defp exit_status(rows, before) do
    listed? = fn row -> match?(%{isolated: "passed"}, before[row.name]) end
    worse = for row <- rows, listed?.(row), row.vm == :passed, row.isolated != :passed, do: row.name
    passed = Enum.count(rows, &(&1.isolated == :passed))
    IO.puts("#{passed} of #{length(rows)} passed isolated, #{Enum.count(rows, &(&1.vm == :passed))} in the VM.")

    case worse do
      [] ->
        0

      _ ->
        IO.puts("Not passed, though README.md says so: #{Enum.join(worse, ", ")}")
        1
    end
  end

  # What the VM has passed once is not asked again: it is the same suite and the same VM.
  defp reference(test) do
    file = Path.join([@directory, "vm", "passed-#{Table.name(test)}"])

    with false <- File.exists?(file), :passed <- run("vm", test) do
      File.touch!(file)
      :passed
    else
      true -> :passed
      other -> other
    end
  end

  # ── One case ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp run(mode, {group, name}) do
    answer = Path.join(@directory, "answer-#{System.pid()}")
    File.rm(answer)
    log = Path.join([@directory, mode, "#{name}#{group && "-#{group}"}.log"])
    paths = [Suite.ebin(@directory, mode), Path.dirname(to_string(:code.which(Snakepit.Isolation)))]
    arguments = Enum.flat_map(paths, &["-pa", &1]) ++ [Path.join(__DIR__, "case.exs")]
    arguments = arguments ++ [mode, @directory, to_string(group || "-"), to_string(name), answer]

    # exec, so that the process id is the VM's.
    command = ~s(exec elixir "$@" > "$LOG" 2>&1 < /dev/null)

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :exit_status,
        cd: @directory,
        args: ["-c", command, "sh" | arguments],
        env: [
          {~c"ERL_LIBS", to_charlist(Suite.libraries(@directory))},
          {~c"ERL_CRASH_DUMP_SECONDS", ~c"0"},
          {~c"LOG", to_charlist(log)}
        ]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    status = await(port, os_pid)

    result =
      case {status, File.read(answer)} do
        {:timeout, _} -> :timeout
        {_, {:ok, bytes}} -> :erlang.binary_to_term(bytes)
        {status, _} -> {:ended, status}
      end

    File.rm(answer)
    result
  end

  defp await(port, os_pid) do
    receive do
      {^port, {:exit_status, status}} -> status
    after
      @patience ->
        System.cmd("kill", ["-9", "#{os_pid}"])

        receive do
          {^port, {:exit_status, _}} -> :timeout
        end
    end
  end
end

System.halt(Conformance.main(System.argv()))
