defmodule Snakepit.Isolation.Directory do
  @moduledoc false
  # Which libraries there are, and what of them stays when they are unloaded. A table of the house's supervisor; a row
  # whose supervisor has ended counts as none.
  #
  #     {id, library, supervisor}
  #     {{:atoms, path, limit}, budget}   of new atoms, for the VM's lifetime
  #
  # A library with a name is a persistent term too, which is read without copying.

  alias Snakepit.Isolation.Library
  alias Snakepit.Native

  @spec new() :: :ets.tid()
  def new, do: :ets.new(__MODULE__, [:named_table, :set, :public, read_concurrency: true])

  @spec started?() :: boolean()
  def started?, do: :ets.whereis(__MODULE__) != :undefined

  @doc "`{:error, :taken}` when another library has the id."
  @spec put(Library.t(), supervisor :: pid()) :: :ok | {:error, :taken}
  def put(%Library{id: id} = library, supervisor) do
    with {:ok, _library, other} when other != supervisor <- fetch(id) do
      {:error, :taken}
    else
      _ ->
        case :ets.lookup(__MODULE__, id) do
          [{_, _, ^supervisor}] -> write(library, supervisor)
          [dead] -> :ets.delete_object(__MODULE__, dead) && write_new(library, supervisor)
          [] -> write_new(library, supervisor)
        end
    end
  end

  defp write_new(library, supervisor) do
    if :ets.insert_new(__MODULE__, {library.id, library, supervisor}),
      do: write(library, supervisor),
      else: {:error, :taken}
  end

  defp write(library, supervisor) do
    :ets.insert(__MODULE__, {library.id, library, supervisor})
    if library.name, do: :persistent_term.put({__MODULE__, library.name}, library)
    :ok
  end

  @spec delete(Library.t() | %{id: term()}, pid()) :: :ok
  def delete(%{id: id}, supervisor) do
    case :ets.lookup(__MODULE__, id) do
      [{_, library, ^supervisor} = row] ->
        :ets.delete_object(__MODULE__, row)
        if library.name, do: :persistent_term.erase({__MODULE__, library.name})
        :ok

      _ ->
        :ok
    end
  rescue
    # The house has gone, and its table with it.
    ArgumentError -> :ok
  end

  @doc "Takes out this library, unless another one has its id by now."
  @spec remove(Library.t()) :: :ok
  def remove(%Library{id: id, native: native}) do
    with {:ok, %{native: ^native}, supervisor} <- fetch(id), do: delete(%{id: id}, supervisor)
    :ok
  end

  @spec fetch(term()) :: {:ok, Library.t(), pid()} | :error
  def fetch(id) do
    case :ets.lookup(__MODULE__, id) do
      [{_, library, supervisor}] -> if Process.alive?(supervisor), do: {:ok, library, supervisor}, else: :error
      [] -> :error
    end
  rescue
    ArgumentError -> :error
  end

  @doc "A library by its name, without looking whether it still runs."
  @spec named(atom()) :: Library.t() | nil
  def named(name), do: :persistent_term.get({__MODULE__, name}, nil)

  @spec list() :: [Library.t()]
  def list do
    rows = :ets.match_object(__MODULE__, {:_, %{__struct__: Library}, :_})
    for {_, library, supervisor} <- rows, Process.alive?(supervisor), do: library
  rescue
    ArgumentError -> []
  end

  @doc "The supervisors of all libraries, those included that are about to end."
  @spec supervisors() :: [pid()]
  def supervisors, do: __MODULE__ |> :ets.match({:_, :_, :"$1"}) |> List.flatten() |> Enum.uniq()

  @doc "The budget of new atoms of the library at that path: one for the VM's lifetime, however often it is loaded again."
  @spec atoms(String.t(), non_neg_integer()) :: reference()
  def atoms(path, limit) do
    key = {:atoms, path, limit}

    case :ets.lookup(__MODULE__, key) do
      [{_, budget}] ->
        budget

      [] ->
        :ets.insert_new(__MODULE__, {key, Native.atoms_new(limit)})
        :ets.lookup_element(__MODULE__, key, 2)
    end
  end
end
