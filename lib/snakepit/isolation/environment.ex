defmodule Snakepit.Isolation.Environment do
  @moduledoc false
  # The environment of a worker, as `env:` says it: the VM's at the moment when the worker is started (what :os.putenv/2 has put there
  # included, which the VM's own process does not show), some of it, or none.

  @type t :: :inherit | [String.t() | {String.t(), String.t()}]

  @doc "What was expected, or nil if the value is good."
  @spec refused(term()) :: String.t() | nil
  def refused(:inherit), do: nil

  def refused(value) do
    unless is_list(value) and not List.improper?(value) and Enum.all?(value, &good?/1),
      do: ~s(:inherit, or a list of names and {name, value}, as in ["HOME", {"OMP_NUM_THREADS", "2"}])
  end

  defp good?({name, value}), do: good?(name) and text?(value)
  defp good?(name), do: text?(name) and name != "" and not String.contains?(name, "=")

  defp text?(value), do: is_binary(value) and not String.contains?(value, <<0>>)

  @doc "Each variable as `NAME=value`, followed by a zero byte. What is given twice has its last value."
  @spec block(t()) :: binary()
  def block(:inherit), do: joined(ours())

  def block(list) do
    ours = ours()

    list
    |> Enum.flat_map(fn
      {name, value} -> [{name, value}]
      name -> for {:ok, value} <- [Map.fetch(ours, name)], do: {name, value}
    end)
    |> Map.new()
    |> joined()
  end

  defp joined(variables), do: for({name, value} <- variables, into: "", do: <<name::binary, ?=, value::binary, 0>>)

  # As the VM has decoded it, in the encoding of names of files; bytes that are none of it have become characters of Latin-1.
  defp ours do
    for {name, value} <- :os.env(), name = bytes(name), value = bytes(value), into: %{}, do: {name, value}
  end

  defp bytes(characters) do
    case :unicode.characters_to_binary(characters, :unicode, :file.native_name_encoding()) do
      bytes when is_binary(bytes) -> bytes
      # Characters that the encoding does not have. No other program could be given them either.
      _error -> nil
    end
  end
end
