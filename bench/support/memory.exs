defmodule Bench.Memory do
  # What the kernel says about the memory of a process.

  @own "/memfd:snakepit"

  @doc """
  Bytes of memory that a process has written and shares with nobody, without our regions.

  A page of shared memory counts as private and dirty in whoever is the only one to map it, copy or not. So mappings of
  regions (`/memfd:snakepit…`) are left out: what remains is what a copy would have to show up in.
  """
  @spec private_dirty(pos_integer() | String.t()) :: non_neg_integer()
  def private_dirty(os_pid) do
    "/proc/#{os_pid}/smaps"
    |> File.read()
    # A process that has ended has none.
    |> then(fn result -> with {:error, _} <- result, do: {:ok, ""} end)
    |> elem(1)
    |> String.split("\n")
    |> Enum.reduce({0, true}, &line/2)
    |> elem(0)
  end

  @doc """
  Bytes of a process that would be free without it, whether written or only read (its unique set size), without mappings
  whose line has one of `except` in it.
  """
  @spec unique(pos_integer(), [String.t()]) :: non_neg_integer()
  def unique(os_pid, except) do
    "/proc/#{os_pid}/smaps"
    |> File.read!()
    |> String.split("\n")
    |> Enum.reduce({0, true}, fn
      "Private_" <> rest, {sum, true} -> {sum + (rest |> String.split(":") |> List.last() |> kilobytes()), true}
      <<c, _::binary>> = line, {sum, _} when c in ?0..?9 or c in ?a..?f -> {sum, not String.contains?(line, except)}
      _line, acc -> acc
    end)
    |> elem(0)
  end

  defp line("Private_Dirty:" <> rest, {sum, true}), do: {sum + kilobytes(rest), true}
  defp line("Private_Hugetlb:" <> rest, {sum, true}), do: {sum + kilobytes(rest), true}
  # "7f05e1600000-7f05e1a00000 rw-s 00000000 00:01 1066 /memfd:snakepit:shm_… (deleted)"; fields begin with a capital.
  defp line(<<c, _::binary>> = line, {sum, _}) when c in ?0..?9 or c in ?a..?f,
    do: {sum, not String.contains?(line, @own)}

  defp line(_line, acc), do: acc

  defp kilobytes(text), do: 1024 * (text |> String.split() |> hd() |> String.to_integer())

  @doc "Mappings and descriptors of regions in this VM."
  @spec regions_of_vm() :: %{mappings: non_neg_integer(), descriptors: non_neg_integer()}
  def regions_of_vm do
    directory = "/proc/#{System.pid()}/fd"
    maps = File.read!("/proc/#{System.pid()}/maps")

    open =
      for number <- File.ls!(directory),
          {:ok, target} <- [File.read_link(Path.join(directory, number))],
          String.contains?(target, @own),
          do: target

    %{mappings: maps |> String.split("\n") |> Enum.count(&String.contains?(&1, @own)), descriptors: length(open)}
  end

  @spec available() :: non_neg_integer()
  def available do
    [_, kilobytes] = Regex.run(~r/^MemAvailable:\s+(\d+) kB/m, File.read!("/proc/meminfo"))
    1024 * String.to_integer(kilobytes)
  end

  # ── The highest it gets ───────────────────────────────────────────────────────────────────────────────────────

  @interval 50

  @doc "Looks at these processes, `%{name => os_pid}`, every #{@interval} ms from now on."
  @spec watch(%{atom() => pos_integer() | String.t()}) :: pid()
  def watch(processes) do
    first = Map.new(processes, fn {name, os_pid} -> {name, {os_pid, private_dirty(os_pid)}} end)
    spawn_link(fn -> look(first, Map.new(first, fn {name, {_, bytes}} -> {name, bytes} end)) end)
  end

  @doc "Before and at most: `%{name => {before, peak}}`. The watch goes on."
  @spec peaks(pid()) :: %{atom() => {non_neg_integer(), non_neg_integer()}}
  def peaks(watch) do
    send(watch, {:peaks, self()})

    receive do
      {^watch, peaks} -> peaks
    end
  end

  defp look(first, peaks) do
    peaks =
      Map.new(peaks, fn {name, peak} -> {name, max(peak, first |> Map.fetch!(name) |> elem(0) |> private_dirty())} end)

    receive do
      {:peaks, from} ->
        send(from, {self(), Map.new(peaks, fn {name, peak} -> {name, {elem(first[name], 1), peak}} end)})
        look(first, peaks)

      :stop ->
        :ok
    after
      @interval -> look(first, peaks)
    end
  end
end
