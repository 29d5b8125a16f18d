defmodule Snakepit.Isolation.Call do
  @moduledoc false
  # A call that was not answered at once: it is parked until the answer, or its deadline, comes; waits for a slot; goes
  # to another worker when the first one died before it had begun. All in the calling process.
  #
  # Deadlines are the caller's. A call that passes its own is cancelled; if the worker had begun it, the worker is
  # killed. Cancelling and answering race in the native part, and exactly one wins: no message is left in the mailbox.

  alias Snakepit.Isolation.{Directory, Error, Library, Pool, Worker}
  alias Snakepit.Native

  @look_again 250

  @enforce_keys [:library, :function, :arguments, :timeout, :deadline]
  defstruct [:library, :function, :arguments, :timeout, :deadline, waits: true, attempts: 0]

  @type t :: %__MODULE__{
          library: Library.t(),
          function: atom(),
          arguments: [term()],
          timeout: timeout(),
          deadline: integer() | :infinity,
          waits: boolean(),
          attempts: non_neg_integer()
        }
  @type result :: {:ok, term()} | {:error, Error.t()}

  @doc "Goes on with what `Native.call/4` has answered."
  @spec finish(term(), Library.t(), atom(), [term()], timeout()) :: result()
  def finish(answer, library, function, arguments, timeout),
    do: outcome(answer, new(library, function, arguments, timeout))

  @spec new(Library.t(), atom(), [term()], timeout()) :: t()
  def new(library, function, arguments, timeout) do
    %__MODULE__{
      library: library,
      function: function,
      arguments: arguments,
      timeout: timeout,
      deadline: deadline(timeout)
    }
  end

  @spec deadline(timeout()) :: integer() | :infinity
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  @spec left(integer() | :infinity) :: timeout()
  def left(:infinity), do: :infinity
  def left(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)

  @doc "Goes on with what a native function has answered, until there is a result; or a ticket, if that is not waited for."
  @spec outcome(term(), t()) :: result() | {:pending, Native.ticket()}
  def outcome({:ok, _} = done, _call), do: done
  def outcome({:pending, _} = pending, %{waits: false}), do: pending
  def outcome({:pending, ticket}, call), do: wait(ticket, call)
  def outcome({:raised, reason}, call), do: failure(:raised, call, %{exception: reason})
  def outcome({:error, {_reason, _details} = native}, call), do: {:error, error(native, call)}
  def outcome(:retry, call), do: again(call)
  def outcome(:full, call), do: wait_for_slot(call)
  def outcome(:no_worker, call), do: wait_for_worker(call)

  def outcome(:undefined, call),
    do: failure(:undefined_function, call, %{near: near(call.library, call.function)})

  @doc "What a native function answered, as an error; a worker that has lied is reported."
  @spec error({atom(), map()}, t()) :: Error.t()
  def error({reason, details}, call) do
    {worker, details} = Map.pop(details, :worker)
    if reason == :protocol and worker, do: Worker.lied(call.library.table, worker, details)
    Error.from_native({reason, details}, call.library.id, {call.function, length(call.arguments)})
  end

  @doc "Waits for the answer of a ticket until the call's deadline."
  @spec wait(Native.ticket(), t()) :: result()
  def wait(ticket, call) do
    # Made where it is received, so that the mailbox before it is not searched.
    ref = make_ref()

    case Native.park(ticket, ref) do
      :ready ->
        outcome(Native.take(ticket), call)

      :parked ->
        receive do
          {^ref, :done} -> outcome(Native.take(ticket), call)
        after
          left(call.deadline) ->
            case Native.cancel(ticket) do
              # It is on its way, or here.
              :ready ->
                receive do
                  {^ref, :done} -> outcome(Native.take(ticket), call)
                end

              {:cancelled, started, worker} ->
                late(call, started, worker)
            end
        end
    end
  end

  defp late(call, started, worker) do
    if started,
      do: Worker.hung(call.library.table, worker, {call.function, length(call.arguments)}),
      else: Worker.starved(call.library.table, worker)

    failure(:timeout, call, %{timeout: call.timeout, started: started})
  end

  defp again(call), do: if(late?(call), do: not_begun(call), else: submit(call))

  @doc "Submits the call."
  @spec submit(t()) :: result() | {:pending, Native.ticket()}
  def submit(%{library: library} = call),
    do: outcome(Native.call(library.native, call.function, call.arguments, library.spin), call)

  defp wait_for_slot(%{library: library} = call) do
    ref = make_ref()

    case Native.wait_slot(library.native, ref, waiters(library)) do
      :ready ->
        again(paused(call))

      :full ->
        failure(:overloaded, call, %{because: :waiting, limit: waiters(library)})

      :waiting ->
        receive do
          {^ref, :slot} -> again(call)
        after
          # A slot whose call was given up comes back without a word.
          min(left(call.deadline), @look_again) ->
            if Native.wait_slot_cancel(library.native, ref) == :sent do
              receive do
                {^ref, :slot} -> :ok
              end
            end

            if late?(call), do: failure(:overloaded, call, %{timeout: call.timeout}), else: again(call)
        end
    end
  end

  @doc false
  @spec waiters(Library.t()) :: pos_integer()
  def waiters(library), do: max(library.max_waiting, 1)

  defp wait_for_worker(call) do
    with :ready <- await_worker(call.library, call.deadline) do
      again(paused(call))
    else
      :timeout -> failure(:timeout, call, %{timeout: call.timeout, started: false, because: :no_worker})
      {:moved, library} -> again(%{call | library: library})
      {:error, %Error{} = error} -> {:error, %{error | function: {call.function, length(call.arguments)}}}
    end
  end

  @doc "Waits until the library has a worker in service, at most until the deadline."
  @spec await_worker(Library.t(), integer() | :infinity) ::
          :ready | :timeout | {:moved, Library.t()} | {:error, Error.t()}
  def await_worker(library, deadline) do
    with :gone <- if(Library.entry(library.table, library.number), do: Pool.await(library, left(deadline)), else: :gone) do
      # Its supervisor may have started it again: then another one has its name.
      case Directory.fetch(library.id) do
        {:ok, %{native: native} = successor, _} when native != library.native -> {:moved, successor}
        _ -> {:error, Error.new(:not_loaded, library.id, nil, %{because: :unloaded})}
      end
    end
  end

  # There seems to be room, or a worker, and there is none for this call: its arguments are large, or they belong to one
  # worker. So that it does not try without end, from the second time on it waits 1, 2, 4 ... 50 ms.
  defp paused(%{attempts: 0} = call), do: %{call | attempts: 1}

  defp paused(%{attempts: attempts} = call) do
    receive do
    after
      min(left(call.deadline), min(attempts, 50)) -> %{call | attempts: min(attempts * 2, 64)}
    end
  end

  defp late?(%{deadline: :infinity}), do: false
  defp late?(%{deadline: deadline}), do: System.monotonic_time(:millisecond) >= deadline

  defp not_begun(call), do: failure(:timeout, call, %{timeout: call.timeout, started: false})

  @doc false
  @spec failure(Error.reason(), t(), map()) :: {:error, Error.t()}
  def failure(reason, call, details),
    do: {:error, Error.new(reason, call.library.id, {call.function, length(call.arguments)}, details)}

  # Functions of nearly that name, or of that name with other arguments.
  defp near(library, function) do
    text = Atom.to_string(function)

    for {name, arity} <- library.functions,
        String.jaro_distance(Atom.to_string(name), text) > 0.77,
        do: "#{name}/#{arity}"
  end
end
