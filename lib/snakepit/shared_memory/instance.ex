defmodule Snakepit.SharedMemory.Instance do
  @moduledoc false
  # What every operation needs of an instance: its tables, its account, its settings. Written once when the instance
  # starts, read without a process hop.
  #
  # A region's id carries the key of its instance, so that functions that take an id alone find it:
  #     "shm_" key "_" 16 digits of microseconds "_" 16 hex digits

  alias Snakepit.SharedMemory.Error

  @enforce_keys [:name, :key, :salt, :children, :config, :tables, :budget, :stats, :page]
  defstruct [:name, :key, :salt, :children, :config, :tables, :budget, :stats, :page, telemetry: false, timed: true]

  @type t :: %__MODULE__{
          name: atom(),
          key: String.t(),
          salt: String.t(),
          children: %{atom() => atom()},
          config: Snakepit.SharedMemory.Config.t(),
          tables: %{atom() => :ets.tid()},
          budget: reference(),
          stats: Snakepit.SharedMemory.Stats.ref(),
          page: pos_integer(),
          telemetry: boolean(),
          timed: boolean()
        }

  @default Snakepit.SharedMemory
  @suffix 1 + 16 + 1 + 16
  # Eight decimal digits, which are hex digits too and come in half the time.
  @numbers 100_000_000

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
  @spec child(t() | atom(), atom()) :: atom()
  def child(%__MODULE__{children: children}, role), do: Map.fetch!(children, role)
  def child(name, role) when is_atom(name), do: Module.concat(name, Map.fetch!(@roles, role))

  @doc "All of them."
  @spec children(atom()) :: %{atom() => atom()}
  def children(name), do: Map.new(@roles, fn {role, _} -> {role, child(name, role)} end)

  # Under its name and under its key: an atom and a binary, so they never meet.
  @spec put(t()) :: :ok
  def put(%__MODULE__{} = instance) do
    :persistent_term.put({__MODULE__, instance.name}, instance)
    :persistent_term.put({__MODULE__, instance.key}, instance)
  end

  @spec erase(t()) :: boolean()
  def erase(%__MODULE__{} = instance) do
    :persistent_term.erase({__MODULE__, instance.name})
    :persistent_term.erase({__MODULE__, instance.key})
  end

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
    with %__MODULE__{} = instance <- is_atom(name) && :persistent_term.get({__MODULE__, name}, nil),
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

  @doc "By its name, whether it runs or not."
  @spec of_name(atom()) :: {:ok, t()} | :error
  def of_name(name) do
    case :persistent_term.get({__MODULE__, name}, nil) do
      nil -> :error
      instance -> {:ok, instance}
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

  @doc "Unlike any other: the time, what only this instance has, and a number of its own."
  @spec new_id(t(), microseconds :: integer()) :: String.t()
  def new_id(%__MODULE__{key: key, salt: salt}, time) do
    <<?1, number::binary>> = Integer.to_string(@numbers + rem(System.unique_integer([:positive]), @numbers))
    "shm_#{key}_#{timestamp(time)}_#{salt}#{number}"
  end

  @spec new_salt() :: String.t()
  def new_salt, do: Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)

  # 16 digits from 2001 to 2286.
  defp timestamp(time) when time >= 1_000_000_000_000_000, do: Integer.to_string(time)
  defp timestamp(time), do: time |> Integer.to_string() |> String.pad_leading(16, "0")
end
