defmodule Snakepit.SharedMemory.Call do
  @moduledoc false
  # Asking a process of an instance that may be just between a crash and its restart.
  #
  # Every request is made so that it can be asked twice: a crash may have lost the answer and not the deed.

  alias Snakepit.SharedMemory.{Error, Instance}

  # None of these processes waits for anything, so an answer that takes this long will not come.
  @timeout 15_000
  # A supervisor's restart takes well under a millisecond.
  @patience 1_000
  # A request that kills who serves it must not be asked until the supervisor gives up.
  @attempts 5

  # Of an instance on another node the name is enough.
  @spec call(Instance.t() | %{name: atom()}, atom(), term(), atom(), node()) :: term() | {:error, Error.t()}
  def call(instance, role, request, operation, node \\ node()) do
    server = if node == node(), do: Instance.child(instance, role), else: {Instance.child(instance.name, role), node}
    attempt(instance, server, request, operation, @attempts, System.monotonic_time(:millisecond) + @patience)
  end

  @spec cast(Instance.t(), atom(), term()) :: :ok
  def cast(instance, role, message), do: GenServer.cast(Instance.child(instance, role), message)

  defp attempt(instance, server, request, operation, attempts, deadline) do
    GenServer.call(server, request, @timeout)
  catch
    :exit, {:timeout, _} -> failure(:timeout, operation, %{timeout: @timeout})
    :exit, {:noproc, _} -> again(instance, server, request, operation, attempts, deadline)
    :exit, {{:nodedown, node}, _} -> failure(:remote_region, operation, %{node: node})
    # It may have been done, and only the answer lost: said so, for requests to which that makes a difference.
    :exit, _ -> again(instance, server, mark(request), operation, attempts - 1, deadline)
  end

  defp mark({:again, _} = request), do: request
  defp mark(request), do: {:again, request}

  defp again(instance, server, request, operation, attempts, deadline) do
    if attempts > 0 and running?(instance, server) and System.monotonic_time(:millisecond) < deadline do
      receive do
      after
        1 -> attempt(instance, server, request, operation, attempts, deadline)
      end
    else
      failure(:not_started, operation, %{instance: instance.name})
    end
  end

  defp running?(instance, server) when is_atom(server), do: Process.whereis(instance.name) != nil
  defp running?(_instance, _remote), do: true

  defp failure(reason, operation, details), do: {:error, Error.new(reason, operation, nil, details)}
end
