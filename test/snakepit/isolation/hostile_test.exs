defmodule Snakepit.Isolation.HostileTest do
  # A library that lies and writes wherever it can. The VM answers with errors, replaces it, and nobody else notices.
  use Snakepit.IsolationCase, async: false

  @tiny 0
  @slot 1
  @spill 2

  # What a term is in the external format, without the version: what a worker could write into an answer.
  defp external(term) do
    <<131, bytes::binary>> = :erlang.term_to_binary(term)
    bytes
  end

  # The answer to a call is these bytes: they are there while the function still runs, and the caller looks then. (If it
  # has looked too early, it gets the function's own answer, and does it again.)
  defp answer(library, bytes, options \\ [], tries \\ 100) do
    place = options[:place] || if(byte_size(bytes) <= 48, do: @tiny, else: @slot)
    arguments = [bytes, options[:status] || 0, options[:length] || byte_size(bytes), place, 50]
    call = Isolation.call_async(library, :answer, arguments, timeout: 20_000)
    # Or over already, on a machine that is busy.
    eventually(fn -> match?(%{workers: [%{executing: 1}]}, info!(library)) or info!(library).in_flight == 0 end)

    case Isolation.await(call) do
      {:ok, :ok} when tries > 0 -> answer(library, bytes, options, tries - 1)
      result -> result
    end
  end

  defp atom(text), do: <<119, byte_size(text), text::binary>>

  # A reference, port and fun that the worker has never been given.
  defp names do
    [port | _] = Port.list()

    %{
      "the pid of init" => external(Process.whereis(:init)),
      "the pid of rex, or of the kernel's supervisor" =>
        external(Process.whereis(:rex) || Process.whereis(:kernel_sup)),
      "an old pid" => <<103, atom("nonode@nohost")::binary, 1::32, 0::32, 0>>,
      "a new pid" => <<88, atom("nonode@nohost")::binary, 1::32, 0::32, 0::32>>,
      "a reference" => external(make_ref()),
      "the reference of a table" => external(:ets.new(:table, [])),
      "a port" => external(port),
      "a fun" => external(fn -> :os.cmd(~c"true") end),
      "a fun of a module" => external(&:os.cmd/1),
      "a fun, inside" => <<104, 2, 97, 1>> <> external(&:erlang.halt/0),
      "a name that it was not given" => <<1, 0, 12_345::32, 0::32, 0::32>>,
      "the first name" => <<1, 0, 0::32, 99::32, 0::32>>,
      "a reference by number" => <<1, 2, 0::32, 0::32, 0::32>>,
      "a fun by number" => <<1, 3, 7::32, 0::32, 0::32>>,
      "a name with a key" => <<1, 0, 0::32, 0::32, 4::32, 1, 2, 3, 4>>,
      "a kind that there is not" => <<1, 9, 0::32, 0::32, 0::32>>
    }
  end

  test "names that the worker was not given are protocol errors" do
    library = load!(:hostile, max_restarts: :infinity)

    for {what, bytes} <- names() do
      old = os_pid(library)
      assert {:error, %Error{reason: reason, function: {:answer, 5}}} = answer(library, bytes), what

      # The number of a name that another term had: it may have been given that one.
      if reason != :stale do
        assert reason == :protocol
        gone(old)
        successor(library, old)
        assert %{last_exit: %{because: :protocol}} = worker(library)
      end

      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end

    assert_no_messages()
  end

  test "nonsense is a protocol error" do
    library = load!(:hostile, max_restarts: :infinity)

    for bytes <- [
          "",
          <<0>>,
          <<131, 97, 1>>,
          <<255, 255, 255>>,
          # Cut short, and too long.
          <<98, 0>>,
          <<97, 1, 97, 2>>,
          # More elements than there are bytes.
          <<108, 0xFFFFFFFF::32, 106>>,
          <<105, 0xFFFFFFFF::32, 97, 1>>,
          <<116, 0xFFFFFFFF::32, 97, 1>>,
          <<109, 0xFFFFFFFF::32, 1>>,
          <<111, 0xFFFFFFFF::32, 0, 1>>,
          # A map with one key twice, an atom that is no UTF-8, a float that is no number, compressed, reserved tags.
          <<116, 2::32, 97, 1, 97, 2, 97, 1, 97, 3>>,
          <<119, 2, 255, 254>>,
          <<70, 0x7FF8000000000000::64>>,
          <<80, 100::32, 1, 2, 3>>,
          <<3, 0::64>>,
          <<4, 0::64>>,
          <<5, 0::64>>
        ] do
      # More than the bounds allow may be said before it is seen that it cannot be true.
      assert {:error, %Error{reason: reason}} = answer(library, bytes), inspect(bytes)
      assert reason in [:protocol, :quota_exceeded]
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end
  end

  test "an answer that says it lies elsewhere is a protocol error" do
    library = load!(:hostile, max_restarts: :infinity)
    one = <<97, 1>>

    for options <- [
          [place: 3],
          [place: 0xFFFF],
          [place: @tiny, length: 49],
          [place: @slot, length: 16_385],
          [place: @spill, length: 0xFFFFFFFF],
          [length: 0xFFFFFFFF],
          [status: 77]
        ] do
      result = answer(library, one, options)
      assert {:error, %Error{reason: :protocol}} = result, inspect(options)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end
  end

  test "bounds hold: atoms, depth, heap words" do
    library = load!(:hostile, max_restarts: :infinity, max_atoms: 5, max_depth: 100, max_words: 1_024)
    before = :erlang.system_info(:atom_count)
    unique = System.unique_integer([:positive])
    atoms = for n <- 1..100, into: <<108, 100::32>>, do: atom("hostile_#{unique}_#{n}")
    assert {:error, %Error{reason: :quota_exceeded}} = answer(library, atoms <> <<106>>)
    assert :erlang.system_info(:atom_count) - before < 100

    deep = String.duplicate(<<108, 1::32>>, 200) <> <<106>> <> String.duplicate(<<106>>, 200)
    assert {:error, %Error{reason: :quota_exceeded}} = answer(library, deep)

    # 2,000 cells of two words.
    nils = <<108, 2_000::32>> <> String.duplicate(<<106>>, 2_001)
    assert {:error, %Error{reason: :quota_exceeded}} = answer(library, nils)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
  end

  test "terms of the worker's own kind that never were" do
    library = load!(:hostile, max_restarts: :infinity)

    for word <- [0, 6 + 8 * 12_345, 7 + 8 * 12_345, 3 + 8 * 0xFFFFFF, 5, 5 + 8, 4, 0xFFFFFFFFFFFFFFFF] do
      case Isolation.call(library, :forge, [word], timeout: 20_000) do
        # A word that is a harmless term.
        {:ok, value} -> refute is_pid(value) or is_reference(value) or is_port(value) or is_function(value)
        {:error, %Error{}} -> :ok
      end

      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end
  end

  test "names made out of bytes inside the worker" do
    library = load!(:hostile, max_restarts: :infinity)

    for term <- [Process.whereis(:init), make_ref(), &:os.cmd/1] do
      bytes = :erlang.term_to_binary(term)
      assert {:error, %Error{}} = Isolation.call(library, :from_external, [bytes], timeout: 20_000)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end
  end

  test "a bell that rings for nothing" do
    library = load!(:hostile, max_restarts: :infinity)
    neighbour = load!(:adder)
    old = os_pid(library)

    case Isolation.call(library, :ring_bell, [1_000_000], timeout: 20_000) do
      {:ok, :ok} -> :ok
      {:error, %Error{reason: reason}} -> assert reason in [:crashed, :protocol]
    end

    gone(old)

    assert %{last_exit: %{because: :protocol}} =
             eventually(fn -> with(%{restarts: 1} = w <- worker(library), do: w, else: (_ -> nil)) end)

    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    assert {:ok, 3} = Isolation.call(neighbour, :add, [1, 2])
  end

  test "nonsense on the control channel" do
    library = load!(:hostile, max_restarts: :infinity)

    for bytes <- [<<>>, <<0>>, :binary.copy(<<0xC1>>, 1_000), :crypto.strong_rand_bytes(60_000)] do
      old = os_pid(library)
      Isolation.call(library, :write, [3, bytes], timeout: 20_000)
      if bytes != <<>>, do: gone(old)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
    end
  end

  test "channels that it closes, memory that it would truncate" do
    library = load!(:hostile, max_restarts: :infinity)
    neighbour = load!(:adder)

    for descriptor <- [3, 5, 6, 4, 1, 2] do
      case Isolation.call(library, :close, [descriptor], timeout: 2_000) do
        {:ok, _} -> :ok
        {:error, %Error{reason: reason}} -> assert reason in [:crashed, :timeout, :protocol]
      end

      # Whatever has become of it: it works, or it is replaced.
      eventually(fn -> match?({:ok, 3}, Isolation.call(library, :add, [1, 2], timeout: 2_000)) end, 30_000)
      assert {:ok, 3} = Isolation.call(neighbour, :add, [1, 2])
    end

    assert {:ok, -1} = Isolation.call(library, :truncate, [0], timeout: 20_000)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 20_000)
  end

  for {how, flip} <- [words: 0, bits: 1] do
    @tag timeout: 300_000
    test "scribbling random #{how} over the ring while calls run" do
      library = load!(:hostile, max_restarts: :infinity, workers: 2, concurrency: 2)
      neighbour = load!(:adder, workers: 1)
      test = self()

      beside =
        spawn_link(fn ->
          for n <- Stream.iterate(1, &(&1 + 1)) do
            {:ok, {^n, ^test}} = Isolation.call(neighbour, :echo, [{n, test}])

            receive do
              :stop -> send(test, {:beside, n}) && exit(:normal)
            after
              0 -> :ok
            end
          end
        end)

      for seed <- 1..12 do
        # The whole ring, its tables alone, its first page.
        length = Enum.at([1_000_000, 20_000, 4_096], rem(seed, 3))
        Isolation.call(library, :scribble_start, [0, length, seed, unquote(flip)], timeout: 2_000)

        callers =
          for caller <- 1..4 do
            Task.async(fn ->
              for n <- 1..200 do
                term = {caller, n, [self(), "text"]}

                case Isolation.call(library, :echo, [term], timeout: 1_000) do
                  # It may also have scribbled over the arguments: the answer is its own.
                  {:ok, _} -> :ok
                  {:error, %Error{} = error} -> assert is_binary(Exception.message(error))
                end
              end

              assert_no_messages()
            end)
          end

        for caller <- callers, do: Task.await(caller, 240_000)

        for n <- 1..2,
            %{os_pid: os_pid} = worker(library, n),
            is_integer(os_pid),
            do: System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true)

        eventually(fn -> match?({:ok, 3}, Isolation.call(library, :add, [1, 2], timeout: 2_000)) end, 30_000)
      end

      send(beside, :stop)
      assert_receive {:beside, n} when n > 100, 20_000
    end
  end
end
