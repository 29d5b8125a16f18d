defmodule Snakepit.SharedMemory.Orphans do
  @moduledoc """
  Named objects that no VM uses any more, seen from outside: for an operator, without an instance. What an instance does by
  itself is `Snakepit.SharedMemory.Janitor`'s.
  """

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Config, Error, Janitor}

  @type state :: :in_use | :other_namespace | :orphan | :kept_by_policy | :damaged | :unreadable
  @type object :: %{
          name: String.t(),
          path: String.t(),
          id: String.t() | nil,
          state: state(),
          size: non_neg_integer() | nil,
          instance: String.t() | nil,
          policy: atom(),
          created_at: DateTime.t() | nil
        }

  @doc "The named objects under `shm_path` of the configuration, or under `directory`."
  @spec list(String.t() | nil) :: {:ok, [object()]} | {:error, Error.t()}
  def list(directory \\ nil) do
    with {:ok, config} <- configuration() do
      {:ok, (directory || config.shm_path) |> Janitor.scan() |> Enum.map(&describe/1)}
    end
  end

  @doc """
  Removes orphans, and gives the objects with what was done: `:removed`, `:kept` or the error.

    * `:directory` - where to look, default `shm_path`
    * `:manual` - also those of policy `:manual`, which are there to be found again
    * `:damaged` - also this user's damaged ones
    * `:dry_run` - removes nothing, says `:would_remove`
  """
  @spec remove(keyword()) ::
          {:ok, [{object(), :removed | :would_remove | :kept | {:error, term()}}]} | {:error, Error.t()}
  def remove(options \\ []) do
    states =
      [:orphan] ++
        if(options[:manual], do: [:kept_by_policy], else: []) ++ if(options[:damaged], do: [:damaged], else: [])

    with {:ok, objects} <- list(options[:directory]) do
      {:ok,
       for object <- objects do
         cond do
           object.state not in states -> {object, :kept}
           options[:dry_run] -> {object, :would_remove}
           true -> {object, unlink(object)}
         end
       end}
    end
  end

  defp configuration do
    with {:ok, given} <- Config.from_application(), do: Config.load(given)
  end

  defp unlink(%{state: :damaged, path: path}) do
    with :ok <- File.rm(path), do: :removed
  end

  defp unlink(%{path: path, id: id}) do
    case Native.named_unlink(path, id) do
      :ok -> :removed
      {:error, {reason, _}} -> {:error, reason}
    end
  end

  defp describe(%{header: nil} = object) do
    state = if Janitor.removable?(object), do: :damaged, else: :unreadable

    %{
      name: object.name,
      path: object.path,
      id: nil,
      state: state,
      size: nil,
      instance: nil,
      policy: nil,
      created_at: nil
    }
  end

  defp describe(%{header: header} = object) do
    %{
      name: object.name,
      path: object.path,
      id: header.id,
      state: state(object.path, header),
      size: header.size,
      instance: header.instance,
      policy: header.cleanup_policy,
      created_at: DateTime.from_unix!(header.created_at, :microsecond)
    }
  end

  defp state(path, header) do
    life = Janitor.life(header.identity)
    # Whoever serves it holds a lock on it, whoever made it.
    if life == :alive or Native.named_served(path), do: :in_use, else: unused(life, header)
  end

  defp unused(life, _header) when life in [:other_namespace, :earlier_boot_elsewhere], do: :other_namespace
  defp unused(:dead, %{state: :freed}), do: :orphan
  defp unused(:dead, %{cleanup_policy: :manual}), do: :kept_by_policy
  defp unused(:dead, _header), do: :orphan
end
