defmodule Snakepit.SharedMemory.Broker.Frame do
  @moduledoc false
  # Length-prefixed JSON objects (PROTOCOL.md). Bounded before anything is decoded.

  alias Snakepit.Native

  @doc "The next whole frame of the buffer. `:more` when it is not all there; the bound holds for what is announced."
  @spec next(binary(), pos_integer()) :: {:ok, map(), rest :: binary()} | :more | {:error, String.t()}
  def next(<<length::32, _::binary>>, limit) when length > limit,
    do: {:error, "a frame of #{length} bytes, over #{limit}"}

  def next(<<0::32, _::binary>>, _limit), do: {:error, "an empty frame"}

  def next(<<length::32, body::binary-size(length), rest::binary>>, _limit) do
    case Native.json_decode(body) do
      {:ok, object} when is_map(object) -> {:ok, object, :binary.copy(rest)}
      {:ok, _} -> {:error, "a frame that is not an object"}
      {:error, {_, %{message: message}}} -> {:error, "a frame that is not JSON: #{message}"}
      {:error, _} -> {:error, "a frame that is not JSON"}
    end
  end

  def next(_partial, _limit), do: :more

  @spec encode(map()) :: {:ok, iodata()} | {:error, term()}
  def encode(object) do
    with {:ok, body} <- Native.json_encode(object), do: {:ok, [<<byte_size(body)::32>>, body]}
  end
end
