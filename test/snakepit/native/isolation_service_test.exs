defmodule Snakepit.Native.IsolationServiceTest do
  # What a worker asks of the VM, as a hostile one does it: by writing into the event queue. Nobody hears the bell but the
  # test.
  use ExUnit.Case, async: true

  import Snakepit.NativeWorker
  import Snakepit.ShmCase, only: [eventually: 1]

  alias Snakepit.{Native, NativeFixture}

  @deadline 10_000
  @kind 1
  @message 2
  # The tag of a name in a term.
  @name 1
  @queued 0x8000
  @piece 16_384

  setup context do
    {warden, _} = warden()
    {:ok, pool} = Native.pool_new(1)
    {worker, os_pid} = worker(warden, 1, context[:spec] || %{})
    assert :ok = Native.worker_load(worker, {0, nil, false}, NativeFixture.path(:hostile), 0)
    assert {:loaded, %{}} = said(worker)
    assert :ok = Native.pool_put(pool, 0, worker)
    # The first process that the worker hears of: its name is number 0, in its first use.
    assert {:ok, 3} = call(pool, :add, [1, 2])
    {:ok, warden: warden, pool: pool, worker: worker, os_pid: os_pid}
  end

  # Without a bell: looked for until it is there.
  defp call(pool, function, arguments, spin \\ 1_000) do
    case Native.call(pool, function, arguments, spin) do
      {:pending, ticket} -> take(ticket)
      answer -> answer
    end
  end

  defp take(ticket) do
    case Native.take(ticket) do
      :pending -> Process.sleep(1) && take(ticket)
      answer -> answer
    end
  end

  defp serve(worker), do: Native.worker_bell(worker, :serve)

  # Serves until nothing is left.
  defp serve_all(worker) do
    with {:ok, _, true, _, _} <- serve(worker), do: serve_all(worker)
  end

  # ── Requests, as rmp-serde writes them ────────────────────────────────────────────────────────────────────────

  @me {0, 0, 1}

  defp request(name, fields), do: <<3::16, 0x81>> <> pack(to_string(name)) <> pack(fields)

  defp pack(text) when is_binary(text), do: <<0xD9, byte_size(text)>> <> text
  defp pack({:bin, bytes}), do: <<0xC6, byte_size(bytes)::32>> <> bytes
  defp pack(list) when is_list(list), do: <<0xDC, length(list)::16>> <> Enum.map_join(list, &pack/1)
  defp pack(name) when is_tuple(name), do: name |> Tuple.to_list() |> pack()
  defp pack(true), do: <<0xC3>>
  defp pack(false), do: <<0xC2>>
  defp pack(number) when number in 0..127, do: <<number>>
  defp pack(number) when number in 0..0xFFFFFFFF, do: <<0xCE, number::32>>
  defp pack(number), do: <<0xCF, number::64>>

  defp external(term) do
    <<131, bytes::binary>> = :erlang.term_to_binary(term, minor_version: 2)
    bytes
  end

  defp message(term, to \\ @me, stream \\ 1), do: request(:Send, [0, to, stream, {:bin, external(term)}])

  defp queue(pool, bytes, times \\ 1), do: call(pool, :queue, [@kind, bytes, times])

  # A term that is longer than a request takes.
  defp queue_in_parts(pool, worker, bytes, stream) do
    case bytes do
      <<piece::binary-size(@piece), rest::binary>> when rest != "" ->
        assert {:ok, 1} = queue(pool, request(:Part, [stream, {:bin, piece}]))
        serve_all(worker)
        queue_in_parts(pool, worker, rest, stream)

      last ->
        assert {:ok, 1} = queue(pool, request(:Send, [0, @me, stream, {:bin, last}]))
        serve_all(worker)
    end
  end

  # All that have come, taken: of itself a process is told only of those that it has looked at.
  defp messages(taken \\ []) do
    receive do
      message -> messages([message | taken])
    after
      0 -> Enum.reverse(taken)
    end
  end

  defp no_messages, do: refute_receive(_, 20)

  # ── Tests ─────────────────────────────────────────────────────────────────────────────────────────────────────

  test "messages arrive in their order", %{pool: pool, worker: worker} do
    for n <- 1..100, do: assert({:ok, 1} = queue(pool, message([n, "text", %{1 => 2.5}])))
    assert {:ok, _, false, [], []} = serve(worker)
    for n <- 1..100, do: assert([^n, "text", %{1 => 2.5}] = next())
    no_messages()
  end

  test "a message as a record of its own keeps its place among the others", %{pool: pool, worker: worker} do
    # With the tag and the length of a binary, the most that such a record may have.
    longest = :binary.copy("x", @piece - 5)
    assert {:ok, 1} = queue(pool, message(:first))
    for term <- [:second, longest, [self()]], do: assert({:ok, 1} = call(pool, :queue, [@message, record(term), 1]))
    assert {:ok, 1} = queue(pool, message(:last))
    assert {:ok, _, false, [], []} = serve(worker)
    me = self()
    assert [:first, :second, ^longest, [^me], :last] = messages()
  end

  defp record([pid]) when is_pid(pid), do: <<0::32, 1::32, 108, 1::32, @name, 0, 0::32, 1::32, 0::32, 106>>
  defp record(term), do: <<0::32, 1::32>> <> external(term)

  defp next do
    receive do
      message -> message
    after
      @deadline -> flunk("no message")
    end
  end

  test "one that is longer than a record, and than is decoded on a scheduler", %{pool: pool, worker: worker} do
    for length <- [100, 20_000, 65_536, 200_000] do
      term = {length, :binary.copy(<<length::8>>, length), Enum.to_list(1..div(length, 100))}
      queue_in_parts(pool, worker, external(term), 7)
      assert ^term = next()
    end

    no_messages()
  end

  test "one that is longer than an answer may be is not sent, and others are", %{pool: pool, worker: worker} do
    queue_in_parts(pool, worker, external(:binary.copy("x", 1_100_000)), 7)
    queue_in_parts(pool, worker, external(:binary.copy("y", 500_000)), 7)
    assert "y" <> _ = next()
    no_messages()
  end

  test "terms that cannot be are lies, or beyond the limits", %{pool: pool, worker: worker} do
    deep = String.duplicate(<<108, 1::32>>, 2000) <> <<106>> <> String.duplicate(<<106>>, 2000)
    assert {:ok, 1} = queue(pool, request(:Send, [0, @me, 1, {:bin, deep}]))
    assert {:ok, _, false, [], []} = serve(worker)
    no_messages()
    assert {:ok, 1} = queue(pool, request(:Send, [0, @me, 1, {:bin, external(Process.whereis(:init))}]))
    assert {:error, {:protocol, %{message: _}}} = serve(worker)
    assert %{faulty: true} = Native.worker_status(worker)
    no_messages()
  end

  for {what, kind, bytes} <- [
        {"a record of another kind", 3, {:Demonitor, [1]}},
        {"a message to nobody", 2, <<0::32, 0>>},
        {"a message to a process that it was not given", 2, <<5::32, 1::32, 97, 1>>},
        {"a message to a generation that has not been", 2, <<0::32, 2::32, 97, 1>>},
        {"a message without a term", 2, <<0::32, 1::32>>},
        {"a message that is no term", 2, <<0::32, 1::32, 97, 1, 97, 2>>},
        {"a message that is longer than a piece", 2, <<0::32, 1::32, 109, 16_384::32, 0::16_384-unit(8)>>},
        {"no packet", 1, "nonsense"},
        {"an empty record", 1, ""},
        {"another version", 1, <<1::16, 0x81>>},
        {"an unknown request", 1, {:Halt, [1]}},
        {"a request with too much", 1, {:Demonitor, [1, 2]}},
        {"a process that it was not given", 1, {:Send, [0, {0, 5, 1}, 1, {:bin, <<97, 1>>}]}},
        {"a generation that has not been", 1, {:Send, [0, {0, 0, 2}, 1, {:bin, <<97, 1>>}]}},
        {"a kind of name that there is not", 1, {:Send, [0, {9, 0, 1}, 1, {:bin, <<97, 1>>}]}},
        {"a message to a port", 1, {:Send, [0, {1, 0, 1}, 1, {:bin, <<97, 1>>}]}},
        {"a command to a process", 1, {:Command, [0, {0, 0, 1}, 1, {:bin, <<106>>}]}},
        {"a monitor of a reference", 1, {:Monitor, [0, 1, 7, {2, 0, 1}]}},
        {"the life of a fun", 1, {:IsAlive, [0, {3, 0, 1}]}},
        {"the format of a fun", 1, {:Key, [0, {3, 0, 1}]}},
        {"more references than at once", 1, {:References, [0, 257]}},
        {"an integer of another kind", 1, {:Unique, [0, 4]}},
        {"a name to keep", 1, {:Keep, [[{2, 9, 1}]]}},
        {"a name to drop", 1, {:Drop, [[{2, 9, 1}]]}}
      ] do
    test "a lie is a fault: #{what}", %{pool: pool, worker: worker} do
      bytes =
        case unquote(Macro.escape(bytes)) do
          {name, fields} -> request(name, fields)
          bytes -> bytes
        end

      assert {:ok, 1} = call(pool, :queue, [unquote(kind), bytes, 1])
      assert {:error, {:protocol, %{message: message}}} = serve(worker)
      assert is_binary(message)
      assert %{faulty: true} = Native.worker_status(worker)
      # What comes after a lie is not heard.
      assert {:ok, _, false, [], []} = serve(worker)
      no_messages()
    end
  end

  test "a second monitor of the same number is a fault", %{pool: pool, worker: worker} do
    assert {:ok, 2} = queue(pool, request(:Monitor, [0, 77, 7, @me]), 2)
    assert {:error, {:protocol, %{message: "two monitors" <> _}}} = serve(worker)
  end

  test "parts of more terms than there are threads are a fault", %{pool: pool, worker: worker} do
    outcome =
      Enum.reduce_while(1..1100, nil, fn stream, _ ->
        assert {:ok, 1} = queue(pool, request(:Part, [stream, {:bin, "x"}]))

        case serve(worker) do
          {:ok, _, _, _, _} -> {:cont, nil}
          failure -> {:halt, {stream, failure}}
        end
      end)

    assert {1025, {:error, {:protocol, _}}} = outcome
  end

  describe "an answer before which something was queued" do
    # The answer is there while the function still runs.
    defp answer_queued(pool, value), do: Native.call(pool, :answer, [value, @queued, byte_size(value), 0, 100], 1_000)

    defp settled({:pending, ticket}), do: take(ticket)
    defp settled(answer), do: answer

    test "waits until that was served", %{pool: pool} do
      assert {:ok, 3} = queue(pool, message(:before), 3)
      assert {:ok, 42} = settled(answer_queued(pool, <<97, 42>>))
      assert messages() == [:before, :before, :before]
    end

    test "also in a batch, and in one that is given up", %{pool: pool, worker: worker} do
      assert {:ok, 1} = queue(pool, message(:before))
      value = <<97, 42>>
      arguments = [value, @queued, 2, 0, 100]
      assert [{:ok, 42}] = finish(Native.call_many(pool, :answer, [arguments]))
      assert messages() == [:before]
      eventually(fn -> not Enum.any?(Native.worker_status(worker).executors) end)

      assert {:ok, 1} = queue(pool, message(:again))
      assert {:pending, before} = Native.call(pool, :poke, [[], 0, 50], 0)
      assert {:more, batch} = Native.call_many(pool, :answer, [[value, @queued, 2, 0, 2_000]])
      assert {:ok, :ok} = take(before)
      # The answer is there a moment after its function has begun, which does not show.
      eventually(fn -> Enum.any?(Native.worker_status(worker).executors) end)
      Process.sleep(50)
      assert {[{:ok, 42}], [], false} = Native.batch_cancel(batch)
      assert messages() == [:again]
    end

    test "with a large message", %{pool: pool, worker: worker} do
      term = :binary.copy("z", 200_000)
      bytes = external(term)
      pieces = for <<piece::binary-size(@piece) <- bytes>>, do: piece
      last = binary_part(bytes, length(pieces) * @piece, byte_size(bytes) - length(pieces) * @piece)

      for piece <- pieces do
        assert {:ok, 1} = queue(pool, request(:Part, [3, {:bin, piece}]))
        serve_all(worker)
      end

      assert {:ok, 1} = queue(pool, request(:Send, [0, @me, 3, {:bin, last}]))
      assert {:ok, 1} = queue(pool, message(:after_it))
      assert {:ok, 42} = settled(answer_queued(pool, <<97, 42>>))
      assert messages() == [term, :after_it]
    end

    test "goes ahead while a mailbox is full", %{pool: pool, worker: worker} do
      assert {:ok, _, false, [], []} = Native.worker_bell(worker, :hold)
      assert {:ok, 1} = queue(pool, message(:later))
      assert {:ok, 42} = settled(answer_queued(pool, <<97, 42>>))
      assert {:ok, _, false, [], []} = Native.worker_bell(worker, :wait)
      no_messages()
      assert {:ok, _, false, [], []} = serve(worker)
      assert :later = next()
    end

    test "that comes after a lie tells it", %{pool: pool, worker: worker} do
      assert {:ok, 1} = queue(pool, "nonsense")
      assert {:error, {:protocol, %{worker: ^worker}}} = settled(answer_queued(pool, <<97, 42>>))
    end

    defp finish({:done, outcomes}), do: outcomes
    defp finish({_, batch}), do: Process.sleep(1) && finish(Native.batch_next(batch))
  end

  test "what is sent is told in messages and bytes, and nothing more is taken before", context do
    %{pool: pool, worker: worker} = context
    bytes = message(1)
    assert {:ok, put} = queue(pool, bytes, 5_000)
    assert put > 1_000
    me = self()
    assert [{^me, messages, bytes}] = first_sent(worker)
    assert messages >= 1_000 and messages < 1_100
    assert bytes == 2 * messages
    assert length(messages()) == messages
    serve_all(worker)
    assert length(messages()) == put - messages
  end

  test "a storm of requests is served in portions", %{pool: pool, worker: worker} do
    assert {:ok, put} = queue(pool, request(:References, [0, 256]), 200)
    assert put > 20
    assert portions(worker) >= div(put, 4)
    # What was made is all there.
    assert {:ok, 3} = call(pool, :add, [1, 2])
  end

  defp portions(worker, seen \\ 1) do
    case serve(worker) do
      {:ok, _, true, _, _} -> portions(worker, seen + 1)
      {:ok, _, false, _, _} -> seen
    end
  end

  defp first_sent(worker) do
    case serve(worker) do
      {:ok, _, true, [], []} -> first_sent(worker)
      {:ok, _, true, sent, []} -> sent
    end
  end

  test "functions without a grant are told once", %{pool: pool, worker: worker} do
    whereis = request(:WhereIs, [0, false, "init"])
    assert {:ok, 2} = queue(pool, whereis, 2)
    assert {:ok, 1} = queue(pool, request(:WhereIs, [0, true, "init"]))
    assert {:ok, _, false, [], ["enif_whereis_pid", "enif_whereis_port"]} = serve(worker)
    assert {:ok, 1} = queue(pool, whereis)
    assert {:ok, _, false, [], []} = serve(worker)
  end

  test "whoever asks and does not read is a liar, in the end", %{pool: pool, worker: worker} do
    assert {:ok, :ok} = call(pool, :deafen, [])
    ask = request(:IsAlive, [1, @me])
    assert {:error, {:protocol, %{message: "it asks" <> _}}} = ask_on(pool, worker, ask, 200)
  end

  defp ask_on(_pool, _worker, _ask, 0), do: :never

  defp ask_on(pool, worker, ask, times) do
    assert {:ok, _} = queue(pool, ask, 5_000)
    with {:ok, _, _, _, _} <- serve_all(worker), do: ask_on(pool, worker, ask, times - 1)
  end

  test "references that it is given back and does not read are few, or it is a liar", %{pool: pool, worker: worker} do
    assert {:ok, :ok} = call(pool, :deafen, [])
    # One object, again and again: that is one number.
    for _ <- 1..60, do: aside(fn -> assert {:ok, [_ | _]} = call(pool, :objects, [10_000, 0]) end)
    flushed_until(worker, :busy)
    assert Native.worker_status(worker).releases > 262_144
    # So many that it could not have sent them if it had to listen.
    assert {:error, {:protocol, %{message: "it does not read" <> _}}} = objects_on(pool, worker, 200)
    assert Native.worker_status(worker).faulty
  end

  defp objects_on(_pool, _worker, 0), do: :never

  defp objects_on(pool, worker, times) do
    aside(fn -> assert {:ok, [_ | _]} = call(pool, :objects, [10_000, 1]) end)
    with {:error, {:busy, _}} <- Native.worker_flush(worker), do: objects_on(pool, worker, times - 1)
  end

  test "as many as the VM has had at a time may be given back to a worker that does not read for a while",
       %{pool: pool, worker: worker, warden: warden} = context do
    aside(fn ->
      all = for _ <- 1..30, do: call(pool, :objects, [10_000, 1])
      assert length(all) == 30
      stopped(warden, context.os_pid)
    end)

    eventually(fn -> Native.worker_status(worker).releases > 290_000 end)
    flushed_until(worker, :busy)
    assert :ok = Native.warden_kill(warden, 1, 18)
    eventually(fn -> match?({:ok, 0}, Native.worker_flush(worker)) end)
    eventually(fn -> call(pool, :alive, []) == {:ok, 0} end)
    assert {:ok, 3} = call(pool, :add, [1, 2])
  end

  test "objects behind what the VM refuses are given back", %{pool: pool, worker: worker} do
    text = fn -> "behind_#{System.unique_integer([:positive])}" end
    one = fn -> call(pool, :atom_and_objects, [text.(), 1]) end
    assert Enum.any?(1..200, fn _ -> match?({:error, {:too_many_atoms, _}}, one.()) end)

    # The short way, on a scheduler, on a dirty one.
    for count <- [20, 3_000, 10_000] do
      assert {:error, {:too_many_atoms, _}} = call(pool, :atom_and_objects, [text.(), count])
      none_left(pool, worker)
    end
  end

  # Those of the library, by its own count.
  defp none_left(pool, worker), do: left(pool, worker, 0)

  defp left(pool, worker, count) do
    eventually(fn ->
      :erlang.garbage_collect()
      flush_all(worker)
      # It answers this after what it was told before.
      number = 256 * rem(System.unique_integer([:positive]), 4_000) + 1
      assert :ok = Native.worker_load(worker, {number, nil, false}, "/nowhere", 0)
      assert {:not_loaded, ^number, _} = said(worker)
      call(pool, :alive, []) == {:ok, count}
    end)
  end

  defp flush_all(worker) do
    with {:ok, left} when left > 0 <- Native.worker_flush(worker), do: flush_all(worker)
  end

  for {how, count} <- ["in the short way": 400, "on a scheduler": 5_000, "on a dirty one": 20_000] do
    test "each object of an answer is counted once, #{how}", %{pool: pool, worker: worker} do
      count = unquote(count)

      aside(fn ->
        assert {:ok, objects} = call(pool, :objects, [count, 1])
        assert objects |> Enum.uniq() |> length() == count
        left(pool, worker, count)
        assert {:ok, ^objects} = call(pool, :echo, [objects])
        left(pool, worker, count)
        objects
      end)

      none_left(pool, worker)

      aside(fn ->
        assert {:ok, [one | _] = objects} = call(pool, :objects, [count, 0])
        assert Enum.uniq(objects) == [one]
        assert Native.worker_status(worker).releases == count - 1
        left(pool, worker, 1)
        assert {:ok, ^one} = call(pool, :echo, [one])
      end)

      none_left(pool, worker)
    end
  end

  test "the time that objects take is the caller's", %{pool: pool} do
    reductions = fn count ->
      {:reductions, before} = Process.info(self(), :reductions)
      {:ok, [_ | _]} = call(pool, :objects, [count, 1], 100_000)
      {:reductions, now} = Process.info(self(), :reductions)
      now - before
    end

    reductions.(1)
    # Forty quarters of a microsecond are forty reductions: a quarter of a slice, at least.
    assert reductions.(170) > 900
  end

  defp aside(work), do: work |> Task.async() |> Task.await(30_000)

  # The process reads nothing.
  defp stopped(warden, os_pid) do
    assert :ok = Native.warden_kill(warden, 1, 19)
    eventually(fn -> File.read!("/proc/#{os_pid}/stat") =~ ") T " end)
  end

  defp flushed_until(worker, reason) do
    case Native.worker_flush(worker) do
      {:error, {^reason, _}} -> :ok
      {:ok, _} -> flushed_until(worker, reason)
    end
  end

  # Without room for anything.
  defp filled(%{pool: pool, worker: worker, warden: warden, os_pid: os_pid}) do
    assert {:ok, _} = queue(pool, request(:IsAlive, [1, @me]), 5_000)
    stopped(warden, os_pid)
    serve_all(worker)
  end

  test "what its owner says waits for room too, in order", %{worker: worker, warden: warden} = context do
    path = NativeFixture.path(:tenant_a)

    said_after = fn tell, count ->
      filled(context)
      assert :ok = tell.()
      assert :ok = Native.warden_kill(warden, 1, 18)
      for _ <- 1..count, do: said_with_room(worker)
    end

    load = fn -> Native.worker_load(worker, {1, nil, false}, path, 0) end
    asking = fn -> Native.worker_load(worker, {2, nil, true}, path, 0) end
    unload = fn number -> Native.worker_unload(worker, number) end
    assert [{:loaded, %{library: 1}}, {:unloaded, 1}] = said_after.(fn -> load.() && unload.(1) end, 2)
    assert [{:opened, %{library: 2}}] = said_after.(asking, 1)
    assert [{:loaded, %{library: 2}}] = said_after.(fn -> Native.worker_proceed(worker, 2) end, 1)
    assert [:closed] = said_after.(fn -> Native.worker_stop(worker) end, 1)
    assert {:exited, 1, _, {:exit, 0}} = heard(warden)
  end

  # As the process that hears the bell does.
  defp said_with_room(worker) do
    case Native.worker_receive(worker) do
      {:ok, message} ->
        message

      :closed ->
        :closed

      :again ->
        :ok = Native.worker_select(worker, :control)

        receive do
          {:select, ^worker, :control, :ready_input} -> :ok
          {:select, ^worker, :control, :ready_output} -> serve(worker)
        after
          @deadline -> flunk("nothing is said")
        end

        said_with_room(worker)
    end
  end

  test "names of what a library is loaded with go with it, or when it could not be told", %{worker: worker} do
    for number <- 1..200 do
      info = for _ <- 1..10, do: make_ref()
      assert :ok = Native.worker_load(worker, {number, nil, false}, NativeFixture.path(:tenant_a), info)
      assert {:loaded, %{library: ^number}} = said(worker)
      assert :ok = Native.worker_unload(worker, number)
      assert {:unloaded, ^number} = said(worker)
      # It cannot be sent.
      unsendable = info ++ [String.duplicate("x", 100_000)]
      assert {:error, {:too_large, _}} = Native.worker_load(worker, {number, nil, false}, "x", unsendable)
      missing = {:not_loaded, number + 1_000, 0}
      assert :ok = Native.worker_load(worker, {elem(missing, 1), nil, false}, "/nowhere", info)
      assert {:not_loaded, _, _} = said(worker)
    end
  end

  test "answers wait for room, and go out when there is some",
       %{pool: pool, worker: worker, warden: warden} = context do
    assert {:ok, put} = queue(pool, request(:IsAlive, [1, @me]), 5_000)
    # It cannot read meanwhile.
    assert :ok = Native.warden_kill(warden, 1, 19)
    eventually(fn -> File.read!("/proc/#{context.os_pid}/stat") =~ ") T " end)
    serve_all(worker)
    assert :ok = Native.warden_kill(warden, 1, 18)
    assert put > 1_000
    assert_receive {:select, ^worker, :control, :ready_output}, @deadline
    assert {:ok, _, false, [], []} = serve(worker)
  end

  test "what was queued before its end arrives", %{pool: pool, worker: worker, warden: warden} do
    assert {:ok, 50} = queue(pool, message(:last_words), 50)
    slay(warden, 1)
    assert :ok = Native.worker_rest(worker)
    assert :ok = Native.worker_close(worker, {:crashed, %{}})
    assert messages() == List.duplicate(:last_words, 50)
    assert :ok = Native.worker_rest(worker)
  end

  test "monitors end when the library says so, or with the worker", %{pool: pool, worker: worker, warden: warden} do
    assert {:ok, 1} = queue(pool, request(:Monitor, [0, 1, 7, @me]))

    others =
      for n <- 1..20 do
        pid = spawn(fn -> Process.sleep(:infinity) end)
        # It is given the name.
        assert {:ok, ^pid} = call(pool, :echo, [pid])
        assert {:ok, 1} = queue(pool, request(:Monitor, [0, 100 + n, n, {0, n, 1}]))
        pid
      end

    assert {:ok, _, false, [], []} = serve(worker)
    monitored = fn pid -> Process.info(pid, :monitored_by) end
    assert {:monitored_by, [_ | _]} = monitored.(hd(others))
    [first | rest] = others
    assert {:ok, 1} = queue(pool, request(:Demonitor, [101]))
    assert {:ok, _, false, [], []} = serve(worker)
    assert {:monitored_by, []} = monitored.(first)
    slay(warden, 1)
    assert :ok = Native.worker_close(worker, {:crashed, %{}})
    for pid <- rest, do: assert({:monitored_by, []} = monitored.(pid))
    for pid <- others, do: Process.exit(pid, :kill)
  end
end
