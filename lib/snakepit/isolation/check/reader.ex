defmodule Snakepit.Isolation.Check.Reader do
  @moduledoc false
  # Has a library's file read by `snakepit_worker check` (native/worker/src/check.rs). Not here: whoever made the file may have made
  # it to do harm, and what that does to a process with nothing in it, it does not do to the VM. What comes back is somebody's word as well: it is
  # bounded, names no new atom, and has to be what is expected.

  alias Snakepit.Isolation.{Error, Warden}

  @most_bytes 16_777_216
  # For one file longer than the process gives itself; for several, in ms too.
  @timeout 90_000
  @together 60_000

  @type report :: %{
          soname: String.t() | nil,
          nif_init: boolean(),
          entries: [map()],
          imports: [{String.t(), boolean(), :worker | :vm | :nobody | String.t()}],
          looked_up: [{String.t(), boolean()}],
          rustler: String.t() | nil,
          mentions: boolean(),
          needed: [{String.t(), String.t() | nil}]
        }

  @type read :: {:ok, report()} | {:error, atom(), String.t()}

  @stages [:not_found, :open, :not_a_library, :wrong_architecture]

  @doc "What a file is; the outer error is that it could not be asked."
  @spec read(Path.t(), String.t(), Path.t(), timeout :: pos_integer()) :: {:ok, read()} | {:error, Error.t()}
  def read(file, module, executable \\ Warden.executable(), timeout \\ @timeout) do
    task = Task.async(fn -> run(executable, ["check", file, module, "/proc/#{System.pid()}/exe"], timeout) end)

    case Task.await(task, :infinity) do
      {:ok, output} -> {:ok, decoded(output)}
      {:late, how} -> {:ok, {:error, :too_long, "reading it #{how}"}}
      {:ended, how} -> {:ok, {:error, :unreadable, "reading it #{how}: it is damaged, or made to do harm"}}
      {:error, _} = error -> error
    end
  end

  @doc "Several files, one after the other, and those for which there was no time."
  @spec read_all([Path.t()], String.t(), Path.t(), timeout :: pos_integer()) ::
          {:ok, [{Path.t(), read()}], [Path.t()]} | {:error, Error.t()}
  def read_all(files, module, executable \\ Warden.executable(), timeout \\ @together),
    do: read_all(files, [], module, executable, now() + timeout)

  defp read_all([], done, _module, _executable, _deadline), do: {:ok, Enum.reverse(done), []}

  defp read_all([file | rest] = left, done, module, executable, deadline) do
    with time when time > 0 <- deadline - now(),
         {:ok, read} <- read(file, module, executable, min(time, @timeout)) do
      # Told of one that was broken off: that the time was over, not that there was anything wrong with it.
      if match?({:error, :too_long, _}, read) and now() >= deadline,
        do: {:ok, Enum.reverse(done), left},
        else: read_all(rest, [{file, read} | done], module, executable, deadline)
    else
      {:error, error} -> {:error, error}
      _over -> {:ok, Enum.reverse(done), left}
    end
  end

  defp now, do: System.monotonic_time(:millisecond)

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  # Looked at first: OTP 25 loses a descriptor when it finds nothing there.
  defp run(executable, arguments, timeout) do
    if File.regular?(executable),
      do: start(executable, arguments, timeout),
      else: {:error, not_started(executable, :enoent)}
  end

  defp start(executable, arguments, timeout) do
    port = Port.open({:spawn_executable, executable}, [:binary, :exit_status, :hide, args: arguments])
    collect(port, [], 0, {now() + timeout, timeout})
  rescue
    error in ErlangError -> {:error, not_started(executable, error.original)}
  end

  defp not_started(executable, reason) do
    message = if is_atom(reason), do: reason |> :file.format_error() |> to_string(), else: inspect(reason)
    Error.new(:not_loaded, nil, nil, %{because: :executable, path: executable, message: message})
  end

  defp collect(port, output, bytes, {until, timeout} = deadline) do
    receive do
      {^port, {:data, data}} when bytes + byte_size(data) <= @most_bytes ->
        collect(port, [output, data], bytes + byte_size(data), deadline)

      # Its output is closed, and with that it ends.
      {^port, {:data, _}} ->
        Port.close(port)
        {:ended, "gave no end of output"}

      {^port, {:exit_status, 0}} ->
        {:ok, IO.iodata_to_binary(output)}

      {^port, {:exit_status, status}} when status > 128 ->
        {:ended, Error.end_in_words(Error.status({:signal, status - 128}))}

      {^port, {:exit_status, status}} ->
        {:ended, Error.end_in_words(Error.status({:exit, status}))}
    after
      max(until - now(), 0) ->
        # It ends with its input.
        Port.close(port)
        {:late, "took longer than #{div(timeout + 999, 1000)} s"}
    end
  end

  # ── What it says ──────────────────────────────────────────────────────────────────────────────────────────────

  # 80: compressed, and who knows how large.
  defp decoded(<<131, tag, _::binary>> = output) when tag != 80 do
    case :erlang.binary_to_term(output, [:safe]) do
      {:ok, report} -> if report?(report), do: {:ok, report}, else: nonsense()
      {:error, stage, message} when stage in @stages and is_binary(message) -> {:error, stage, message}
      _ -> nonsense()
    end
  rescue
    ArgumentError -> nonsense()
  end

  defp decoded(_output), do: nonsense()

  defp nonsense, do: {:error, :unreadable, "reading it gave nonsense: it is damaged, or made to do harm"}

  defp report?(
         %{
           soname: soname,
           nif_init: nif_init,
           entries: entries,
           imports: imports,
           looked_up: looked_up,
           rustler: rustler,
           mentions: mentions,
           needed: needed
         } = report
       ) do
    map_size(report) == 8 and text?(soname, :or_nil) and is_boolean(nif_init) and all?(entries, &entry?/1) and
      all?(imports, &import?/1) and all?(looked_up, &match?({name, here} when is_binary(name) and is_boolean(here), &1)) and
      text?(rustler, :or_nil) and is_boolean(mentions) and
      all?(needed, fn each -> match?({name, _} when is_binary(name), each) and text?(elem(each, 1), :or_nil) end)
  end

  defp report?(_other), do: false

  defp entry?(%{
         module: module,
         minor: minor,
         functions: functions,
         load: load,
         reload: reload,
         upgrade: upgrade,
         unload: unload,
         min_erts: min_erts
       }) do
    is_binary(module) and minor in 0..99 and all?(functions, &function?/1) and
      Enum.all?([load, reload, upgrade, unload], &is_boolean/1) and text?(min_erts, :or_nil)
  end

  defp entry?(_other), do: false

  defp function?({name, arity, dirty}), do: is_binary(name) and arity in 0..255 and dirty in 0..2
  defp function?(_other), do: false

  defp import?({name, weak, from}),
    do: is_binary(name) and is_boolean(weak) and (from in [:worker, :vm, :nobody] or is_binary(from))

  defp import?(_other), do: false

  defp text?(text, :or_nil), do: text == nil or is_binary(text)
  defp all?(list, each), do: is_list(list) and List.improper?(list) == false and Enum.all?(list, each)
end
