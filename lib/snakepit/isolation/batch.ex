defmodule Snakepit.Isolation.Batch do
  @moduledoc false
  # Many calls of one function under one deadline. The native part keeps as many of them in flight as there are slots;
  # those that a dead worker had not begun go out again.

  alias Snakepit.Isolation.{Call, Error, Worker}
  alias Snakepit.Native

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

  defp go_on({:done, outcomes}, call, lists), do: settle(outcomes, call, lists)

  defp go_on({:more, batch}, call, lists) do
    # Made where it is received, so that the mailbox before it is not searched.
    ref = make_ref()

    if Native.batch_park(batch, ref) == :ready do
      batch |> next(call) |> go_on(call, lists)
    else
      receive do
        {^ref, :done} -> batch |> next(call) |> go_on(call, lists)
      after
        Call.left(call.deadline) ->
          {outcomes, hung, sent} = Native.batch_cancel(batch)

          if sent do
            receive do
              {^ref, :done} -> :ok
            end
          end

          for worker <- hung, do: Worker.hung(call.library.table, worker, {call.function, length(call.arguments)})
          settle(outcomes, call, lists)
      end
    end
  end

  # A batch that always finds something to do looks at the clock here.
  defp next(batch, call) do
    if Call.left(call.deadline) == 0 do
      {outcomes, hung, _sent} = Native.batch_cancel(batch)
      for worker <- hung, do: Worker.hung(call.library.table, worker, {call.function, length(call.arguments)})
      {:done, outcomes}
    else
      Native.batch_next(batch)
    end
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
