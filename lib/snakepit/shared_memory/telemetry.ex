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
    # Its table is there as long as it runs; called without, it would log a warning each time. Asked first: where there is no such module,
    # the code server would look for it in each directory of its path, which takes it milliseconds.
    do:
      config.telemetry_enabled and :ets.whereis(:telemetry_handler_table) != :undefined and
        Code.ensure_loaded?(:telemetry)

  @doc false
  @spec execute(Instance.t(), atom(), map(), map()) :: :ok
  def execute(%Instance{name: name}, event, measurements, metadata) do
    # As it is now: a process keeps the instance that it was started with.
    case Instance.of_name(name) do
      {:ok, %{telemetry: true}} ->
        emit([:snakepit, :shared_memory, event], measurements, Map.put(metadata, :instance, name))

      _ ->
        :ok
    end
  end

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

  @doc false
  # The same for what takes less than reading the clock: counted always, timed now and then, a span where there is
  # telemetry.
  @spec sample(Instance.t(), Stats.operation(), String.t(), non_neg_integer(), (() -> result)) :: result
        when result: var
  def sample(%Instance{telemetry: false, timed: true, stats: stats} = instance, operation, _id, bytes, fun) do
    if Stats.sample?() do
      timed(instance, operation, bytes, fun)
    else
      case fun.() do
        {:ok, _} = result ->
          Stats.count(stats, operation, bytes)
          result

        {:error, %Error{type: type}} = error ->
          Stats.error(stats, type)
          error
      end
    end
  end

  def sample(instance, operation, id, bytes, fun), do: measure(instance, operation, id, bytes, fun)

  defp timed(%Instance{stats: stats, timed: true}, operation, bytes, fun) do
    started = :erlang.monotonic_time()
    result = fun.()
    elapsed = :erlang.monotonic_time() - started

    case result do
      {:error, %Error{type: type}} -> Stats.error(stats, type)
      _ -> Stats.record(stats, operation, nanoseconds(elapsed), bytes)
    end

    result
  end

  defp timed(%Instance{stats: stats}, _operation, _bytes, fun) do
    with {:error, %Error{type: type}} = error <- fun.() do
      Stats.error(stats, type)
      error
    end
  end

  # The native unit is the nanosecond wherever it can be; then there is nothing to convert.
  if System.convert_time_unit(1, :native, :nanosecond) == 1,
    do: defp(nanoseconds(native), do: native),
    else: defp(nanoseconds(native), do: System.convert_time_unit(native, :native, :nanosecond))

  defp reason({:error, %Error{reason: reason}}), do: reason
  defp reason(_), do: nil
end
