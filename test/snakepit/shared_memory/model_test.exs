defmodule Snakepit.SharedMemory.ModelTest do
  # Random sequences of what processes do with regions, and of what kills them, against a model of who owns and holds
  # what (PropEr's state machine).
  use Snakepit.ShmCase, async: true

  alias Snakepit.SharedMemory.ReferenceCounter

  @behaviour :proper_statem
  @workers [:a, :b, :c]
  @runs 600

  test "regions live exactly as long as owners, holders and policies say", %{shm: shm} do
    :persistent_term.put({__MODULE__, :shm}, shm)

    property =
      :proper.forall(:proper_statem.commands(__MODULE__), fn commands ->
        for worker <- @workers, do: start_worker(worker)
        {history, state, result} = :proper_statem.run_commands(__MODULE__, commands)
        for worker <- @workers, do: kill(worker_pid(worker), shm)

        for {:ok, list} <- [Shm.list(instance: shm)],
            info <- list,
            do: Shm.free(%Region{id: info.id, size: 1, instance: shm, node: node()})

        settle(shm)

        leftover =
          for table <- [:regions, :owned, :holders, :held],
              n = :ets.info(instance(shm).tables[table], :size),
              n != 0,
              do: {table, n}

        # The garbage collector has the last word on views.
        eventually(fn -> :erlang.garbage_collect() && charged(shm) == 0 end)
        correct? = result == :ok and leftover == []

        unless correct? do
          IO.inspect({result, leftover, state, history}, label: "counterexample", limit: :infinity)
          IO.inspect(commands, limit: :infinity)
        end

        correct?
      end)

    assert :proper.quickcheck(property, [:quiet, numtests: @runs, max_size: 40])
  end

  # ── The real thing ────────────────────────────────────────────────────────────────────────────────────────────

  defp shm, do: :persistent_term.get({__MODULE__, :shm})
  defp worker_pid(worker), do: :persistent_term.get({__MODULE__, shm(), worker})
  def start_worker(worker), do: :persistent_term.put({__MODULE__, shm(), worker}, spawn_worker())

  def put(owner, policy) do
    shm = shm()
    in_worker(worker_pid(owner), fn -> Shm.put!("data", instance: shm, cleanup_policy: policy) end)
  end

  def hold(worker, region), do: outcome(in_worker(worker_pid(worker), fn -> Shm.hold(region) end))

  # The Manager frees what nobody holds a moment later; who is faster with a new hold keeps it.
  def release(worker, region) do
    result = outcome(in_worker(worker_pid(worker), fn -> Shm.release(region) end))
    settle(shm())
    result
  end

  # By its owner: without asking the Manager.
  def free(worker, region), do: outcome(in_worker(worker_pid(worker), fn -> Shm.free(region) end))

  def transfer(from, region, to) do
    pid = worker_pid(to)
    outcome(in_worker(worker_pid(from), fn -> Shm.transfer(region, pid) end))
  end

  def die(worker) do
    kill(worker_pid(worker), shm())
    start_worker(worker)
  end

  def crash(role), do: kill_and_wait(child(shm(), role), role)
  def cleanup, do: elem(Shm.cleanup(instance: shm()), 0)

  defp kill_and_wait(pid, role) do
    kill(pid)
    eventually(fn -> child(shm(), role) not in [nil, pid] end)
    settle(shm())
  end

  def look(region) do
    settle(shm())

    case {Shm.view(region), ReferenceCounter.get_count(region.id)} do
      {{:ok, "data"}, {:ok, count}} -> {:alive, count}
      {{:error, %{reason: :region_not_found}}, {:error, %{reason: :region_not_found}}} -> :gone
      other -> other
    end
  end

  defp outcome(:ok), do: :ok
  defp outcome({:error, error}), do: error.reason

  # ── The model: region => %{owner: worker | :dead, policy:, holders: set} ──────────────────────────────────────

  @impl true
  def initial_state, do: %{}

  @impl true
  def command(state) do
    make = {:call, __MODULE__, :put, [worker(), :proper_types.oneof([:automatic, :manual, :reference_counted])]}

    if state == %{} do
      make
    else
      region = :proper_types.oneof(Map.keys(state))

      :proper_types.weighted_union([
        {3, make},
        {6, {:call, __MODULE__, :look, [region]}},
        {4, {:call, __MODULE__, :hold, [worker(), region]}},
        {4, {:call, __MODULE__, :release, [worker(), region]}},
        {2, {:call, __MODULE__, :transfer, [worker(), region, worker()]}},
        {3, {:call, __MODULE__, :free, [worker(), region]}},
        {2, {:call, __MODULE__, :die, [worker()]}},
        {2, {:call, __MODULE__, :crash, [:proper_types.oneof([:manager, :reference_counter, :janitor, :broker])]}},
        {1, {:call, __MODULE__, :cleanup, []}}
      ])
    end
  end

  defp worker, do: :proper_types.oneof(@workers)

  @impl true
  def precondition(state, {:call, _, name, args}) do
    case {name, args} do
      {name, [_, region]} when name in [:hold, :release, :free] -> is_map_key(state, region)
      {:transfer, [_, region, _]} -> is_map_key(state, region)
      {:look, [region]} -> is_map_key(state, region)
      _ -> true
    end
  end

  @impl true
  def next_state(state, result, {:call, _, :put, [owner, policy]}) do
    holders = if policy == :reference_counted, do: [owner], else: []
    Map.put(state, result, %{alive: true, owner: owner, policy: policy, holders: MapSet.new(holders)})
  end

  def next_state(state, _, {:call, _, :hold, [worker, region]}),
    do: change(state, region, &%{&1 | holders: MapSet.put(&1.holders, worker)})

  def next_state(state, _, {:call, _, :release, [worker, region]}),
    do: change(state, region, &%{&1 | holders: MapSet.delete(&1.holders, worker)})

  def next_state(state, _, {:call, _, :free, [_, region]}), do: Map.update!(state, region, &%{&1 | alive: false})

  def next_state(state, _, {:call, _, :transfer, [from, region, to]}) do
    change(state, region, fn r ->
      cond do
        r.owner == to ->
          r

        r.owner not in [from, :dead] ->
          r

        r.policy == :reference_counted and from in r.holders ->
          %{r | owner: to, holders: r.holders |> MapSet.delete(from) |> MapSet.put(to)}

        true ->
          %{r | owner: to}
      end
    end)
  end

  def next_state(state, _, {:call, _, :die, [worker]}) do
    Enum.reduce(Map.keys(state), state, fn region, state ->
      change(state, region, fn r ->
        %{r | owner: if(r.owner == worker, do: :dead, else: r.owner), holders: MapSet.delete(r.holders, worker)}
      end)
    end)
  end

  def next_state(state, _, _), do: state

  defp change(state, region, fun) do
    Map.update!(state, region, fn
      %{alive: true} = r -> judge(fun.(r))
      r -> r
    end)
  end

  defp judge(%{policy: :manual} = r), do: r
  defp judge(%{policy: :reference_counted} = r), do: %{r | alive: MapSet.size(r.holders) > 0}
  defp judge(r), do: %{r | alive: r.owner != :dead or MapSet.size(r.holders) > 0}

  @impl true
  def postcondition(state, {:call, _, name, args}, result) do
    case {name, args} do
      {:look, [region]} ->
        result == expected(state[region])

      {name, [_, region]} when name in [:hold, :release, :free] ->
        result == if(state[region].alive, do: :ok, else: :region_not_found)

      {:transfer, [from, region, to]} ->
        result == transferred(state[region], from, to)

      {:cleanup, []} ->
        result == :ok

      _ ->
        true
    end
  end

  defp expected(%{alive: false}), do: :gone
  defp expected(%{holders: holders}), do: {:alive, MapSet.size(holders)}

  defp transferred(%{alive: false}, _, _), do: :region_not_found
  defp transferred(%{owner: to}, _, to), do: :ok
  defp transferred(%{owner: owner}, from, _) when owner in [from, :dead], do: :ok
  defp transferred(_, _, _), do: :not_owner
end
