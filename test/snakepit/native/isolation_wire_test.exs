defmodule Snakepit.Native.IsolationWireTest do
  # The codec over the VM's own terms, with `:erlang.term_to_binary/1` as the judge.
  use ExUnit.Case, async: true

  alias Snakepit.Native

  @version 131

  # What is the same as the VM's form; names have their own, and strings are lists.
  defp oracle(term), do: :erlang.term_to_binary(term, minor_version: 2)

  defp round_trip(term) do
    {:ok, bytes} = Native.wire_encode(term)
    {:ok, back} = Native.wire_decode(bytes)
    assert back === term
    # The VM reads what we have written, too.
    assert :erlang.binary_to_term(<<@version, bytes::binary>>) === term
    # And we read what the VM writes.
    <<@version, theirs::binary>> = oracle(term)
    assert {:ok, again} = Native.wire_decode(theirs)
    assert again === term
    bytes
  end

  @big Bitwise.bsl(1, 20_000)

  describe "a round trip" do
    test "of integers at every boundary" do
      for shift <- [0, 7, 8, 15, 16, 27, 28, 31, 32, 58, 59, 60, 62, 63, 64, 65, 127, 128, 2039, 2040, 2041, 20_000],
          delta <- [-1, 0, 1],
          sign <- [1, -1] do
        round_trip(sign * (Bitwise.bsl(1, shift) + delta))
      end
    end

    test "of floats, the smallest and largest included" do
      for float <- [0.0, -0.0, 1.5, -1.0e308, 5.0e-324, 1.7976931348623157e308], do: round_trip(float)
    end

    test "of atoms in ASCII, Latin-1 and beyond" do
      for text <- ["", "a", "ok", "Elixir.Kernel", "grün", "ÿ", "日本語", "😀", String.duplicate("x", 255)],
          do: round_trip(String.to_atom(text))

      round_trip(String.to_atom(String.duplicate("ü", 255)))
      round_trip(String.to_atom(String.duplicate("😀", 255)))
    end

    test "of lists: proper, improper, deep, long, of bytes" do
      for list <- [
            [],
            [1],
            [1 | 2],
            [[], [[]]],
            [:a, :b | :c],
            'text',
            Enum.to_list(1..10_000),
            List.duplicate(255, 70_000)
          ],
          do: round_trip(list)

      round_trip(Enum.reduce(1..50_000, [], fn _, inner -> [inner] end))
      round_trip(Enum.reduce(1..50_000, :end, fn _, inner -> {inner} end))
    end

    test "of tuples and maps, small and large" do
      for size <- [0, 1, 2, 255, 256, 300], do: round_trip(Tuple.duplicate(:x, size))
      for size <- [0, 1, 31, 32, 33, 1000, 40_000], do: round_trip(Map.new(1..size//1, &{&1, {&1, "v"}}))
      round_trip(%{1 => :integer, 1.0 => :float, "1" => :binary, [1] => :list, %{1 => 1} => :map})
    end

    test "of binaries and bit strings" do
      for size <- [0, 1, 63, 64, 65, 4096, 70_000, 2_000_000], do: round_trip(:binary.copy(<<171>>, size))
      for bits <- 1..40, do: round_trip(<<-1::size(bits)>>)
      <<_::3, rest::bitstring>> = :binary.copy(<<171>>, 100)
      round_trip(rest)
      <<_::3, aligned::binary-size(50), _::bitstring>> = :binary.copy(<<171>>, 100)
      round_trip(aligned)
    end

    test "of any term that PropEr can think of" do
      property =
        :proper.forall(:proper_types.any(), fn term ->
          round_trip(term)
          true
        end)

      assert :proper.quickcheck(property, [:quiet, numtests: 500, max_size: 60])
    end
  end

  describe "names" do
    test "have a key, which is their external form, and are never accepted from outside" do
      for name <- [self(), hd(Port.list()), make_ref(), &is_atom/1, fn -> @big end] do
        {:ok, <<1, kind, index::32, generation::32, length::32, key::binary-size(length)>>} = Native.wire_encode(name)
        assert kind in 0..3
        assert {index, generation} == {0, 1}
        assert :erlang.binary_to_term(<<@version, key::binary>>) === name
        <<@version, foreign::binary>> = oracle(name)
        assert {:error, {:protocol, %{message: _}}} = Native.wire_decode(foreign)
        forged = <<1, kind, index::32, generation::32, 0::32>>
        assert {:error, {:protocol, %{message: _}}} = Native.wire_decode(forged)
      end
    end

    test "are the same name when they are the same process" do
      {:ok, <<104, 2, first::binary-size(10), _::binary>> = both} = Native.wire_encode({self(), self()})
      assert :binary.matches(both, first) |> length() == 2
    end
  end

  describe "what cannot be" do
    test "is an error and nothing else" do
      for bytes <- [
            "",
            <<97>>,
            <<97, 1, 0>>,
            <<104, 2, 97, 1>>,
            <<108, 255, 255, 255, 255, 106>>,
            <<105, 255, 255, 255, 255>>,
            <<109, 255, 255, 255, 255, 1>>,
            <<110, 255, 0>>,
            <<119, 2, 195, 40>>,
            <<118, 0, 4, "abc">>,
            <<70, 127, 240, 0, 0, 0, 0, 0, 0>>,
            <<116, 0, 0, 0, 2, 97, 1, 97, 1, 97, 1, 97, 2>>,
            <<80, 0, 0, 0, 1, 0>>,
            <<131, 97, 1>>,
            <<2, 1::64>>,
            <<3, 1::64>>
          ] do
        assert {:error, {reason, %{message: message}}} = Native.wire_decode(bytes)
        assert reason in [:protocol, :too_large]
        assert is_binary(message)
      end
    end

    test "makes no atom" do
      name = "snakepit_never_#{System.unique_integer([:positive])}"
      assert {:error, {:too_many_atoms, %{limit: 0}}} = Native.wire_decode(<<119, byte_size(name), name::binary>>)
      wide = "日#{System.unique_integer([:positive])}"
      assert {:error, {:too_many_atoms, %{limit: 0}}} = Native.wire_decode(<<119, byte_size(wide), wide::binary>>)
      assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    end

    test "is too much memory for few bytes" do
      count = 1_000_000
      nested = Enum.reduce(1..200_000, <<106>>, fn _, inner -> [<<104, 1>>, inner] end)
      assert {:error, {:too_large, _}} = Native.wire_decode(IO.iodata_to_binary(nested))
      assert {:ok, list} = Native.wire_decode(<<108, count::32, :binary.copy(<<106>>, count)::binary, 106>>)
      assert length(list) == count
    end
  end
end
