defmodule Snakepit.Isolation.Loading do
  @moduledoc false
  # Where one worker is with its libraries: it loads one after the other, in their order, and says what came of each. What it says is
  # believed only as the answer to what it was asked, and about the library that it was asked about.
  #
  #     queue ──worker_load──▶ asked ──opened──▶ asked, open ──loaded──▶ loaded ──worker_unload──▶ leaving ──unloaded──▶ gone
  #                              └─────────────────┴──not_loaded──▶ gone

  alias Snakepit.Isolation.{Error, Fit, Library, Roster}
  alias Snakepit.Native

  defstruct queue: [], asked: nil, open: false, misfit: nil, loaded: [], leaving: []

  @type t :: %__MODULE__{
          queue: [Native.library_number()],
          asked: Native.library_number() | nil,
          open: boolean(),
          misfit: String.t() | nil,
          loaded: [Native.library_number()],
          leaving: [Native.library_number()]
        }

  @type heard ::
          {:go_on, t()}
          | {:loaded, t(), Roster.entry(), map()}
          | {:refused, t(), Roster.entry(), Error.t()}
          | {:unloaded, t(), Native.library_number()}
          | {:lied, map()}

  @doc "Has the worker load the next one, unless it loads one."
  @spec next(t(), :ets.tid(), Native.worker()) :: {:asked, t(), Roster.entry()} | {:idle, t()} | heard()
  def next(%{asked: nil, queue: [number | queue]} = loading, table, native) do
    loading = %{loading | queue: queue}

    case Library.entry(table, number) do
      nil -> next(loading, table, native)
      entry -> ask(loading, entry, native)
    end
  end

  def next(loading, _table, _native), do: {:idle, loading}

  defp ask(loading, %{options: options, number: number} = entry, native) do
    # One that is gone by now has no data to pass on.
    replaces = if entry.replaces in loading.loaded, do: entry.replaces

    case Native.worker_load(native, {number, replaces, entry.fits != nil}, options.path, options.load_info) do
      :ok -> {:asked, %{loading | asked: number, open: false, misfit: nil}, entry}
      {:error, {reason, details}} -> {:refused, loading, entry, unsendable(entry, reason, details)}
    end
  end

  @doc "One more; it may be there already."
  @spec add(t(), Native.library_number()) :: t()
  def add(loading, number) do
    if number == loading.asked or number in loading.queue or number in loading.loaded,
      do: loading,
      else: %{loading | queue: loading.queue ++ [number]}
  end

  @doc "One less. `:gone`: there is nothing to wait for."
  @spec remove(t(), Native.library_number(), Native.worker()) :: {:gone | :leaving, t()}
  def remove(loading, number, native) do
    cond do
      number in loading.loaded -> leave(%{loading | loaded: List.delete(loading.loaded, number)}, number, native)
      # Its entry is gone: when it is loaded it goes at once.
      number == loading.asked -> {:leaving, loading}
      true -> {:gone, %{loading | queue: List.delete(loading.queue, number)}}
    end
  end

  defp leave(loading, number, native) do
    case Native.worker_unload(native, number) do
      :ok -> {:leaving, %{loading | leaving: [number | loading.leaving]}}
      # It is ending, or hears nothing any more: then it is found out otherwise.
      {:error, _} -> {:gone, loading}
    end
  end

  @doc "What the worker says about its libraries."
  @spec heard(t(), Native.worker_message(), :ets.tid(), Native.worker()) :: heard()
  def heard(%{asked: number, open: false} = loading, {:opened, %{library: number} = opened}, table, native) do
    case Library.entry(table, number) do
      nil -> decline(loading, nil, native)
      %{fits: nil} -> unexpected({:opened, number})
      %{fits: fits} -> fits |> Fit.check(opened) |> answer(loading, native)
    end
  end

  def heard(%{asked: number} = loading, {:loaded, %{library: number} = loaded}, table, native) when number != nil do
    entry = Library.entry(table, number)
    done = %{loading | asked: nil, loaded: loading.loaded ++ [number]}

    cond do
      # Nobody wants it any more.
      entry == nil ->
        {_, done} = leave(%{done | loaded: loading.loaded}, number, native)
        {:go_on, done}

      entry.fits && not (loading.open and loading.misfit == nil) ->
        unexpected({:loaded, number})

      true ->
        learn(done, entry, loaded, native)
    end
  end

  def heard(%{asked: number} = loading, {:not_loaded, number, details}, table, _native) when number != nil do
    done = %{loading | asked: nil}

    case Library.entry(table, number) do
      nil -> {:unloaded, done, number}
      entry -> {:refused, done, entry, failure(loading, entry, details)}
    end
  end

  def heard(loading, {:unloaded, number} = said, _table, _native) do
    if number in loading.leaving,
      do: {:unloaded, %{loading | leaving: List.delete(loading.leaving, number)}, number},
      else: unexpected(said)
  end

  def heard(_loading, {kind, %{library: number}}, _table, _native), do: unexpected({kind, number})
  def heard(_loading, said, _table, _native), do: unexpected(said)

  defp unexpected(said), do: {:lied, %{message: "unexpected #{inspect(said, limit: 5)}"}}

  defp answer(:ok, loading, native) do
    _ = Native.worker_proceed(native, loading.asked)
    {:go_on, %{loading | open: true}}
  end

  defp answer({:error, message}, loading, native), do: decline(loading, message, native)

  defp decline(loading, message, native) do
    _ = Native.worker_unload(native, loading.asked)
    {:go_on, %{loading | open: true, misfit: message}}
  end

  defp learn(loading, entry, loaded, native) do
    case Native.pool_learn(entry.native, native) do
      :ok ->
        {:loaded, loading, entry, described(entry, loaded)}

      {:error, {:mismatch, details}} ->
        details = Map.merge(details, %{message: "its functions are not those that it had before"})
        {:refused, loading, entry, Error.new(:not_loaded, entry.id, nil, details)}

      {:error, {:too_many_atoms, details}} ->
        {:refused, loading, entry, Error.new(:not_loaded, entry.id, nil, Map.put(details, :because, :atoms))}

      {:error, {_, details}} ->
        {:lied, details}
    end
  end

  # Names of functions are the library's; those that the native pool has taken are atoms by now.
  defp described(%{native: native} = entry, loaded) do
    functions = for {name, arity, _flags} <- Native.pool_info(native).functions, do: {name, arity}

    %{
      module: if(entry.loaded, do: entry.loaded.module, else: module(loaded.module)),
      functions: Enum.sort(functions),
      nif_version: loaded.nif_version,
      missing: loaded.missing |> Enum.map(&text/1) |> Enum.sort()
    }
  end

  # One atom for each library, however often it is started; a name that cannot be one stays text.
  defp module(name) do
    if byte_size(name) in 1..255 and String.printable?(name), do: String.to_atom(name), else: text(name)
  end

  @doc "What a worker says of a library that it could not load, as an error."
  @spec failure(t(), Roster.entry(), map()) :: Error.t()
  def failure(%{misfit: message}, entry, _details) when message != nil,
    do: Error.new(:not_loaded, entry.id, nil, %{because: :misfit, message: message})

  def failure(_loading, entry, details) do
    details = Map.merge(details, %{because: :failed, path: entry.options.path, message: text(details.message)})
    Error.new(:not_loaded, entry.id, nil, details)
  end

  defp unsendable(%{id: id}, reason, details) when reason in [:unsupported, :too_large],
    do:
      Error.new(
        :invalid_option,
        id,
        nil,
        Map.merge(details, %{key: :load_info, expected: "a term that can be sent to another process", got: reason})
      )

  defp unsendable(%{id: id}, _reason, details),
    do: Error.new(:not_loaded, id, nil, Map.put(details, :because, :start))

  @doc "Its process has ended while it loaded a library; `details` say how."
  @spec died(Roster.entry(), map()) :: Error.t()
  def died(entry, %{because: :load_timeout}),
    do: Error.new(:not_loaded, entry.id, nil, %{because: :load_timeout, timeout: entry.options.load_timeout})

  def died(entry, details) do
    about = Map.merge(details, %{because: :died_loading, last: Error.end_in_words(details)})
    Error.new(:not_loaded, entry.id, nil, about)
  end

  @longest_text 2_000

  @doc "What the other process says goes into messages and logs."
  @spec text(binary()) :: String.t()
  def text(bytes) do
    bytes = binary_part(bytes, 0, min(byte_size(bytes), @longest_text))
    if String.printable?(bytes), do: bytes, else: inspect(bytes, binaries: :as_strings, printable_limit: :infinity)
  end
end
