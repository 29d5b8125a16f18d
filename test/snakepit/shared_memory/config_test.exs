defmodule Snakepit.SharedMemory.ConfigTest do
  use Snakepit.ShmCase, async: false

  alias Snakepit.SharedMemory.Config

  @moduletag shm: false

  # The two examples of the documentation that this library began with: one basic, one with everything.
  @basic [
    enabled: true,
    max_regions: 1000,
    max_region_size: 1_073_741_824,
    max_total_memory: 10_737_418_240,
    cleanup_interval: 60_000,
    default_timeout: 300_000,
    security_level: :standard
  ]

  @advanced [
    enabled: true,
    max_regions: 10_000,
    max_region_size: 4_294_967_296,
    max_total_memory: 107_374_182_400,
    max_regions_per_process: 100,
    cleanup_interval: 30_000,
    default_timeout: 600_000,
    allocation_strategy: :best_fit,
    enable_defragmentation: true,
    security_level: :high,
    encryption_enabled: true,
    audit_access: true,
    secure_cleanup: true,
    platform_options: %{
      linux: %{use_hugepages: true, shm_path: "/dev/shm"},
      windows: %{use_large_pages: true, security_descriptor: :default}
    },
    telemetry_enabled: true,
    performance_monitoring: true,
    health_check_interval: 60_000
  ]

  test "the basic example starts" do
    %{shm: shm} = start_instance(@basic)
    config = instance(shm).config
    for {key, value} <- @basic, do: assert(Map.fetch!(config, key) == value)
    assert {:ok, _} = Shm.put("x", instance: shm)
  end

  test "the advanced example is refused with all reasons in one message" do
    assert {:error, %Error{reason: :invalid_config} = error} = Shm.start_link([name: :advanced] ++ @advanced)
    message = Exception.message(error)

    refused = [
      :allocation_strategy,
      :enable_defragmentation,
      :security_level,
      :encryption_enabled,
      :audit_access,
      :secure_cleanup
    ]

    assert length(error.details.problems) == length(refused)
    for key <- refused, do: assert(message =~ inspect(key))
    assert Process.whereis(:advanced) == nil
  end

  test "the advanced example starts without what is for later" do
    later = [
      :allocation_strategy,
      :enable_defragmentation,
      :security_level,
      :encryption_enabled,
      :audit_access,
      :secure_cleanup
    ]

    %{shm: shm} = start_instance(Keyword.drop(@advanced, later))
    config = instance(shm).config
    assert config.use_hugepages and config.shm_path == "/dev/shm"
    # There may be no huge pages here: then it is normal ones, and info says so.
    region = Shm.put!("x", instance: shm)
    assert is_boolean(Shm.info!(region).huge_pages)
    assert Shm.view!(region) == "x"
  end

  test "unknown keys and bad values are named, all of them" do
    bad = [
      max_region: 5,
      max_regions: 0,
      max_region_size: "1GB",
      max_total_memory: -1,
      max_regions_per_process: :many,
      max_mappings: 0,
      descriptor_reserve: -1,
      cleanup_interval: :never,
      default_timeout: 0,
      grace_period: -1,
      reconnect_grace: 1.5,
      health_check_interval: 0,
      max_connections: 0,
      socket_dir: "relative",
      security_level: :some,
      encryption_enabled: :no,
      audit_access: 1,
      secure_cleanup: nil,
      allocation_strategy: :random,
      enable_defragmentation: "yes",
      telemetry_enabled: 1,
      performance_monitoring: 1,
      broker: 1,
      enabled: 1
    ]

    {:error, error} = Config.load(bad)
    message = Exception.message(error)
    for {key, _} <- bad, do: assert(message =~ inspect(key))
    assert message =~ "Did you mean :max_regions?"

    for options <- [
          1,
          %{beos: %{}},
          %{linux: %{shm_path: "/nowhere/at/all"}},
          %{linux: %{use_hugepages: 1}},
          %{linux: %{colour: 1}},
          %{windows: %{use_large_pages: 1}},
          %{windows: %{security_descriptor: 1}}
        ] do
      assert {:error, %Error{details: %{problems: [_]}}} = Config.load(platform_options: options)
    end

    assert {:error, %Error{details: %{problems: [problem]}}} = Config.load(max_region_size: 10, max_total_memory: 5)
    assert problem =~ "max_total_memory"
    assert {:error, _} = Config.load([1, 2])
  end

  test "both forms are read; the host's wins where its application is loaded" do
    Application.put_env(:snakepit_shm, :max_regions, 7)
    Application.put_env(:snakepit, :shared_memory, max_regions: 9, max_connections: 3)

    on_exit(fn ->
      Application.delete_env(:snakepit_shm, :max_regions)
      Application.delete_env(:snakepit, :shared_memory)
      Application.unload(:snakepit)
    end)

    assert {:ok, %{max_regions: 7} = given} = Config.from_application()
    refute Map.has_key?(given, :max_connections)
    _ = :application.load({:application, :snakepit, [vsn: '0', modules: []]})
    Application.put_env(:snakepit, :shared_memory, max_regions: 9, max_connections: 3)
    assert {:ok, %{max_regions: 9, max_connections: 3}} = Config.from_application()
    %{shm: shm} = start_instance(max_connections: 4)
    assert %{max_regions: 9, max_connections: 4} = instance(shm).config
  end

  test "a bad configuration stops the application with a message, enabled: false and no library do not" do
    Application.put_env(:snakepit_shm, :max_regoins, 7)
    on_exit(fn -> Application.delete_env(:snakepit_shm, :max_regoins) end)

    # The stack trace makes it an exception to the one who prints the start's failure: without one it is inspected.
    assert {:error, {%Error{reason: :invalid_config} = error, [_ | _] = stacktrace}} =
             Snakepit.SharedMemory.Application.start(:normal, [])

    assert Exception.message(error) =~ ":max_regoins: unknown key. Did you mean :max_regions?"
    assert Exception.format_exit({error, stacktrace}) =~ Exception.message(error)
  end

  test "performance_monitoring: false keeps no times" do
    %{shm: shm} = start_instance(performance_monitoring: false)
    Shm.put!("x", instance: shm)
    assert Shm.stats!(shm).operations.allocate.count == 0
  end

  test "broker: false runs without a socket, and says so when a handle is asked for" do
    %{shm: shm, socket_dir: dir} = start_instance(broker: false)
    region = Shm.put!("x", instance: shm)
    assert {:error, %Error{reason: :not_started} = error} = Shm.handle(region)
    assert Exception.message(error) =~ "broker: false"
    assert File.ls!(dir) == []
  end

  test "every key has a row in the folder's README" do
    readme = File.read!("lib/snakepit/shared_memory/README.md")
    for key <- Config.keys(), do: assert(readme =~ "`#{key}`", "#{key} is missing")
  end
end
