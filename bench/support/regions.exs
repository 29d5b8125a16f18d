defmodule Bench.Regions do
  # Regions of the benchmark's own instance.

  alias Snakepit.SharedMemory, as: Shm
  alias Snakepit.SharedMemory.Handle

  @instance :bench
  @limits [max_regions: 20_000, max_total_memory: 8 * 1024 * 1024 * 1024]
  @part 16 * 1024 * 1024

  @spec start() :: Supervisor.on_start()
  def start, do: Shm.start_link([name: @instance] ++ @limits)

  @spec allocate(pos_integer(), keyword()) :: Shm.Region.t()
  def allocate(size, options \\ []), do: Shm.allocate!(size, [instance: @instance] ++ options)

  @spec put(binary()) :: Shm.Region.t()
  def put(data), do: Shm.put!(data, instance: @instance)

  @doc "A sealed region full of sevens."
  @spec sealed(pos_integer()) :: Shm.Region.t()
  def sealed(size) do
    region = allocate(size)
    part = min(size, @part)
    data = :binary.copy(<<7>>, part)
    for offset <- 0..(size - 1)//part, do: :ok = Shm.write!(region, offset, data)
    Shm.seal!(region)
  end

  @spec json(Shm.Region.t()) :: String.t()
  def json(region) do
    {:ok, json} = Handle.to_json(Shm.handle(region))
    json
  end

  @doc "Waits until memory that was freed is back: from 1 MiB on a thread of its own sees to that."
  @spec settle() :: :ok
  def settle, do: :ok = Snakepit.Native.reaper_flush_dirty(60_000)
end
