defmodule Snakepit.Isolation.Options do
  @moduledoc false
  # The options of load/2: which are valid, what they are when they are not given. Every problem is in the one error,
  # except the sandbox: leaving that out is not a mistake in an option but a library that is not loaded.

  alias Snakepit.Isolation.{Environment, Error, Fit, Library}

  # What the VM's timers take.
  @longest_wait 4_294_967_295

  @defaults %{
    name: nil,
    with: nil,
    load_info: 0,
    workers: 1,
    concurrency: 1,
    timeout: 5_000,
    load_timeout: 10_000,
    memory: :infinity,
    env: :inherit,
    restart: :permanent,
    max_restarts: 20,
    max_seconds: 10,
    heartbeat_timeout: 5_000,
    spin: 10,
    worker_spin: 50,
    slots: 64,
    slot_size: 16_384,
    spill_size: 33_554_432,
    max_words: 16_777_216,
    max_depth: 65_536,
    max_names: 16_384,
    max_atoms: 10_000,
    max_waiting: 10_000,
    max_mailbox: 100_000,
    max_mailbox_bytes: 268_435_456,
    whereis: [],
    port_command: false,
    output: :info,
    telemetry: true
  }

  @modules "a list of modules with their options, as in [jiffy: [workers: 2, sandbox: :none]]"
  # Those of `use Snakepit.Isolation.Module` that load/2 does not have.
  @module_defaults Map.merge(@defaults, %{otp_app: nil, library: nil, isolated: true, timeout: :infinity})

  @type t :: %{
          path: String.t(),
          name: atom(),
          with: Library.t() | atom() | String.t() | nil,
          fits: Fit.t() | nil,
          load_info: term(),
          sandbox: :none,
          workers: pos_integer(),
          concurrency: pos_integer(),
          timeout: timeout(),
          load_timeout: pos_integer(),
          memory: pos_integer() | :infinity,
          env: Environment.t(),
          restart: :permanent | :transient | :temporary,
          max_restarts: non_neg_integer() | :infinity,
          max_seconds: pos_integer(),
          heartbeat_timeout: pos_integer() | :infinity,
          spin: non_neg_integer(),
          worker_spin: non_neg_integer(),
          slots: pos_integer(),
          slot_size: pos_integer(),
          spill_size: pos_integer(),
          max_words: pos_integer(),
          max_depth: pos_integer(),
          max_names: pos_integer(),
          max_atoms: non_neg_integer(),
          max_waiting: non_neg_integer(),
          max_mailbox: pos_integer() | :infinity,
          max_mailbox_bytes: pos_integer() | :infinity,
          whereis: [atom()] | :all,
          port_command: boolean(),
          output: Logger.level() | :discard,
          telemetry: boolean()
        }

  @spec longest_wait() :: pos_integer()
  def longest_wait, do: @longest_wait

  @doc "Path and options, checked and completed."
  @spec load(term(), term()) :: {:ok, t()} | {:error, Error.t()}
  def load(path, options) do
    with {:ok, options} <- keywords(options),
         {sandbox, given} = Keyword.pop(options, :sandbox, :missing),
         {:ok, options} <- complete(Map.new(given)),
         {:ok, path} <- path(path),
         :ok <- sandbox(sandbox, path),
         do: {:ok, Map.merge(options, %{path: path, sandbox: sandbox, fits: nil})}
  end

  @doc """
  The options of isolate/2, checked, as load/2 takes them. A module finds its library itself and passes its own load_info;
  the library has the module's name, and no deadline, since a NIF has none.
  """
  @spec isolate(term(), term()) :: {:ok, keyword()} | {:error, Error.t()}
  def isolate(module, options) do
    with :ok <- module(module),
         {:ok, options} <- keywords(options),
         :ok <- own_load_info(options),
         {sandbox, given} = Keyword.pop(options, :sandbox, :missing),
         given = Keyword.merge([name: module, timeout: :infinity], given),
         {:ok, _} <- complete(Map.new(given), Map.delete(@defaults, :load_info)),
         :ok <- sandbox(sandbox, inspect(module)),
         do: {:ok, [sandbox: sandbox] ++ given}
  end

  @doc "What `config :snakepit_shm, isolate:` says: modules, in order, with the options of isolate/2, or `false`."
  @spec modules(term()) :: {:ok, [{module(), keyword() | false}]} | {:error, Error.t()}
  def modules(list) do
    if is_list(list) and not List.improper?(list),
      do: each_module(list, list, MapSet.new()),
      else: Error.invalid(:isolate, @modules, list)
  end

  defp each_module(all, [{module, options} | rest], seen) do
    with :ok <- expect_once(module, seen),
         :ok <- module_options(module, options),
         do: each_module(all, rest, MapSet.put(seen, module))
  end

  defp each_module(all, [], _seen), do: {:ok, all}
  defp each_module(_all, [other | _], _seen), do: Error.invalid(:isolate, @modules, other)

  defp expect_once(module, seen),
    do: if(module in seen, do: Error.invalid(:isolate, "each module once", module), else: :ok)

  defp module_options(module, false), do: module(module)

  defp module_options(module, options) do
    case isolate(module, options) do
      {:ok, _} -> :ok
      {:error, %Error{library: nil} = error} when is_atom(module) -> {:error, %{error | library: module}}
      {:error, error} -> {:error, error}
    end
  end

  @doc """
  The options of a module that has its library itself (`Snakepit.Isolation.Module`), checked. `load` is for load/2; there, or
  nowhere, somebody says whether there is a sandbox.
  """
  @spec module(module(), term()) ::
          {:ok, %{library: term(), isolated: boolean(), load_info: term(), load: keyword()}} | {:error, Error.t()}
  def module(module, options) do
    with {:ok, options} <- keywords(options),
         {sandbox, given} = Keyword.pop(options, :sandbox, :missing),
         {:ok, complete} <- complete(Map.new(given), @module_defaults),
         :ok <- if(sandbox == :missing, do: :ok, else: sandbox(sandbox, inspect(module))) do
      load = Keyword.drop(options, [:otp_app, :library, :isolated, :load_info])

      {:ok,
       %{
         library: within(complete.library, complete.otp_app),
         isolated: complete.isolated,
         load_info: complete.load_info,
         load: Keyword.merge([name: module, timeout: :infinity], load)
       }}
    end
  end

  defp within({_application, _path} = library, _otp_app), do: library

  defp within(path, otp_app) do
    path = IO.chardata_to_string(path)
    if Path.type(path) == :absolute, do: path, else: {otp_app, path}
  end

  defp module(module) when is_atom(module) and module not in [nil, true, false], do: :ok
  defp module(other), do: Error.invalid(:module, "a module", other)

  defp own_load_info(options) do
    case Keyword.fetch(options, :load_info) do
      :error -> :ok
      {:ok, value} -> Error.invalid(:load_info, "nothing (an isolated module passes its own)", value)
    end
  end

  defp keywords(options) do
    if Keyword.keyword?(options), do: {:ok, options}, else: Error.invalid(:options, "a keyword list", options)
  end

  defp sandbox(:none, _path), do: :ok

  defp sandbox(other, path),
    do: {:error, Error.new(:not_loaded, Path.basename(path), nil, %{because: :sandbox, got: other})}

  defp complete(given, defaults \\ @defaults) do
    options = Map.merge(defaults, given)
    unknown = given |> Map.keys() |> Enum.reject(&is_map_key(defaults, &1)) |> Enum.sort()

    problems =
      Enum.map(unknown, &unknown(&1, given, defaults)) ++
        for {key, value} <- Enum.sort(Map.take(options, Map.keys(defaults))),
            expected = refused(key, value),
            do: %{key: key, expected: expected, got: value}

    problems = problems ++ beside(given)

    case if(problems == [], do: together(options), else: problems) do
      [] -> {:ok, options}
      [one] -> {:error, Error.new(:invalid_option, nil, nil, one)}
      several -> {:error, Error.new(:invalid_option, nil, nil, %{problems: Enum.map(several, &line/1)})}
    end
  end

  # What a worker has before its library is there: each of its threads has a stack of 8 MiB, and a heap. They are those that execute
  # calls, one that hears the VM, and two for destructors and descriptors once they are needed.
  @thread 9 * 1_048_576
  defp together(%{memory: memory, concurrency: concurrency}) when memory != :infinity do
    least = @thread * (concurrency + 3)

    if memory < least,
      do: [%{key: :memory, expected: "at least #{least} bytes with concurrency: #{concurrency}", got: memory}],
      else: []
  end

  defp together(_options), do: []

  # Of a library in the processes of another one.
  @own [:with, :name, :load_info, :timeout, :load_timeout, :telemetry]
  defp beside(%{with: other} = given) when other != nil do
    for {key, value} <- Enum.sort(Map.drop(given, @own)), is_map_key(@defaults, key) do
      %{key: key, expected: "nothing beside with: (the processes are the other library's)", got: value}
    end
  end

  defp beside(_given), do: []

  defp line(%{key: key, expected: expected, got: got}),
    do: "#{inspect(key)}: expected #{expected}, got #{inspect(got, limit: 5)}"

  defp unknown(key, given, defaults) do
    known = Enum.sort([:sandbox | Map.keys(defaults)])
    near = Enum.max_by(known, &String.jaro_distance(inspect(&1), inspect(key)))
    expected = "one of #{Enum.map_join(known, ", ", &inspect/1)} (did you mean #{inspect(near)}?)"
    %{key: key, expected: expected, got: given[key]}
  end

  # What was expected, or nil if the value is good.
  defp refused(:name, value), do: unless(is_atom(value) and value not in [true, false], do: "an atom")
  defp refused(:with, %Library{}), do: nil

  defp refused(:with, value) do
    unless (is_atom(value) and value not in [true, false]) or is_binary(value),
      do: "a library of load/2, its name, or an isolated module"
  end

  defp refused(:load_info, _any), do: nil
  defp refused(:workers, value), do: range(value, 1, 64)
  defp refused(:concurrency, value), do: range(value, 1, 64)
  defp refused(:timeout, :infinity), do: nil
  defp refused(:timeout, value), do: range(value, 0, @longest_wait, " or :infinity")
  defp refused(:load_timeout, value), do: range(value, 1, @longest_wait)
  defp refused(:memory, :infinity), do: nil
  defp refused(:memory, value), do: range(value, 1, 1_099_511_627_776, " bytes or :infinity")
  defp refused(:env, value), do: Environment.refused(value)
  @policies [:permanent, :transient, :temporary]
  defp refused(:restart, value), do: unless(value in @policies, do: "one of #{inspect(@policies)}")
  defp refused(:max_restarts, :infinity), do: nil
  defp refused(:max_restarts, value), do: range(value, 0, 1_000_000, " or :infinity")
  defp refused(:max_seconds, value), do: range(value, 1, 86_400)
  defp refused(:heartbeat_timeout, :infinity), do: nil
  defp refused(:heartbeat_timeout, value), do: range(value, 1_000, @longest_wait, " or :infinity")
  defp refused(:spin, value), do: range(value, 0, 1_000, " microseconds")
  defp refused(:worker_spin, value), do: range(value, 0, 1_000_000, " microseconds")

  defp refused(:slots, value) do
    unless is_integer(value) and value in 1..1024 and Bitwise.band(value, value - 1) == 0,
      do: "a power of two from 1 to 1024"
  end

  defp refused(:slot_size, value), do: multiple(value, 64, 1_024, 1_048_576)
  defp refused(:spill_size, value), do: multiple(value, 4_096, 65_536, 2_147_483_648)
  defp refused(:max_words, value), do: range(value, 1_024, 1_099_511_627_776)
  defp refused(:max_depth, value), do: range(value, 16, 16_777_216)
  defp refused(:max_names, value), do: range(value, 64, 1_048_576)
  defp refused(:max_atoms, value), do: range(value, 0, 1_000_000)
  defp refused(:max_waiting, value), do: range(value, 0, 1_000_000)
  defp refused(:max_mailbox, :infinity), do: nil
  defp refused(:max_mailbox, value), do: range(value, 1, 1_000_000_000, " or :infinity")
  defp refused(:max_mailbox_bytes, :infinity), do: nil
  defp refused(:max_mailbox_bytes, value), do: range(value, 1, 1_099_511_627_776, " or :infinity")
  defp refused(:whereis, :all), do: nil

  defp refused(:whereis, value) do
    unless is_list(value) and List.improper?(value) == false and Enum.all?(value, &is_atom/1),
      do: "a list of registered names, or :all"
  end

  defp refused(:port_command, value), do: unless(is_boolean(value), do: "true or false")

  @levels ~w(debug info notice warning error discard)a
  defp refused(:output, value), do: unless(value in @levels, do: "one of #{inspect(@levels)}")
  defp refused(:telemetry, value), do: unless(is_boolean(value), do: "true or false")

  defp refused(:otp_app, value),
    do: unless(is_atom(value) and value not in [nil, true, false], do: "the application that the module belongs to")

  defp refused(:library, {application, path}) when is_atom(application), do: refused(:library, path)

  defp refused(:library, value),
    do: unless(match?({:ok, _}, text(value)), do: "a path in the application without .so, or {application, path}")

  defp refused(:isolated, value), do: unless(is_boolean(value), do: "true or false")

  defp range(value, least, most, unit \\ "") do
    unless is_integer(value) and value >= least and value <= most, do: "an integer from #{least} to #{most}#{unit}"
  end

  defp multiple(value, unit, least, most) do
    unless is_integer(value) and value >= least and value <= most and rem(value, unit) == 0,
      do: "a multiple of #{unit} from #{least} to #{most} bytes"
  end

  @doc """
  As erlang:load_nif/2 takes it: without ".so". Absolute, because a worker has a working directory of its own.
  """
  @spec path(term()) :: {:ok, String.t()} | {:error, Error.t()}
  def path({application, path}) when is_atom(application) do
    with {:ok, path} <- text(path) do
      {:ok, Application.app_dir(application, path)}
    end
  rescue
    ArgumentError ->
      {:error, Error.new(:not_loaded, nil, nil, %{because: :no_application, application: application})}
  end

  def path(path) do
    with {:ok, path} <- text(path), do: {:ok, Path.expand(path)}
  end

  defp text(path) do
    case IO.chardata_to_string(path) do
      "" -> Error.invalid(:path, "a path without .so, or {application, path}", path)
      text -> if String.contains?(text, <<0>>), do: Error.invalid(:path, "a path", path), else: {:ok, text}
    end
  rescue
    _ -> Error.invalid(:path, "a path without .so, or {application, path}", path)
  end
end
