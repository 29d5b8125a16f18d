defmodule Snakepit.SharedMemory.Instance do
  @moduledoc false
  # What every operation needs of an instance: its tables, its account, its settings. Written once when the instance
  # starts, read without a process hop.
  #
  # A region's id carries the key of its instance, so that functions that take an id alone find it:
  #     "shm_" key "_" 16 digits of microseconds "_" 16 hex digits

  alias Snakepit.SharedMemory.Error

  @enforce_keys [:name, :key, :config, :tables, :budget, :stats, :page]
  defstruct [:name, :key, :config, :tables, :budget, :stats, :page, :incarnation, telemetry: false]

  @type t :: %__MODULE__{
          name: atom(),
          key: String.t(),
          config: Snakepit.SharedMemory.Config.t(),
          tables: %{atom() => :ets.tid()},
          budget: reference(),
          stats: Snakepit.SharedMemory.Stats.ref(),
          page: pos_integer(),
          incarnation: reference(),
          telemetry: boolean()
        }

  @default Snakepit.SharedMemory
  @suffix 1 + 16 + 1 + 16

  @spec default() :: atom()
  def default, do: @default

  @doc "The part of ids that stands for the instance, or an error that says which names can be one."
  @spec key(term()) :: {:ok, String.t()} | :error
  def key(@default), do: {:ok, "default"}

  def key(name) when is_atom(name) and name not in [nil, true, false] do
    key = name |> Atom.to_string() |> String.replace_prefix("Elixir.", "")
    if key != "default" and key =~ ~r/\A[A-Za-z0-9_.\-]{1,32}\z/, do: {:ok, key}, else: :error
  end

  def key(_), do: :error

  @roles %{
    manager: "Manager",
    reference_counter: "ReferenceCounter",
    security_controller: "SecurityController",
    broker: "Broker",
    connections: "Connections",
    janitor: "Janitor"
  }

  @doc "The registered name of one of the instance's processes."
  @spec child(atom(), atom()) :: atom()
  def child(name, role), do: Module.concat(name, Map.fetch!(@roles, role))

  @spec put(t()) :: :ok
  def put(%__MODULE__{} = instance), do: :persistent_term.put({__MODULE__, instance.key}, instance)

  @spec erase(String.t()) :: boolean()
  def erase(key), do: :persistent_term.erase({__MODULE__, key})

  @spec fetch_key(String.t()) :: {:ok, t()} | :error
  def fetch_key(key) do
    case :persistent_term.get({__MODULE__, key}, nil) do
      nil -> :error
      instance -> {:ok, instance}
    end
  end

  @doc "The running instance of that name."
  @spec fetch(atom(), atom()) :: {:ok, t()} | {:error, Error.t()}
  def fetch(name, operation) do
    with {:ok, key} <- key(name),
         {:ok, %{name: ^name} = instance} <- fetch_key(key),
         true <- Process.whereis(name) != nil do
      {:ok, instance}
    else
      _ -> {:error, Error.new(:not_started, operation, nil, %{instance: name, because: why_not()})}
    end
  end

  defp why_not do
    case Snakepit.Native.loaded() do
      :ok -> nil
      {:error, _, text} -> "the native library is not loaded: #{text}"
    end
  end

  @doc "The instance that an id belongs to."
  @spec of_id(binary()) :: {:ok, t()} | :error
  def of_id(<<"shm_", rest::binary>>) when byte_size(rest) > @suffix do
    case :persistent_term.get({__MODULE__, binary_part(rest, 0, byte_size(rest) - @suffix)}, nil) do
      nil -> :error
      instance -> {:ok, instance}
    end
  end

  def of_id(_), do: :error

  @spec new_id(t()) :: String.t()
  def new_id(%__MODULE__{key: key}) do
    random = Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)
    time = :microsecond |> System.system_time() |> Integer.to_string() |> String.pad_leading(16, "0")
    "shm_#{key}_#{time}_#{random}"
  end
end
