defmodule Bench.Text do
  # Numbers with their units, as a person reads them.

  @spec bytes(number()) :: String.t()
  def bytes(n) when n < 1024, do: "#{round(n)} B"
  def bytes(n) when n < 1_048_576, do: scaled(n / 1024, "KiB")
  def bytes(n) when n < 1_073_741_824, do: scaled(n / 1_048_576, "MiB")
  def bytes(n), do: scaled(n / 1_073_741_824, "GiB")

  @doc "Nanoseconds."
  @spec time(number()) :: String.t()
  def time(ns) when ns < 999.5, do: "#{three(ns)} ns"
  def time(ns) when ns < 999_500, do: "#{three(ns / 1_000)} us"
  def time(ns) when ns < 999_500_000, do: "#{three(ns / 1_000_000)} ms"
  def time(ns), do: "#{three(ns / 1_000_000_000)} s"

  @doc "Bytes in nanoseconds, per second."
  @spec rate(number(), number()) :: String.t()
  def rate(bytes, ns), do: bytes(bytes * 1_000_000_000 / max(ns, 1)) <> "/s"

  @doc "12345678 as 12,345,678."
  @spec count(integer()) :: String.t()
  def count(n), do: n |> Integer.to_string() |> String.replace(~r/(?<=\d)(?=(\d{3})+$)/, ",")

  # Three digits that mean something.
  @spec three(number()) :: String.t()
  def three(x) when x >= 99.95, do: x |> round() |> Integer.to_string()
  def three(x) when x >= 9.995, do: :erlang.float_to_binary(x / 1, decimals: 1)
  def three(x), do: :erlang.float_to_binary(x / 1, decimals: 2)

  defp scaled(x, unit) do
    text = if x == trunc(x), do: Integer.to_string(trunc(x)), else: :erlang.float_to_binary(x / 1, decimals: 1)
    "#{text} #{unit}"
  end
end
