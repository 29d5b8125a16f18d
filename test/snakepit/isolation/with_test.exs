defmodule Snakepit.Isolation.WithTest do
  # Several libraries in the same processes.
  use Snakepit.IsolationCase, async: false

  import ExUnit.CaptureLog

  defp beside!(host, fixture, options \\ []), do: load!(fixture, [with: host] ++ options)

  defp refused_beside(host, fixture, options), do: refused(fixture, [with: host] ++ options)

  defp call!(library, function, arguments \\ []), do: Isolation.call!(library, function, arguments)

  defp os_pids(library), do: for(worker <- info!(library).workers, do: worker.os_pid)

  # What the callbacks print, in the process of all.
  defp printed(function) do
    log = capture_log(fn -> function.() && Process.sleep(0) end)
    for [line] <- Regex.scan(~r/(?:load|unload|upgrade|destroyed) \d+ \d+/, log), do: line
  end

  test "share their processes, and nothing else" do
    a = load!(:tenant_a, workers: 2)
    b = beside!(a, :tenant_b)
    assert b.module == :snakepit_tenant_b
    assert os_pids(a) == os_pids(b)
    assert length(children(Warden.os_pid())) == 2
    assert %{with: [with_a], module: :snakepit_tenant_b} = info!(b)
    assert with_a == a.id
    assert %{with: [with_b]} = info!(a)
    assert with_b == b.id
    assert Enum.sort([a.id, b.id]) == Enum.sort(for library <- Isolation.list(), do: library.id)

    assert {call!(a, :version), call!(b, :version)} == {1, 7}
    assert {:error, %Error{reason: :undefined_function}} = Isolation.call(b, :nothing, [])
    assert {:ok, [{:ok, 7}, {:ok, 7}]} = Isolation.call_many(b, :version, [[], []])
    assert {:ok, 7} = b |> Isolation.call_async(:version, []) |> Isolation.await()

    # An object goes to its process, whichever library it is given to.
    object = call!(a, :make, [5])
    assert call!(b, :dynamic, [:snakepit_tenant_a, object]) == 105
    assert call!(b, :dynamic, [:snakepit_tenant_b, object]) == :none
    assert {:error, %Error{reason: :raised, exception: :badarg}} = Isolation.call(b, :value, [object])
  end

  test "a pointer of one means the same to the other" do
    a = load!(:tenant_a)
    b = beside!(a, :tenant_b)
    pointer = call!(a, :data)
    for count <- 1..3, do: assert({call!(a, :count), call!(b, :peek, [pointer])} == {count, count})
    assert call!(b, :count) == 1
  end

  test "by name, and with a library that stands beside another" do
    a = load!(:tenant_a, name: :first)
    b = beside!(:first, :tenant_b, name: :second, timeout: 77)
    c = beside!(:second, :adder)
    assert [a.table, a.table] == [b.table, c.table]
    assert b.timeout == 77
    assert Isolation.call!(:second, :version, []) == 7
    assert {:ok, 3} = Isolation.call(c, :add, [1, 2])
    assert %{reason: :not_loaded, details: %{because: :name_taken}} = refused_beside(:first, :adder, name: :second)
    assert %{reason: :not_loaded, details: %{because: :unknown}} = refused_beside(:third, :adder, [])
  end

  test "a crash is everybody's, and all of them are loaded again" do
    a = load!(:tenant_a, workers: 2, load_info: 0)
    b = beside!(a, :tenant_b)
    c = beside!(a, :adder, load_info: 5)
    before = os_pids(a)
    assert {:error, %Error{reason: :crashed, signal: :SIGABRT, library: id}} = Isolation.call(b, :crash, [])
    assert id == b.id
    ready(a)
    assert length(os_pids(a) -- before) == 1

    for _ <- 1..20 do
      assert {1, 7, 5} == {call!(a, :version), call!(b, :version), call!(c, :load_info)}
    end
  end

  test "they are loaded in their order" do
    a = load!(:tenant_a)
    b = beside!(a, :tenant_b)
    old = os_pid(a)

    assert printed(fn ->
             signal(old)
             successor(a, old)
             assert call!(b, :version) == 7
             # What was printed comes by another way than what was answered.
             eventually(fn -> call!(a, :count) > 3 end)
             Isolation.unload(b)
             Isolation.unload(a)
           end)
           |> Enum.filter(&(&1 =~ ~r/^load/)) == ["load 1 0", "load 7 0"]
  end

  for order <- [[0, 1], [1, 0]] do
    test "each is unloaded by itself, in the order #{inspect(order)}" do
      a = load!(:tenant_a, workers: 2)
      b = beside!(a, :tenant_b)
      [first, last] = for index <- unquote(order), do: Enum.at([a, b], index)
      before = os_pids(a)

      assert :ok = Isolation.unload(first)
      assert {:error, %Error{reason: :not_loaded, details: %{because: :unloaded}}} = Isolation.call(first, :version, [])
      assert {:error, %Error{reason: :not_loaded}} = Isolation.call_many(first, :version, [[]])
      assert {:error, %Error{reason: :not_loaded}} = Isolation.info(first)
      assert {:error, %Error{reason: :not_loaded}} = Isolation.unload(first)
      assert Isolation.list() == [last]

      assert os_pids(last) == before
      assert call!(last, :version) in [1, 7]
      assert %{with: []} = info!(last)

      # A worker that is started again has only what is left.
      signal(hd(before))
      successor(last, hd(before))
      for _ <- 1..10, do: assert(call!(last, :version) in [1, 7])

      # Another one in its place.
      again = beside!(last, if(first == a, do: :tenant_a, else: :tenant_b))
      assert call!(again, :version) == if(first == a, do: 1, else: 7)
      assert :ok = Isolation.unload(again)

      pids = os_pids(last)
      assert :ok = Isolation.unload(last)
      gone(pids)
      assert Isolation.list() == []
    end
  end

  test "the unload callback has run when unload/1 returns" do
    a = load!(:tenant_a)
    b = beside!(a, :tenant_b)
    file = NativeFixture.path(:tenant_b) <> ".so"
    mapped? = fn -> File.read!("/proc/#{os_pid(a)}/maps") =~ file end
    assert mapped?.()
    assert :ok = Isolation.unload(b)
    refute mapped?.()
  end

  test "objects keep their library, not its functions" do
    a = load!(:tenant_a)
    b = beside!(a, :tenant_b)
    file = NativeFixture.path(:tenant_b) <> ".so"
    mapped? = fn -> File.read!("/proc/#{os_pid(a)}/maps") =~ file end
    object = call!(b, :make, [5])
    assert :ok = Isolation.unload(b)
    assert {:error, %Error{reason: :not_loaded}} = Isolation.call(b, :version, [])
    # Its type is still there for whoever has the object.
    assert call!(a, :dynamic, [:snakepit_tenant_b, object]) == 705
    assert mapped?.()
    forget(object)
    eventually(fn -> :erlang.garbage_collect() && not mapped?.() end, 10_000)
    assert call!(a, :version) == 1
  end

  defp forget(_object), do: :ok

  test "a call that runs when its library is unloaded is answered" do
    a = load!(:tenant_a, concurrency: 2)
    b = beside!(a, :tenant_b)
    caller = call_in_process(b, :sleep, [300])
    begun(a, 1)
    assert :ok = Isolation.unload(b)
    assert call!(a, :version) == 1
    assert {:ok, 7} = result_of(caller)
  end

  describe "a second library that cannot be loaded" do
    test "leaves the first as it was" do
      a = load!(:tenant_a, workers: 2)
      before = os_pids(a)

      for {fixture, options, expected} <- [
            {:missing, [], %{because: :no_file}},
            {:no_init, [], %{stage: :no_init}},
            {:undefined_symbol, [], %{stage: :unresolved_symbol}},
            {:tenant_b, [load_info: 13], %{stage: :load_callback, code: 13}}
          ] do
        error = refused_beside(a, fixture, options)
        assert %{reason: :not_loaded, details: details} = error
        assert Map.take(details, Map.keys(expected)) == expected
        assert Exception.message(error) != ""
        assert os_pids(a) == before
        assert %{with: [], state: :ready} = info!(a)
        assert Isolation.list() == [a]
      end

      assert call!(beside!(a, :tenant_b), :version) == 7
      assert %{workers: [%{restarts: 0}, %{restarts: 0}]} = info!(a)
    end

    test "and crashes, or hangs, ends the processes once" do
      a = load!(:tenant_a, workers: 2)

      for {info, because} <- [crash: :died_loading, hang: :load_timeout] do
        error = refused_beside(a, :tenant_b, load_info: info, load_timeout: 300)
        assert %{reason: :not_loaded, details: %{because: ^because}} = error
        ready(a)
        assert %{with: []} = info!(a)
        for _ <- 1..10, do: assert(call!(a, :version) == 1)
      end

      assert call!(beside!(a, :tenant_b), :version) == 7
    end

    test "is not there when its loader has died meanwhile" do
      a = load!(:tenant_a)

      loader =
        spawn(fn ->
          Isolation.load(NativeFixture.path(:tenant_b), sandbox: :none, with: a, load_info: :hang, load_timeout: 500)
        end)

      eventually(fn -> match?([_, _], Library.entries(a.table)) end)
      kill(loader)
      eventually(fn -> match?([_], Library.entries(a.table)) end)
      # What hangs is ended when its time is up.
      eventually(fn -> match?([%{restarts: 1, state: :ready}], info!(a).workers) end, 10_000)
      assert call!(a, :version) == 1
    end
  end

  test "processes of ours that are killed lose nothing" do
    a = load!(:tenant_a)
    b = beside!(a, :tenant_b)

    for key <- [:roster, :pool] do
      pid = Library.lookup(a.table, key)
      kill(pid)
      eventually(fn -> Library.lookup(a.table, key) not in [pid, nil] end)
      assert {call!(a, :version), call!(b, :version)} == {1, 7}
    end

    kill(server(a))
    eventually(fn -> match?(%{restarts: 0, state: :ready}, worker(a)) end)
    assert {call!(a, :version), call!(b, :version)} == {1, 7}
    # The first one, and the Pool, which does not bring it back.
    assert :ok = Isolation.unload(a)
    pool = Library.lookup(b.table, :pool)
    kill(pool)
    eventually(fn -> Library.lookup(b.table, :pool) not in [pool, nil] end)
    assert call!(b, :version) == 7
    assert Isolation.list() == [b]
    c = beside!(b, :adder)
    assert {:ok, 3} = Isolation.call(c, :add, [1, 2])
  end

  test "one is unloaded while a worker that is started again loads it" do
    a = load!(:tenant_a, max_restarts: :infinity)
    b = beside!(a, :adder)

    for _ <- 1..20 do
      c = beside!(b, :tenant_b)
      old = os_pid(b)
      signal(old)
      assert :ok = Isolation.unload(c)
      successor(b, old)
      assert {:ok, 3} = Isolation.call(b, :add, [1, 2])
    end

    # Also the first of them.
    old = os_pid(b)
    signal(old)
    assert :ok = Isolation.unload(a)
    successor(b, old)
    assert {:ok, 3} = Isolation.call(b, :add, [1, 2])
    assert Isolation.list() == [b]
  end

  test "a library in a supervision tree has room for others, and stays until its supervisor ends it" do
    start_supervised!({Isolation, path: NativeFixture.path(:tenant_a), name: :tree, sandbox: :none})
    b = beside!(:tree, :tenant_b)
    assert {:error, %Error{reason: :invalid_option}} = Isolation.unload(:tree)
    assert :ok = Isolation.unload(b)
    b = beside!(:tree, :tenant_b)
    stop_supervised!({Isolation, :tree})
    assert {:error, %Error{reason: :not_loaded}} = Isolation.call(b, :version, [])
  end

  describe "options" do
    test "of the processes are refused" do
      a = load!(:tenant_a)

      for {key, value} <- [workers: 2, concurrency: 2, slots: 64, spin: 0, max_atoms: 5, whereis: [], output: :info] do
        error = refused_beside(a, :tenant_b, [{key, value}])
        assert %{reason: :invalid_option, details: %{key: ^key, got: ^value, expected: expected}} = error
        assert expected =~ "nothing beside with:"
      end

      for with <- [1, true, [a], "", %{}] do
        assert {:error, %Error{}} = Isolation.load(NativeFixture.path(:tenant_b), sandbox: :none, with: with)
      end

      assert {:error, %Error{details: %{because: :sandbox}}} =
               Isolation.load(NativeFixture.path(:tenant_b), with: a, sandbox: :strict)

      options = [path: NativeFixture.path(:tenant_b), with: a, sandbox: :none]
      assert {:error, %Error{reason: :invalid_option, details: %{key: :with}}} = Isolation.start_link(options)
    end
  end

  describe "a worker that lies about its libraries is replaced" do
    # As rmp-serde writes them.
    defp packet(name, fields), do: <<0, 3, 0x81, 0xA0 + byte_size(name), name::binary>> <> list(fields)
    defp list(fields) when length(fields) < 16, do: <<0x90 + length(fields)>> <> Enum.map_join(fields, &field/1)
    defp list(fields), do: <<0xDC, length(fields)::16>> <> Enum.map_join(fields, &field/1)
    defp field(number) when number in 0..127, do: <<number>>
    defp field(number) when is_integer(number), do: <<0xCE, number::32>>
    defp field(text) when byte_size(text) < 32, do: <<0xA0 + byte_size(text), text::binary>>
    defp field(fields) when is_list(fields), do: list(fields)

    defp loaded(number, functions), do: [number, "snakepit_hostile", functions, 2, 16, []]

    for {what, name, fields} <- [
          {"the first one once more", "Loaded", [0, "snakepit_hostile", [], 2, 16, []]},
          {"one that nobody asked for", "Loaded", [1, "other", [], 2, 16, []]},
          {"a number past all", "Loaded", [1_048_576, "other", [], 2, 16, []]},
          {"one that it does not open", "Opened", [0, "snakepit_hostile", [], 2, 16, []]},
          {"one that it has not failed to load", "NotLoaded", [0, ["Open", 0, "text"]]},
          {"one that it was not told to unload", "Unloaded", [0]}
        ] do
      test what do
        library = load!(:hostile, max_restarts: :infinity)
        guest = beside!(library, :tenant_b)
        old = os_pid(library)
        Isolation.call(library, :write, [3, packet(unquote(name), unquote(Macro.escape(fields)))])
        gone(old)
        successor(library, old)
        assert %{last_exit: %{because: :protocol}} = worker(library)
        assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
        assert call!(guest, :version) == 7
      end
    end

    test "more functions than there may be" do
      library = load!(:hostile, max_restarts: :infinity)
      old = os_pid(library)
      functions = for number <- 1..4_097, do: ["f#{number}", 0, 0]
      packet = packet("Loaded", loaded(1, functions))
      assert byte_size(packet) <= 65_536
      Isolation.call(library, :write, [3, packet])
      gone(old)
      successor(library, old)
      assert %{last_exit: %{because: :protocol}} = worker(library)
    end

    test "what is said in its place is not the library's" do
      library = load!(:hostile, max_restarts: :infinity)

      loader =
        Task.async(fn ->
          Isolation.load(NativeFixture.path(:tenant_b), sandbox: :none, with: library, load_info: :hang)
        end)

      eventually(fn -> match?([_, %{state: :loading}], Library.entries(library.table)) end)
      old = os_pid(library)
      # Functions with names that are no atoms yet stay within the budget, and another number ends it.
      Isolation.call(library, :write, [3, packet("Loaded", loaded(2, [["f", 0, 0]]))])
      assert {:error, %Error{reason: :not_loaded, details: %{because: :died_loading}}} = Task.await(loader, 20_000)
      successor(library, old)
      assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    end
  end
end
