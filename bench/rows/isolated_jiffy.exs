defmodule Bench.Rows.IsolatedJiffy do
  # Debian's jiffy and a real document, in a process of its own and in the VM. There it yields, and others can work.

  alias Bench.{Isolated, Json, Measure, Report, Text}
  alias Snakepit.Isolation

  def title, do: "jiffy, isolated"

  @options [:return_maps]

  def run(context) do
    document = Json.document()

    Isolated.with_library({:jiffy, "priv/jiffy"}, [workers: 1], fn lib ->
      whole = :jiffy.decode(document, @options)
      {:ok, ^whole} = Isolation.call(lib, :nif_decode_init, [document, @options])
      languages = whole["639-3"]
      # A record is a small document, with a few short strings.
      record = IO.iodata_to_binary(:jiffy.encode(hd(languages)))

      rows(context, lib, document, 3, "the document") ++ rows(context, lib, record, 500, "one of its records")
    end)
  end

  defp rows(context, lib, text, count, what) do
    term = :jiffy.decode(text, @options)
    count = context.runs.(count)

    figures =
      Measure.interleave(
        %{
          decode: fn ->
            Measure.alone(count, 0, fn -> {:ok, %{}} = Isolation.call(lib, :nif_decode_init, [text, @options]) end)
          end,
          decode_vm: fn -> Measure.alone(count, 0, fn -> %{} = :jiffy.decode(text, @options) end) end,
          encode: fn ->
            Measure.alone(count, 0, fn -> {:ok, [_ | _]} = Isolation.call(lib, :nif_encode_init, [term, []]) end)
          end,
          encode_vm: fn -> Measure.alone(count, 0, fn -> :jiffy.encode(term) end) end
        },
        context.rounds
      )

    row = &Report.row(Map.merge(%{group: title(), bytes: byte_size(text)}, &1))
    text = "#{what}, #{Text.bytes(byte_size(text))}"

    [
      row.(%{name: "decode #{text}", ours: figures.decode, against: {"in the VM", figures.decode_vm}}),
      row.(%{name: "encode #{text}", ours: figures.encode, against: {"in the VM", figures.encode_vm}})
    ]
  end
end
