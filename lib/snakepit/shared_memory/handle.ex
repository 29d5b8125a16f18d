defmodule Snakepit.SharedMemory.Handle do
  @moduledoc """
  What is sent to another process so that it can attach a region: a map with string keys and JSON values only.

  | key | value |
  |---|---|
  | `"snakepit_shm"` | 1, the version of this form |
  | `"id"` | of the region |
  | `"instance"` | the key of the instance it belongs to |
  | `"socket"` | path of the broker's Unix socket |
  | `"token"` | proof that the VM made this handle, over id, mode and expiry |
  | `"mode"` | `"read_only"` or `"read_write"` |
  | `"expires"` | milliseconds since 1970, or `nil` |
  | `"size"`, `"dtype"`, `"shape"`, `"metadata"` | how to read it |

  Whoever has a handle, runs as the same user and can reach the socket can attach the region: treat it as a key.
  """

  alias Snakepit.Native
  alias Snakepit.SharedMemory.Error

  @version 1
  @text ["id", "instance", "socket", "token"]

  @type t :: %{String.t() => term()}

  @doc false
  @spec version() :: pos_integer()
  def version, do: @version

  @doc "As JSON text."
  @spec to_json(t()) :: {:ok, String.t()} | {:error, Error.t()}
  def to_json(handle) do
    with {:ok, handle} <- parse(handle),
         {:error, {_, details}} <- Native.json_encode(handle),
         do: {:error, Error.new(:invalid_json, :to_json, nil, details)}
  end

  @doc "From JSON text, or a map; checked for form, not for truth (that is the token's part)."
  @spec parse(term()) :: {:ok, t()} | {:error, Error.t()}
  def parse(text) when is_binary(text) do
    case Native.json_decode(text) do
      {:ok, handle} when is_map(handle) -> parse(handle)
      {:ok, other} -> bad("handle", "a JSON object", other)
      {:error, {_, details}} -> bad("handle", "JSON (#{details[:message]})", text)
    end
  end

  def parse(%{"snakepit_shm" => @version} = handle) do
    with :ok <- each(@text, handle, "text", &(is_binary(&1) and &1 != "" and byte_size(&1) <= 512)),
         :ok <- each(["mode"], handle, "\"read_only\" or \"read_write\"", &(&1 in ["read_only", "read_write"])),
         :ok <- each(["expires"], handle, "milliseconds or null", &(&1 == nil or (is_integer(&1) and &1 >= 0))),
         :ok <- each(["size"], handle, "a positive integer", &(is_integer(&1) and &1 > 0)),
         do: {:ok, handle}
  end

  def parse(%{"snakepit_shm" => other}), do: bad("snakepit_shm", "version #{@version}", other)
  def parse(other), do: bad("snakepit_shm", "a map with this key (version #{@version})", other)

  defp each([], _handle, _expected, _check), do: :ok

  defp each([key | keys], handle, expected, check) do
    if check.(handle[key]), do: each(keys, handle, expected, check), else: bad(key, expected, handle[key])
  end

  defp bad(key, expected, got),
    do: {:error, Error.new(:invalid_handle, :attach, nil, %{key: key, expected: expected, got: got})}
end
