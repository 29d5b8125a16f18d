defmodule Snakepit.Isolation.Check.Json do
  @moduledoc false
  # A check as one line of JSON, for other programs. Its own encoder: that of the native part is for handles, of 64 KiB at most, and
  # Elixir has none before 1.18.

  alias Snakepit.Isolation.Check
  alias Snakepit.Isolation.Check.Text

  @spec encode(Check.t()) :: String.t()
  def encode(%Check{} = check) do
    check
    |> Map.from_struct()
    |> Map.update!(:target, &target/1)
    |> Map.update!(:looked_up, &Map.new/1)
    |> Map.update!(:needed, &Map.new/1)
    |> value()
    |> IO.iodata_to_binary()
  end

  defp target(target) when is_binary(target), do: target
  defp target(target), do: inspect(target)

  defp value(nil), do: "null"
  defp value(boolean) when is_boolean(boolean), do: Atom.to_string(boolean)
  defp value(atom) when is_atom(atom), do: text(Atom.to_string(atom))
  defp value(number) when is_integer(number), do: Integer.to_string(number)
  defp value(text) when is_binary(text), do: text(text)
  defp value(list) when is_list(list), do: [?[, Enum.map_intersperse(list, ?,, &value/1), ?]]

  defp value(map) when is_map(map) do
    members =
      for {key, value} <- Enum.sort_by(map, &to_string(elem(&1, 0))), do: [text(to_string(key)), ?:, value(value)]

    [?{, Enum.intersperse(members, ?,), ?}]
  end

  # A path need not be UTF-8.
  defp text(text) do
    text = if String.valid?(text), do: text, else: for(<<byte <- text>>, into: "", do: <<byte::utf8>>)
    [?", for(<<character::utf8 <- text>>, do: escaped(character)), ?"]
  end

  defp escaped(?"), do: ~S(\")
  defp escaped(?\\), do: ~S(\\)

  # Somebody may look at it in a terminal. Beyond 16 bits it takes two units of UTF-16.
  defp escaped(character) do
    if Text.plain?(character),
      do: <<character::utf8>>,
      else:
        for(<<(unit::16 <- <<character::utf16>>)>>,
          do: ["\\u", unit |> Integer.to_string(16) |> String.pad_leading(4, "0")]
        )
  end
end
