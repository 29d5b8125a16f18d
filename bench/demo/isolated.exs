defmodule Demo.Isolated do
  # Part two: Debian's jiffy, unchanged, in a process of its own; that process is shot in the middle of a call.

  import Demo.Tell

  alias Bench.{Json, Memory, Text}
  alias Snakepit.Isolation
  alias Snakepit.Isolation.Error

  @library {:jiffy, "priv/jiffy"}
  @decode [:return_maps]
  @checked 5
  # So that a call is long enough to be shot in the middle of.
  @times 16
  @into_the_call 20

  def main do
    heading("snakepit_shm: somebody's native library in a process of its own")
    before = leftovers()
    lib = load()
    document = Json.document()
    languages = convert(lib, document)
    for signal <- [:SIGKILL, :SIGSEGV], do: shoot(lib, document, languages, signal)
    nothing_left(lib, before)
  end

  # ── Somebody's library ────────────────────────────────────────────────────────────────────────────────────────

  defp load do
    title("jiffy is loaded into another process")
    say("library", Application.app_dir(:jiffy, "priv/jiffy") <> ".so, as Debian has it")

    # Its sandbox is a chapter of its own: `sandbox: :none` says that this one has none.
    {took, {:ok, lib}} = timed(fn -> Isolation.load(@library, sandbox: :none, workers: 1) end)
    {:ok, about} = Isolation.info(lib)
    say("load", "#{Text.time(took)}: process #{os_pid(lib)} is started and has loaded it")
    say("functions", Enum.map_join(about.functions, ", ", fn {name, arity} -> "#{name}/#{arity}" end))
    check(not mapped?(), "jiffy.so is mapped into the VM.")
    say("the VM", "process #{System.pid()}; jiffy.so is not in its memory")
    lib
  end

  defp convert(lib, document) do
    title("A real JSON document through it")
    say("document", "the languages of the world, ISO 639-3 (from pycountry): #{Text.bytes(byte_size(document))}")

    {took, {:ok, term}} = timed(fn -> Isolation.call(lib, :nif_decode_init, [document, @decode]) end)
    languages = term["639-3"]
    rate = Text.rate(byte_size(document), took)
    say("decode", "#{Text.time(took)}, #{rate}: #{Text.count(length(languages))} languages as Elixir maps")

    {took, {:ok, reversed}} = timed(fn -> Isolation.call(lib, :nif_encode_init, [term, []]) end)
    text = reversed |> List.wrap() |> Enum.reverse() |> IO.iodata_to_binary()
    say("encode", "#{Text.time(took)}, #{Text.rate(byte_size(text), took)}: #{Text.bytes(byte_size(text))}")

    {:ok, again} = Isolation.call(lib, :nif_decode_init, [text, @decode])
    check(again == term, "What was encoded and decoded again is not what it was.")

    step = div(length(languages) - 1, @checked - 1)
    indices = for i <- 0..(@checked - 1), do: i * step
    python = Json.python(indices)
    names = for index <- indices, do: languages |> Enum.at(index) |> Map.fetch!("name")
    check(python == %{count: length(languages), names: names}, "Python's decoder does not find the same.")
    say("checked", "decoded again it is the same; Python's decoder finds as many, and #{Enum.join(names, ", ")}")
    languages
  end

  # ── Shot ──────────────────────────────────────────────────────────────────────────────────────────────────────

  defp shoot(lib, document, languages, signal) do
    title("Its process gets a #{signal} in the middle of a call")
    vm = System.pid()
    shot = os_pid(lib)
    large = IO.iodata_to_binary(["[", Enum.intersperse(List.duplicate(document, @times), ","), "]"])
    say("document", "#{Text.bytes(byte_size(large))}, the same #{@times} times: process #{shot} is at work on it")

    call = Task.async(fn -> {Isolation.call(lib, :nif_decode_init, [large, @decode]), now()} end)
    # One that had not begun would be executed by the next process.
    await("a call that has not begun", fn -> match?({:ok, %{workers: [%{executing: 1}]}}, Isolation.info(lib)) end)
    check(Task.yield(call, @into_the_call) == nil, "The call was over before it could be shot.")
    "SIG" <> name = to_string(signal)
    start = now()
    {_, 0} = System.cmd("kill", ["-#{name}", "#{shot}"])
    {result, told} = Task.await(call)

    check(match?({:error, %Error{reason: :crashed}}, result), "The call's answer is #{inspect(result, limit: 3)}.")
    {:error, error} = result
    check(error.signal == signal, "The error has the signal #{inspect(error.signal)}.")
    say("kill", "after #{@into_the_call} ms; #{Text.time(told - start)} later, the command's own time included:")
    say("error", inspect(error.reason) <> ", " <> Exception.message(error))

    {:ok, term} = Isolation.call(lib, :nif_decode_init, [document, @decode])
    served = now()
    check(term["639-3"] == languages, "The next call's answer is another one.")
    next = os_pid(lib)
    check(next != shot, "Process #{shot} is still there.")
    say("next call", "answered as before, #{Text.time(served - told)} after the error, by process #{next}")

    check(System.pid() == vm and os_process?(vm), "The VM is another one.")
    say("the VM", "still process #{vm}, up for #{Text.time(uptime())}")
  end

  # ── Nothing is left ───────────────────────────────────────────────────────────────────────────────────────────

  defp nothing_left(lib, before) do
    title("Nothing is left behind")
    last = os_pid(lib)
    {took, :ok} = timed(fn -> Isolation.unload(lib) end)
    say("unload", Text.time(took))
    await("process #{last}", fn -> not os_process?(last) end)
    :erlang.garbage_collect()
    await("what the demo has made", fn -> leftovers() == before end, fn -> inspect(leftovers()) end)
    say("workers", "none; the last was process #{last}")
    say("in the VM", "#{before.mappings} mappings and #{before.descriptors} descriptors of rings")
  end

  defp leftovers do
    Map.put(Memory.regions_of_vm(), :libraries, Isolation.list())
  end

  # ── Processes ─────────────────────────────────────────────────────────────────────────────────────────────────

  defp os_pid(lib) do
    {:ok, %{workers: [%{os_pid: os_pid}]}} = Isolation.info(lib)
    os_pid
  end

  defp os_process?(os_pid), do: File.exists?("/proc/#{os_pid}")
  defp mapped?, do: File.read!("/proc/#{System.pid()}/maps") =~ "/jiffy.so"

  defp uptime do
    {milliseconds, _} = :erlang.statistics(:wall_clock)
    milliseconds * 1_000_000
  end
end
