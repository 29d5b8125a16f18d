defmodule Demo.Isolated do
  # Part two: Debian's jiffy, in use in this VM, unchanged; one line puts its library into a process of its own, which is
  # then shot in the middle of a call.

  import Demo.Tell

  alias Bench.{Json, Memory, Text}
  alias Snakepit.Isolation
  alias Snakepit.Isolation.Error

  @decode [:return_maps]
  @no_json "[1, 2, oops]"
  @checked 5
  # So that a call is long enough to be shot in the middle of.
  @times 16
  @into_the_call 20

  def main do
    heading("snakepit_shm: somebody's native library in a process of its own")
    before = leftovers()
    document = Json.document()
    {term, raises} = in_the_vm(document)
    isolate()
    convert(document, term, raises)
    for signal <- [:SIGKILL, :SIGSEGV], do: shoot(document, term, signal)
    nothing_left(before)
  end

  # ── Somebody's module ─────────────────────────────────────────────────────────────────────────────────────────

  defp in_the_vm(document) do
    title("jiffy as everybody has it")
    say("library", Application.app_dir(:jiffy, "priv/jiffy") <> ".so, as Debian has it")
    say("document", "the languages of the world, ISO 639-3 (from pycountry): #{Text.bytes(byte_size(document))}")

    {took, term} = timed(fn -> :jiffy.decode(document, @decode) end)
    languages = Text.count(length(term["639-3"]))
    say("decode", "#{Text.time(took)}, #{Text.rate(byte_size(document), took)}: #{languages} languages as Elixir maps")

    check(mapped?(System.pid()), "jiffy.so is not mapped into the VM.")
    say("the VM", "process #{System.pid()}; jiffy.so is in its memory, and a crash in it would be the VM's")
    {term, raised(@no_json)}
  end

  defp isolate do
    title("One line: Snakepit.Isolation.isolate(:jiffy, sandbox: :none)")
    # Its sandbox is a chapter of its own: `sandbox: :none` says that this one has none.
    {took, :ok} = timed(fn -> Isolation.isolate(:jiffy, sandbox: :none) end)
    # The VM keeps it as long as objects of it have not been collected.
    :erlang.garbage_collect()
    await("jiffy.so in the VM's memory", fn -> not mapped?(System.pid()) end)
    check(mapped?(os_pid()), "jiffy.so is not mapped into process #{os_pid()}.")
    say("isolate", "#{Text.time(took)}: the module is rewritten, process #{os_pid()} has loaded the library")
    {:ok, about} = Isolation.info(:jiffy)
    say("functions", Enum.map_join(about.functions, ", ", fn {name, arity} -> "#{name}/#{arity}" end))

    say(
      "the VM",
      "jiffy.so is no longer in its memory (/proc/#{System.pid()}/maps), but in that of process #{os_pid()}"
    )
  end

  defp convert(document, term, raises) do
    title("It works as before")
    {took, again} = timed(fn -> :jiffy.decode(document, @decode) end)
    check(again == term, "What is decoded is not what it was in the VM.")
    say("decode", "#{Text.time(took)}, #{Text.rate(byte_size(document), took)}: the same")

    {took, text} = timed(fn -> term |> :jiffy.encode() |> IO.iodata_to_binary() end)
    say("encode", "#{Text.time(took)}, #{Text.rate(byte_size(text), took)}: #{Text.bytes(byte_size(text))}")
    check(:jiffy.decode(text, @decode) == term, "What was encoded and decoded again is not what it was.")

    languages = term["639-3"]
    step = div(length(languages) - 1, @checked - 1)
    indices = for i <- 0..(@checked - 1), do: i * step
    python = Json.python(indices)
    names = for index <- indices, do: languages |> Enum.at(index) |> Map.fetch!("name")
    check(python == %{count: length(languages), names: names}, "Python's decoder does not find the same.")
    say("checked", "decoded again it is the same; Python's decoder finds as many, and #{Enum.join(names, ", ")}")

    {exception, function} = raised(@no_json)
    check({exception, function} == raises, "It raises #{inspect(exception)}, in #{function}.")
    say("raises", "#{inspect(exception)} in #{function} for #{@no_json}, as in the VM")
  end

  # ── Shot ──────────────────────────────────────────────────────────────────────────────────────────────────────

  defp shoot(document, term, signal) do
    title("Its process gets a #{signal} in the middle of a call")
    vm = System.pid()
    shot = os_pid()
    large = IO.iodata_to_binary(["[", Enum.intersperse(List.duplicate(document, @times), ","), "]"])
    say("document", "#{Text.bytes(byte_size(large))}, the same #{@times} times: process #{shot} is at work on it")

    call = Task.async(fn -> {raised(large), now()} end)
    # One that had not begun would be executed by the next process.
    await("a call that has not begun", fn -> match?({:ok, %{workers: [%{executing: 1}]}}, Isolation.info(:jiffy)) end)
    check(Task.yield(call, @into_the_call) == nil, "The call was over before it could be shot.")
    "SIG" <> name = to_string(signal)
    start = now()
    {_, 0} = System.cmd("kill", ["-#{name}", "#{shot}"])
    {{error, function}, told} = Task.await(call)

    check(match?(%Error{reason: :crashed, signal: ^signal}, error), "The caller gets #{inspect(error, limit: 3)}.")
    say("kill", "after #{@into_the_call} ms; #{Text.time(told - start)} later, the command's own time included:")
    say("raised", "Snakepit.Isolation.Error, #{inspect(error.reason)}, in #{function}")
    say("", Exception.message(error))

    check(:jiffy.decode(document, @decode) == term, "The next call's answer is another one.")
    served = now()
    next = os_pid()
    check(next != shot, "Process #{shot} is still there.")
    say("next call", "answered as before, #{Text.time(served - told)} after the error, by process #{next}")

    check(System.pid() == vm and os_process?(vm), "The VM is another one.")
    say("the VM", "still process #{vm}, up for #{Text.time(uptime())}")
  end

  # What a call raises, and in which function.
  defp raised(document) do
    :jiffy.decode(document, @decode)
  catch
    :error, exception ->
      [{module, function, arguments, _} | _] = __STACKTRACE__
      arity = if is_list(arguments), do: length(arguments), else: arguments
      {exception, "#{inspect(module)}.#{function}/#{arity}"}
  end

  # ── Nothing is left ───────────────────────────────────────────────────────────────────────────────────────────

  defp nothing_left(before) do
    title("Nothing is left behind")
    last = os_pid()
    {took, :ok} = timed(fn -> Isolation.restore(:jiffy) end)
    check(mapped?(System.pid()), "jiffy.so is not back in the VM.")
    say("restore", "#{Text.time(took)}: jiffy is as it was, its library in the VM again")
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

  defp os_pid do
    {:ok, %{workers: [%{os_pid: os_pid}]}} = Isolation.info(:jiffy)
    os_pid
  end

  defp os_process?(os_pid), do: File.exists?("/proc/#{os_pid}")
  defp mapped?(os_pid), do: File.read!("/proc/#{os_pid}/maps") =~ "/jiffy.so"

  defp uptime do
    {milliseconds, _} = :erlang.statistics(:wall_clock)
    milliseconds * 1_000_000
  end
end
