defmodule Snakepit.Isolation.DropIn.Code do
  @moduledoc false
  # Replaces a module's code without harm to anybody: the VM keeps one old version beside the current one, and to make
  # room for a third it kills whoever runs in the old one. So that is looked at first.

  alias Snakepit.Isolation.DropIn.Source
  alias Snakepit.Isolation.Error

  @doc "Removes old code of the module that nobody uses; an error with those who do."
  @spec purge(module()) :: :ok | {:error, Error.t()}
  def purge(module) do
    if purged?(module),
      do: :ok,
      else: {:error, Error.new(:in_use, module, nil, %{pids: users(module)})}
  end

  @doc "Room for another version: the current one becomes the old one, if there is a current one."
  @spec make_room(module()) :: :ok | {:error, Error.t()}
  def make_room(module), do: if(:erlang.module_loaded(module), do: purge(module), else: :ok)

  @doc "The same, for those who do not mind."

  @spec purged?(module()) :: boolean()
  def purged?(module), do: :code.soft_purge(module)

  @doc "Who runs in old code of the module."
  @spec users(module()) :: [pid()]
  def users(module), do: Enum.filter(Process.list(), &(:erlang.check_process_code(&1, module) == true))

  @doc "Loads a beam, whose on_load runs. When that fails, the module is as before."
  @spec load(module(), charlist(), binary()) :: :ok | {:error, Error.t()}
  def load(module, file, beam) do
    case :code.load_binary(module, file, beam) do
      {:module, ^module} -> :ok
      {:error, :sticky_directory} -> Source.refuse(module, :sticky)
      {:error, :on_load_failure} -> Source.refuse(module, :on_load)
      {:error, reason} -> Source.refuse(module, :no_beam, %{path: file, message: inspect(reason)})
    end
  end

  @spec delete(module()) :: boolean()
  def delete(module), do: :code.delete(module) and purged?(module)

  @doc "The checksum of the code that is loaded."
  @spec md5(module()) :: binary() | nil
  def md5(module), do: if(:erlang.module_loaded(module), do: :erlang.get_module_info(module, :md5))
end
