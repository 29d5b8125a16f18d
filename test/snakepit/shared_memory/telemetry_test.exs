defmodule Snakepit.SharedMemory.TelemetryTest do
  # The library is not here, so a module of its name stands in: the calls are what counts.
  use Snakepit.ShmCase, async: false

  @moduletag shm: false

  setup do
    test = self()
    :persistent_term.put({__MODULE__, :test}, test)

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

  test "each operation is a span with its measurements" do
    %{shm: shm} = start_instance()
    region = Shm.allocate!(100, instance: shm)
    id = region.id
    Shm.write!(region, 0, "abc")
    Shm.read!(region, 0, 3)
    Shm.seal!(region)
    Shm.view!(region)
    {:ok, _} = Shm.attach(Shm.handle(region))
    Shm.free!(region)

    for operation <- [:allocate, :write, :read, :seal, :view, :map, :free] do
      assert_received {:event, [:snakepit, :shared_memory, ^operation, :start], %{system_time: _},
                       %{telemetry_span_context: context}}

      assert_received {:event, [:snakepit, :shared_memory, ^operation, :stop], %{duration: duration, bytes: bytes},
                       %{
                         telemetry_span_context: ^context,
                         result: :ok,
                         reason: nil,
                         instance: ^shm,
                         region_id: region_id
                       }}

      assert duration > 0 and is_integer(bytes)
      assert region_id == if(operation == :allocate, do: nil, else: id)
    end
  end

  test "a failure carries its reason" do
    %{shm: shm} = start_instance()
    region = Shm.put!("abc", instance: shm)
    {:error, _} = Shm.write(region, 0, "x")
    assert_received {:event, [:snakepit, :shared_memory, :write, :stop], _, %{result: :error, reason: :sealed}}
  end

  test "what nobody freed is reported with its cause" do
    %{shm: shm} = start_instance()
    worker = spawn_worker()
    region = in_worker(worker, fn -> Shm.put!("abc", instance: shm) end)
    id = region.id
    kill(worker)
    assert_receive {:event, [:snakepit, :shared_memory, :reclaim], %{bytes: 3}, %{region_id: ^id, cause: :owner_down}}
  end

  test "health" do
    start_instance(health_check_interval: 1)

    assert_receive {:event, [:snakepit, :shared_memory, :health], %{regions: 0, bytes: 0, mappings: _, descriptors: _},
                    %{warnings: _}}
  end

  test "telemetry_enabled: false emits nothing" do
    %{shm: shm} = start_instance(telemetry_enabled: false)
    Shm.put!("abc", instance: shm)
    refute_received {:event, _, _, %{instance: ^shm}}
  end

  test "a library that comes or goes later is noticed at the next round" do
    %{shm: shm} = start_instance(cleanup_interval: 1)
    :ets.delete(:telemetry_handler_table)
    eventually(fn -> not instance(shm).telemetry end)
    Shm.put!("abc", instance: shm)
    :ets.new(:telemetry_handler_table, [:named_table, :public])
    eventually(fn -> instance(shm).telemetry end)
    # Processes that were started before know it too.
    worker = spawn_worker()
    region = in_worker(worker, fn -> Shm.put!("abc", instance: shm) end)
    id = region.id
    kill(worker)
    assert_receive {:event, [:snakepit, :shared_memory, :reclaim], %{bytes: 3}, %{region_id: ^id, cause: :owner_down}}
  end
end
