defmodule Snakepit.SharedMemory.Stats do
  @moduledoc """
  Counts and times of an instance.

  Times are kept in histograms of fixed size: buckets of one eighth of a power of two, from 1 ns to 18 minutes, so a
  percentile is right to 12.5 %. Recording is three additions to an `:counters` array; it can be left on
  (`performance_monitoring: false` turns it off; totals and errors are counted all the same). Of views, which take less than reading the clock twice costs, one in
  sixteen is timed; all are counted.
  """

  # Under 16 ns a bucket each; above, 8 to a power of two, up to 2^40 ns.
  @exact 16
  @top 40
  @buckets @exact + (@top - 4 + 1) * 8
  @operations [:allocate, :map, :read, :write, :seal, :view, :free]
  # In front of each operation's buckets: the sum of its bytes, and how often it was done.
  @stride @buckets + 2
  @sampled 16
  @index @operations |> Enum.with_index() |> Map.new(fn {op, i} -> {op, i * @stride + 1} end)

  @type operation :: :allocate | :map | :read | :write | :seal | :view | :free
  @type ref :: %{counters: :counters.counters_ref(), errors: :ets.tid()}
  @type times :: %{
          count: non_neg_integer(),
          bytes: non_neg_integer(),
          p50_ns: non_neg_integer(),
          p90_ns: non_neg_integer(),
          p99_ns: non_neg_integer()
        }
  @type t :: %__MODULE__{
          total_allocations: non_neg_integer(),
          total_deallocations: non_neg_integer(),
          active_regions: non_neg_integer(),
          total_memory_allocated: non_neg_integer(),
          references: non_neg_integer(),
          sessions: non_neg_integer(),
          operations: %{operation() => times()},
          error_counts: %{atom() => pos_integer()},
          last_updated: DateTime.t() | nil
        }

  # total_*: regions made, and regions gone for whatever reason. total_memory_allocated: bytes now, with what views keep.
  defstruct total_allocations: 0,
            total_deallocations: 0,
            active_regions: 0,
            total_memory_allocated: 0,
            references: 0,
            sessions: 0,
            operations: %{},
            error_counts: %{},
            last_updated: nil

  @spec operations() :: [operation()]
  def operations, do: @operations

  @doc false
  @spec new(:ets.tid()) :: ref()
  def new(errors),
    do: %{counters: :counters.new(length(@operations) * @stride + 2, [:write_concurrency]), errors: errors}

  # Behind the operations: regions made, regions gone.
  @made length(@operations) * @stride + 1
  @gone @made + 1

  @doc false
  @spec made(ref()) :: :ok
  def made(%{counters: counters}), do: :counters.add(counters, @made, 1)

  @doc false
  @spec gone(ref()) :: :ok
  def gone(%{counters: counters}), do: :counters.add(counters, @gone, 1)

  @doc false
  @spec totals(ref()) :: {non_neg_integer(), non_neg_integer()}
  def totals(%{counters: counters}), do: {:counters.get(counters, @made), :counters.get(counters, @gone)}

  @doc false
  @spec record(ref(), operation(), non_neg_integer(), non_neg_integer()) :: :ok
  def record(stats, operation, nanoseconds, bytes) do
    count(stats, operation, bytes)
    time(stats, operation, nanoseconds)
  end

  @doc false
  @spec count(ref(), operation(), non_neg_integer()) :: :ok
  def count(%{counters: counters}, operation, bytes) do
    base = base(operation)
    :counters.add(counters, base, bytes)
    :counters.add(counters, base + 1, 1)
  end

  @doc false
  @spec time(ref(), operation(), integer()) :: :ok
  def time(%{counters: counters}, operation, nanoseconds),
    do: :counters.add(counters, base(operation) + 2 + bucket(nanoseconds), 1)

  @doc false
  # Whether the next one is to be timed.
  @spec sample?() :: boolean()
  # By a count of the process's own: reading the shared one sums up every scheduler's share.
  def sample? do
    count = Process.get(__MODULE__, 0)
    Process.put(__MODULE__, Bitwise.band(count + 1, @sampled - 1))
    count == 0
  end

  for {operation, base} <- @index, do: defp(base(unquote(operation)), do: unquote(base))

  @doc false
  @spec error(ref(), atom()) :: :ok
  def error(%{errors: errors}, type) do
    :ets.update_counter(errors, type, 1, {type, 0})
    :ok
  rescue
    # The instance has just ended.
    ArgumentError -> :ok
  end

  @doc false
  @spec errors(ref()) :: %{atom() => pos_integer()}
  def errors(%{errors: errors}), do: Map.new(:ets.tab2list(errors))

  @doc false
  @spec times(ref()) :: %{operation() => times()}
  def times(%{counters: counters}) do
    Map.new(@operations, fn operation ->
      base = base(operation)
      counts = for i <- 0..(@buckets - 1), do: :counters.get(counters, base + 2 + i)
      total = Enum.sum(counts)

      {operation,
       %{
         count: :counters.get(counters, base + 1),
         bytes: :counters.get(counters, base),
         p50_ns: percentile(counts, total, 50),
         p90_ns: percentile(counts, total, 90),
         p99_ns: percentile(counts, total, 99)
       }}
    end)
  end

  @doc false
  @spec bucket(integer()) :: non_neg_integer()
  def bucket(ns) when ns < 0, do: 0
  def bucket(ns) when ns < @exact, do: ns
  def bucket(ns) when ns >= Bitwise.<<<(1, @top + 1), do: @buckets - 1

  def bucket(ns) do
    exponent = exponent(ns)
    @exact + (exponent - 4) * 8 + Bitwise.band(Bitwise.bsr(ns, exponent - 3), 7)
  end

  # The usual ones without floating point.
  for exponent <- 4..16 do
    defp exponent(ns) when ns < unquote(Bitwise.bsl(1, exponent + 1)), do: unquote(exponent)
  end

  defp exponent(ns), do: trunc(:math.log2(ns))

  @doc false
  # The largest value of a bucket.
  @spec upper(non_neg_integer()) :: non_neg_integer()
  def upper(bucket) when bucket < @exact, do: bucket

  def upper(bucket) do
    exponent = div(bucket - @exact, 8) + 4
    Bitwise.bsl(8 + rem(bucket - @exact, 8) + 1, exponent - 3) - 1
  end

  defp percentile(_counts, 0, _percent), do: 0

  defp percentile(counts, total, percent) do
    rank = max(ceil(total * percent / 100), 1)

    counts
    |> Enum.with_index()
    |> Enum.reduce_while(0, fn {count, bucket}, seen ->
      if seen + count >= rank, do: {:halt, {:bucket, bucket}}, else: {:cont, seen + count}
    end)
    |> case do
      {:bucket, bucket} -> upper(bucket)
      # Recorded while this was read.
      _ -> 0
    end
  end
end
