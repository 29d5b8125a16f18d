defmodule Bench.Measure do
  # How a figure comes about: bench/README.md.

  # Runs timed one by one, or means of batches, of which a 99th percentile would say nothing.
  @type samples :: [number()] | {:means, [number()]}
  @type figure :: %{p50: float(), p99: number() | nil, p999: number() | nil, count: pos_integer()}

  # For a 99th percentile, and for a 99.9th.
  @enough 40
  @plenty 1_000

  @doc """
  Runs the subjects in turn, `rounds` times, each time beginning with another one. A subject is a function that answers
  samples in nanoseconds. The first run of each is thrown away.
  """
  @spec interleave(%{atom() => (() -> samples())}, pos_integer()) :: %{atom() => figure()}
  def interleave(subjects, rounds) do
    list = Map.to_list(subjects)
    for {_, subject} <- list, do: subject.()

    Enum.reduce(0..(rounds - 1), %{}, fn round, seen ->
      {last, first} = Enum.split(list, rem(round, length(list)))

      Enum.reduce(first ++ last, seen, fn {key, subject}, seen ->
        :erlang.garbage_collect()
        samples = subject.()
        Map.update(seen, key, [samples], &[samples | &1])
      end)
    end)
    |> Map.new(fn {key, rounds} -> {key, figure(rounds)} end)
  end

  # The median of the rounds' medians.
  defp figure([{:means, _} | _] = rounds),
    do: %{figure(for({:means, samples} <- rounds, do: samples)) | p99: nil, p999: nil}

  defp figure(rounds) do
    all = figure_of(Enum.concat(rounds))
    p50 = rounds |> Enum.map(&percentile(&1, 50)) |> percentile(50)
    %{all | p50: p50 / 1}
  end

  @doc "The figure of samples that were not taken in rounds."
  @spec figure_of([number()]) :: figure()
  def figure_of(samples) do
    count = length(samples)

    %{
      p50: percentile(samples, 50) / 1,
      p99: if(count >= @enough, do: percentile(samples, 99)),
      p999: if(count >= @plenty, do: percentile(samples, 99.9)),
      count: count
    }
  end

  @spec percentile([number()], number()) :: number()
  def percentile(samples, 50) do
    sorted = Enum.sort(samples)
    count = length(sorted)
    (Enum.at(sorted, div(count - 1, 2)) + Enum.at(sorted, div(count, 2))) / 2
  end

  def percentile(samples, percent), do: samples |> Enum.sort() |> Enum.at(ceil(length(samples) * percent / 100) - 1)

  @doc "Each of `count` runs timed alone: for what takes some microseconds or more."
  @spec each(pos_integer(), (() -> term())) :: samples()
  def each(count, work) do
    for _ <- 1..count do
      start = now()
      work.()
      now() - start
    end
  end

  @doc """
  Each of `count` runs timed alone, for what takes less than a microsecond too; the clock's own time is in each. In front
  of each run come `busy` nanoseconds of other work.
  """
  @spec alone(pos_integer(), non_neg_integer(), (() -> term())) :: samples()
  def alone(count, busy, work), do: alone(count, :erlang.convert_time_unit(busy, :nanosecond, :native), work, [])

  defp alone(0, _busy, _work, samples),
    do: for(sample <- samples, do: :erlang.convert_time_unit(sample, :native, :nanosecond))

  defp alone(count, busy, work, samples) do
    if busy > 0, do: until(:erlang.monotonic_time() + busy)
    start = :erlang.monotonic_time()
    work.()
    alone(count - 1, busy, work, [:erlang.monotonic_time() - start | samples])
  end

  defp until(time), do: if(:erlang.monotonic_time() < time, do: until(time))

  @doc "Each of `count` runs timed alone, after a sleep of so many milliseconds."
  @spec asleep(pos_integer(), non_neg_integer(), (() -> term())) :: samples()
  def asleep(count, gap, work) do
    for _ <- 1..count do
      Process.sleep(gap)
      start = now()
      work.()
      now() - start
    end
  end

  @doc "`count` samples, each the mean of `batch` runs: for what takes less. The loop's own time is not taken off."
  @spec batch(pos_integer(), pos_integer(), (() -> term())) :: samples()
  def batch(count, batch, work) do
    samples =
      for _ <- 1..count do
        start = now()
        repeat(batch, work)
        (now() - start) / batch
      end

    {:means, samples}
  end

  defp repeat(0, _work), do: :ok

  defp repeat(n, work) do
    work.()
    repeat(n - 1, work)
  end

  @doc "The mean of a run over all of `list`, as one sample."
  @spec over([item], (item -> term())) :: samples() when item: term()
  def over(list, work) do
    start = now()
    walk(list, work)
    {:means, [(now() - start) / length(list)]}
  end

  defp walk([], _work), do: :ok

  defp walk([item | rest], work) do
    work.(item)
    walk(rest, work)
  end

  @spec now() :: integer()
  def now, do: :erlang.monotonic_time(:nanosecond)
end
