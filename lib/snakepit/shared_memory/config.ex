defmodule Snakepit.SharedMemory.Config do
  @moduledoc """
  The configuration of an instance: read, checked, completed.

  Later sources win, key by key: the defaults, `config :snakepit_shm, key: value`, `config :snakepit, :shared_memory,
  key: value` (when the `:snakepit` application is loaded), and the options of `{Snakepit.SharedMemory, name: :a, key:
  value}`. An unknown key, a bad value, and a value that asks for what this version does not do stop the start, with
  all the reasons in one message. `lib/snakepit/shared_memory/README.md` has the table of keys.
  """

  alias Snakepit.SharedMemory.Error

  # Keys of the application's environment that configure something else.
  @other_keys [:isolate, :fault_points, :included_applications]

  @defaults %{
    enabled: true,
    broker: true,
    max_regions: 1_000,
    max_region_size: 1_073_741_824,
    max_total_memory: 10_737_418_240,
    max_regions_per_process: :infinity,
    max_mappings: :auto,
    descriptor_reserve: 128,
    cleanup_interval: 60_000,
    default_timeout: :infinity,
    grace_period: 30_000,
    reconnect_grace: 5_000,
    health_check_interval: 60_000,
    max_connections: 256,
    socket_dir: :auto,
    security_level: :standard,
    encryption_enabled: false,
    audit_access: false,
    secure_cleanup: false,
    allocation_strategy: :object_per_region,
    enable_defragmentation: false,
    platform_options: %{},
    telemetry_enabled: true,
    performance_monitoring: true
  }

  @linux_defaults %{use_hugepages: false, shm_path: "/dev/shm"}

  @type t :: %{
          enabled: boolean(),
          broker: boolean(),
          max_regions: pos_integer(),
          max_region_size: pos_integer(),
          max_total_memory: pos_integer(),
          max_regions_per_process: pos_integer() | :infinity,
          max_mappings: pos_integer(),
          descriptor_reserve: non_neg_integer(),
          cleanup_interval: pos_integer(),
          default_timeout: pos_integer() | :infinity,
          grace_period: non_neg_integer(),
          reconnect_grace: non_neg_integer(),
          health_check_interval: pos_integer() | :infinity,
          max_connections: pos_integer(),
          socket_dir: String.t(),
          socket_dir_auto: boolean(),
          security_level: :standard,
          encryption_enabled: boolean(),
          audit_access: boolean(),
          secure_cleanup: boolean(),
          allocation_strategy: :object_per_region,
          enable_defragmentation: boolean(),
          platform_options: map(),
          telemetry_enabled: boolean(),
          performance_monitoring: boolean(),
          use_hugepages: boolean(),
          shm_path: String.t()
        }

  @doc "The keys that an instance knows."
  @spec keys() :: [atom()]
  def keys, do: @defaults |> Map.keys() |> Enum.sort()

  @doc "What the application's environment says, both forms merged."
  @spec from_application() :: {:ok, map()} | {:error, Error.t()}
  def from_application do
    own = Application.get_all_env(:snakepit_shm) |> Keyword.drop(@other_keys)

    host =
      if List.keymember?(Application.loaded_applications(), :snakepit, 0),
        do: Application.get_env(:snakepit, :shared_memory, []),
        else: []

    with {:ok, own} <- to_map(own, "config :snakepit_shm"),
         {:ok, host} <- to_map(host, "config :snakepit, :shared_memory"),
         do: {:ok, Map.merge(own, host)}
  end

  @doc "Checks and completes. Every problem is in the one error."
  @spec load(keyword() | map()) :: {:ok, t()} | {:error, Error.t()}
  def load(given) do
    with {:ok, given} <- to_map(given, "the options") do
      config = Map.merge(@defaults, given)

      problems =
        (given |> Map.keys() |> Enum.reject(&is_map_key(@defaults, &1)) |> Enum.sort() |> Enum.map(&unknown/1)) ++
          (@defaults |> Map.keys() |> Enum.sort() |> Enum.flat_map(&check(&1, Map.fetch!(config, &1)))) ++
          relations(config)

      if problems == [], do: {:ok, complete(config)}, else: refuse(problems)
    end
  end

  defp to_map(map, _where) when is_map(map), do: {:ok, map}

  defp to_map(list, where) do
    if is_list(list) and Keyword.keyword?(list),
      do: {:ok, Map.new(list)},
      else: refuse(["#{where}: expected a keyword list, got #{inspect(list)}"])
  end

  defp refuse(problems),
    do: {:error, Error.new(:invalid_config, :start, nil, %{problems: problems})}

  defp unknown(key) do
    near = keys() |> Enum.max_by(&String.jaro_distance(inspect(&1), inspect(key)))
    "#{inspect(key)}: unknown key. Did you mean #{inspect(near)}? Known: #{Enum.map_join(keys(), ", ", &inspect/1)}"
  end

  defp complete(config) do
    linux = Map.merge(@linux_defaults, section(config.platform_options, :linux))

    config
    |> Map.merge(%{use_hugepages: linux.use_hugepages, shm_path: linux.shm_path})
    |> Map.update!(:max_mappings, &if(&1 == :auto, do: default_mappings(), else: &1))
    |> Map.put(:socket_dir_auto, config.socket_dir == :auto)
    |> Map.update!(:socket_dir, &if(&1 == :auto, do: default_socket_dir(), else: &1))
  end

  # Half of what the kernel allows the VM: at its limit even malloc fails.
  defp default_mappings, do: max(div(Snakepit.Native.machine().max_map_count, 2), 64)

  # A directory of the user alone; the broker makes it 0700 and checks whose it is.
  defp default_socket_dir do
    case System.get_env("XDG_RUNTIME_DIR") do
      dir when dir in [nil, ""] -> "/tmp/snakepit-#{Snakepit.Native.effective_uid()}"
      dir -> Path.join(dir, "snakepit")
    end
  end

  # Limits that contradict each other.
  defp relations(%{max_region_size: size, max_total_memory: total})
       when is_integer(size) and is_integer(total) and size > total,
       do: [":max_region_size: expected at most max_total_memory (#{total}), got #{size}"]

  defp relations(_), do: []

  @booleans [:enabled, :broker, :telemetry_enabled, :performance_monitoring]
  defp check(key, value) when key in @booleans, do: expect(key, value, is_boolean(value), "true or false")

  @positive [:max_regions, :max_region_size, :max_total_memory, :cleanup_interval, :max_connections]
  defp check(key, value) when key in @positive, do: expect(key, value, positive?(value), "a positive integer")

  @positive_or_infinity [:max_regions_per_process, :default_timeout, :health_check_interval]
  defp check(key, value) when key in @positive_or_infinity,
    do: expect(key, value, positive?(value) or value == :infinity, "a positive integer or :infinity")

  @natural [:descriptor_reserve, :grace_period, :reconnect_grace]
  defp check(key, value) when key in @natural,
    do: expect(key, value, is_integer(value) and value >= 0, "a non-negative integer")

  defp check(:max_mappings, value),
    do: expect(:max_mappings, value, positive?(value) or value == :auto, "a positive integer or :auto")

  defp check(:socket_dir, value) do
    valid? = value == :auto or (is_binary(value) and Path.type(value) == :absolute)
    expect(:socket_dir, value, valid?, "an absolute path or :auto")
  end

  defp check(:security_level, :standard), do: []

  defp check(:security_level, level) when level in [:high, :maximum],
    do: later(:security_level, level, "encrypted and audited regions", ":standard")

  defp check(:security_level, value), do: expect(:security_level, value, false, ":standard, :high or :maximum")

  for {key, what} <- [
        encryption_enabled: "encrypted regions",
        audit_access: "an audit trail",
        secure_cleanup: "wiping memory on free",
        enable_defragmentation: "pools that could be defragmented"
      ] do
    defp check(unquote(key), false), do: []
    defp check(unquote(key), true), do: later(unquote(key), true, unquote(what), "false")
    defp check(unquote(key), value), do: expect(unquote(key), value, false, "true or false")
  end

  @strategies [:first_fit, :best_fit, :worst_fit, :next_fit]
  defp check(:allocation_strategy, :object_per_region), do: []

  defp check(:allocation_strategy, value) when value in @strategies,
    do: later(:allocation_strategy, value, "pools with free lists", ":object_per_region")

  defp check(:allocation_strategy, value),
    do: expect(:allocation_strategy, value, false, ":object_per_region or one of #{inspect(@strategies)}")

  defp check(:platform_options, options) do
    case sections(options) do
      {:ok, sections} ->
        Enum.flat_map(sections, fn
          {name, values} when name in [:linux, :windows, :macos] ->
            Enum.flat_map(values, fn {key, value} -> platform(name, key, value) end)

          {name, _} ->
            ["platform_options #{inspect(name)}: expected :linux, :windows or :macos"]
        end)

      :error ->
        expect(:platform_options, options, false, "a map like %{linux: %{shm_path: \"/dev/shm\"}}")
    end
  end

  # Sections of other platforms are checked everywhere and take effect on theirs.
  defp platform(:linux, :use_hugepages, value) when is_boolean(value), do: []
  defp platform(:linux, :use_hugepages, value), do: expect(:use_hugepages, value, false, "true or false")

  defp platform(:linux, :shm_path, value) do
    if is_binary(value) and Path.type(value) == :absolute and File.dir?(value),
      do: [],
      else: expect(:shm_path, value, false, "the absolute path of a directory that exists")
  end

  defp platform(:windows, :use_large_pages, value),
    do: expect(:use_large_pages, value, is_boolean(value), "true or false")

  defp platform(:windows, :security_descriptor, value),
    do: expect(:security_descriptor, value, value == :default or is_binary(value), ":default or an SDDL string")

  defp platform(section, key, _), do: ["platform_options #{inspect(section)}: unknown key #{inspect(key)}"]

  defp sections(options) do
    with true <- is_map(options) or (is_list(options) and Keyword.keyword?(options)),
         sections = Map.new(options),
         true <- Enum.all?(sections, fn {_, v} -> is_map(v) or (is_list(v) and Keyword.keyword?(v)) end) do
      {:ok, sections}
    else
      _ -> :error
    end
  end

  defp section(options, name), do: options |> Map.new() |> Map.get(name, %{}) |> Map.new()

  defp positive?(value), do: is_integer(value) and value > 0

  defp expect(_key, _value, true, _expected), do: []
  defp expect(key, value, false, expected), do: ["#{inspect(key)}: expected #{expected}, got #{inspect(value)}"]

  defp later(key, value, what, instead),
    do: ["#{inspect(key)}: #{inspect(value)} asks for #{what}, which this version does not have. Set it to #{instead}"]
end
