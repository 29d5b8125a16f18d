defmodule Snakepit.Isolation.Credit do
  @moduledoc false
  # Whether the processes keep up to which a library sends. It is told what was sent to whom, looks how many messages they
  # have waiting, and answers `{Credit, pid, :clear}`, or `{:full, one_of_them}` and, as soon as that is over, `:clear`.
  #
  # Apart from the Doorbell, because looking waits for the process that is looked at.
  #
  # A process that sleeps until this very worker answers cannot take its messages before that, and the library may need answers of
  # the VM to come to an end: its mailbox holds nobody up. It may have `@waiting_times` as much waiting; at more than that the answer
  # is `{Credit, pid, {:flooded, text}}`, the last one: waiting would be for ever.
  #
  # A port is looked at for the bytes that it has not got rid of.
  #
  # Of the messages that wait nobody knows the bytes, but the library's own are known, and the last ones sent are the ones
  # that wait: no more than the sum of as many of them as wait.

  # A process that is over its limit is looked at again after so many ms.
  @again 10
  @waiting_times 4

  alias Snakepit.Native

  @type sent :: {pid() | port(), messages :: pos_integer(), bytes :: non_neg_integer()}

  @doc "For the calling process, with which it ends. Nil when there is no limit."
  @spec start_link(reference(), {pos_integer() | :infinity, pos_integer() | :infinity}) :: pid() | nil
  def start_link(_native, {:infinity, :infinity}), do: nil

  def start_link(native, limits) do
    owner = self()
    limits = {native, limits}

    :proc_lib.spawn_link(fn ->
      Process.monitor(owner)
      listen(owner, limits, %{})
    end)
  end

  @spec look(pid(), [sent()]) :: :ok
  def look(credit, sent) do
    send(credit, {__MODULE__, sent})
    :ok
  end

  defp listen(owner, limits, known) do
    receive do
      {__MODULE__, sent} ->
        known = sent |> Enum.reduce(known, &add/2) |> prune()

        case verdict(known, limits) do
          :clear -> clear(owner, limits, known)
          {:full, pid} -> hold(owner, limits, known, pid)
          flooded -> send(owner, {__MODULE__, self(), flooded})
        end

      {:DOWN, _, :process, ^owner, _} ->
        :ok
    end
  end

  defp clear(owner, limits, known) do
    send(owner, {__MODULE__, self(), :clear})
    listen(owner, limits, known)
  end

  defp hold(owner, limits, known, pid) do
    send(owner, {__MODULE__, self(), {:full, pid}})
    look_again(owner, limits, known)
  end

  defp look_again(owner, limits, known) do
    receive do
      {:DOWN, _, :process, ^owner, _} -> :ok
    after
      @again ->
        known = prune(known)

        case verdict(known, limits) do
          :clear -> clear(owner, limits, known)
          {:full, _pid} -> look_again(owner, limits, known)
          flooded -> send(owner, {__MODULE__, self(), flooded})
        end
    end
  end

  # `known`: what was sent to each process or port that may not have taken it yet, the newest first, and how many messages (bytes) wait
  # there.
  defp add({pid, messages, bytes}, known) do
    Map.update(known, pid, {0, [{messages, bytes}]}, fn {waiting, sent} -> {waiting, [{messages, bytes} | sent]} end)
  end

  defp prune(known) do
    for {pid, {_, sent}} <- known,
        waiting = waiting(pid),
        waiting > 0,
        into: %{},
        do: {pid, {waiting, if(is_pid(pid), do: newest(sent, waiting), else: [])}}
  end

  # As many of the newest as cover so many messages.
  defp newest(_sent, waiting) when waiting <= 0, do: []
  defp newest([], _waiting), do: []
  defp newest([{messages, _} = first | sent], waiting), do: [first | newest(sent, waiting - messages)]

  # The worst that there is of anybody.
  defp verdict(known, {native, limits}) do
    Enum.reduce_while(known, :clear, fn {pid, {waiting, sent}}, verdict ->
      cond do
        not over?(pid, waiting, sent, limits, 1) -> {:cont, verdict}
        not Native.worker_awaited(native, pid) -> {:cont, {:full, pid}}
        not over?(pid, waiting, sent, limits, @waiting_times) -> {:cont, verdict}
        true -> {:halt, {:flooded, "it sends without end to a process that waits for its answer: #{waiting} messages"}}
      end
    end)
  end

  defp over?(receiver, waiting, _sent, {_messages, bytes}, times) when is_port(receiver),
    do: over?(waiting, bytes, times)

  defp over?(_receiver, waiting, sent, {messages, bytes}, times),
    do: over?(waiting, messages, times) or over?(Enum.sum(for {_, bytes} <- sent, do: bytes), bytes, times)

  defp over?(_amount, :infinity, _times), do: false
  defp over?(amount, limit, times), do: amount > limit * times

  defp waiting(port) when is_port(port) do
    case :erlang.port_info(port, :queue_size) do
      {:queue_size, bytes} -> bytes
      :undefined -> 0
    end
  end

  defp waiting(pid) do
    case Process.info(pid, :message_queue_len) do
      {:message_queue_len, length} -> length
      nil -> 0
    end
  end
end
