defmodule Snakepit.Isolation.Doorbell do
  @moduledoc false
  # Hears one worker's bell, and has the callers woken whose calls are done. A process of its own, and one that does
  # nothing else, because all sleeping callers wait for it. Tells the Worker when the worker lies:
  # `{Doorbell, pid, {reason, details}}`.

  alias Snakepit.Native

  @spec start_link(reference()) :: pid()
  def start_link(native) do
    owner = self()
    :proc_lib.spawn_opt(fn -> listen(native, owner) end, [:link, priority: :high])
  end

  @doc "Ends it, before the native worker is closed."
  @spec stop(pid()) :: :ok
  def stop(pid) do
    Process.unlink(pid)
    Process.exit(pid, :kill)
    :ok
  end

  # First, because a predecessor may have left something.
  defp listen(native, owner) do
    case Native.worker_bell(native) do
      {:ok, _woken} -> wait(native, owner)
      {:error, fault} -> send(owner, {__MODULE__, self(), fault})
    end
  end

  defp wait(native, owner) do
    with :ok <- Native.worker_select(native, :bell) do
      receive do
        {:select, ^native, _, :ready_input} -> listen(native, owner)
      end
    else
      {:error, fault} -> send(owner, {__MODULE__, self(), fault})
    end
  end
end
