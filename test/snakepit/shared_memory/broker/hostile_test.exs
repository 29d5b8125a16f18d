defmodule Snakepit.SharedMemory.Broker.HostileTest do
  # Bytes that no client would send.
  use Snakepit.PeerCase, async: false

  import ExUnit.CaptureLog

  alias Snakepit.SharedMemory.Broker.Frame

  @before_hello 4_096
  @after_hello 65_536
  @roles [:manager, :reference_counter, :security_controller, :broker, :connections, :janitor]

  setup %{shm: shm} do
    [region, untouched] = for _ <- 1..2, do: Shm.allocate!(64, peers: :read_write, instance: shm)
    # Somebody who does nothing wrong, and must not notice anything.
    witness = RawPeer.open(shm, "witness")
    RawPeer.attach!(witness, Shm.handle(untouched))
    {:ok, region: region, untouched: untouched, witness: witness}
  end

  defp processes(shm), do: Map.new(@roles, &{&1, child(shm, &1)})

  # The instance is as it was: the same processes, and they and the witness answer; the regions are there and no more.
  defp unaffected(%{shm: shm, witness: witness, region: region, untouched: untouched}, before) do
    settle(shm)
    assert processes(shm) == before
    assert %{"ok" => true} = RawPeer.request(witness, "info", %{id: untouched.id})
    assert :ok = Shm.write(untouched, 0, "x")
    assert Enum.sort(for %{id: id} <- Shm.list!(instance: shm), do: id) == Enum.sort([region.id, untouched.id])
  end

  # Nothing that the broker does about a peer is a crash.
  defp without_crash(fun) do
    log = capture_log(fun)
    refute log =~ "terminating"
  end

  # An error with no rid, and the end of the connection.
  defp broken_off(peer) do
    answer = RawPeer.receive_frame(peer)
    assert answer["rid"] == nil
    assert RawPeer.refusal(answer) == :protocol
    assert RawPeer.closed?(peer)
    answer["error"]["message"]
  end

  defp padded(object, length) do
    {:ok, body} = Native.json_encode(Map.put(object, :pad, ""))
    {:ok, body} = Native.json_encode(Map.put(object, :pad, String.duplicate("x", length - byte_size(body))))
    ^length = byte_size(body)
    RawPeer.frame(body)
  end

  describe "a length of" do
    test "4 GiB ends the connection", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, <<0xFFFFFFFF::32>>)
      assert broken_off(peer) =~ "over 65536"
    end

    test "zero ends the connection", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, <<0::32>>)
      assert broken_off(peer) =~ "empty"
    end

    test "4,096 is taken before hello", %{shm: shm} do
      peer = RawPeer.connect(shm)
      hello = %{rid: 1, op: "hello", version: 1, session: nil, name: "n"}
      RawPeer.transmit_bytes(peer, padded(hello, @before_hello))
      assert %{"ok" => true} = RawPeer.receive_frame(peer)
    end

    test "4,097 ends the connection before hello", %{shm: shm} do
      peer = RawPeer.connect(shm)
      RawPeer.transmit_bytes(peer, <<@before_hello + 1::32>>)
      assert broken_off(peer) =~ "over 4096"
    end

    test "65,536 is taken afterwards", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, padded(%{rid: 1, op: "ping"}, @after_hello))
      assert %{"ok" => true, "rid" => 1} = RawPeer.receive_frame(peer)
    end

    test "65,537 ends the connection", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, <<@after_hello + 1::32>>)
      assert broken_off(peer) =~ "over 65536"
    end
  end

  for {what, body} <- [
        {"no JSON", "hello"},
        {"half of an object", ~S({"op":"ping","rid":1)},
        {"two objects", ~S({"op":"ping","rid":1}{"op":"ping","rid":2})},
        {"text that is not UTF-8", ~S({"op":") <> <<0xFF, 0xC0>> <> ~S(","rid":1})},
        {"half a surrogate pair", ~S({"op":"\ud800","rid":1})},
        {"10,000 brackets", String.duplicate("[", 10_000)},
        {"10,000 nested objects", String.duplicate(~S({"a":), 10_000)},
        {"a list", "[1,2,3]"},
        {"a number", "7"},
        {"null", "null"},
        {"a number beyond all floats", ~S({"op":"ping","rid":1,"x":1e999})},
        {"zeros", <<0::800>>}
      ] do
    test "a frame of #{what} ends the connection, with the reason", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, RawPeer.frame(unquote(body)))
      assert broken_off(peer) =~ "a frame that is not"
    end
  end

  for {what, body} <- [
        {"without op", ~S({"rid":1})},
        {"without rid", ~S({"op":"ping"})},
        {"with rid null", ~S({"op":"ping","rid":null})},
        {"with a rid that is no integer", ~S({"op":"ping","rid":1.0})},
        {"with a rid of more than 64 bits", ~S({"op":"ping","rid":18446744073709551616})},
        {"with a rid that is text", ~S({"op":"ping","rid":"1"})},
        {"with an op that is no text", ~S({"op":["ping"],"rid":1})},
        {"that is empty", "{}"}
      ] do
    test "a request #{what} ends the connection", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit_bytes(peer, RawPeer.frame(unquote(body)))
      assert RawPeer.closed?(peer)
    end
  end

  for rid <- [0, -1, -9_223_372_036_854_775_808, 18_446_744_073_709_551_615] do
    test "rid #{rid} comes back as it is", %{shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.transmit(peer, %{op: "ping", rid: unquote(rid)})
      assert %{"ok" => true, "rid" => unquote(rid)} = RawPeer.receive_frame(peer)
    end
  end

  test "an unknown op is an error, and no more", %{shm: shm} do
    peer = RawPeer.open(shm)
    answer = RawPeer.request(peer, "make_coffee")
    assert RawPeer.refusal(answer) == :protocol
    assert answer["error"]["message"] =~ "make_coffee"
    assert %{"ok" => true} = RawPeer.request(peer, "ping")
  end

  test "a thousand unknown ops and fields make no atoms", %{shm: shm} do
    peer = RawPeer.open(shm)
    RawPeer.request(peer, "unknown")
    before = :erlang.system_info(:atom_count)
    for i <- 1..1000, do: RawPeer.request(peer, "unknown_op_#{i}", %{"unknown_field_#{i}" => "unknown_value_#{i}"})
    assert :erlang.system_info(:atom_count) - before < 100
  end

  # Every field of every op, with values of every wrong kind.
  @longest 18_446_744_073_709_551_615
  @wrong [
    nil,
    true,
    -1,
    1.5,
    @longest,
    "",
    "\0",
    "ä\n\"\\",
    String.duplicate("x", 300),
    [],
    [nil, %{}, [[]]],
    %{},
    %{"id" => 1},
    Enum.reduce(1..100, 1, fn _, inner -> [inner] end),
    Enum.reduce(1..100, 1, fn _, inner -> %{"a" => inner} end)
  ]

  for {op, fields} <- [
        {"attach", ~w(id token mode expires want)},
        {"detach", ~w(id)},
        {"write_begin", ~w(id timeout)},
        {"write_end", ~w(id)},
        {"wait", ~w(id generation timeout)},
        {"allocate", ~w(size dtype shape metadata)},
        {"seal", ~w(id)},
        {"handle", ~w(id)},
        {"info", ~w(id)},
        {"free", ~w(id)}
      ] do
    test "#{op} with wrong values: answered each time, and nothing happens", %{region: region, shm: shm} = context do
      before = processes(shm)
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))

      valid =
        region
        |> Shm.handle()
        |> Map.take(["id", "token", "mode", "expires"])
        |> Map.merge(%{"want" => "read_only", "timeout" => 0, "generation" => 0, "metadata" => %{}})
        |> Map.merge(%{"size" => 8, "dtype" => "int8", "shape" => [8]})

      without_crash(fn ->
        for field <- unquote(fields), wrong <- @wrong, {field, wrong} != {"timeout", @longest} do
          answer = RawPeer.request(peer, unquote(op), Map.put(valid, field, wrong))
          assert is_map(answer), "#{field} as #{inspect(wrong, limit: 3, printable_limit: 20)}: #{inspect(answer)}"
          unless answer["ok"], do: assert(is_map_key(Error.reasons(), RawPeer.refusal(answer)))
          undo(peer, answer, region)
        end

        for field <- unquote(fields) do
          answer = RawPeer.request(peer, unquote(op), Map.delete(valid, field))
          assert is_map(answer), "#{field} absent: #{inspect(answer)}"
          undo(peer, answer, region)
        end
      end)

      assert %{"ok" => true} = RawPeer.request(peer, "ping")
      unaffected(context, before)
    end
  end

  # Some of it happens to be right.
  defp undo(peer, %{"region" => %{"id" => id}}, %{id: other}) when id != other,
    do: assert(%{"ok" => true} = RawPeer.request(peer, "free", %{id: id}))

  defp undo(peer, _answer, region), do: RawPeer.request(peer, "write_end", %{id: region.id})

  test "hello with wrong values ends the connection each time", %{shm: shm} = context do
    before = processes(shm)

    without_crash(fn ->
      for field <- ~w(version session name), wrong <- @wrong, not fits_before_hello?(wrong) do
        peer = RawPeer.connect(shm)
        hello = Map.put(%{"version" => 1, "session" => nil, "name" => "n"}, field, wrong)
        answer = RawPeer.request(peer, "hello", hello)
        assert is_map(answer) and not is_map_key(answer, "session")
        RawPeer.close(peer)
      end
    end)

    unaffected(context, before)
  end

  # These are right, or too long to be looked at.
  defp fits_before_hello?(wrong) do
    {:ok, json} = Native.json_encode(wrong)
    wrong == nil or byte_size(json) > 3_000 or (is_binary(wrong) and byte_size(wrong) <= 64)
  end

  # What is wrong is quoted, and quoting makes it longer: the answer must fit into a frame all the same.
  for {what, value} <- [
        {"one long text", String.duplicate("\"", 30_000)},
        {"many texts", List.duplicate(String.duplicate("\"", 600), 50)},
        {"many texts with long names",
         Map.new(1..40, &{"#{&1}" <> String.duplicate("\\", 300), String.duplicate("\"", 300)})},
        {"letters of four bytes", List.duplicate(String.duplicate("\u{10FFFF}", 250), 60)}
      ] do
    test "#{what} in place of anything: refused, and the connection goes on", %{region: region, shm: shm} do
      peer = RawPeer.open(shm)
      RawPeer.attach!(peer, Shm.handle(region))
      valid = %{"id" => region.id, "size" => 8, "dtype" => "int8", "metadata" => %{}, "generation" => 0}

      without_crash(fn ->
        for {op, field} <- [
              {"info", "id"},
              {"attach", "token"},
              {"allocate", "shape"},
              {"allocate", "metadata"},
              {"wait", "timeout"}
            ] do
          answer = RawPeer.request(peer, op, Map.put(valid, field, unquote(Macro.escape(value))))
          assert is_map(answer), "#{field} of #{op}: #{inspect(answer)}"
          assert RawPeer.refusal(answer) in [:invalid_argument, :invalid_option]
        end
      end)

      assert %{"ok" => true} = RawPeer.request(peer, "ping")
    end
  end

  test "a frame in single bytes is a frame", %{shm: shm} do
    peer = RawPeer.open(shm)
    {:ok, body} = Native.json_encode(%{op: "ping", rid: 5})
    for <<byte <- RawPeer.frame(body)>>, do: :ok = RawPeer.transmit_bytes(peer, <<byte>>)
    assert %{"ok" => true, "rid" => 5} = RawPeer.receive_frame(peer)
  end

  test "a thousand frames at once are a thousand requests", %{shm: shm} do
    peer = RawPeer.open(shm)

    frames =
      for rid <- 1..1000, into: "" do
        {:ok, body} = Native.json_encode(%{op: "ping", rid: rid})
        RawPeer.frame(body)
      end

    task = Task.async(fn -> RawPeer.transmit_bytes(peer, frames) end)
    for rid <- 1..1000, do: assert(%{"ok" => true, "rid" => ^rid} = RawPeer.receive_frame(peer))
    assert :ok = Task.await(task)
  end

  test "requests behind the one that ends the connection are not looked at", %{shm: shm} do
    peer = RawPeer.open(shm)
    {:ok, allocate} = Native.json_encode(%{op: "allocate", rid: 1, size: 8, metadata: %{}})
    RawPeer.transmit_bytes(peer, [<<0::32>>, RawPeer.frame(allocate)])
    assert RawPeer.closed?(peer)
    assert length(Shm.list!(instance: shm)) == 2
  end

  test "many attachments at once: each answer comes with its own descriptor", %{region: region, shm: shm} do
    peer = OsPeer.start()
    OsPeer.open(peer, RawPeer.path(shm))
    fields = Map.take(Shm.handle(region), ["id", "token", "mode", "expires"])
    answers = OsPeer.call(peer, "pipeline", %{name: "a", op: "attach", fields: fields, count: 200})
    assert answers == %{"unanswered" => 0, "wrong" => 0}
  end

  describe "descriptors that a peer pushes" do
    setup %{shm: shm} do
      peer = OsPeer.start()
      OsPeer.call(peer, "connect", %{path: RawPeer.path(shm), name: "a"})
      {:ok, peer: peer}
    end

    defp push(peer, op, fields, count),
      do: OsPeer.call(peer, "push", %{name: "a", op: op, fields: fields, descriptors: count})

    defp open_here, do: length(File.ls!("/proc/self/fd"))

    test "with hello are dropped", %{peer: peer, shm: shm} do
      eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 2 end)
      before = open_here()
      assert %{"ok" => true} = push(peer, "hello", %{version: 1, session: nil, name: "n"}, 253)
      assert open_here() <= before
    end

    test "with requests are dropped", %{peer: peer} do
      OsPeer.hello(peer)
      before = open_here()
      for count <- [1, 10, 253], do: assert(%{"ok" => true} = push(peer, "ping", %{}, count))
      assert open_here() <= before
    end

    test "with a frame that ends the connection are dropped", %{peer: peer} do
      OsPeer.hello(peer)
      before = open_here()
      catch_error(push(peer, nil, %{}, 100))
      eventually(fn -> open_here() < before end)
    end
  end

  describe "thousands of broken frames" do
    # Each is a valid request with something done to it, or nothing like a request.
    defp valid(region) do
      handle = region |> Shm.handle() |> Map.take(["id", "token", "mode", "expires"])
      on = %{"id" => region.id}

      Enum.random([
        {"hello", %{"version" => 1, "session" => nil, "name" => "fuzz"}},
        {"attach", handle},
        {"attach", handle},
        {"detach", on},
        {"write_begin", Map.put(on, "timeout", 0)},
        {"write_end", on},
        {"wait", Map.merge(on, %{"generation" => 0, "timeout" => 1})},
        {"allocate", %{"size" => 8, "dtype" => "int8", "shape" => [8], "metadata" => %{"a" => 1}}},
        {"seal", on},
        {"handle", on},
        {"info", on},
        {"free", on},
        {"ping", %{}}
      ])
    end

    defp junk do
      case :rand.uniform(8) do
        1 -> :rand.bytes(:rand.uniform(40)) |> Base.encode64()
        2 -> :rand.uniform(1000) - 500
        3 -> :rand.uniform() * 1.0e300
        4 -> Enum.random([nil, true, false, "", 18_446_744_073_709_551_615, -9_223_372_036_854_775_808])
        5 -> for _ <- 1..:rand.uniform(5), do: junk()
        6 -> Map.new(1..:rand.uniform(3), &{"k#{&1}", junk()})
        7 -> String.duplicate(Enum.random(["\"", "\\", "\t", "é", "\u{10FFFF}", "a"]), :rand.uniform(5000))
        8 -> <<:rand.uniform(0x7F)>>
      end
    end

    defp broken(region) do
      {op, fields} = valid(region)
      request = Map.merge(%{"op" => op, "rid" => :rand.uniform(1_000_000)}, fields)

      case :rand.uniform(6) do
        # A field of another kind, gone, or too many.
        1 -> request |> Map.put(Enum.random(Map.keys(request)), junk()) |> encode()
        2 -> request |> Map.delete(Enum.random(Map.keys(request))) |> encode()
        3 -> request |> Map.put("k#{:rand.uniform(9)}", junk()) |> encode()
        # Bytes changed.
        4 -> request |> encode() |> scratch(:rand.uniform(4))
        5 -> :rand.bytes(:rand.uniform(200))
        6 -> encode(request)
      end
    end

    defp encode(term) do
      case Native.json_encode(term) do
        {:ok, json} -> json
        {:error, _} -> "{}"
      end
    end

    defp scratch(bytes, 0), do: bytes

    defp scratch(bytes, times) do
      at = :rand.uniform(byte_size(bytes)) - 1
      <<before::binary-size(at), byte, rest::binary>> = bytes

      case :rand.uniform(3) do
        1 -> <<before::binary, :rand.uniform(256) - 1, rest::binary>>
        2 -> <<before::binary, byte, :rand.uniform(256) - 1, rest::binary>>
        3 -> <<before::binary, byte>> <> binary_part(rest, 0, div(byte_size(rest) * 3, 4))
      end
      |> scratch(times - 1)
    end

    # Sends until the connection has ended; how many frames that were.
    defp bombard(_peer, _region, 0, sent), do: sent

    defp bombard(peer, region, left, sent) do
      body = broken(region)

      with :ok <- RawPeer.transmit_bytes(peer, RawPeer.frame(body)),
           rid = 2_000_000 + left,
           {:ok, ping} = Native.json_encode(%{op: "ping", rid: rid}),
           :ok <- RawPeer.transmit_bytes(peer, RawPeer.frame(ping)),
           :ok <- pong(peer, rid) do
        bombard(peer, region, left - 1, sent + 1)
      else
        _ -> sent + 1
      end
    end

    defp pong(peer, rid) do
      case RawPeer.receive_frame(peer) do
        %{"rid" => ^rid} -> :ok
        answer when is_map(answer) -> pong(peer, rid)
        :closed -> :closed
        :silent -> flunk("no answer to a whole frame")
      end
    end

    test "neither crash anything nor leave anything", %{shm: shm} = context do
      seed = ExUnit.configuration()[:seed]
      IO.puts("  fuzz seed #{seed}")
      :rand.seed(:exsss, {seed, 1, 2})
      before = processes(shm)
      # What a first round makes stays: code, caches.
      rounds(shm, 100)
      quiet(shm)
      memory = memory(shm)
      tables = tables(shm)

      without_crash(fn -> rounds(shm, 8_000) end)

      quiet(shm)
      unaffected(context, before)
      assert tables(shm) == tables

      for {role, {bytes, queue}} <- memory(shm) do
        {earlier, _} = memory[role]
        assert {role, queue} == {role, 0}
        assert bytes < earlier + 200_000, "#{role}: #{earlier} -> #{bytes} bytes"
      end
    end

    defp rounds(_shm, left) when left <= 0, do: :ok

    # A region for each: most end invalid, because their writer has gone.
    defp rounds(shm, left) do
      region = Shm.allocate!(64, peers: :read_write, instance: shm)
      peer = if :rand.uniform(10) == 1, do: RawPeer.connect(shm), else: RawPeer.open(shm)
      sent = bombard(peer, region, 50, 0)
      # Some leave in the middle of a frame.
      if :rand.uniform(3) == 1, do: RawPeer.transmit_bytes(peer, <<:rand.uniform(100)::32, "half of">>)
      RawPeer.close(peer)
      Shm.free!(region)
      rounds(shm, left - sent)
    end

    # Only the witness is there.
    defp quiet(shm) do
      eventually(fn -> length(Shm.sessions!(shm)) == 1 end)
      eventually(fn -> length(Shm.list!(instance: shm)) == 2 end)
      settle(shm)
    end

    defp memory(shm) do
      Map.new(@roles, fn role ->
        pid = child(shm, role)
        :erlang.garbage_collect(pid)
        [memory: bytes, message_queue_len: queue] = Process.info(pid, [:memory, :message_queue_len])
        {role, {bytes, queue}}
      end)
    end

    defp tables(shm) do
      Map.new(instance(shm).tables, fn {name, table} -> {name, :ets.info(table, :size)} end) |> Map.delete(:errors)
    end
  end

  test "a frame of the largest size that can be said costs no more than is received", %{shm: shm} do
    peer = RawPeer.open(shm)
    connection = connection(shm, peer.session)
    RawPeer.transmit_bytes(peer, [<<@after_hello::32>>, String.duplicate(" ", @after_hello - 1)])
    eventually(fn -> byte_size(:sys.get_state(connection).buffer) == 4 + @after_hello - 1 end)
    {:memory, bytes} = Process.info(connection, :memory)
    {:binary, binaries} = Process.info(connection, :binary)
    assert bytes < 500_000
    assert binaries |> Enum.map(&elem(&1, 1)) |> Enum.sum() < 500_000
  end

  describe "the frame codec" do
    test "waits for what is not there yet, at every byte" do
      {:ok, frame} = Frame.encode(%{"op" => "ping", "rid" => 1})
      frame = IO.iodata_to_binary(frame)
      for n <- 0..(byte_size(frame) - 1), do: assert(Frame.next(binary_part(frame, 0, n), 100) == :more)
      assert Frame.next(frame <> "rest", 100) == {:ok, %{"op" => "ping", "rid" => 1}, "rest"}
    end

    test "looks at the length before anything else is there" do
      assert {:error, what} = Frame.next(<<101::32>>, 100)
      assert what =~ "over 100"
      assert {:error, _} = Frame.next(<<0::32>>, 100)
    end
  end
end
