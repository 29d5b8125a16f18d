defmodule Snakepit.Isolation.Telemetry do
  @moduledoc """
  The events of isolated libraries, for applications that have `:telemetry`.

  A span of three events each for `:load`, `:call` (`call/4`, `call!/4`), `:call_many`:

    * `[:snakepit, :isolation, operation, :start]`: measurements `monotonic_time`, `system_time`
    * `[:snakepit, :isolation, operation, :stop]`: measurements `monotonic_time`, `duration` (native units)
    * `[:snakepit, :isolation, operation, :exception]`: measurements `monotonic_time`, `duration`

  Metadata: `library` (its id; the path while loading), `function` (`{name, arity}`; nil for `:load` and `:call_many`),
  `telemetry_span_context`; at `:stop` also `result` (`:ok` or `:error`) and `reason` (nil or the error's); at `:exception` `kind`,
  `reason`, `stacktrace`.

  One event each, with metadata `library` and `worker` (its number in the pool):

    * `[:snakepit, :isolation, :worker_ready]`: measurement `duration` (native units, from its start); metadata `os_pid`, `restarts`
    * `[:snakepit, :isolation, :worker_exit]`: measurement `delay` (ms until it is started again); metadata `os_pid`,
      `signal`, `exit_code`, `because` (`:exited`, `:hung`, `:heartbeat`, `:stuck`, `:protocol`, `:warden`)
    * `[:snakepit, :isolation, :call_running]` when a call has run for 1, 2, 4, 8 ... seconds, as a hang does that has no deadline: measurement
      `duration` (native units, to the second); metadata `os_pid`, `call` (a number that is its own)
    * `[:snakepit, :isolation, :gave_up]` when a worker is not started again: measurement `restarts`
    * `[:snakepit, :isolation, :output]` when lines of a library were not logged: measurement `dropped`

  `:telemetry` is called when the application has it when the library is loaded, unless `telemetry: false` is given. The
  span of a call costs a few times the call.
  """

  alias Snakepit.Isolation.Error

  @doc false
  @spec available?(boolean()) :: boolean()
  def available?(wanted), do: Snakepit.SharedMemory.Telemetry.available?(%{telemetry_enabled: wanted})

  @doc false
  @spec event(%{:id => term(), :telemetry => boolean(), optional(any()) => any()}, atom(), map(), map()) :: :ok
  def event(%{telemetry: false}, _event, _measurements, _metadata), do: :ok

  def event(%{id: id}, event, measurements, metadata),
    do: emit([:snakepit, :isolation, event], measurements, Map.put(metadata, :library, id))

  @doc false
  @spec span(atom(), map(), (() -> result)) :: result when result: var
  def span(operation, metadata, fun) do
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    started = System.monotonic_time()
    prefix = [:snakepit, :isolation, operation]
    emit(prefix ++ [:start], %{monotonic_time: started, system_time: System.system_time()}, metadata)

    try do
      fun.()
    else
      result ->
        now = System.monotonic_time()
        reason = reason(result)
        outcome = Map.merge(metadata, %{result: if(reason, do: :error, else: :ok), reason: reason})
        emit(prefix ++ [:stop], %{monotonic_time: now, duration: now - started}, outcome)
        result
    catch
      kind, reason ->
        now = System.monotonic_time()
        failure = Map.merge(metadata, %{kind: kind, reason: reason, stacktrace: __STACKTRACE__})
        emit(prefix ++ [:exception], %{monotonic_time: now, duration: now - started}, failure)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  # apply/3, because a direct call warns at compile time where the application is absent.
  defp emit(event, measurements, metadata) do
    apply(:telemetry, :execute, [event, measurements, metadata])
    :ok
  end

  defp reason({:error, %Error{reason: reason}}), do: reason
  defp reason(_), do: nil
end
