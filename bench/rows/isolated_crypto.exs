defmodule Bench.Rows.IsolatedCrypto do
  # OTP's crypto in a process of its own: the hash of a binary that has to get there first, against the same function here.

  alias Bench.{Isolated, Measure, Report, Text}
  alias Snakepit.Isolation

  def title, do: "crypto, isolated"

  @kib 1024
  @sizes [64, 64 * @kib, 16 * @kib * @kib]

  def run(context) do
    # As crypto.erl loads it, with the number that this release has.
    path = :crypto |> :code.priv_dir() |> Path.join("lib/crypto")

    Isolated.with_library({:crypto, "priv/lib/crypto"}, [workers: 1, load_info: {version(), path, false}], fn lib ->
      Enum.map(@sizes, &row(context, lib, &1))
    end)
  end

  defp row(context, lib, size) do
    data = :crypto.strong_rand_bytes(size)
    hash = :crypto.hash(:sha256, data)
    {:ok, ^hash} = Isolation.call(lib, :hash_nif, [:sha256, data])
    # 64 MiB a round, and no more than a thousand.
    count = context.runs.(min(1_000, max(4, div(64 * @kib * @kib, size))))

    figures =
      Measure.interleave(
        %{
          isolated: fn ->
            Measure.alone(count, 0, fn -> {:ok, <<_::256>>} = Isolation.call(lib, :hash_nif, [:sha256, data]) end)
          end,
          vm: fn -> Measure.alone(count, 0, fn -> <<_::256>> = :crypto.hash(:sha256, data) end) end
        },
        context.rounds
      )

    Report.row(%{
      group: title(),
      name: "sha256 of #{Text.bytes(size)}",
      bytes: size,
      ours: figures.isolated,
      against: {"in the VM", figures.vm}
    })
  end

  # The first element of what crypto.erl gives to load_nif.
  defp version do
    {:ok, {:crypto, [abstract_code: {:raw_abstract_v1, forms}]}} =
      :beam_lib.chunks(:code.which(:crypto), [:abstract_code])

    number(forms)
  end

  defp number(
         {:call, _, {:remote, _, {:atom, _, :erlang}, {:atom, _, :load_nif}}, [_, {:tuple, _, [{:integer, _, n} | _]}]}
       ),
       do: n

  defp number(form) when is_tuple(form), do: form |> Tuple.to_list() |> number()
  defp number(forms) when is_list(forms), do: Enum.find_value(forms, &number/1)
  defp number(_form), do: nil
end
