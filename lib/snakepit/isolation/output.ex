defmodule Snakepit.Isolation.Output do
  @moduledoc false
  # What one worker writes to its standard output and error, to Logger, line by line. The worker is not trusted and may
  # write without end: what it writes is read at most @chunks times in @period (a library that writes more waits, as
  # it would for a slow terminal), of that at most @lines lines are logged, the rest is counted. What is not printable is logged escaped.

  require Logger

  alias Snakepit.Isolation.Telemetry
  alias Snakepit.Native

  @period 100
  @chunks 4
  @lines 20
  @longest_line 4_096

  @doc "A process that ends when the worker's output ends."
  @spec start_link(reference(), map()) :: pid()
  def start_link(native, about) do
    # about: id, position, level (or :discard), telemetry
    :proc_lib.spawn_link(fn ->
      Process.flag(:priority, :low)
      state = %{native: native, about: about, rest: "", chunks: @chunks, lines: @lines, dropped: 0, until: now()}
      wait(state)
    end)
  end

  @doc "The native worker is closed: nothing more comes, and nobody says so to whoever waits for it."
  @spec stop(pid()) :: :ok
  def stop(pid) do
    send(pid, {__MODULE__, :closed})
    :ok
  end

  defp wait(state) do
    case Native.worker_select(state.native, :output) do
      :ok -> listen(state)
      {:error, _} -> finish(state)
    end
  end

  defp listen(%{native: native} = state) do
    receive do
      {:select, ^native, _, :ready_input} -> state |> renew() |> read()
      {__MODULE__, :closed} -> finish(state)
    after
      # What was not logged is told when the period is over, whether more comes or not.
      if(state.dropped > 0, do: max(state.until - now(), 1), else: :infinity) -> state |> renew() |> listen()
    end
  end

  # At most so many reads in a period; then nothing is read until the next one.
  defp read(%{chunks: 0} = state) do
    receive do
    after
      max(state.until - now(), 1) -> state |> renew() |> read()
    end
  end

  defp read(state) do
    case Native.worker_output(state.native) do
      {:ok, bytes} -> read(%{split(state, bytes) | chunks: state.chunks - 1})
      :again -> wait(state)
      _closed -> finish(state)
    end
  end

  defp finish(state) do
    state = if state.rest == "", do: state, else: line(%{state | rest: ""}, state.rest)
    report(state)
  end

  defp renew(state) do
    if now() < state.until,
      do: state,
      else: %{report(state) | chunks: @chunks, lines: @lines, dropped: 0, until: now() + @period}
  end

  defp report(%{dropped: 0} = state), do: state

  defp report(%{about: about} = state) do
    log(about, "(#{state.dropped} lines more were not logged)")
    Telemetry.event(about, :output, %{dropped: state.dropped}, %{worker: about.position})
    state
  end

  defp split(state, bytes) do
    [first | more] = :binary.split(bytes, "\n", [:global])

    Enum.reduce(more, append(state, first), fn next, state ->
      state |> line(state.rest) |> Map.put(:rest, "") |> append(next)
    end)
  end

  # A line without an end is logged in parts.
  defp append(%{rest: rest} = state, part) when byte_size(rest) + byte_size(part) <= @longest_line,
    do: %{state | rest: rest <> part}

  defp append(%{rest: rest} = state, part) do
    {head, tail} = split_binary(part, @longest_line - byte_size(rest))
    state |> line(rest <> head) |> Map.put(:rest, "") |> append(tail)
  end

  defp split_binary(binary, at), do: {binary_part(binary, 0, at), binary_part(binary, at, byte_size(binary) - at)}

  defp line(%{lines: 0} = state, _line), do: %{state | dropped: state.dropped + 1}

  defp line(state, line) do
    log(state.about, printable(String.trim_trailing(line, "\r")))
    %{state | lines: state.lines - 1}
  end

  defp log(%{level: :discard}, _text), do: :ok

  defp log(about, text),
    do: Logger.log(about.level, "[#{about.id}/#{about.position}] #{text}", isolation: about.id)

  # An escape sequence would reach somebody's terminal. `binary_part` kept what was read from being copied; the log
  # keeps it for longer.
  defp printable(line) do
    if String.printable?(line),
      do: :binary.copy(line),
      else: inspect(line, binaries: :as_strings, printable_limit: :infinity)
  end

  defp now, do: System.monotonic_time(:millisecond)
end
