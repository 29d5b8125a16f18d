defmodule Snakepit.Isolation.OutputTest do
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureLog

  defp until(library, text, fun) do
    test = self()

    log =
      capture_log(fn ->
        handler = :"output_#{System.unique_integer([:positive])}"
        :ok = :logger.add_handler(handler, __MODULE__.Handler, %{config: %{to: test, text: text}})
        fun.()
        assert_receive {:logged, ^text}, 10_000
        :logger.remove_handler(handler)
      end)

    assert log =~ "[#{library.id}/1]"
    log
  end

  defmodule Handler do
    def log(%{msg: message}, %{config: %{to: to, text: text}}) do
      if inspect(message) =~ text, do: send(to, {:logged, text})
    end
  end

  test "standard output and error reach Logger, line by line" do
    library = load!(:adder)

    log =
      until(library, "to the error", fn ->
        {:ok, _} = Isolation.call(library, :print, [1, "one\ntwo\n"])
        {:ok, _} = Isolation.call(library, :print, [2, "to the error\n"])
      end)

    for line <- ["one", "two", "to the error"], do: assert(log =~ "[#{library.id}/1] #{line}\n")
  end

  test "the last words of a worker that ends, too" do
    library = load!(:adder)

    until(library, "last words", fn ->
      {:ok, _} = Isolation.call(library, :print, [2, "last words"])
      signal(os_pid(library))
    end)
  end

  test "what is not printable is escaped" do
    library = load!(:adder)
    log = until(library, "red", fn -> Isolation.call(library, :print, [1, <<27, "[31mred", 255, "\n">>]) end)
    refute log =~ <<27, "[31mred">>
    assert log =~ "\\e[31mred"
  end

  test "a flood is counted, not logged, and the library goes on" do
    library = load!(:adder)

    log =
      until(library, "lines more were not logged", fn ->
        {:ok, _} = Isolation.call(library, :print, [1, String.duplicate("flood\n", 5_000)], timeout: 60_000)
      end)

    assert length(String.split(log, "flood")) < 1_000
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
  end

  test "output: :discard logs nothing" do
    library = load!(:adder, output: :discard)
    log = capture_log(fn -> {:ok, _} = Isolation.call(library, :print, [1, "quiet\n"]) end)
    refute log =~ "quiet"
  end
end
