defmodule Snakepit.Isolation.DropIn.Source do
  @moduledoc false
  # A module as its beam file has it: abstract code, and what the rewritten module must have too. Says which modules
  # cannot be isolated, and why.

  alias Snakepit.Isolation.DropIn.{Prepared, Rewriter}
  alias Snakepit.Isolation.Error

  @enforce_keys [:module, :file, :beam, :forms, :exports, :attributes, :compile]
  defstruct [:module, :file, :beam, :forms, :exports, :attributes, :compile, :prepared]

  @type t :: %__MODULE__{
          module: module(),
          file: charlist(),
          beam: binary(),
          forms: [tuple()],
          exports: [{atom(), arity()}],
          attributes: keyword(),
          compile: keyword(),
          # Rewritten already, when a release was built; `beam` is the original.
          prepared: Rewriter.t() | nil
        }

  @doc "The module in the code path, or where it has been loaded from."
  @spec find(module()) :: {:ok, t()} | {:error, Error.t()}
  # Every call of an isolated library goes through it.
  def find(Snakepit.Native), do: refuse(Snakepit.Native, :own)

  def find(module) do
    with {:ok, file} <- file(module, :code.which(module)),
         {:ok, beam} <- read(module, file),
         do: read(module, file, beam)
  end

  defp file(module, :preloaded), do: refuse(module, :preloaded)
  defp file(module, :cover_compiled), do: refuse(module, :cover_compiled)
  defp file(module, :non_existing), do: refuse(module, :non_existing)
  # Loaded from memory.
  defp file(module, []), do: refuse(module, :no_file)
  defp file(module, path), do: if(:code.is_sticky(module), do: refuse(module, :sticky), else: {:ok, path})

  # As the VM reads it: it may lie in an archive.
  defp read(module, file) do
    case :erl_prim_loader.get_file(file) do
      {:ok, beam, _} -> {:ok, beam}
      :error -> refuse(module, :no_file, %{path: file})
    end
  end

  @doc "The module in a beam; `file` is where it says that it comes from."
  @spec read(module(), charlist(), binary()) :: {:ok, t()} | {:error, Error.t()}
  def read(module, file, beam) do
    case Prepared.unpack(module, file, beam) do
      {:ok, rewritten, original} ->
        empty = %{forms: [], exports: [], attributes: [], compile: []}
        {:ok, struct!(__MODULE__, Map.merge(empty, %{module: module, file: file, beam: original, prepared: rewritten}))}

      :none ->
        parse(module, file, beam)

      {:error, error} ->
        {:error, error}
    end
  end

  defp parse(module, file, beam) do
    # First who has made it: nothing that is said of its debug_info would be of use.
    with {:ok, {^module, exports: exports}} <- :beam_lib.chunks(beam, [:exports]),
         :ok <- others(module, exports),
         {:ok, forms} <- forms(module, file, beam),
         {:ok, {^module, chunks}} <- :beam_lib.chunks(beam, [:attributes, :compile_info]) do
      {:ok,
       %__MODULE__{
         module: module,
         file: file,
         beam: beam,
         forms: forms,
         exports: exports,
         attributes: chunks[:attributes],
         compile: chunks[:compile_info]
       }}
    else
      {:error, %Error{}} = error -> error
      {:ok, {other, _}} -> refuse(module, :other_module, %{path: file, got: other})
      {:error, :beam_lib, reason} -> refuse(module, :no_beam, %{path: file, message: words(reason)})
    end
  end

  # Snakepit.Isolation.Module has made it.
  defp others(module, exports), do: if({:__isolation__, 0} in exports, do: refuse(module, :isolates_itself), else: :ok)

  @doc "NIFs and options of a module that uses Snakepit.Isolation.Module, as its beam has them. Nothing of it is loaded."
  @spec own(module()) :: {:ok, [{atom(), arity()}], term()} | :error
  def own(module) do
    # Also of one that is cover-compiled.
    with [_ | _] = file <- :code.where_is_file(to_charlist(module) ++ ~c".beam"),
         {:ok, beam, _} <- :erl_prim_loader.get_file(file),
         {:ok, {^module, exports: exports, attributes: attributes}} <- :beam_lib.chunks(beam, [:exports, :attributes]),
         true <- {:__isolation__, 0} in exports,
         {:ok, nifs} <- Keyword.fetch(attributes, :snakepit_nifs),
         {:ok, options} <- Keyword.fetch(attributes, :snakepit_isolation) do
      {:ok, nifs, options}
    else
      _ -> :error
    end
  end

  # Of Erlang and Elixir alike: the debug_info chunk names whoever makes abstract code of it.
  defp forms(module, file, beam) do
    case :beam_lib.chunks(beam, [:abstract_code]) do
      {:ok, {_, [abstract_code: {:raw_abstract_v1, forms}]}} -> {:ok, forms}
      {:ok, {_, [abstract_code: _missing]}} -> refuse(module, :no_debug_info, %{path: file})
      {:error, :beam_lib, {:key_missing_or_invalid, _, _}} -> refuse(module, :encrypted, %{path: file})
      {:error, :beam_lib, reason} -> refuse(module, :no_beam, %{path: file, message: words(reason)})
    end
  end

  # The reason has the whole beam where it would have a file.
  defp words(reason) when is_tuple(reason) and tuple_size(reason) > 1 and is_binary(elem(reason, 1)),
    do: reason |> put_elem(1, ~c"it") |> words()

  defp words(reason), do: {:error, :beam_lib, reason} |> :beam_lib.format_error() |> IO.chardata_to_string()

  @doc false
  @spec refuse(module(), atom(), map()) :: {:error, Error.t()}
  def refuse(module, because, details \\ %{}),
    do: {:error, Error.new(:unsupported_module, module, nil, Map.merge(details, %{because: because}))}
end
