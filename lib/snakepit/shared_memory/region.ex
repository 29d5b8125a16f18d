defmodule Snakepit.SharedMemory.Region do
  @moduledoc """
  A region of shared memory, as a value that can be kept, sent and printed.

  It names the region and says how its bytes are to be read; it does not keep the memory alive (`hold/1` does, and so
  does being its owner). `size` is in bytes, `dtype` a NumPy name or `nil`, `shape` a list of dimensions or `nil`.
  `mode` says whether this value may write. `sealed` is as of the call that gave it.
  """

  @enforce_keys [:id, :size, :instance, :node]
  defstruct [:id, :size, :dtype, :shape, :instance, :node, :name, mode: :read_write, sealed: false, metadata: %{}]

  @type t :: %__MODULE__{
          id: String.t(),
          size: pos_integer(),
          dtype: String.t() | nil,
          shape: [non_neg_integer()] | nil,
          instance: atom(),
          node: node(),
          name: String.t() | nil,
          mode: :read_only | :read_write,
          sealed: boolean(),
          metadata: map()
        }

  @type permission :: :read_write | :read_only | :none
  @type permission_set :: %{owner: :read_write | :read_only, group: permission(), other: permission()}
  @type security_level :: :standard | :high | :maximum
  @type cleanup_policy :: :automatic | :manual | :reference_counted

  @doc false
  @spec bytes(non_neg_integer()) :: String.t()
  def bytes(n) when n < 1024, do: "#{n} B"
  def bytes(n) when n < 1_048_576, do: unit(n / 1024, "KiB")
  def bytes(n) when n < 1_073_741_824, do: unit(n / 1_048_576, "MiB")
  def bytes(n), do: unit(n / 1_073_741_824, "GiB")

  defp unit(n, unit), do: "#{:erlang.float_to_binary(n, decimals: 1)} #{unit}"

  defimpl Inspect do
    alias Snakepit.SharedMemory.Region

    def inspect(region, _opts) do
      parts = [
        region.id,
        region.name && "named #{region.name}",
        Region.bytes(region.size),
        region.dtype && "#{region.dtype}#{shape(region.shape)}",
        if(region.sealed, do: "sealed", else: "writable"),
        region.mode == :read_only and not region.sealed && "read-only here",
        region.node != node() && "on #{region.node}"
      ]

      "#SharedMemory.Region<" <> (parts |> Enum.filter(&is_binary/1) |> Enum.join(", ")) <> ">"
    end

    defp shape(nil), do: ""
    defp shape(dims), do: "[" <> Enum.map_join(dims, "x", &Integer.to_string/1) <> "]"
  end
end
