defmodule Demo.Failed do
  defexception [:message]
end

defmodule Demo.Tell do
  # What both parts of the demo say, check and wait for.

  @deadline 10_000

  def heading(text), do: IO.puts("\n#{text}")
  def title(text), do: IO.puts("\n#{text}")
  def say(what, text), do: IO.puts("  #{String.pad_trailing(what, 11)} #{text}")

  def check(true, _message), do: :ok
  def check(false, message), do: raise(Demo.Failed, message)

  def now, do: System.monotonic_time(:nanosecond)

  def timed(work) do
    start = now()
    result = work.()
    {now() - start, result}
  end

  # What ends elsewhere (a killed process, the reaper's thread) is looked for until it has.
  def await(what, done?, state \\ fn -> "" end, deadline \\ now() + @deadline * 1_000_000) do
    cond do
      done?.() ->
        :ok

      now() > deadline ->
        raise Demo.Failed, "After #{div(@deadline, 1000)} s there still is #{what}. #{state.()}"

      true ->
        :erlang.yield()
        await(what, done?, state, deadline)
    end
  end
end
