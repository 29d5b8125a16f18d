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
      {:ok, (directory || config.shm_path) |> Janitor.scan() |> Enum.map(&describe(&1, config))}
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

  defp describe(%{header: nil} = object, _config) do
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

  defp describe(%{header: header} = object, config) do
    %{
      name: object.name,
      path: object.path,
      id: header.id,
      state: state(header, config),
      size: header.size,
      instance: header.instance,
      policy: header.cleanup_policy,
      created_at: DateTime.from_unix!(header.created_at, :microsecond)
    }
  end

  defp state(header, config) do
    case Janitor.life(header.identity) do
      :alive -> :in_use
      life when life in [:other_namespace, :earlier_boot_elsewhere] -> :other_namespace
      # Perhaps a VM that lives has adopted it.
      :dead -> if served?(header.instance, config), do: :in_use, else: unused(header.cleanup_policy)
    end
  end

  defp unused(:manual), do: :kept_by_policy
  defp unused(_policy), do: :orphan

  # Whoever serves an instance holds the lock on its key.
  defp served?(instance, config) do
    path = Path.join(config.socket_dir, instance <> ".key")

    if File.exists?(path) do
      case Native.lock_file(path) do
        {:ok, descriptor, _} ->
          Native.descriptor_close(descriptor)
          false

        {:error, _} ->
          true
      end
    end
  end
end
