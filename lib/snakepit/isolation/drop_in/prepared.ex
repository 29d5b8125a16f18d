defmodule Snakepit.Isolation.DropIn.Prepared do
  @moduledoc false
  # A module that was rewritten when a release was built (`Snakepit.Isolation.Release`). It lies where its original would, and so
  # the VM loads it, in embedded mode long before any application is started, and runs its on_load. Nobody can load a library
  # then. So, other than code that is rewritten in a running VM:
  #
  #   * on_load does nothing until the module is being isolated, which loads the same code again: then it does what it always does.
  #   * where a stub says that its library is not loaded (`erlang:nif_error`), it says why.
  #   * its slot's name has the original's checksum: another version of the module, which a hot upgrade loads, has other gates, and
  #     does not look into this one's.
  #
  # Whatever runs at the boot is made of the VM's own functions; our modules may not be there.
  #
  # What isolating it takes, and the original, for `restore/1`, are in a chunk of the beam.

  alias Snakepit.Isolation.{Directory, DropIn, Error}
  alias Snakepit.Isolation.DropIn.{Rewriter, Source}

  @chunk ~c"Snpk"
  # Of what is in the chunk, and of the functions of ours that the code calls.
  @format 1

  # ── Code ──────────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "Abstract code that waits until the module is isolated."
  @spec wait([tuple()], module(), slot :: atom()) :: [tuple()]
  def wait(forms, module, slot) do
    {forms, on_load} =
      forms
      |> Enum.map(&stubs(&1, {module, slot}))
      |> Enum.map_reduce([], fn
        {:attribute, anno, :on_load, {name, 0}}, _ ->
          later = :"snakepit on_load"
          {{:attribute, anno, :on_load, {later, 0}}, [on_load(anno, later, name, module, slot)]}

        form, on_load ->
          {form, on_load}
      end)

    {eof, forms} = Enum.split_with(forms, &match?({:eof, _}, &1))
    forms ++ on_load ++ eof
  end

  # later() -> case persistent_term:get({DropIn, Module}, []) of #{slot := Slot} -> name(); _ -> ok end.
  defp on_load(anno, later, name, module, slot) do
    key = {:tuple, anno, [{:atom, anno, DropIn}, {:atom, anno, module}]}
    isolated = {:map, anno, [{:map_field_exact, anno, {:atom, anno, :slot}, {:atom, anno, slot}}]}

    body =
      {:case, anno, get(anno, key),
       [
         {:clause, anno, [isolated], [], [{:call, anno, {:atom, anno, name}, []}]},
         {:clause, anno, [{:var, anno, :_}], [], [{:atom, anno, :ok}]}
       ]}

    {:function, anno, later, 0, [{:clause, anno, [], [], [body]}]}
  end

  # As long as nobody has filled the slot: no library has ever been loaded.
  defp stubs({:call, anno, {:remote, _, {:atom, _, :erlang}, {:atom, _, :nif_error}}, _} = call, {module, slot}) do
    why = Rewriter.remote(anno, __MODULE__, :error, [{:atom, anno, module}, {:atom, anno, slot}])

    {:case, anno, get(anno, {:atom, anno, slot}),
     [
       {:clause, anno, [{nil, anno}], [], [Rewriter.remote(anno, :erlang, :error, [why])]},
       {:clause, anno, [{:var, anno, :_}], [], [call]}
     ]}
  end

  defp stubs(form, context) when is_tuple(form),
    do: form |> Tuple.to_list() |> stubs(context) |> List.to_tuple()

  defp stubs([head | tail], context), do: [stubs(head, context) | stubs(tail, context)]
  defp stubs(other, _context), do: other

  defp get(anno, key), do: Rewriter.remote(anno, :persistent_term, :get, [key, {nil, anno}])

  @doc "What a function of a rewritten module raises while it has no library."
  @spec error(module(), slot :: atom()) :: Error.t()
  def error(module, slot) do
    case DropIn.fetch(module) do
      %{slot: ^slot, error: %Error{} = error} -> error
      %{slot: ^slot} -> Error.new(:not_loaded, module, nil, %{because: :no_library})
      # Also another version of the module.
      _ -> Error.new(:not_loaded, module, nil, %{because: if(Directory.started?(), do: :rewritten, else: :waits)})
    end
  end

  # ── Beam ──────────────────────────────────────────────────────────────────────────────────────────────────────

  @doc "The rewritten module's beam, with what isolating and restoring it takes."
  @spec pack(Rewriter.t(), module(), original :: binary()) :: binary()
  def pack(%Rewriter{beam: beam} = rewritten, module, original) do
    content = {@format, module, rewritten |> Map.from_struct() |> Map.delete(:beam), original}
    {:ok, ^module, chunks} = :beam_lib.all_chunks(beam)
    {:ok, beam} = :beam_lib.build_module(chunks ++ [{@chunk, :erlang.term_to_binary(content, [:compressed])}])
    beam
  end

  @doc "The other way round; `:none` for any other beam."
  @spec unpack(module(), charlist(), binary()) ::
          {:ok, Rewriter.t(), original :: binary()} | :none | {:error, Error.t()}
  def unpack(module, file, beam) do
    with {:ok, {_, [{@chunk, content}]}} when is_binary(content) <-
           :beam_lib.chunks(beam, [@chunk], [:allow_missing_chunks]) do
      case :erlang.binary_to_term(content) do
        {@format, ^module, fields, original} -> {:ok, struct!(Rewriter, Map.put(fields, :beam, beam)), original}
        {@format, other, _, _} -> Source.refuse(module, :other_module, %{path: file, got: other})
        _ -> Source.refuse(module, :other_version, %{path: file})
      end
    else
      _ -> :none
    end
  end
end
