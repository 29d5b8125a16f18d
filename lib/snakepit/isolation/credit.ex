defmodule Snakepit.Isolation.Credit do
  @moduledoc false
  # Whether the processes keep up to which a library sends. It is told what was sent to whom, looks how many messages they
  # have waiting, and answers `{Credit, pid, :clear}`, or `{:full, one_of_them}` and, as soon as that is over, `:clear`.
  #
  # Apart from the Doorbell, because looking waits for the process that is looked at.
  #
  # Of the messages that wait nobody knows the bytes, but the library's own are known, and the last ones sent are the ones
  # that wait: no more than the sum of as many of them as wait.

  # A process that is over its limit is looked at again after so many ms.
  @again 10

  @type sent :: {pid(), messages :: pos_integer(), bytes :: non_neg_integer()}

  @doc "For the calling process, with which it ends. Nil when there is no limit."
  @spec start_link({pos_integer() | :infinity, pos_integer() | :infinity}) :: pid() | nil
  def start_link({:infinity, :infinity}), do: nil

  def start_link(limits) do
    owner = self()

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

        case full(known, limits) do
          nil -> clear(owner, limits, known)
          pid -> hold(owner, limits, known, pid)
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
        if full(known, limits), do: look_again(owner, limits, known), else: clear(owner, limits, known)
    end
  end

  # `known`: what was sent to each process that may not have taken it yet, the newest first, and how many wait there.
  defp add({pid, messages, bytes}, known) do
    Map.update(known, pid, {0, [{messages, bytes}]}, fn {waiting, sent} -> {waiting, [{messages, bytes} | sent]} end)
  end

  defp prune(known) do
    for {pid, {_, sent}} <- known,
        waiting = waiting(pid),
        waiting > 0,
        into: %{},
        do: {pid, {waiting, newest(sent, waiting)}}
  end

  # As many of the newest as cover so many messages.
  defp newest(_sent, waiting) when waiting <= 0, do: []
  defp newest([], _waiting), do: []
  defp newest([{messages, _} = first | sent], waiting), do: [first | newest(sent, waiting - messages)]

  # One that is over a limit.
  defp full(known, {messages, bytes}) do
    Enum.find_value(known, fn {pid, {waiting, sent}} ->
      if waiting > messages or Enum.sum(for {_, bytes} <- sent, do: bytes) > bytes, do: pid
    end)
  end

  defp waiting(pid) do
    case Process.info(pid, :message_queue_len) do
      {:message_queue_len, length} -> length
      nil -> 0
    end
  end
end
