defmodule Snakepit.Differential.Terms do
  @moduledoc false
  # Types of PropEr, whose macros Elixir has not.

  import Bitwise

  @int64 [0, 1, -1, 255, -256, 2_147_483_647, -2_147_483_649, 9_223_372_036_854_775_807, -9_223_372_036_854_775_808]

  def int64, do: @int64

  # What PropEr's ?LET is.
  def bind(type, make), do: :proper_types.bind(type, make, false)

  def one_of(types), do: :proper_types.oneof(types)
  def list(type), do: :proper_types.list(type)
  def range(from, to), do: :proper_types.range(from, to)
  def binary, do: :proper_types.binary()
  def bytes(count), do: :proper_types.binary(count)
  def bool, do: :proper_types.boolean()

  @doc "Binaries of a size at which a block, a buffer or a slot ends, too."
  def data do
    edges = one_of([0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 4_095, 4_096, 16_384, 20_001])
    one_of([binary(), bind({edges, range(0, 255)}, fn {size, byte} -> :binary.copy(<<byte>>, size) end)])
  end

  @doc "Binaries, and lists of lists of bytes and binaries."
  def iodata, do: one_of([data(), :proper_types.sized(&iolist/1)])

  defp iolist(0), do: list(one_of([range(0, 255), binary()]))

  defp iolist(size) do
    smaller = :proper_types.lazy(fn -> iolist(div(size, 3)) end)

    bind({list(one_of([range(0, 255), binary(), smaller])), one_of([[], binary()])}, fn {l, tail} ->
      improper(l, tail)
    end)
  end

  @doc "An argument of that type or, now and then, any other."
  def or_other(type), do: :proper_types.frequency([{9, type}, {1, leaf()}])

  @doc "Any term without names: those of this VM."
  def any, do: of(leaf())

  @doc "Any term whose leaves are these."
  def of(leaf), do: :proper_types.sized(fn size -> term(size, leaf) end)

  defp term(0, leaf), do: leaf

  defp term(size, leaf) do
    smaller = :proper_types.lazy(fn -> term(div(size, 3), leaf) end)
    list = list(smaller)

    :proper_types.frequency([
      {3, leaf},
      {2, list},
      {1, bind(list, &List.to_tuple/1)},
      {1, bind(list({smaller, smaller}), &Map.new/1)},
      {1, bind({list, leaf}, fn {list, tail} -> improper(list, tail) end)}
    ])
  end

  defp improper(list, tail), do: Enum.reduce(list, tail, &[&1 | &2])

  def leaf do
    one_of([
      :proper_types.integer(),
      one_of(@int64 ++ [bsl(1, 59), -bsl(1, 59) - 1, bsl(1, 64), 1 - bsl(1, 2048)]),
      bind({range(0, 700), :proper_types.integer()}, fn {n, i} -> bsl(i, n) end),
      :proper_types.float(),
      one_of([0.0, -0.0, 1.0e308, 5.0e-324]),
      binary(),
      :proper_types.bitstring(),
      one_of([nil, true, false, :"", :ö, :日本, :"with a space", String.to_atom(String.duplicate("é", 255))])
    ])
  end

  @doc "Texts of UTF-8."
  def text, do: bind(list(one_of([range(32, 126), one_of([0, 9, 10, 0xE9, 0x65E5, 0x1F600])])), &List.to_string/1)

  # ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "Documents, well-formed and not."
  def json, do: bind(one_of([document(), list(token())]), &IO.iodata_to_binary/1)

  defp document, do: :proper_types.sized(&document/1)

  defp document(0),
    do: one_of([json_string(), one_of(~w(0 -0 17 1.5 -2.5e-3 1E400 123456789012345678901234567890 true false null))])

  defp document(size) do
    smaller = :proper_types.lazy(fn -> document(div(size, 3)) end)

    one_of([
      document(0),
      bind(list(smaller), &["[", Enum.intersperse(&1, ", "), " ]"]),
      bind(list({json_string(), smaller}), fn pairs ->
        ["{", Enum.intersperse(for({key, value} <- pairs, do: [key, ":", value]), ","), "}"]
      end)
    ])
  end

  defp json_string do
    parts = one_of([text_without_quotes(), one_of(["\\\"", "\\u00e9", "\\ud83d\\ude00", "\\n", "\\/"])])
    bind(list(parts), &["\"", &1, "\""])
  end

  defp text_without_quotes, do: bind(list(one_of([?a, ?Z, ?\s, 0xE9, 0x65E5])), &List.to_string/1)

  defp token,
    do: one_of(~w([ ] { } : , "a" "\\x" "\\ud800" 1 -1 1. .5 1e5 -0 01 true nul null) ++ [" ", "\n", "\"", <<255>>])

  @doc "What jiffy encodes, and what it does not. Keys are no atoms: their order in a map is another in each VM from OTP 26 on."
  def ejson do
    leaf =
      one_of([text(), :proper_types.integer(), :proper_types.float(), one_of([nil, true, false, :an_atom, 1.0e308])])

    :proper_types.frequency([{6, :proper_types.sized(&ejson(&1, leaf))}, {1, any()}])
  end

  defp ejson(0, leaf), do: leaf

  defp ejson(size, leaf) do
    smaller = :proper_types.lazy(fn -> ejson(div(size, 3), leaf) end)
    pairs = list({text(), smaller})
    one_of([leaf, list(smaller), bind(pairs, &{&1}), bind(pairs, &Map.new/1)])
  end
end
