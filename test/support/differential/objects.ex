defmodule Snakepit.Differential.Objects do
  @moduledoc false
  # The references that one side's calls have given, in the order in which they came.

  @type t :: %{optional(pos_integer()) => reference(), optional(reference()) => pos_integer()}

  @spec new() :: t()
  def new, do: %{}

  @doc "A term with `{:object, n}` in the place of each reference: the same number for one that has been there before."
  @spec take_out(term(), t()) :: {term(), t()}
  def take_out(reference, objects) when is_reference(reference) do
    case objects do
      %{^reference => n} ->
        {{:object, n}, objects}

      _ ->
        n = div(map_size(objects), 2) + 1
        {{:object, n}, Map.merge(objects, %{n => reference, reference => n})}
    end
  end

  def take_out([head | tail], objects) do
    {head, objects} = take_out(head, objects)
    {tail, objects} = take_out(tail, objects)
    {[head | tail], objects}
  end

  def take_out(tuple, objects) when is_tuple(tuple) do
    {list, objects} = tuple |> Tuple.to_list() |> take_out(objects)
    {List.to_tuple(list), objects}
  end

  def take_out(map, objects) when is_map(map) do
    {list, objects} = map |> Map.to_list() |> take_out(objects)
    {Map.new(list), objects}
  end

  def take_out(term, objects), do: {term, objects}

  @doc "The opposite."
  @spec put_back(term(), t()) :: term()
  def put_back({:object, n}, objects), do: Map.fetch!(objects, n)
  def put_back([head | tail], objects), do: [put_back(head, objects) | put_back(tail, objects)]

  def put_back(tuple, objects) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> put_back(objects) |> List.to_tuple()

  def put_back(map, objects) when is_map(map), do: map |> Map.to_list() |> put_back(objects) |> Map.new()
  def put_back(term, _objects), do: term
end
