defmodule Snakepit.Isolation.Doorbell do
  @moduledoc false
  # Hears one worker's bell: has the callers woken whose calls are done, and has what its library asks of the VM served (all
  # of that is native). A process of its own that waits for nobody, because all sleeping callers wait for it.
  #
  #     serving ──sent much──▶ waiting for the word of Credit ──:clear──▶ serving
  #                              ├──:full──▶ holding ──:clear──▶ serving
  #                              └──:flooded──▶ the worker has lied
  #
  # While it waits or holds, callers are woken as ever. Tells the Worker when the worker lies, `{Doorbell, pid, {reason, details}}`,
  # when its library has asked for what it is not granted, `{Doorbell, pid, :denied, function}`, and when a mailbox is full,
  # `{Doorbell, pid, :full, its_process}`.

  alias Snakepit.Isolation.Credit
  alias Snakepit.Native

  @typedoc "How much may wait in a mailbox while the library sends to it."
  @type limits :: {messages :: pos_integer() | :infinity, bytes :: pos_integer() | :infinity}

  @spec start_link(reference(), limits()) :: pid()
  def start_link(native, limits) do
    owner = self()
    :proc_lib.spawn_opt(fn -> listen(init(native, owner, limits)) end, [:link, priority: :high])
  end

  @doc "Ends it, before the native worker is closed."
  @spec stop(pid()) :: :ok
  def stop(pid) do
    Process.unlink(pid)
    Process.exit(pid, :kill)
    :ok
  end

  defp init(native, owner, limits),
    do: %{native: native, owner: owner, credit: Credit.start_link(native, limits), mode: :serve, priority: :high}

  # First of all, because a predecessor may have left something.
  defp listen(%{native: native, mode: mode} = state) do
    case Native.worker_bell(native, mode) do
      {:ok, _woken, more?, sent, denied} ->
        for function <- denied, do: send(state.owner, {__MODULE__, self(), :denied, function})
        state = look(state, sent)
        if more? and state.mode == :serve, do: state |> priority(:normal) |> heed(), else: wait(state)

      {:error, fault} ->
        send(state.owner, {__MODULE__, self(), fault})
    end
  end

  defp look(state, []), do: state
  defp look(%{credit: nil} = state, _sent), do: state

  defp look(state, sent) do
    Credit.look(state.credit, sent)
    %{state | mode: :wait}
  end

  # There is more to take. It is a library's storm, so it is not more important than the processes that it is for.
  # What the sockets and callers have to say is taken too: it would pile up, and it says no more than to listen.
  defp heed(%{native: native, credit: credit} = state) do
    receive do
      {:select, ^native, _channel, _ready} -> heed(state)
      {Credit, ^credit, word} -> heard(state, word)
    after
      0 -> listen(state)
    end
  end

  defp wait(%{native: native, credit: credit} = state) do
    state = priority(state, :high)

    case Native.worker_select(native, :bell) do
      :ok ->
        receive do
          {:select, ^native, _channel, _ready} -> listen(state)
          {Credit, ^credit, word} -> heard(state, word)
        end

      {:error, fault} ->
        send(state.owner, {__MODULE__, self(), fault})
    end
  end

  defp heard(state, :clear), do: listen(%{state | mode: :serve})

  defp heard(state, {:full, pid}) do
    send(state.owner, {__MODULE__, self(), :full, pid})
    listen(%{state | mode: :hold})
  end

  defp heard(state, {:flooded, text}), do: send(state.owner, {__MODULE__, self(), {:protocol, %{message: text}}})

  defp priority(%{priority: priority} = state, priority), do: state

  defp priority(state, priority) do
    Process.flag(:priority, priority)
    %{state | priority: priority}
  end
end
