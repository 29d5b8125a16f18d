defmodule Snakepit.Isolation.TelemetryTest do
  # The library is not here, so a module of its name stands in: the calls are what counts.
  use Snakepit.IsolationCase, async: false

  setup do
    :persistent_term.put({__MODULE__, :test}, self())

    Code.compile_string("""
    defmodule :telemetry do
      def execute(event, measurements, metadata) do
        send(:persistent_term.get({#{inspect(__MODULE__)}, :test}), {:event, event, measurements, metadata})
        :ok
      end
    end
    """)

    # That it runs is known by its table.
    :ets.new(:telemetry_handler_table, [:named_table, :public])

    on_exit(fn ->
      :code.purge(:telemetry)
      :code.delete(:telemetry)
      :code.purge(:telemetry)
    end)
  end

  test "loading and calling are spans" do
    library = load!(:adder)
    id = library.id
    {:ok, 3} = Isolation.call(library, :add, [1, 2])
    {:ok, [{:ok, 3}]} = Isolation.call_many(library, :add, [[1, 2]])

    for {operation, function} <- [load: nil, call: {:add, 2}, call_many: nil] do
      assert_received {:event, [:snakepit, :isolation, ^operation, :start], %{system_time: _, monotonic_time: _},
                       %{telemetry_span_context: context, library: ^id, function: ^function}}

      assert_received {:event, [:snakepit, :isolation, ^operation, :stop], %{duration: duration},
                       %{telemetry_span_context: ^context, library: ^id, result: :ok, reason: nil}}

      assert duration > 0
    end
  end

  test "a failure carries its reason" do
    library = load!(:adder)
    {:error, _} = Isolation.call(library, :badarg, [], timeout: 5_000)

    assert_received {:event, [:snakepit, :isolation, :call, :stop], _, %{result: :error, reason: :raised}}
  end

  test "workers that come, go and are given up are events" do
    library = load!(:crasher, max_restarts: 1)
    id = library.id
    old = os_pid(library)

    assert_received {:event, [:snakepit, :isolation, :worker_ready], %{duration: _},
                     %{library: ^id, worker: 1, os_pid: ^old, restarts: 0}}

    {:error, _} = Isolation.call(library, :abort, [])

    assert_receive {:event, [:snakepit, :isolation, :worker_exit], %{delay: 0},
                    %{library: ^id, worker: 1, os_pid: ^old, signal: :SIGABRT, because: :exited}}

    assert_receive {:event, [:snakepit, :isolation, :worker_ready], _, %{restarts: 1}}
    {:error, _} = Isolation.call(library, :exit, [3])
    assert_receive {:event, [:snakepit, :isolation, :worker_exit], _, %{exit_code: 3}}
    assert_receive {:event, [:snakepit, :isolation, :gave_up], %{restarts: 1}, %{library: ^id, worker: 1}}
  end

  test "a call that goes on and on is told of, and shown" do
    library = load!(:adder, workers: 2)
    assert Enum.all?(info!(library).workers, &(&1.longest_call == nil))
    caller = call_in_process(library, :sleep_forever, [])
    begun(library, 1)
    assert_receive {:event, [:snakepit, :isolation, :call_running], %{duration: duration}, metadata}, 10_000
    assert System.convert_time_unit(duration, :native, :millisecond) >= 1_000
    assert %{workers: workers} = info!(library)
    assert [%{longest_call: longest, os_pid: os_pid, position: position}] = Enum.filter(workers, & &1.longest_call)
    assert longest >= 1_000
    assert %{worker: ^position, os_pid: ^os_pid, call: call} = metadata

    # The same one again, later.
    assert_receive {:event, [:snakepit, :isolation, :call_running], %{duration: later}, %{call: ^call}}, 10_000
    assert later > duration

    signal(os_pid)
    assert {:error, %Error{reason: :crashed}} = result_of(caller)
    assert_receive {:event, [:snakepit, :isolation, :worker_ready], _, %{restarts: 1}}, 10_000
    assert Enum.all?(info!(library).workers, &(&1.longest_call == nil))
  end

  test "lines that were not logged are counted" do
    library = load!(:adder)
    {:ok, _} = Isolation.call(library, :print, [1, String.duplicate("flood\n", 2_000)])
    assert_receive {:event, [:snakepit, :isolation, :output], %{dropped: dropped}, %{worker: 1}}, 10_000
    assert dropped > 0
  end

  test "telemetry: false leaves them out" do
    library = load!(:adder, telemetry: false)
    {:ok, 3} = Isolation.call(library, :add, [1, 2])
    refute_received {:event, _, _, _}
  end
end
