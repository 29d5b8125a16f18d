defmodule Snakepit.SharedMemory.Waiters do
  @moduledoc false
  # Who wants to hear of the next change of a region: a completed write, the end of a peer's write, its end.
  #
  # A waiter puts its row in, looks again, and only then waits; a writer finishes, and only then looks for rows. So no
  # change falls between. A row is used up by one message.

  alias Snakepit.SharedMemory.Instance

  @type destination :: pid() | reference()

  @doc "`destination` gets `{:snakepit_shm_changed, ref}` once."
  @spec subscribe(Instance.t(), String.t(), reference(), destination()) :: :ok
  def subscribe(instance, id, ref, destination) do
    :ets.insert(instance.tables.waiters, {{id, ref}, destination, self()})
    :ok
  end

  @spec unsubscribe(Instance.t(), String.t(), reference()) :: :ok
  def unsubscribe(instance, id, ref) do
    :ets.delete(instance.tables.waiters, {id, ref})
    :ok
  end

  @spec notify(Instance.t(), String.t()) :: :ok
  def notify(%{tables: %{waiters: table}}, id) do
    # Numbers sort before everything else, so this is the place in front of the region's first row.
    drain(table, id, :ets.next(table, {id, 0}))
  rescue
    # The instance has just ended, and with it everything that one could wait for.
    ArgumentError -> :ok
  end

  defp drain(table, id, {id, ref} = key) do
    for {_, destination, _} <- :ets.take(table, key), do: send(destination, {:snakepit_shm_changed, ref})
    drain(table, id, :ets.next(table, key))
  end

  defp drain(_table, _id, _other), do: :ok

  @doc """
  Runs `attempt` until it answers something other than `:wait`, at each change of the region, and at the latest each
  `poll` milliseconds (a reader's end is not announced). `:timeout` when `timeout` milliseconds have passed.
  Nothing is left in the caller's mailbox.
  """
  @spec until(Instance.t(), String.t(), timeout(), timeout(), (() -> :wait | result)) :: :timeout | result
        when result: var
  def until(instance, id, timeout, poll, attempt) do
    with {:wait, _} <- attempt.() do
      deadline = if timeout == :infinity, do: :infinity, else: System.monotonic_time(:millisecond) + timeout
      # An alias and not a pid: a message that comes too late is dropped by the VM and never reaches the mailbox.
      alias = :erlang.alias()

      try do
        loop(instance, id, alias, deadline, poll, attempt)
      after
        :erlang.unalias(alias)
        unsubscribe(instance, id, alias)
        flush(alias)
      end
    end
  end

  defp loop(instance, id, alias, deadline, poll, attempt) do
    subscribe(instance, id, alias, alias)

    with {:wait, why} <- attempt.() do
      case remaining(deadline) do
        0 ->
          {:timeout, why}

        left ->
          receive do
            {:snakepit_shm_changed, ^alias} -> :ok
          after
            min(left, poll) -> :ok
          end

          loop(instance, id, alias, deadline, poll, attempt)
      end
    end
  end

  defp flush(alias) do
    receive do
      {:snakepit_shm_changed, ^alias} -> flush(alias)
    after
      0 -> :ok
    end
  end

  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)

  @doc "Removes the rows of waiters that were killed while they waited, and of regions that are gone."
  @spec sweep(Instance.t()) :: :ok
  def sweep(%{tables: %{waiters: table, regions: regions}}) do
    # Somebody may have been killed between the change and its announcement: said now.
    for {{id, ref}, destination, _pid} <- :ets.tab2list(table),
        not :ets.member(regions, id),
        do: send(destination, {:snakepit_shm_changed, ref})

    for {{id, _ref} = key, _destination, pid} <- :ets.tab2list(table),
        not :ets.member(regions, id) or not Process.alive?(pid),
        do: :ets.delete(table, key)

    :ok
  end
end
