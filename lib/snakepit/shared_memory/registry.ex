defmodule Snakepit.SharedMemory.Registry do
  @moduledoc false
  # The rows. They are the truth: every process of the instance can die and find here what it has to take up again.
  # The instance's supervisor owns the tables, so no child's death touches them.
  #
  #   regions   {id, status, segment, owner, caller, charge, record}
  #             status   :reserved | :live
  #             segment  the native resource, nil while reserved
  #             owner    pid | :none | :dead | {:peer, session} | {:grace, deadline_ms}
  #             caller   who is creating it
  #             charge   its share of max_total_memory, until the segment has taken it over
  #             record   what does not change
  #   names     {name, id}
  #   owned     {{owner, id}}           index of the regions: owner a pid or {:peer, session}
  #   watched   {pid}                   owners that the Manager monitors, and its successor will
  #   holders   {{id, holder}}        holder: pid | reference | {:peer, session}
  #   held      {{holder, id}}        the same, the other way round
  #   waiters   {{id, ref}, destination, pid}
  #   sessions  {session, record}     peers' connections (Broker)
  #   grants    {{session, id}, mode}   what a session was granted
  #   house     {key, value}          the broker's lock, the listening path
  #   errors    {type, count}

  require Snakepit.SharedMemory.Fault

  alias Snakepit.SharedMemory.{Error, Fault, Instance, Region}

  @tables [
    regions: :set,
    names: :set,
    owned: :ordered_set,
    watched: :set,
    holders: :ordered_set,
    held: :ordered_set,
    waiters: :ordered_set,
    sessions: :set,
    grants: :ordered_set,
    house: :set,
    errors: :set
  ]

  @status 2
  @segment 3
  @owner 4
  @record 7

  @type owner :: pid() | :none | :dead | {:peer, String.t()} | {:grace, integer()}
  @type holder :: pid() | reference() | {:peer, String.t()}
  @type row :: {
          String.t(),
          :reserved | :live,
          Snakepit.Native.segment() | nil,
          owner(),
          pid(),
          Snakepit.Native.charge() | nil,
          map()
        }

  @doc "Makes the tables. The caller owns them."
  @spec new() :: %{atom() => :ets.tid()}
  def new do
    Map.new(@tables, fn {name, type} ->
      {name, :ets.new(Module.concat(__MODULE__, name), [type, :public | concurrency(name)])}
    end)
  end

  # A lookup in the regions stands in every read, write and view, and costs a third less without locks for writers; so
  # does what else stands in making and freeing. Of holders one process writes. Waiters come and go at any time.
  defp concurrency(name) when name in [:regions, :names, :owned, :watched, :holders, :held, :house],
    do: [read_concurrency: true]

  defp concurrency(:waiters), do: [write_concurrency: true]
  defp concurrency(_name), do: [read_concurrency: true, write_concurrency: true]

  # ── Regions ───────────────────────────────────────────────────────────────────────────────────────────────────

  @spec fetch(Instance.t(), String.t()) :: {:ok, row()} | :error
  def fetch(instance, id) do
    case :ets.lookup(instance.tables.regions, id) do
      [row] -> {:ok, row}
      [] -> :error
    end
  end

  @doc "The stored record of one region, by its id alone: what does not change of it."
  @spec record(String.t()) :: {:ok, map()} | :error
  def record(id) do
    case Instance.of_id(id) do
      {:ok, instance} -> lookup(instance, id, @record)
      :error -> :error
    end
  end

  @doc "The native resource of a live region."
  @spec segment(Instance.t(), String.t()) :: {:ok, Snakepit.Native.segment()} | :error
  def segment(instance, id) do
    case lookup(instance, id, @segment) do
      {:ok, nil} -> :error
      other -> other
    end
  end

  defp lookup(instance, id, position) do
    {:ok, :ets.lookup_element(instance.tables.regions, id, position)}
  rescue
    # Not there, or the instance has just ended.
    ArgumentError -> :error
  end

  @doc "Instance, row: of an id, wherever it belongs."
  @spec locate(String.t() | Region.t(), atom()) :: {:ok, Instance.t(), row()} | {:error, Error.t()}
  def locate(%Region{node: node, id: id}, operation) when node != node(),
    do: {:error, Error.new(:remote_region, operation, id, %{node: node})}

  def locate(%Region{id: id}, operation), do: locate(id, operation)

  def locate(id, operation) when is_binary(id) do
    with {:ok, instance} <- Instance.of_id(id),
         {:ok, row} <- live(instance, id) do
      {:ok, instance, row}
    else
      _ -> {:error, Error.new(:region_not_found, operation, id)}
    end
  end

  def locate(other, operation) do
    expected = "a %Snakepit.SharedMemory.Region{} or a region's id"
    {:error, Error.new(:invalid_argument, operation, nil, %{key: :region, expected: expected, got: other})}
  end

  @doc "The row of a region that is complete."
  @spec live(Instance.t(), String.t()) :: {:ok, row()} | :error
  def live(instance, id) do
    case :ets.lookup(instance.tables.regions, id) do
      [{_, :live, _, _, _, _, _} = row] -> {:ok, row}
      _ -> :error
    end
  rescue
    # The instance has just ended.
    ArgumentError -> :error
  end

  @doc """
  Puts a new row in, unless there are `limit` already. Asked after the fact: of those who come at the same time, no more
  stay than there is room for.

  The index goes first, and last when a row goes: it may have an entry too many after a crash, never one too few.
  """
  @spec claim(Instance.t(), row(), pos_integer()) :: boolean()
  def claim(%{tables: %{regions: regions}} = instance, {id, _, _, owner, _, _, _} = row, limit) do
    index(instance, owner, id)
    Fault.point(:indexed, instance.name)
    :ets.insert(regions, row)

    if count(instance) <= limit do
      true
    else
      :ets.delete(regions, id)
      unindex(instance, owner, id)
      false
    end
  end

  @spec count(Instance.t()) :: non_neg_integer()
  def count(instance), do: :ets.info(instance.tables.regions, :size)

  @doc "Completes a reserved row. False when it is gone: its owner or the instance has died meanwhile."
  @spec commit(Instance.t(), String.t(), Snakepit.Native.segment()) :: boolean()
  def commit(instance, id, segment) do
    :ets.update_element(instance.tables.regions, id, [{@status, :live}, {@segment, segment}, {6, nil}])
  end

  @spec put_owner(Instance.t(), String.t(), owner()) :: boolean()
  def put_owner(instance, id, owner), do: :ets.update_element(instance.tables.regions, id, {@owner, owner})

  @spec rows(Instance.t()) :: [row()]
  def rows(instance), do: :ets.tab2list(instance.tables.regions)

  @spec ids(Instance.t()) :: [String.t()]
  def ids(instance), do: :ets.select(instance.tables.regions, [{{:"$1", :_, :_, :_, :_, :_, :_}, [], [:"$1"]}])

  @doc "A region as a value."
  @spec region_of(Instance.t(), row(), keyword()) :: Region.t()
  def region_of(instance, {id, _, segment, _, _, _, record}, overrides \\ []) do
    sealed? = Snakepit.Native.segment_info(segment).state == :sealed
    struct!(%{to_region(instance, id, record) | sealed: sealed?}, overrides)
  end

  @doc "A new region as a value."
  @spec to_region(Instance.t(), String.t(), map()) :: Region.t()
  def to_region(instance, id, %{size: size, dtype: dtype, shape: shape, name: name, metadata: metadata}) do
    %Region{
      id: id,
      size: size,
      dtype: dtype,
      shape: shape,
      instance: instance.name,
      node: node(),
      name: name,
      metadata: metadata
    }
  end

  # ── Owners ────────────────────────────────────────────────────────────────────────────────────────────────────

  @spec index(Instance.t(), owner(), String.t()) :: true
  def index(_instance, :none, _id), do: true
  def index(instance, owner, id), do: :ets.insert(instance.tables.owned, {{owner, id}})

  @spec unindex(Instance.t(), owner(), String.t()) :: true
  def unindex(instance, owner, id), do: :ets.delete(instance.tables.owned, {owner, id})

  @doc "Whether the Manager will hear of the end of `pid`, whatever becomes of the Manager."
  @spec watched?(Instance.t(), pid()) :: boolean()
  def watched?(instance, pid) do
    :ets.member(instance.tables.watched, pid)
  rescue
    # The instance has just ended.
    ArgumentError -> false
  end

  @doc "The regions that a process or a peer's session owns."
  @spec owned_by(Instance.t(), owner()) :: [String.t()]
  def owned_by(instance, owner), do: second(instance.tables.owned, owner)

  @spec owned_count(Instance.t(), owner()) :: non_neg_integer()
  def owned_count(instance, owner), do: :ets.select_count(instance.tables.owned, [{{{owner, :_}}, [], [true]}])

  # ── Holders ───────────────────────────────────────────────────────────────────────────────────────────────────

  @spec holders(Instance.t(), String.t()) :: [holder()]
  def holders(instance, id), do: second(instance.tables.holders, id)

  @spec held_by(Instance.t(), holder()) :: [String.t()]
  def held_by(instance, holder), do: second(instance.tables.held, holder)

  @doc "Whether anybody holds it; cheaper than to count."
  @spec held?(Instance.t(), String.t()) :: boolean()
  # Numbers sort before every holder.
  def held?(instance, id), do: match?({^id, _}, :ets.next(instance.tables.holders, {id, 0}))

  @spec holder_count(Instance.t(), String.t()) :: non_neg_integer()
  def holder_count(instance, id),
    do: :ets.select_count(instance.tables.holders, [{{{id, :_}}, [], [true]}])

  @spec holds?(Instance.t(), String.t(), holder()) :: boolean()
  def holds?(instance, id, holder), do: :ets.member(instance.tables.holders, {id, holder})

  @doc "The index goes first: `held` may have a row too many after a crash, never one too few."
  @spec put_holder(Instance.t(), String.t(), holder()) :: boolean()
  def put_holder(%{tables: tables}, id, holder) do
    :ets.insert(tables.held, {{holder, id}})
    :ets.insert_new(tables.holders, {{id, holder}})
  end

  @spec delete_holder(Instance.t(), String.t(), holder()) :: :ok
  def delete_holder(%{tables: tables}, id, holder) do
    :ets.delete(tables.holders, {id, holder})
    :ets.delete(tables.held, {holder, id})
    :ok
  end

  # The keys {first, x} of an ordered set. A bound first part keeps the search to its range; ids, sessions, pids and
  # references hold nothing that a match pattern would read as a variable.
  defp second(table, first), do: :ets.select(table, [{{{first, :"$1"}}, [], [:"$1"]}])
end
