defmodule Snakepit.SharedMemory.DType do
  @moduledoc false
  # Element types by their NumPy names, and the shapes that go with them.
  # Names and sizes: https://numpy.org/doc/stable/reference/arrays.scalars.html; bfloat16 as in ml_dtypes and Nx.

  alias Snakepit.SharedMemory.Error

  @types %{
    "bool" => {1, {:u, 8}},
    "int8" => {1, {:s, 8}},
    "int16" => {2, {:s, 16}},
    "int32" => {4, {:s, 32}},
    "int64" => {8, {:s, 64}},
    "uint8" => {1, {:u, 8}},
    "uint16" => {2, {:u, 16}},
    "uint32" => {4, {:u, 32}},
    "uint64" => {8, {:u, 64}},
    "float16" => {2, {:f, 16}},
    "bfloat16" => {2, {:bf, 16}},
    "float32" => {4, {:f, 32}},
    "float64" => {8, {:f, 64}},
    "complex64" => {8, {:c, 64}},
    "complex128" => {16, {:c, 128}}
  }

  # As many as the header page has room for, and as NumPy 1.x allows.
  @max_dimensions 32

  @spec names() :: [String.t()]
  def names, do: @types |> Map.keys() |> Enum.sort()

  @spec known?(term()) :: boolean()
  def known?(name), do: is_map_key(@types, name)

  @spec item_size(String.t()) :: pos_integer()
  def item_size(name), do: @types |> Map.fetch!(name) |> elem(0)

  @spec nx_type(String.t()) :: {atom(), pos_integer()}
  def nx_type(name), do: @types |> Map.fetch!(name) |> elem(1)

  @doc "Checks dtype and shape against the size in bytes, and gives the shape as a list."
  @spec check(term(), term(), pos_integer(), atom()) ::
          {:ok, {String.t() | nil, [non_neg_integer()] | nil}} | {:error, Error.t()}
  def check(nil, nil, _size, _operation), do: {:ok, {nil, nil}}

  def check(nil, shape, _size, operation),
    do: bad(operation, :shape, "a dtype: beside it", shape)

  def check(dtype, shape, size, operation) do
    cond do
      not known?(dtype) ->
        bad(operation, :dtype, "a NumPy name, one of #{Enum.join(names(), ", ")}", dtype)

      rem(size, item_size(dtype)) != 0 ->
        bad(operation, :dtype, "an element size that divides the #{size} bytes", dtype)

      shape == nil ->
        {:ok, {dtype, nil}}

      true ->
        check_shape(dtype, if(is_tuple(shape), do: Tuple.to_list(shape), else: shape), size, operation)
    end
  end

  defp check_shape(dtype, shape, size, operation) do
    valid? =
      proper_list?(shape) and length(shape) <= @max_dimensions and
        Enum.all?(shape, &(is_integer(&1) and &1 >= 0))

    cond do
      not valid? ->
        bad(operation, :shape, "a list of at most #{@max_dimensions} non-negative integers", shape)

      Enum.product(shape) * item_size(dtype) != size ->
        expected = "dimensions whose product times #{item_size(dtype)} (#{dtype}) is the size, #{size} bytes"
        bad(operation, :shape, expected, shape)

      true ->
        {:ok, {dtype, shape}}
    end
  end

  defp proper_list?(term), do: is_list(term) and not List.improper?(term)

  defp bad(operation, key, expected, got),
    do: {:error, Error.new(:invalid_option, operation, nil, %{key: key, expected: expected, got: got})}
end
