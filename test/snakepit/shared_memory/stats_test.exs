defmodule Snakepit.SharedMemory.StatsTest do
  use ExUnit.Case, async: true

  alias Snakepit.SharedMemory.Stats

  defp new, do: Stats.new(:ets.new(:errors, [:public]))

  test "a bucket holds its value, and its upper end is within an eighth" do
    for exponent <- 0..39, offset <- [-1, 0, 1], value = Bitwise.bsl(1, exponent) + offset, value >= 0 do
      bucket = Stats.bucket(value)
      assert Stats.upper(bucket) >= value
      assert Stats.upper(bucket) <= value * 1.125 + 1
      if bucket > 0, do: assert(Stats.upper(bucket - 1) < value)
    end
  end

  test "what is out of range falls into the outer buckets" do
    assert Stats.bucket(-5) == 0
    assert Stats.bucket(Bitwise.bsl(1, 60)) == Stats.bucket(Bitwise.bsl(1, 41))
  end

  test "percentiles of a known distribution" do
    stats = new()
    for i <- 1..1000, do: Stats.record(stats, :read, i * 1000, 10)
    assert %{count: 1000, bytes: 10_000, p50_ns: p50, p90_ns: p90, p99_ns: p99} = Stats.times(stats).read
    assert p50 in 500_000..562_500
    assert p90 in 900_000..1_012_500
    assert p99 in 990_000..1_113_750
    assert %{count: 0, p99_ns: 0} = Stats.times(stats).write
  end

  test "operations do not run into each other" do
    stats = new()
    for operation <- Stats.operations(), do: Stats.record(stats, operation, Bitwise.bsl(1, 60), 1)
    for operation <- Stats.operations(), do: assert(%{count: 1, bytes: 1} = Stats.times(stats)[operation])
  end

  test "errors by type" do
    stats = new()
    for type <- [:busy, :busy, :timeout], do: Stats.error(stats, type)
    assert Stats.errors(stats) == %{busy: 2, timeout: 1}
  end
end
