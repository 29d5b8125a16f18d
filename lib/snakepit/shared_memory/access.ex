defmodule Snakepit.SharedMemory.Access do
  @moduledoc false
  # Reading and writing, in the calling process: the row for the native resource, then the memory. No process hop.

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Error, Instance, Manager, Region, Registry, Stats, Telemetry, Waiters}

  # Up to here a copy takes some tens of microseconds, and stays on the scheduler.
  @small 256 * 1024
  # Nobody announces that a reader has finished; who waits for one looks again this often.
  @poll 20
  # A writer that is killed between its write and the announcement leaves this to the clock.
  @look_again 1_000
  @seal_timeout 5_000
  # Nobody else has it yet, so there is nobody to wait for; a deadline all the same.
  @fill_timeout 5_000

  @spec write(Region.t(), non_neg_integer(), iodata(), timeout()) :: :ok | {:error, Error.t()}
  def write(region, offset, iodata, timeout) do
    with {:ok, vector, length} <- to_vector(region, iodata),
         {:ok, instance, segment} <- target(region, :write) do
      Telemetry.measure(instance, :write, region.id, length, fn ->
        with :ok <- check_range(region, offset, length, :write),
             :ok <- check_mode(instance, region, :write),
             do: put(instance, region, segment, offset, vector, length, timeout)
      end)
    end
  end

  @doc "The first contents of a region that the caller has just made, whoever is to own it and write later."
  @spec fill(Region.t(), iodata() | {:file, Path.t(), non_neg_integer(), pos_integer()}) :: :ok | {:error, Error.t()}
  def fill(region, {:file, path, file_offset, length}) do
    with {:ok, instance, segment} <- target(region, :write) do
      Telemetry.measure(instance, :write, region.id, length, fn ->
        with {:ok, _} <- or_error(Native.segment_fill_dirty(segment, path, file_offset, length), :from_file, region.id),
             do: Waiters.notify(instance, region.id)
      end)
    end
  end

  def fill(region, iodata) do
    with {:ok, vector, length} <- to_vector(region, iodata),
         {:ok, instance, segment} <- target(region, :write) do
      Telemetry.measure(instance, :write, region.id, length, fn ->
        put(instance, region, segment, 0, vector, length, @fill_timeout)
      end)
    end
  end

  defp put(instance, region, segment, offset, vector, length, timeout) do
    plain = fn -> Native.segment_write(segment, offset, vector) end
    dirty = fn -> Native.segment_write_dirty(segment, offset, vector) end

    with {:ok, _generation} <- patiently(instance, region, length, timeout, :write, plain, dirty),
         do: Waiters.notify(instance, region.id)
  end

  @spec read(Region.t(), non_neg_integer(), non_neg_integer(), timeout()) :: {:ok, binary()} | {:error, Error.t()}
  def read(region, offset, length, timeout) do
    with {:ok, instance, segment} <- target(region, :read) do
      Telemetry.measure(instance, :read, region.id, length, fn ->
        plain = fn -> Native.segment_read(segment, offset, length) end
        dirty = fn -> Native.segment_read_dirty(segment, offset, length) end

        with :ok <- check_range(region, offset, length, :read),
             do: patiently(instance, region, length, timeout, :read, plain, dirty)
      end)
    end
  end

  @spec view(Region.t(), non_neg_integer(), non_neg_integer()) :: {:ok, binary()} | {:error, Error.t()}
  def view(region, offset, length) do
    with {:ok, instance, segment} <- target(region, :view) do
      Telemetry.sample(instance, :view, region.id, length, fn ->
        with :ok <- check_range(region, offset, length, :view), do: view_of(segment, offset, length, region.id)
      end)
    end
  end

  defp view_of(segment, offset, length, id) do
    case Native.segment_view(segment, offset, length) do
      {:ok, binary} -> {:ok, binary}
      # Memory that somebody could truncate is never mapped: a copy of what is sealed is as good, only slower.
      {:error, {:not_zero_copy, _}} -> copy_of(segment, offset, length, id)
      failure -> Error.from_native(failure, :view, id)
    end
  end

  defp copy_of(segment, offset, length, id) do
    if Native.segment_info(segment).state == :sealed do
      or_error(Native.segment_read_dirty(segment, offset, length), :view, id)
    else
      {:error, Error.new(:not_sealed, :view, id)}
    end
  end

  @spec seal(Region.t()) :: {:ok, Region.t()} | {:error, Error.t()}
  def seal(region) do
    with {:ok, instance, _segment} <- target(region, :seal),
         :ok <- check_mode(instance, region, :seal),
         do: seal_filled(region)
  end

  @doc "As `seal/1`, by whoever has just made it."
  @spec seal_filled(Region.t()) :: {:ok, Region.t()} | {:error, Error.t()}
  def seal_filled(region) do
    with {:ok, instance, segment} <- target(region, :seal) do
      Telemetry.measure(instance, :seal, region.id, region.size, fn ->
        outcome =
          Waiters.until(instance, region.id, @seal_timeout, @poll, fn ->
            with {:error, {:busy, details}} <- native_seal(region, segment) do
              # A peer keeps its mapping for as long as it likes; a reader of this VM has soon finished.
              case writers(instance, region.id) do
                [] -> {:wait, details}
                writers -> {:error, Error.new(:busy, :seal, region.id, Map.put(details, :writers, writers))}
              end
            end
          end)

        case outcome do
          {:timeout, details} ->
            {:error, Error.new(:busy, :seal, region.id, Map.put(details, :timeout, @seal_timeout))}

          {:ok, _how} ->
            Waiters.notify(instance, region.id)
            {:ok, %{region | sealed: true}}

          other ->
            or_error(other, :seal, region.id)
        end
      end)
    end
  end

  # A small region that nobody else has ever had is sealed in microseconds; otherwise the kernel may wait for pages that
  # a peer has pinned.
  defp native_seal(%{size: size, name: nil}, segment) when size <= @small do
    with {:error, {:dirty_needed, _}} <- Native.segment_seal(segment), do: Native.segment_seal_dirty(segment)
  end

  defp native_seal(_region, segment), do: Native.segment_seal_dirty(segment)

  # Only peers' sessions can map it writable besides the VM.
  defp writers(instance, id) do
    for {:peer, session} <- Registry.holders(instance, id),
        :ets.lookup(instance.tables.grants, {session, id}) == [{{session, id}, :read_write}] do
      case :ets.lookup(instance.tables.sessions, session) do
        [{_, %{name: name, os_pid: pid}}] -> %{session: session, name: name, os_pid: pid}
        [] -> %{session: session}
      end
    end
  end

  @spec wait(Region.t(), non_neg_integer(), timeout()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def wait(region, generation, timeout) do
    with {:ok, instance, segment} <- target(region, :wait) do
      result =
        Waiters.until(instance, region.id, timeout, @look_again, fn ->
          case Native.segment_generation(segment) do
            {:ok, newer} when newer > generation -> {:ok, newer}
            {:ok, same} -> {:wait, same}
            failure -> Error.from_native(failure, :wait, region.id)
          end
        end)

      with {:timeout, now} <- result,
           do: {:error, Error.new(:timeout, :wait, region.id, %{timeout: timeout, generation: now})}
    end
  end

  @doc "Where a region's memory is: of this node, and still there."
  @spec target(Region.t(), atom()) :: {:ok, Instance.t(), Native.segment()} | {:error, Error.t()}
  def target(%Region{node: node, id: id}, operation) when node != node(),
    do: {:error, Error.new(:remote_region, operation, id, %{node: node})}

  def target(%Region{id: id, instance: name}, operation) do
    with {:ok, instance} <- Instance.of_name(name),
         {:ok, segment} <- Registry.segment(instance, id) do
      {:ok, instance, segment}
    else
      :error -> not_found(name, id, operation)
    end
  end

  @doc "The same with the whole row."
  @spec row(Region.t(), atom()) :: {:ok, Instance.t(), Registry.row()} | {:error, Error.t()}
  def row(%Region{node: node, id: id}, operation) when node != node(),
    do: {:error, Error.new(:remote_region, operation, id, %{node: node})}

  def row(%Region{id: id, instance: name}, operation) do
    with {:ok, instance} <- Instance.of_name(name),
         {:ok, row} <- Registry.live(instance, id) do
      {:ok, instance, row}
    else
      :error -> not_found(name, id, operation)
    end
  end

  defp not_found(name, id, operation) do
    error = Error.new(:region_not_found, operation, id)
    with {:ok, instance} <- Instance.of_name(name), do: Stats.error(instance.stats, error.type)
    {:error, error}
  end

  # Small and free at once: on this scheduler. Otherwise on a dirty one, where waiting in line for the lock is allowed
  # (small writes would never find a gap between overlapping readers); named ones always, for a file may lie on a disk.
  defp patiently(instance, region, length, timeout, operation, plain, dirty) do
    first = if length <= @small and region.name == nil, do: plain, else: dirty

    with {:error, {:busy, _}} <- first.() do
      outcome =
        Waiters.until(instance, region.id, timeout, @poll, fn ->
          with {:error, {:busy, details}} <- dirty.(), do: {:wait, details}
        end)

      with {:timeout, details} <- outcome,
           do: {:error, Error.new(:busy, operation, region.id, Map.put(details, :timeout, timeout))}
    end
    |> or_error(operation, region.id)
  end

  defp or_error({:error, {reason, details}} = failure, operation, id) when is_atom(reason) and is_map(details),
    do: Error.from_native(failure, operation, id)

  defp or_error(result, _operation, _id), do: result

  defp check_range(%Region{id: id, size: size}, offset, length, operation) do
    cond do
      not (is_integer(offset) and offset >= 0) ->
        bad(operation, id, :offset, "a non-negative integer", offset)

      not (is_integer(length) and length >= 0) ->
        bad(operation, id, :length, "a non-negative integer", length)

      offset + length > size ->
        {:error, Error.new(:out_of_range, operation, id, %{offset: offset, length: length, size: size})}

      true ->
        :ok
    end
  end

  defp bad(operation, id, key, expected, got),
    do: {:error, Error.new(:invalid_argument, operation, id, %{key: key, expected: expected, got: got})}

  defp check_mode(_instance, %Region{mode: :read_only, id: id}, operation),
    do: {:error, Error.new(:read_only, operation, id, %{because: "this value was made with mode: :read_only"})}

  defp check_mode(instance, %Region{id: id}, operation) do
    with {:ok, row} <- Registry.fetch(instance, id),
         :read_only <- Manager.mode_for(row, self()) do
      {:error, Error.new(:read_only, operation, id, %{because: "access_mode: :read_only leaves writing to its owner"})}
    else
      _ -> :ok
    end
  end

  # A vector of the binaries as they are: the large ones are not copied.
  defp to_vector(_region, binary) when is_binary(binary), do: {:ok, [binary], byte_size(binary)}

  defp to_vector(region, iodata) do
    vector = :erlang.iolist_to_iovec(iodata)
    {:ok, vector, Enum.reduce(vector, 0, &(byte_size(&1) + &2))}
  rescue
    ArgumentError -> bad(:write, region.id, :data, "iodata", iodata)
  end
end
