defmodule Snakepit.SharedMemory.Doctor do
  @moduledoc """
  Looks at what regions need of this machine, and says what is missing and how to mend it. For `mix
  snakepit.shm.doctor`, and for a release: `bin/app eval "Snakepit.SharedMemory.Doctor.print()"`.
  """

  alias Snakepit.Native
  alias Snakepit.SharedMemory.{Config, Orphans, Platform, Region}

  @type check :: {:ok | :warning | :error, subject :: String.t(), finding :: String.t()}

  # Under these a busy application will meet the limit; a region takes one descriptor and one mapping.
  @enough_descriptors 4_096
  @enough_mappings 65_530

  @doc "All checks."
  @spec checks() :: [check()]
  def checks do
    case Native.loaded() do
      :ok -> [library() | machine()]
      {:error, _, _} -> [library()]
    end
  end

  @doc "Prints them; false when something is an error."
  @spec print([check()]) :: boolean()
  def print(checks \\ checks()) do
    for {level, subject, finding} <- checks,
        do: IO.puts("#{mark(level)} #{String.pad_trailing(subject, 18)} #{finding}")

    not Enum.any?(checks, &match?({:error, _, _}, &1))
  end

  defp mark(:ok), do: "ok     "
  defp mark(:warning), do: "warning"
  defp mark(:error), do: "ERROR  "

  defp library do
    case Native.loaded() do
      :ok ->
        {:ok, "native library", "loaded"}

      {:error, kind, text} ->
        {:error, "native library", "#{kind}: #{text}. Run mix compile with Rust installed, or set SNAKEPIT_SHM_NATIVE."}
    end
  end

  defp machine do
    case Config.from_application() |> load() do
      {:ok, config} -> [{:ok, "configuration", "accepted"}, platform()] ++ limits(config) ++ places(config)
      {:error, error} -> [{:error, "configuration", Exception.message(error)}, platform()]
    end
  end

  defp load({:ok, given}), do: Config.load(given)
  defp load(error), do: error

  defp platform do
    case Platform.get_implementation(Platform.detect_platform()) do
      {:ok, _} -> {:ok, "platform", Atom.to_string(Platform.detect_platform())}
      {:error, error} -> {:error, "platform", Exception.message(error)}
    end
  end

  defp limits(config) do
    machine = Native.machine()

    [
      compare(
        "open files",
        machine.open_files,
        @enough_descriptors,
        "raise it with ulimit -n (LimitNOFILE= in systemd)"
      ),
      compare("mappings", machine.max_map_count, @enough_mappings, "raise it with sysctl vm.max_map_count"),
      memory(machine, config),
      huge_pages(machine, config)
    ]
  end

  defp compare(subject, value, enough, remedy) when value < enough,
    do: {:warning, subject, "#{value}: under #{enough}, #{remedy}"}

  defp compare(subject, value, _enough, _remedy), do: {:ok, subject, "#{value}"}

  defp memory(%{memory_available: available, memory_limited_by: by}, %{max_total_memory: limit}) do
    text = "#{Region.bytes(available)} available (#{by}), max_total_memory #{Region.bytes(limit)}"

    if available < limit,
      do: {:warning, "memory", text <> ": allocation will be refused before the limit"},
      else: {:ok, "memory", text}
  end

  defp huge_pages(%{huge_pages_free: 0}, %{use_hugepages: true}),
    do: {:warning, "huge pages", "none free: normal pages are used. Raise vm.nr_hugepages, or set use_hugepages: false"}

  defp huge_pages(%{huge_pages_free: free}, _config), do: {:ok, "huge pages", "#{Region.bytes(free)} free"}

  defp places(config), do: [directory(config.shm_path), socket(config.socket_dir), orphans()]

  defp directory(path) do
    case File.stat(path) do
      {:ok, %{access: access}} when access in [:read_write, :write] -> {:ok, "named regions", "in #{path}"}
      _ -> {:warning, "named regions", "#{path} cannot be written: point shm_path elsewhere, or do without named:"}
    end
  end

  defp socket(path) do
    case File.lstat(path) do
      {:ok, %{type: :directory, mode: mode}} when Bitwise.band(mode, 0o077) == 0 -> {:ok, "broker", "in #{path}"}
      {:ok, %{type: :directory}} -> {:warning, "broker", "#{path} is open to others; the broker will make it 0700"}
      {:ok, _} -> {:error, "broker", "#{path} is not a directory: remove it, or set socket_dir"}
      {:error, :enoent} -> {:ok, "broker", "will make #{path}"}
      {:error, reason} -> {:error, "broker", "#{path}: #{reason}"}
    end
  end

  defp orphans do
    {:ok, objects} = Orphans.list()

    case Enum.count(objects, &(&1.state in [:orphan, :damaged])) do
      0 -> {:ok, "orphans", "none (#{length(objects)} named objects)"}
      n -> {:warning, "orphans", "#{n}: mix snakepit.shm.cleanup removes them"}
    end
  end
end
