defmodule Snakepit.Isolation.Library do
  @moduledoc """
  A loaded library: what `Snakepit.Isolation.load/2` gives and the other functions take.

  It can be sent to other processes of this node and kept for as long as one likes; a call through one that has been
  unloaded is an error. `id` names it in messages and in the log; `functions` is what the library itself reported.
  """

  use Supervisor

  alias Snakepit.Isolation.{Directory, Options, Pool, Roster, Telemetry, Worker}
  alias Snakepit.Native

  @enforce_keys [:id, :native, :table]
  # What call/4 needs stands here, so that it asks nobody: the native pool, how long to spin and to wait.
  defstruct [
    :id,
    :name,
    :path,
    :module,
    :native,
    :table,
    number: 0,
    functions: [],
    spin: 10,
    timeout: 5_000,
    max_waiting: 10_000,
    memory: :infinity,
    telemetry: false
  ]

  @type t :: %__MODULE__{
          id: String.t() | atom(),
          name: atom(),
          path: String.t(),
          module: module() | nil,
          functions: [{atom(), arity()}],
          native: reference(),
          table: :ets.tid(),
          number: Native.library_number(),
          spin: non_neg_integer(),
          timeout: timeout(),
          max_waiting: non_neg_integer(),
          memory: pos_integer() | :infinity,
          telemetry: boolean()
        }

  @typedoc false
  @type shared :: %{
          id: String.t() | atom(),
          options: Options.t(),
          mode: :on_demand | :supervised,
          supervisor: pid(),
          native: reference(),
          atoms: reference(),
          table: :ets.tid()
        }

  # Processes are small and rows survive: a storm of crashes must not end the library. (The library's own crashes are
  # not crashes of these processes; `Worker` counts them.)
  @max_restarts 1_000
  @max_seconds 5

  @doc false
  @spec start_link({String.t() | atom(), Options.t(), :on_demand | :supervised}) :: Supervisor.on_start()
  def start_link(start), do: Supervisor.start_link(__MODULE__, start)

  @impl true
  def init({id, options, mode}) do
    # The supervisor owns the table, and the native pool stays the same: both outlive every process that works on them.
    {:ok, native} = Native.pool_new(options.workers)

    shared = %{
      id: id,
      options: options,
      mode: mode,
      supervisor: self(),
      native: native,
      atoms: Directory.atoms(options.path, options.max_atoms),
      table: :ets.new(__MODULE__, [:set, :public, read_concurrency: true])
    }

    :ets.insert(shared.table, [{:atoms, shared.atoms}, {:supervisor, self()}])
    put_entry(shared.table, new_entry(0, id, options, native))

    workers =
      for position <- 1..options.workers do
        %{id: {Worker, position}, start: {Worker, :start_link, [shared, position]}, shutdown: 10_000}
      end

    # The Pool ends in order when there is nothing left to do, and the supervisor with it.
    pool = %{id: Pool, start: {Pool, :start_link, [shared]}, restart: :transient, significant: true}

    roster = %{id: Roster, start: {Roster, :start_link, [shared]}}

    gate =
      if mode == :supervised,
        do: [%{id: :gate, start: {Pool, :gate, [shared]}, restart: :temporary}],
        else: []

    flags = %{
      strategy: :one_for_one,
      intensity: @max_restarts,
      period: @max_seconds,
      auto_shutdown: :any_significant
    }

    # As OTP takes it: Elixir 1.14's Supervisor.init/2 does not know auto_shutdown.
    {:ok, {flags, [pool, roster | workers] ++ gate}}
  end

  # ── The table ─────────────────────────────────────────────────────────────────────────────────────────────────

  # {:pool, pid}, {:roster, pid}, {:supervisor, pid}
  # {{:library, number}, entry}    those that the workers have, or are to load
  # {:next_library, number}
  # {:atoms, budget}
  # {{:worker, position}, row}     what its process last wrote; outlives it
  # {{:native, worker}, pid}       who answers for a native worker, while it lives
  # {{:denied, function}, true}    that a function needs a grant was logged

  @doc false
  @spec lookup(:ets.tid(), term()) :: term() | nil
  def lookup(table, key) do
    case :ets.lookup(table, key) do
      [{_, value}] -> value
      [] -> nil
    end
  rescue
    # The library has been unloaded.
    ArgumentError -> nil
  end

  @doc false
  @spec entries(:ets.tid()) :: [Roster.entry()]
  def entries(table) do
    table |> :ets.match({{:library, :_}, :"$1"}) |> List.flatten() |> Enum.sort_by(& &1.number)
  rescue
    ArgumentError -> []
  end

  @doc false
  @spec entry(:ets.tid(), Native.library_number()) :: Roster.entry() | nil
  def entry(table, number), do: lookup(table, {:library, number})

  @doc false
  @spec put_entry(:ets.tid(), Roster.entry()) :: true
  def put_entry(table, entry), do: :ets.insert(table, {{:library, entry.number}, entry})

  @doc false
  @spec delete_entry(:ets.tid(), Native.library_number()) :: true
  def delete_entry(table, number), do: :ets.delete(table, {:library, number})

  @doc false
  @spec new_entry(Native.library_number(), String.t() | atom(), Options.t(), Snakepit.Native.pool()) :: Roster.entry()
  def new_entry(number, id, options, native) do
    %{
      number: number,
      id: id,
      options: options,
      fits: options.fits,
      replaces: nil,
      native: native,
      state: :ready,
      library: nil,
      loaded: nil
    }
  end

  @doc false
  @spec describe(shared(), Roster.entry(), map()) :: t()
  def describe(%{options: process} = shared, %{options: options} = entry, loaded) do
    %__MODULE__{
      id: entry.id,
      name: options.name,
      path: options.path,
      module: loaded.module,
      functions: loaded.functions,
      native: entry.native,
      table: shared.table,
      number: entry.number,
      spin: process.spin,
      timeout: options.timeout,
      max_waiting: process.max_waiting,
      memory: process.memory,
      telemetry: Telemetry.available?(options.telemetry)
    }
  end

  @doc false
  @spec rows(:ets.tid()) :: [map()]
  def rows(table) do
    table |> :ets.match({{:worker, :_}, :"$1"}) |> List.flatten() |> Enum.sort_by(& &1.position)
  rescue
    ArgumentError -> []
  end
end

defimpl Inspect, for: Snakepit.Isolation.Library do
  def inspect(library, _options), do: "#Snakepit.Isolation.Library<#{library.id} #{library.path}>"
end
