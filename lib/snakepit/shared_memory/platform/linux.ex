defmodule Snakepit.SharedMemory.Platform.Linux do
  @moduledoc """
  Linux: `memfd_create` for anonymous regions, files of a tmpfs (`/dev/shm`, or `shm_path`) for named ones.
  """

  @behaviour Snakepit.SharedMemory.Platform

  alias Snakepit.Native

  @impl true
  def allocate(region_id, size, options) do
    defaults = %{
      id: region_id,
      instance: "",
      size: size,
      name: nil,
      label: nil,
      mode: 0o600,
      peers_write: false,
      access_read_only: false,
      owner_read_only: false,
      huge_pages: :no,
      reserve: true,
      cleanup_policy: :automatic,
      timeout: nil,
      dtype: nil,
      shape: nil,
      metadata: "{}",
      mapping_limit: div(Native.machine().max_map_count, 2),
      descriptor_reserve: 128
    }

    options = Map.merge(defaults, options)
    label = options.name && options.name |> Path.basename() |> String.replace_prefix("snakepit_", "")
    charge(size, fn charge -> Native.segment_create_dirty(charge, %{options | label: label}) end)
  end

  @impl true
  # What allocate/3 gave is mapped already.
  def map(handle, _options) when is_reference(handle), do: {:ok, handle}

  def map(path, options) when is_binary(path) do
    with {:ok, _header, length} <- Native.header_read(path) do
      charge(length, fn charge ->
        with {:ok, segment, _header} <-
               Native.segment_open_dirty(charge, path, Map.get(options, :descriptor_reserve, 128)),
             do: {:ok, segment}
      end)
    end
  end

  # On its own, outside an instance, a handle has an account of its own.
  defp charge(bytes, fun) do
    with {:ok, charge} <- Native.charge(Native.budget_new(), bytes + 4096, bytes + 4096), do: fun.(charge)
  end

  @impl true
  def unmap(handle), do: Native.segment_close(handle, false)

  @impl true
  def deallocate(handle), do: Native.segment_close(handle, true)

  @impl true
  def get_info(handle) do
    with {:ok, resident} <- Native.segment_resident(handle),
         do: {:ok, handle |> Native.segment_info() |> Map.put(:resident, resident)}
  end

  @impl true
  # The prefix is how an object is known to be ours when its maker is gone.
  def named_path(directory, name), do: Path.join(directory, "snakepit_" <> name)
end
