defmodule Snakepit.Isolation.Worker.Farewell do
  @moduledoc false
  # The end of a worker's process: how it is awaited, and what is said of it.

  alias Snakepit.Isolation.{Error, Warden}
  alias Snakepit.Native

  @sigkill 9
  # A process that was killed is waited for so long.
  @burial 5_000
  # So many ms after memory was refused to it, its end is another matter.
  @grief 1_000

  @typep status :: {:exit, non_neg_integer()} | {:signal, pos_integer()} | nil

  @doc "What the warden says within `patience` ms; nil if it says nothing."
  @spec await(reference(), reference(), non_neg_integer()) :: {:exited, status()} | :lost | nil
  def await(token, monitor, patience) do
    receive do
      {Warden, ^token, {:exited, _os_pid, status}} -> {:exited, status}
      {Warden, ^token, :lost} -> :lost
      {Warden, ^token, {:not_started, _}} -> {:exited, nil}
      {:DOWN, ^monitor, :process, _, _} -> :lost
    after
      patience -> nil
    end
  end

  @doc "As `await/3`, of one that is killed."
  @spec slay(reference(), reference()) :: {:exited, status()} | :lost | nil
  def slay(token, monitor) do
    Warden.kill(token, @sigkill)
    await(token, monitor, @burial)
  end

  @doc """
  The warden is gone, and the kernel kills its workers after it; nobody reports that. A worker's end of the control socket closes when
  none of its threads runs any more. Only then are its calls answered: one that it had not begun is given to another worker, and must not
  be begun here too.
  """
  @spec await_unreported(reference()) :: :ok | nil
  def await_unreported(native),
    do: await_closed(native, now() + System.convert_time_unit(@burial, :millisecond, :native))

  defp await_closed(native, deadline) do
    case Native.worker_receive(native) do
      :again -> if await_input(native, deadline), do: await_closed(native, deadline)
      :closed -> :ok
      _ignored -> if now() < deadline, do: await_closed(native, deadline)
    end
  end

  defp await_input(native, deadline) do
    left = System.convert_time_unit(max(deadline - now(), 0), :native, :millisecond)

    with :ok <- Native.worker_select(native, :control) do
      receive do
        {:select, ^native, _, :ready_input} -> true
      after
        left -> false
      end
    else
      _closed -> false
    end
  end

  @doc """
  The details of an end with that status, of a worker that was killed for `cause`, if it was. A kill that came too late did not end it.
  """
  @spec details(atom(), status(), pos_integer() | :infinity, reference()) :: map()
  def details(cause, status, memory, native) do
    because =
      cond do
        cause in [nil, :closed] -> :exited
        status in [{:signal, @sigkill}, nil] -> cause
        true -> :exited
      end

    status |> Error.status() |> Map.put(:because, because) |> Map.merge(lacking(memory, native, because))
  end

  # It has ended by itself right after there was no memory for it: then that is why. It may have survived that, and ended of something else.
  defp lacking(limit, native, :exited) when limit != :infinity do
    case Native.worker_status(native) do
      %{lacked_ms: age} when is_integer(age) and age <= @grief -> %{limit: limit, native: :memory}
      _ -> %{}
    end
  end

  defp lacking(_limit, _native, _because), do: %{}

  defp now, do: System.monotonic_time()
end
