defmodule Snakepit.SharedMemory.Telemetry do
  @moduledoc """
  The events of shared memory, for applications that have `:telemetry`.

  A span of three events each for `:allocate`, `:map`, `:read`, `:write`, `:seal`, `:view`, `:free`:

    * `[:snakepit, :shared_memory, operation, :start]`: measurements `monotonic_time`, `system_time`
    * `[:snakepit, :shared_memory, operation, :stop]`: measurements `monotonic_time`, `duration` (native units), `bytes`
    * `[:snakepit, :shared_memory, operation, :exception]`: measurements `monotonic_time`, `duration`

  Metadata: `instance`, `region_id` (nil while allocating), `telemetry_span_context`; at `:stop` also `result` (`:ok` or
  `:error`) and `reason` (nil or the error's); at `:exception` `kind`, `reason`, `stacktrace`.

  One event each:

    * `[:snakepit, :shared_memory, :reclaim]` when a region goes without anybody having freed it: measurement
      `bytes`; metadata `instance`, `region_id`, `cause` (`:owner_down`, `:expired`, `:unreferenced`, `:uncommitted`)
    * `[:snakepit, :shared_memory, :session]`: measurement `count`; metadata `instance`, `session`, `event` (`:open`, `:resume`,
      `:pending`, `:end`)
    * `[:snakepit, :shared_memory, :health]` each `health_check_interval`: measurements `regions`, `bytes`, `mappings`,
      `descriptors`; metadata `instance`, `warnings`

  `:telemetry` is called when the application has it and `telemetry_enabled` is true; this is looked up when an instance
  starts and again at each `cleanup_interval`.
  """

  alias Snakepit.SharedMemory.{Error, Instance, Stats}

  @doc false
  @spec available?(map()) :: boolean()
  def available?(config),
    do: config.telemetry_enabled and Code.ensure_loaded?(:telemetry) and function_exported?(:telemetry, :execute, 3)

  @doc false
  @spec execute(Instance.t(), atom(), map(), map()) :: :ok
  def execute(%Instance{telemetry: false}, _event, _measurements, _metadata), do: :ok

  def execute(%Instance{} = instance, event, measurements, metadata),
    do: emit([:snakepit, :shared_memory, event], measurements, Map.put(metadata, :instance, instance.name))

  # apply/3, because a direct call warns at compile time where the application is absent.
  defp emit(event, measurements, metadata) do
    apply(:telemetry, :execute, [event, measurements, metadata])
    :ok
  end

  @doc false
  # Runs an operation, counts it and its errors, times it, and emits its span.
  @spec measure(Instance.t(), Stats.operation(), String.t() | nil, non_neg_integer(), (() -> result)) :: result
        when result: var
  def measure(%Instance{telemetry: true} = instance, operation, id, bytes, fun) do
    metadata = %{instance: instance.name, region_id: id, telemetry_span_context: make_ref()}
    started = System.monotonic_time()
    prefix = [:snakepit, :shared_memory, operation]
    emit(prefix ++ [:start], %{monotonic_time: started, system_time: System.system_time()}, metadata)

    try do
      timed(instance, operation, bytes, fun)
    else
      result ->
        now = System.monotonic_time()
        reason = reason(result)
        outcome = Map.merge(metadata, %{result: if(reason, do: :error, else: :ok), reason: reason})
        emit(prefix ++ [:stop], %{monotonic_time: now, duration: now - started, bytes: bytes}, outcome)
        result
    catch
      kind, reason ->
        now = System.monotonic_time()
        failure = Map.merge(metadata, %{kind: kind, reason: reason, stacktrace: __STACKTRACE__})
        emit(prefix ++ [:exception], %{monotonic_time: now, duration: now - started}, failure)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  def measure(instance, operation, _id, bytes, fun), do: timed(instance, operation, bytes, fun)

  defp timed(%Instance{stats: stats, config: %{performance_monitoring: true}}, operation, bytes, fun) do
    started = :erlang.monotonic_time(:nanosecond)
    result = fun.()

    case result do
      {:error, %Error{type: type}} -> Stats.error(stats, type)
      _ -> Stats.record(stats, operation, :erlang.monotonic_time(:nanosecond) - started, bytes)
    end

    result
  end

  defp timed(%Instance{stats: stats}, _operation, _bytes, fun) do
    with {:error, %Error{type: type}} = error <- fun.() do
      Stats.error(stats, type)
      error
    end
  end

  defp reason({:error, %Error{reason: reason}}), do: reason
  defp reason(_), do: nil
end
