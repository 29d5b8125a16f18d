defmodule Snakepit.Isolation.Batch do
  @moduledoc false
  # Many calls of one function under one deadline. The native part keeps as many of them in flight as there are slots;
  # those that a dead worker had not begun go out again.

  alias Snakepit.Isolation.{Call, Error, Worker}
  alias Snakepit.Native

  @look_again 250
  @longest_pause 50

  @type results :: {:ok, [Call.result()]} | {:error, Error.t()}

  @doc "`call` is one of them, for its deadline; its arguments stand for all."
  @spec run(Call.t(), [[term()]]) :: results()
  def run(_call, []), do: {:ok, []}

  def run(%Call{library: library} = call, lists) do
    case Native.call_many(library.native, call.function, lists) do
      :no_worker -> wait_for_worker(call, lists)
      :undefined -> Call.outcome(:undefined, call)
      answer -> go_on(answer, call, lists)
    end
  end

  defp wait_for_worker(call, lists) do
    case Call.await_worker(call.library, call.deadline) do
      :ready -> run(call, lists)
      {:moved, library} -> run(%{call | library: library}, lists)
      :timeout -> Call.failure(:timeout, call, %{timeout: call.timeout, started: false, because: :no_worker})
      {:error, _} = error -> error
    end
  end

  defp go_on(answer, call, lists, pause \\ 1)
  defp go_on({:done, outcomes}, call, lists, _pause), do: settle(outcomes, call, lists)
  defp go_on({:more, batch}, call, lists, _pause), do: wait(batch, call, lists, 1)

  # There is a free slot, and still nothing could be sent: the memory for arguments is full.
  defp go_on({:full, batch}, call, lists, pause) do
    Process.sleep(min(pause, Call.left(call.deadline)))
    wait(batch, call, lists, min(2 * pause, @longest_pause))
  end

  defp wait(batch, call, lists, pause) do
    # Made where it is received, so that the mailbox before it is not searched.
    ref = make_ref()

    case Native.batch_park(batch, ref, Call.waiters(call.library)) do
      :ready ->
        next(batch, call, lists, pause)

      :full ->
        refuse(batch, call, lists)

      :parked ->
        receive do
          {^ref, :done} -> next(batch, call, lists, pause)
        after
          min(Call.left(call.deadline), @look_again) -> look_again(batch, ref, call, lists, pause)
        end
    end
  end

  # A slot whose call was given up comes back without a word.
  defp look_again(batch, ref, call, lists, pause) do
    case Native.batch_unwait(batch) do
      :ok ->
        next(batch, call, lists, pause)

      :sent ->
        receive do
          {^ref, :done} -> next(batch, call, lists, pause)
        end

      :waiting ->
        receive do
          {^ref, :done} -> next(batch, call, lists, pause)
        after
          Call.left(call.deadline) -> batch |> cancel(call, ref) |> settle(call, lists)
        end
    end
  end

  # A batch that always finds something to do looks at the clock here.
  defp next(batch, call, lists, pause) do
    if Call.left(call.deadline) == 0,
      do: batch |> cancel(call, nil) |> settle(call, lists),
      else: batch |> Native.batch_next() |> go_on(call, lists, pause)
  end

  # `ref`: of a message that may still come.
  defp cancel(batch, call, ref) do
    {outcomes, hung, sent} = Native.batch_cancel(batch)

    if sent && ref do
      receive do
        {^ref, :done} -> :ok
      end
    end

    for worker <- hung, do: Worker.hung(call.library.table, worker, {call.function, length(call.arguments)})
    outcomes
  end

  # Too many callers wait for a slot already. None of the batch is in flight, so what was given up was not sent.
  defp refuse(batch, call, lists) do
    details = %{because: :waiting, limit: Call.waiters(call.library)}

    batch
    |> cancel(call, nil)
    |> Enum.map(fn
      {:error, {:timeout, _}} -> {:error, {:overloaded, details}}
      outcome -> outcome
    end)
    |> settle(call, lists)
  end

  defp settle(outcomes, call, lists) do
    cond do
      Enum.all?(outcomes, &match?({:ok, _}, &1)) -> {:ok, outcomes}
      Enum.member?(outcomes, :retry) -> retry(outcomes, call, lists)
      true -> {:ok, Enum.map(outcomes, &result(&1, call))}
    end
  end

  defp retry(outcomes, call, lists) do
    left = for {:retry, arguments} <- Enum.zip(outcomes, lists), do: arguments

    again =
      case {Call.left(call.deadline), call} do
        {0, _} -> Call.failure(:timeout, call, %{timeout: call.timeout, started: false})
        _ -> run(call, left)
      end

    results =
      case again do
        {:ok, results} -> results
        {:error, _} = error -> List.duplicate(error, length(left))
      end

    {:ok, merge(outcomes, results, call)}
  end

  defp merge([:retry | outcomes], [result | results], call), do: [result | merge(outcomes, results, call)]
  defp merge([outcome | outcomes], results, call), do: [result(outcome, call) | merge(outcomes, results, call)]
  defp merge([], [], _call), do: []

  defp result({:ok, _} = done, _call), do: done
  defp result({:raised, _} = raised, call), do: Call.outcome(raised, call)

  defp result({:error, {:timeout, details}}, call),
    do: Call.failure(:timeout, call, Map.put(details, :timeout, call.timeout))

  defp result({:error, _} = error, call), do: Call.outcome(error, call)
end
