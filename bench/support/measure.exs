defmodule Bench.Measure do
  # How a figure comes about: bench/README.md.

  # Runs timed one by one, or means of batches, of which a 99th percentile would say nothing.
  @type samples :: [number()] | {:means, [number()]}
  @type figure :: %{p50: float(), p99: number() | nil, count: pos_integer()}

  # For a 99th percentile.
  @enough 40

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
  defp figure([{:means, _} | _] = rounds), do: %{figure(for({:means, samples} <- rounds, do: samples)) | p99: nil}

  defp figure(rounds) do
    all = Enum.concat(rounds)
    p50 = rounds |> Enum.map(&percentile(&1, 50)) |> percentile(50)
    %{p50: p50 / 1, p99: if(length(all) >= @enough, do: percentile(all, 99)), count: length(all)}
  end

  @spec percentile([number()], 1..99) :: number()
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
