defmodule Snakepit.Isolation.LoadTest do
  # Many documents through an isolated library, from many processes: the same results, and no memory that stays.
  use Snakepit.IsolationCase, async: false

  @moduletag timeout: 300_000

  @processes 8
  @documents 10_000
  @rounds 10
  # One document that is leaked with each of the calls is three times as much between the rounds that are compared.
  @tolerance 8 * 1024 * 1024

  case :code.lib_dir(:jiffy) do
    {:error, _} -> @moduletag skip: "there is no jiffy (Debian: erlang-jiffy)"
    _ -> :ok
  end

  # Of about one kilobyte.
  defp document(n) do
    item = fn i ->
      %{"id" => n * 100 + i, "name" => "number #{i}", "ratio" => i / 7, "tags" => ["a", "b\n", nil, i > 3]}
    end

    IO.iodata_to_binary(:jiffy.encode(%{"n" => n, "items" => for(i <- 1..14, do: item.(i)), "text" => "日本 \"é\""}))
  end

  # Bytes of memory that a process has, by the kernel's count.
  defp resident(os_pid) do
    [_, pages | _] = "/proc/#{os_pid}/statm" |> File.read!() |> String.split()
    4096 * String.to_integer(pages)
  end

  test "8 processes, 10,000 documents each, through jiffy" do
    {:ok, library} = Isolation.load({:jiffy, "priv/jiffy"}, sandbox: :none)
    os_pid = os_pid(library)
    documents = for n <- 1..50, do: document(n)
    assert Enum.all?(documents, &(byte_size(&1) in 800..1_600))

    expected =
      for document <- documents do
        term = :jiffy.decode(document, [:return_maps])
        {document, term, IO.iodata_to_binary(:jiffy.encode(term))}
      end

    # After each round everybody waits, so that what is looked at is what stays.
    figures =
      for _ <- 1..@rounds do
        callers = for _ <- 1..@processes, do: Task.async(fn -> calls(library, expected, div(@documents, @rounds)) end)
        for caller <- callers, do: assert(Task.await(caller, 120_000) == :ok)
        for pid <- Process.list(), do: :erlang.garbage_collect(pid)
        %{worker: resident(os_pid), vm: resident(System.pid()), heaps: :erlang.memory(:total)}
      end

    assert os_pid(library) == os_pid
    # The last objects end after the last calls, and are counted by the next heartbeat.
    eventually(fn -> match?(%{in_flight: 0, workers: [%{restarts: 0, objects: 0}]}, info!(library)) end)
    for what <- [:worker, :vm, :heaps], do: assert_flat(what, Enum.map(figures, & &1[what]))
  end

  defp calls(library, expected, count) do
    expected
    |> Stream.cycle()
    |> Stream.take(count)
    |> Enum.each(fn {document, term, text} ->
      {:ok, ^term} = Isolation.call(library, :nif_decode_init, [document, [:return_maps]], timeout: 60_000)
      {:ok, reversed} = Isolation.call(library, :nif_encode_init, [term, []], timeout: 60_000)
      ^text = reversed |> List.wrap() |> Enum.reverse() |> IO.iodata_to_binary()
    end)
  end

  # The least of the first rounds of the second half against the least of its last ones: what is leaked is always there.
  defp assert_flat(what, figures) do
    second_half = Enum.drop(figures, div(@rounds, 2))
    [before, later] = for two <- [Enum.take(second_half, 2), Enum.take(second_half, -2)], do: Enum.min(two)
    assert later - before < @tolerance, "#{what} grows: #{inspect(figures)}"
  end
end
