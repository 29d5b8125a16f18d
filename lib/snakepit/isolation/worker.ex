defmodule Snakepit.Isolation.Worker do
  @moduledoc false
  # Owns one position of a library's pool: has a process started there, has it load the library, puts it into service,
  # and starts the next one when it has ended. Kills it when it hangs, lies or shows no sign of life.
  #
  #     starting ──hello──▶ loading ──loaded──▶ ready ──killed──▶ ending ──exit──▶ waiting ──▶ starting
  #        └───────────────────┴── of the first process: failed                      └──too many──▶ failed
  #
  # Its row in the library's table is what others see of it, and what its successor goes on with.

  use GenServer

  require Logger

  alias Snakepit.Isolation.{
    Doorbell,
    Environment,
    Error,
    Library,
    Loading,
    LongCalls,
    Output,
    Pool,
    Roster,
    Telemetry,
    Warden
  }

  alias Snakepit.Isolation.Worker.{Farewell, Health, Restarts}
  alias Snakepit.Native

  @sigkill 9
  # How often it is looked at. The worker's own heartbeat is twice as fast.
  @tick 1_000
  # Between attempts to write to a socket that is full.
  @pause 10
  # Between two times that the worker is told of handles that the VM has dropped: it wakes for them.
  @gathering 10
  # A process that was asked to end is waited for so long.
  @farewell 500
  # A call that passed its deadline may end at the same moment: it has so many ms more, looked at after each of these.
  @doubts [1, 2, 4, 8]
  @longest_label 64

  @type row :: %{
          position: pos_integer(),
          state: :starting | :loading | :ready | :ending | :waiting | :failed,
          os_pid: pos_integer() | nil,
          native: reference() | nil,
          loaded: map() | nil,
          libraries: %{Native.library_number() => {:ok, map()} | {:error, Error.t()}},
          error: Error.t() | nil,
          restarts: non_neg_integer(),
          hung: non_neg_integer(),
          calls: non_neg_integer(),
          since: integer(),
          calls_since: %{non_neg_integer() => integer()},
          last_exit: map() | nil
        }

  @spec start_link(Library.shared(), pos_integer()) :: GenServer.on_start()
  def start_link(shared, position), do: GenServer.start_link(__MODULE__, {shared, position})

  @doc """
  A call that the worker had begun has passed its deadline. When this returns, the worker takes no new calls.
  """
  @spec hung(:ets.tid(), reference(), {atom(), arity()}) :: :ok
  def hung(table, native, function), do: ask(table, native, {:hung, native, function})

  @doc "A call has passed its deadline before the worker had begun it."
  @spec starved(:ets.tid(), reference()) :: :ok
  def starved(table, native), do: ask(table, native, {:starved, native})

  @doc "The worker has lied to a caller. When this returns, it takes no new calls."
  @spec lied(:ets.tid(), reference(), map()) :: :ok
  def lied(table, native, details), do: ask(table, native, {:lied, native, details})

  # A deadline has passed already, so the wait is short. Whatever becomes of it, the caller goes on.
  defp ask(table, native, question) do
    case Library.lookup(table, {:native, native}) do
      nil -> :ok
      pid -> GenServer.call(pid, question, 100)
    end
  catch
    :exit, _ -> :ok
  end

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @impl true
  def init({shared, position}) do
    Process.flag(:trap_exit, true)
    # What a predecessor has left: Warden ends its process.
    Native.pool_take(shared.native, position - 1)

    row =
      Library.lookup(shared.table, {:worker, position}) ||
        %{position: position, loaded: nil, libraries: %{}, error: nil, restarts: 0, hung: 0, calls: 0, last_exit: nil}

    state = %{
      shared: shared,
      position: position,
      label: label(shared.id, position),
      row:
        Map.merge(row, %{
          state: :starting,
          os_pid: nil,
          native: nil,
          since: now(),
          calls_since: %{},
          libraries: refusals(row)
        }),
      native: nil,
      token: nil,
      monitor: nil,
      doorbell: nil,
      output: nil,
      loading: %Loading{},
      # After a call has passed its deadline, until it is known whether it hangs: its function, and the calls given up.
      doubt: nil,
      # Why it has been killed, if it has.
      cause: nil,
      # What it said itself before it ended.
      failure: nil,
      # Whether it was said that it waits for a mailbox.
      full: false,
      timer: nil,
      crashes: [],
      # When the worker was told last of objects that the VM has let go of.
      flushed: System.monotonic_time(:millisecond) - @gathering,
      # A message that has it told again is on its way.
      flushing: false,
      health: nil
    }

    {:ok, write(state), {:continue, :start}}
  end

  @impl true
  # Its predecessor's process has ended with it.
  def handle_continue(:start, %{row: %{loaded: loaded}, shared: %{options: %{restart: :temporary}}} = state)
      when loaded != nil,
      do: {:noreply, not_again(state, %{because: :server})}

  def handle_continue(:start, state), do: {:noreply, start(state)}

  @impl true
  def handle_call({:hung, native, function}, _from, %{native: native, cause: nil, doubt: nil} = state) do
    Native.pool_take(state.shared.native, state.position - 1)
    state = update(%{state | doubt: {function, nil}}, %{state: :ending})
    {:reply, :ok, doubt_later(state, @doubts)}
  end

  def handle_call({:lied, native, details}, _from, %{native: native, cause: nil} = state),
    do: {:reply, :ok, lied(state, details)}

  def handle_call({:starved, native}, _from, %{native: native} = state) when native != nil do
    health = Health.starved(state.health, Native.worker_status(native), System.monotonic_time(:millisecond))
    {:reply, :ok, %{state | health: health}}
  end

  # About one that is gone.
  def handle_call(_, _from, state), do: {:reply, :ok, state}

  @impl true
  def handle_info({:select, native, _, :ready_input}, %{native: native} = state) when native != nil,
    do: {:noreply, listen(state)}

  def handle_info({Warden, token, event}, %{token: token} = state) when token != nil,
    do: {:noreply, warden(event, state)}

  def handle_info({:DOWN, monitor, :process, _, _}, %{monitor: monitor} = state) when monitor != nil,
    do: {:noreply, warden(:lost, state)}

  # It has ended with that.
  def handle_info({Doorbell, pid, {_reason, details}}, %{doorbell: pid} = state),
    do: {:noreply, lied(%{state | doorbell: nil}, details)}

  def handle_info({Doorbell, pid, :denied, function}, %{doorbell: pid} = state) do
    denied(state, function)
    {:noreply, state}
  end

  def handle_info({Doorbell, pid, :full, receiver}, %{doorbell: pid} = state), do: {:noreply, full(state, receiver)}

  def handle_info({Roster, :load, number}, %{cause: nil, row: %{os_pid: os_pid}} = state) when os_pid != nil do
    # One that has not said hello looks for itself when it does.
    if state.row.state == :starting,
      do: {:noreply, state},
      else: {:noreply, load_next(%{state | loading: Loading.add(state.loading, number)})}
  end

  def handle_info({Roster, :unload, number}, state), do: {:noreply, unload(state, number)}

  def handle_info({:load_timeout, token, asked}, %{token: token, timer: timer, loading: %{asked: asked}} = state)
      when token != nil and timer != nil,
      do: {:noreply, kill(state, :load_timeout)}

  def handle_info({:doubt, token, waits}, %{token: token, cause: nil} = state) when token != nil,
    do: {:noreply, doubt(state, waits)}

  def handle_info({:tick, token}, %{token: token} = state) when token != nil, do: {:noreply, tick(state)}

  def handle_info({:flush, token}, %{token: token} = state) when token != nil,
    do: {:noreply, flush(%{state | flushing: false})}

  # The garbage collector has found handles. The worker is told at once, as a destructor runs at once in the VM; of those that come soon after, together.
  def handle_info(:released, %{token: token, flushing: false, flushed: last} = state) when token != nil do
    case last + @gathering - System.monotonic_time(:millisecond) do
      wait when wait > 0 -> {:noreply, flush_later(state, wait)}
      _long_ago -> {:noreply, flush(state)}
    end
  end

  def handle_info(:restart, %{native: nil, row: %{state: :waiting}} = state), do: {:noreply, start(state)}

  # A doorbell that was killed is replaced: callers wait for it.
  def handle_info({:EXIT, pid, _}, %{doorbell: pid, native: native} = state) when native != nil,
    do: {:noreply, %{state | doorbell: doorbell(state, native)}}

  def handle_info({:EXIT, pid, reason}, %{output: pid, native: native} = state)
      when native != nil and reason != :normal,
      do: {:noreply, %{state | output: output(state, native)}}

  def handle_info(_late, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, %{native: nil}), do: :ok

  def terminate(reason, %{native: native} = state) do
    Native.pool_take(state.shared.native, state.position - 1)
    state = update(state, %{state: :ending})
    orderly? = reason in [:normal, :shutdown] or match?({:shutdown, _}, reason)
    if orderly? and state.cause == nil, do: Native.worker_stop(native)
    %{token: token, monitor: monitor} = state
    ended = Farewell.await(token, monitor, if(orderly?, do: @farewell, else: 0)) || Farewell.slay(token, monitor)
    status = known(native, ended)
    because = if orderly?, do: {:not_loaded, %{because: :unloaded}}, else: {:crashed, exit_details(state, status)}
    buried(state, because)
  end

  defp known(_native, {:exited, status}), do: status
  defp known(_native, nil), do: nil

  defp known(native, :lost) do
    Farewell.await_unreported(native)
    nil
  end

  # ── From start to service ─────────────────────────────────────────────────────────────────────────────────────

  defp start(%{shared: shared} = state) do
    state = %{
      state
      | cause: nil,
        failure: nil,
        loading: %Loading{},
        doubt: nil,
        full: false,
        flushing: false,
        health: %Health{}
    }

    state = update(state, %{state: :starting, since: now(), calls_since: %{}})

    with {:ok, native} <- Native.worker_new(spec(shared)),
         {:ok, token} <- start_process(native, state) do
      monitor = Process.monitor(Warden)
      :ets.insert(shared.table, {{:native, native}, self()})
      timer = Process.send_after(self(), {:load_timeout, token, nil}, shared.options.load_timeout)
      output = output(state, native)
      # From the start: a library may ask things while it is being loaded.
      doorbell = doorbell(state, native)

      state = %{
        state
        | native: native,
          token: token,
          monitor: monitor,
          timer: timer,
          output: output,
          doorbell: doorbell
      }

      state
      |> update(%{native: native})
      |> select()
    else
      {:error, {:executable, details}} -> not_started(state, Map.put(details, :because, :executable))
      {:error, {_reason, details}} -> not_started(state, Map.put(details, :because, :start))
    end
  end

  defp start_process(native, %{label: label, shared: %{options: %{env: env}}}) do
    with {:error, {reason, details}} = error <- Warden.start_worker(native, label, Environment.block(env)) do
      Native.worker_close(native, {:crashed, Map.put(details, :because, reason)})
      error
    end
  catch
    :exit, _ ->
      Native.worker_close(native, {:crashed, %{because: :warden}})
      {:error, {:warden, %{message: "the process that starts workers is being restarted"}}}
  end

  defp spec(%{options: options, atoms: atoms}) do
    %{
      slots: options.slots,
      slot_bytes: options.slot_size,
      spill_bytes: options.spill_size,
      executors: options.concurrency,
      spin_us: options.worker_spin,
      atoms: atoms,
      names: options.max_names,
      whereis: whereis(options.whereis),
      port_command: options.port_command,
      max_words: options.max_words,
      max_depth: options.max_depth,
      memory: if(options.memory == :infinity, do: 0, else: options.memory)
    }
  end

  defp whereis(:all), do: :all
  defp whereis(names), do: Enum.map(names, &Atom.to_string/1)

  defp select(state) do
    case Native.worker_select(state.native, :control) do
      :ok -> state
      {:error, _} -> kill(state, :protocol)
    end
  end

  defp listen(state) do
    case Native.worker_receive(state.native) do
      {:ok, message} -> message |> heard(state) |> listen()
      :again -> select(state)
      # It is ending, or has closed its end to hide: then it ends now.
      :closed -> kill(state, :closed)
      {:error, {_, details}} -> lied(state, details)
    end
  end

  # Its own word for its process holds until the warden has said.
  defp heard({:hello, os_pid}, %{row: %{state: :starting}, shared: shared} = state) do
    state = update(state, %{state: :loading, os_pid: state.row.os_pid || os_pid})
    load_next(%{state | loading: %Loading{queue: Roster.wanted(shared.table, state.row.libraries)}})
  end

  defp heard({:failed, details}, %{row: %{state: :loading}, cause: nil} = state) do
    entry = Library.entry(state.shared.table, state.loading.asked)
    failure = if entry, do: Loading.failure(state.loading, entry, details)
    kill(%{state | failure: failure}, :failed)
  end

  # After a lie nothing is heard any more; what is said twice or out of turn is one.
  defp heard(_, %{cause: cause} = state) when cause != nil, do: state
  defp heard({kind, _} = other, state) when kind in [:hello, :failed], do: lied(state, unexpected(other))

  defp heard(said, %{shared: shared, native: native} = state) do
    case Loading.heard(state.loading, said, shared.table, native) do
      {:go_on, loading} -> load_next(%{state | loading: loading})
      {:loaded, loading, entry, loaded} -> state |> loaded(entry, loaded) |> go_on(loading)
      {:refused, loading, entry, error} -> state |> refused(entry, error) |> go_on(loading)
      {:unloaded, loading, number} -> state |> unloaded(number) |> go_on(loading)
      {:lied, details} -> lied(state, details)
    end
  end

  defp unexpected(said), do: %{message: "unexpected #{inspect(said, limit: 5)}"}

  defp go_on(state, loading), do: load_next(%{state | loading: loading})

  # The next library, or service.
  defp load_next(%{cause: cause} = state) when cause != nil, do: state

  defp load_next(%{shared: shared, native: native} = state) do
    case Loading.next(state.loading, shared.table, native) do
      {:asked, loading, entry} ->
        if state.timer, do: Process.cancel_timer(state.timer)
        timer = Process.send_after(self(), {:load_timeout, state.token, entry.number}, entry.options.load_timeout)
        %{state | loading: loading, timer: timer}

      {:refused, loading, entry, error} ->
        state |> refused(entry, error) |> go_on(loading)

      {:idle, %{asked: nil} = loading} ->
        if state.timer, do: Process.cancel_timer(state.timer)
        serve(%{state | loading: loading, timer: nil})

      {:idle, loading} ->
        %{state | loading: loading}
    end
  end

  defp loaded(state, %{number: number}, loaded) do
    libraries = Map.put(state.row.libraries, number, {:ok, loaded})
    state = update(state, %{libraries: libraries, loaded: state.row.loaded || loaded})
    Roster.changed(state.shared.table)
    state
  end

  # One that others count on, or one that is only about to be added.
  defp refused(state, %{state: :ready}, error), do: kill(%{state | failure: error}, :failed)

  defp refused(state, %{number: number}, error) do
    state = update(state, %{libraries: Map.put(state.row.libraries, number, {:error, error})})
    Roster.changed(state.shared.table)
    state
  end

  defp serve(%{row: %{state: :loading}, shared: shared} = state) do
    # One that is still wanted. None: all were unloaded while they were loaded, and it is about to be ended.
    entry = Enum.find_value(state.loading.loaded, &Library.entry(shared.table, &1))

    with %{native: pool} <- entry,
         :ok <- Native.pool_put(pool, state.position - 1, state.native) do
      Process.send_after(self(), {:tick, state.token}, @tick)
      duration = now() - state.row.since
      state = update(state, %{state: :ready, error: nil})

      Telemetry.event(about(state), :worker_ready, %{duration: duration}, %{
        worker: state.position,
        os_pid: state.row.os_pid,
        restarts: state.row.restarts
      })

      Pool.changed(shared.table)
      state
    else
      {:error, {_, details}} -> lied(state, details)
      _none -> state
    end
  end

  defp serve(state), do: state

  defp unload(%{native: native, cause: nil} = state, number) when native != nil do
    # What it let go of before it was unloaded comes before that.
    state = flush(state)

    case Loading.remove(state.loading, number, native) do
      {:leaving, loading} -> %{state | loading: loading}
      {:gone, loading} -> unloaded(%{state | loading: loading}, number)
    end
  end

  defp unload(state, number), do: unloaded(state, number)

  defp unloaded(state, number) do
    Roster.unloaded(state.shared.table, number)
    update(state, %{libraries: Map.delete(state.row.libraries, number)})
  end

  # ── Its end ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp warden({:started, os_pid}, state), do: update(state, %{os_pid: os_pid})
  defp warden({:not_started, details}, state), do: exited(%{state | failure: start_failure(state, details)}, nil)
  defp warden({:exited, _os_pid, status}, state), do: exited(state, status)

  defp warden(:lost, state) do
    Farewell.await_unreported(state.native)
    exited(if(state.cause in [nil, :closed], do: %{state | cause: :warden}, else: state), nil)
  end

  defp start_failure(%{shared: %{id: id}}, details) do
    message = "#{details[:call]} failed with errno #{details[:errno]}"
    Error.new(:not_loaded, id, nil, Map.merge(details, %{because: :start, message: message}))
  end

  defp kill(%{token: nil} = state, _cause), do: state
  # The first cause is the cause.
  defp kill(%{cause: cause} = state, _) when cause != nil, do: state

  defp kill(state, cause) do
    Native.pool_take(state.shared.native, state.position - 1)
    Warden.kill(state.token, @sigkill)
    # Whoever asks for a worker waits for its successor.
    update(%{state | cause: cause}, %{state: :ending})
  end

  defp lied(%{cause: cause} = state, _details) when cause != nil, do: state

  defp lied(state, details) do
    Logger.error("#{state.label}: process #{state.row.os_pid} broke the protocol (#{words(details)}) and is replaced")
    kill(state, :protocol)
  end

  defp words(%{message: message}) when is_binary(message), do: Loading.text(message)
  defp words(details), do: inspect(details, limit: 10)

  defp exited(state, status) do
    details = exit_details(state, status)
    loaded? = state.row.loaded != nil
    state = lose_libraries(state, details)
    hung? = details.because == :hung
    os_pid = state.row.os_pid
    reason = if details[:limit], do: :quota_exceeded, else: :crashed
    state = state |> buried({reason, details}) |> update(%{last_exit: Map.put(details, :at, DateTime.utc_now())})
    details = Map.put(details, :os_pid, os_pid)

    cond do
      not loaded? -> failed(state, first_failure(state, details))
      not Restarts.wanted?(state.shared.options.restart, details) -> not_again(state, details)
      hung? -> again(state, 0, details)
      true -> crashed(state, details)
    end
  end

  # Those that it has are loaded again, and the one that it was about to get is not.
  defp lose_libraries(%{shared: shared, loading: loading} = state, details) do
    for number <- loading.leaving, do: Roster.unloaded(shared.table, number)
    entry = if loading.asked, do: Library.entry(shared.table, loading.asked)
    failed = refusals(state.row)

    failed =
      if match?(%{state: :loading}, entry),
        do: Map.put(failed, entry.number, {:error, Loading.died(entry, details)}),
        else: failed

    state = update(%{state | loading: %Loading{}}, %{libraries: failed})
    Roster.changed(shared.table)
    state
  end

  # Of libraries that are not tried again.
  defp refusals(row), do: for({number, {:error, _} = error} <- row.libraries, into: %{}, do: {number, error})

  defp exit_details(%{cause: cause, native: native, shared: %{options: %{memory: memory}}}, status),
    do: Farewell.details(cause, status, memory, native)

  defp buried(%{native: native, shared: shared} = state, reason) do
    Native.pool_take(shared.native, state.position - 1)
    stored(fn -> :ets.delete(shared.table, {:native, native}) end)
    if state.doorbell, do: Doorbell.stop(state.doorbell)
    # What its library has sent before it ended arrives.
    Native.worker_rest(native)
    calls = calls(native)
    Native.worker_close(native, reason)
    if state.output, do: Output.stop(state.output)
    if state.timer, do: Process.cancel_timer(state.timer)
    if state.monitor, do: Process.demonitor(state.monitor, [:flush])

    %{state | native: nil, token: nil, monitor: nil, doorbell: nil, output: nil, timer: nil}
    |> update(%{native: nil, os_pid: nil, calls: state.row.calls + calls})
  end

  defp calls(native) do
    case Native.worker_status(native) do
      %{calls: calls} when is_integer(calls) -> calls
      _ -> 0
    end
  end

  defp first_failure(%{failure: %Error{} = error}, _details), do: error

  defp first_failure(%{shared: shared}, details), do: shared.table |> Library.entry(0) |> Loading.died(details)

  # Nothing has been started at all.
  defp not_started(%{row: %{loaded: nil}, shared: %{id: id}} = state, details),
    do: failed(state, Error.new(:not_loaded, id, nil, details))

  defp not_started(state, details) do
    Logger.error("#{state.label}: no process could be started: #{words(details)}")
    crashed(update(state, %{last_exit: Map.put(details, :at, DateTime.utc_now())}), details)
  end

  defp crashed(%{shared: %{options: options}} = state, details) do
    {crashes, what} = Restarts.after_crash(state.crashes, options, now())
    state = %{state | crashes: crashes}

    case what do
      {:again, delay} -> again(state, delay, details)
      {:give_up, count} -> give_up(state, details, count)
    end
  end

  defp again(state, delay, details) do
    exit_event(state, delay, details)
    state = update(state, %{state: :waiting, restarts: state.row.restarts + 1})
    Pool.changed(state.shared.table)

    if delay == 0 do
      # First those who have just been told of the end: a start takes a while, and they may be on this scheduler.
      :erlang.yield()
      start(state)
    else
      Process.send_after(self(), :restart, delay)
      state
    end
  end

  defp not_again(%{shared: %{options: options, id: id}} = state, details) do
    exit_event(state, 0, details)
    about = %{because: :not_restarted, restart: options.restart, last: Error.end_in_words(details)}
    failed(state, Error.new(:not_loaded, id, nil, of_module(about, options)))
  end

  defp give_up(%{shared: %{options: options}} = state, details, count) do
    exit_event(state, 0, details)
    last = Error.end_in_words(details)
    about = %{because: :gave_up, restarts: count, seconds: options.max_seconds, last: last}
    error = Error.new(:not_loaded, state.shared.id, nil, of_module(about, options))
    Logger.error("#{state.label}: #{Exception.message(%{error | library: nil})}")
    Telemetry.event(about(state), :gave_up, %{restarts: state.row.restarts}, %{worker: state.position})
    failed(state, error)
  end

  # What is to be done is something else then.
  defp of_module(details, %{fits: %{module: module}}), do: Map.put(details, :module, module)
  defp of_module(details, _options), do: details

  defp failed(state, error) do
    state = update(state, %{state: :failed, error: error})
    Pool.changed(state.shared.table)
    state
  end

  defp exit_event(state, delay, details) do
    metadata = %{
      worker: state.position,
      os_pid: details[:os_pid],
      signal: details[:signal],
      exit_code: details[:exit_code],
      because: details[:because]
    }

    Telemetry.event(about(state), :worker_exit, %{delay: delay}, metadata)
  end

  # ── Signs of life ─────────────────────────────────────────────────────────────────────────────────────────────

  defp tick(state) do
    state = flush(state)
    Native.worker_clock(state.native)
    Process.send_after(self(), {:tick, state.token}, @tick)
    if state.cause, do: state, else: watch(state, Native.worker_status(state.native))
  end

  # Objects that the VM has let go of. A library that returns one with each call makes many of them.
  defp flush(state) do
    state = %{state | flushed: System.monotonic_time(:millisecond)}

    case Native.worker_flush(state.native) do
      {:ok, left} when left > 0 -> flush(state)
      {:error, {:busy, _}} -> flush_later(state, @pause)
      {:error, {:protocol, details}} -> lied(state, details)
      _done_or_closed -> state
    end
  end

  # Of these messages there is one at a time, or a worker that does not read would be told more and more often.
  defp flush_later(%{flushing: true} = state, _wait), do: state

  defp flush_later(state, wait) do
    Process.send_after(self(), {:flush, state.token}, wait)
    %{state | flushing: true}
  end

  defp watch(%{shared: %{options: options}} = state, status) do
    {health, long, verdict} = Health.look(state.health, status, options, @tick, System.monotonic_time(:millisecond))

    state = going_on(%{state | health: health}, LongCalls.since(health.calls), long)

    case verdict do
      :well -> state
      {:lies, what} -> lied(state, %{message: what})
      {:hangs, what} -> hangs(state, what)
      {:kill, cause, what} -> kill_for(state, cause, what)
    end
  end

  # For info/1, and for who listens.
  defp going_on(state, since, long) do
    for {call, ms} <- long do
      duration = System.convert_time_unit(ms, :millisecond, :native)
      metadata = %{worker: state.position, os_pid: state.row.os_pid, call: call}
      Telemetry.event(about(state), :call_running, %{duration: duration}, metadata)
    end

    if state.row.calls_since == since, do: state, else: update(state, %{calls_since: since})
  end

  # Out of the pool until it is known whether the call goes on.
  defp doubt_later(state, [wait | waits]) do
    Process.send_after(self(), {:doubt, state.token, waits}, wait)
    state
  end

  defp doubt(%{doubt: {function, calls}} = state, waits) do
    orphans = Native.worker_status(state.native).orphans
    # Those of the first look, the one in question among them.
    calls = calls || orphans

    cond do
      not Enum.any?(calls, &(&1 in orphans)) ->
        return_to_service(%{state | doubt: nil})

      waits == [] ->
        hangs(state, "#{name(function)} did not answer before its deadline")

      true ->
        doubt_later(%{state | doubt: {function, calls}}, waits)
    end
  end

  defp return_to_service(state) do
    case Native.pool_put(state.shared.native, state.position - 1, state.native) do
      :ok ->
        state = update(state, %{state: :ready})
        Pool.changed(state.shared.table)
        state

      {:error, _} ->
        kill(state, :hung)
    end
  end

  defp hangs(state, what), do: state |> update(%{hung: state.row.hung + 1}) |> kill_for(:hung, what)

  defp kill_for(state, cause, what) do
    Logger.warning("#{state.label}: #{what}; process #{state.row.os_pid} is replaced")
    kill(state, cause)
  end

  # ── House ─────────────────────────────────────────────────────────────────────────────────────────────────────

  defp output(%{shared: %{options: options}} = state, native),
    do: Output.start_link(native, Map.merge(about(state), %{position: state.position, level: options.output}))

  defp doorbell(%{shared: %{options: options}}, native),
    do: Doorbell.start_link(native, {options.max_mailbox, options.max_mailbox_bytes})

  # Said once for each library and function, whichever of its workers it was.
  defp denied(%{shared: %{table: table}, label: label}, function) do
    if stored(fn -> :ets.insert_new(table, {{:denied, function}, true}) end) do
      option = if function == "enif_port_command", do: "port_command: true", else: "whereis: [name]"
      Logger.warning("#{label}: #{function} was refused; #{option} of Snakepit.Isolation.load/2 grants it")
    end
  end

  # Once for each process of it.
  defp full(%{full: true} = state, _receiver), do: state

  defp full(state, receiver) do
    Logger.warning(
      "#{state.label}: #{inspect(receiver)} has more waiting than #{limit(receiver)} allows; the library waits"
    )

    %{state | full: true}
  end

  defp limit(receiver) when is_port(receiver), do: "max_mailbox_bytes:"
  defp limit(_receiver), do: "max_mailbox: or max_mailbox_bytes:"

  defp about(%{shared: %{id: id, options: options}}), do: %{id: id, telemetry: Telemetry.available?(options.telemetry)}

  defp update(state, changes), do: write(%{state | row: Map.merge(state.row, changes)})

  defp write(%{shared: shared, position: position, row: row} = state) do
    stored(fn -> :ets.insert(shared.table, {{:worker, position}, row}) end)
    state
  end

  # The table goes before this process does when the library's supervisor is killed.
  defp stored(fun) do
    fun.()
  rescue
    ArgumentError -> false
  end

  defp name({function, arity}), do: "#{function}/#{arity}"

  # In the list of processes; the warden takes no longer ones.
  defp label(id, position) do
    position = "/#{position}"
    room = @longest_label - byte_size(position)
    name = id |> to_string() |> String.graphemes()

    kept =
      Enum.reduce_while(name, "", fn one, kept ->
        if byte_size(kept) + byte_size(one) <= room, do: {:cont, kept <> one}, else: {:halt, kept}
      end)

    kept <> position
  end

  defp now, do: System.monotonic_time()
end
