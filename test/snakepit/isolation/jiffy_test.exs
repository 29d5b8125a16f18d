defmodule Snakepit.Isolation.JiffyTest do
  # Debian's unmodified jiffy, its functions called as its own Erlang code does.
  use Snakepit.IsolationCase, async: false

  @moduletag timeout: 120_000

  case :code.lib_dir(:jiffy) do
    {:error, _} -> @moduletag skip: "there is no jiffy (Debian: erlang-jiffy)"
    path -> @path Path.join(to_string(path), "priv/jiffy")
  end

  if Module.get_attribute(__MODULE__, :path) do
    setup do
      {:ok, library} = Isolation.load(@path, sandbox: :none)
      %{library: library}
    end

    test "it is loaded as it is", %{library: library} do
      assert library.module == :jiffy
      assert info!(library).missing == []
    end

    test "documents are decoded and encoded as in the VM", %{library: library} do
      for document <- [
            ~s({"a": [1, 2.5, -3, true, null, "text", {"b": {}}], "ü": "\\u00e9"}),
            "[]",
            ~s([123456789012345678901234567890]),
            Enum.map_join(1..20_000, ",", &~s({"id": #{&1}, "name": "n#{&1}"})) |> then(&"[#{&1}]")
          ] do
        assert Isolation.call(library, :nif_decode_init, [document, [:return_maps]]) ==
                 {:ok, in_vm(:nif_decode_init, [document, [:return_maps]])}

        term = in_vm(:nif_decode_init, [document, [:return_maps]])
        # Numbers that do not fit are left to Erlang code, in the VM as here.
        assert Isolation.call(library, :nif_encode_init, [term, []]) == {:ok, in_vm(:nif_encode_init, [term, []])}
      end
    end

    test "what is no document is the library's own error", %{library: library} do
      assert {:ok, {:error, _}} = Isolation.call(library, :nif_decode_init, ["{", []])
    end

    # jiffy does not export its NIFs: its module, compiled again with all of them exported.
    setup_all do
      {:ok, {:jiffy, [abstract_code: {:raw_abstract_v1, forms}]}} =
        :beam_lib.chunks(:code.which(:jiffy), [:abstract_code])

      file = :code.which(:jiffy)
      {:ok, :jiffy, code} = :compile.forms(forms, [:export_all, :nowarn_export_all])
      {:module, :jiffy} = :code.load_binary(:jiffy, file, code)
      :ok
    end

    defp in_vm(function, arguments), do: apply(:jiffy, function, arguments)
  end
end
