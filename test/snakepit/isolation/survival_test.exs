defmodule Snakepit.Isolation.SurvivalTest do
  # Each of our own processes can be killed at any time; so can the warden.
  use Snakepit.IsolationCase, async: false

  alias Snakepit.Isolation.Directory

  test "the Pool: those who wait for a worker ask its successor" do
    library = load!(:adder)
    old = os_pid(library)
    signal(old, "STOP")
    pool = Library.lookup(library.table, :pool)
    kill(pool)
    signal(old)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2], timeout: 30_000)
    assert Library.lookup(library.table, :pool) != pool
    assert library in Isolation.list()
  end

  test "the Worker: its process ends, its callers are told, its successor goes on" do
    library = load!(:adder)
    old = os_pid(library)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    kill(server(library))
    assert {:error, %Error{reason: :crashed}} = result_of(call)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone(old)
    assert successor(library, old)
  end

  test "the doorbell: callers that sleep are woken by its successor" do
    library = load!(:adder)

    for _ <- 1..20 do
      call = call_in_process(library, :sleep, [20], timeout: :infinity)
      begun(library, 1)
      {:links, links} = Process.info(server(library), :links)
      doorbell = Enum.find(links, &(is_pid(&1) and Process.info(&1, :priority) == {:priority, :high}))
      Process.exit(doorbell, :kill)
      assert {:ok, :ok} = result_of(call)
    end
  end

  test "our side of the warden: workers end and are started by the next one" do
    library = load!(:adder, workers: 2)
    warden = Warden.os_pid()
    old = for n <- 1..2, do: os_pid(library, n)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    kill(Process.whereis(Warden))
    assert {:error, %Error{reason: :crashed}} = result_of(call)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone([warden | old])
    ready(library)
    assert Warden.os_pid() != warden
  end

  test "the warden itself" do
    library = load!(:adder, workers: 2)
    warden = Warden.os_pid()
    old = for n <- 1..2, do: os_pid(library, n)
    call = call_in_process(library, :sleep_forever, [], timeout: :infinity)
    begun(library, 1)
    signal(warden)
    assert {:error, %Error{reason: :crashed} = error} = result_of(call)
    assert Exception.message(error) =~ "warden"
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    gone([warden | old])
    ready(library)
  end

  test "the warden, with calls in its workers' queues: none is executed twice" do
    library = load!(:adder, workers: 2)
    path = Path.join(temporary_directory("notes"), "notes")

    for round <- 1..5 do
      parent = self()
      warden = eventually(&Warden.os_pid/0)

      callers =
        for n <- 1..100 do
          spawn_link(fn ->
            text = "#{round}-#{n}"
            result = Isolation.call(library, :note, [path, text <> "\n"], timeout: 30_000)
            send(parent, {self(), text, result})
          end)
        end

      eventually(fn -> File.exists?(path) end)
      signal(warden)

      results =
        for caller <- callers do
          receive do
            {^caller, text, result} -> {text, result}
          end
        end

      written = path |> File.read!() |> String.split("\n", trim: true)
      assert written == Enum.uniq(written)
      for {text, {:ok, :ok}} <- results, do: assert(text in written)
      for {_, {:error, error}} <- results, do: assert(error.reason == :crashed)
      eventually(fn -> Warden.os_pid() not in [warden, nil] end)
      ready(library)
      File.rm!(path)
    end
  end

  test "the library's supervisor: it is gone, and nothing of it is left" do
    library = load!(:adder, workers: 2)
    os_pids = for n <- 1..2, do: os_pid(library, n)
    {:ok, _, supervisor} = Directory.fetch(library.id)
    kill(supervisor)
    gone(os_pids)
    # It stands under a supervisor, which starts it again.
    eventually(fn -> match?({:ok, 3}, Isolation.call(library, :add, [1, 2])) end)
  end

  test "signals to the VM's process group do not reach warden and workers" do
    library = load!(:adder)

    for os_pid <- [Warden.os_pid(), os_pid(library)] do
      refute process_group(os_pid) == process_group("self")
    end

    old = Warden.os_pid()
    for name <- ["INT", "TERM", "HUP", "PIPE"], do: signal(old, name)
    assert {:ok, 3} = Isolation.call(library, :add, [1, 2])
    assert Warden.os_pid() == old
  end
end
