# Elixir and a Python process compute on the same memory; somebody's native library crashes and the VM does not. `make
# demo` runs this.
#
# It uses the public faces only: Snakepit.SharedMemory, Handle.to_json/1 to send a handle, and Snakepit.Isolation.

for file <- ~w(support/text support/python support/memory support/json demo/tell demo/terrain demo/isolated),
    do: Code.require_file("#{file}.exs", __DIR__)

defmodule Demo do
  import Demo.Tell

  alias Bench.{Memory, Python, Text}
  alias Demo.{Isolated, Terrain}
  alias Snakepit.SharedMemory, as: Shm
  alias Snakepit.SharedMemory.Handle

  @at_least 256 * 1024 * 1024
  # A copy of the data anywhere would be 100 %.
  @allowed 0.05
  @points 10_000
  @means 500
  @tolerance 1.0e-4

  def main do
    Python.require!(["numpy", "matplotlib", "pycountry"])
    heading("snakepit_shm: Elixir and Python on the same memory")
    before = leftovers()
    size = compute()
    kill(size)
    nothing_left(before)
    Isolated.main()
    IO.puts("\nAll checks passed.\n")
  end

  # ── Elixir fills, Python computes, Elixir looks ───────────────────────────────────────────────────────────────

  defp compute do
    Python.with_worker(Path.join(__DIR__, "demo/worker.py"), fn worker ->
      # Started, and NumPy loaded: from here on its memory is watched.
      about = Python.call(worker, op: "hello")
      terrain = Terrain.load(@at_least)
      watch = Memory.watch(%{"Elixir": System.pid(), Python: worker.os_pid})

      input = fill(terrain)
      {shading, means} = python(worker, about, terrain, input)
      look(terrain, shading, means)
      private_memory(watch, Terrain.size(terrain))

      Python.call(worker, op: "release")
      for region <- [input, shading, means], do: Shm.free!(region)
      Terrain.size(terrain)
    end)
  end

  defp fill(terrain) do
    size = Terrain.size(terrain)
    shape = Terrain.shape(terrain)

    title("Elixir makes a region")
    say("data", "elevation around Jacksboro, Tennessee (from matplotlib's sample data)")
    say("", "#{terrain.rows} x #{terrain.columns} points, float32, #{terrain.lowest} to #{terrain.highest} m")
    say("repeated", "#{terrain.down} x #{terrain.across} times: #{points(shape)} points, #{Text.bytes(size)}")

    {allocated, region} = timed(fn -> Shm.allocate!(size, dtype: "float32", shape: shape) end)
    say("allocate", Text.time(allocated))

    band = Terrain.band(terrain)
    step = div(size, terrain.down)
    {written, _} = timed(fn -> for i <- 0..(terrain.down - 1), do: :ok = Shm.write!(region, i * step, band) end)
    say("write", "#{Text.time(written)}, #{Text.rate(size, written)}, as iodata that is never put together")

    {sealed, region} = timed(fn -> Shm.seal!(region) end)
    say("seal", "#{Text.time(sealed)}; nobody can change it any more")
    region
  end

  defp python(worker, about, terrain, input) do
    title("A Python process computes on it")
    say("process", "#{worker.os_pid}, Python #{about["python"]}, NumPy #{about["numpy"]}, started by a Port")

    {:ok, json} = Handle.to_json(Shm.handle(input))
    {there, attached} = timed(fn -> Python.call(worker, op: "attach", handle: json) end)
    check(attached["first"] == to_string(Terrain.height(terrain, 0, 0)), "Python's first element is not Elixir's.")
    check(attached["writeable"] == "False", "Python could write what is sealed.")
    say("sent", "#{byte_size(json)} bytes: the handle, as JSON through the Port")
    say("attach", "#{time(attached["ns"])} from the handle to the first element of a NumPy array, #{attached["array"]}")
    say("", "#{Text.time(there)} as Elixir sees it, with the way there and back; first time, connecting included")

    {east, north, up} = Terrain.sun()
    request = [op: "shade", dx: terrain.dx, dy: terrain.dy, east: east, north: north, up: up]
    {total, done} = timed(fn -> Python.call(worker, request) end)
    [shading, means] = for name <- ~w(shading means), do: Shm.attach!(done[name])
    say("compute", "#{time(done["ns"])}: the sunlight on each point, the mean of each row")
    say("results", "two regions, #{Text.bytes(shading.size)} and #{Text.bytes(means.size)}, sealed by Python")
    say("around it", "#{Text.time(total - String.to_integer(done["ns"]))} to allocate, seal and answer")
    {shading, means}
  end

  defp look(terrain, shading, means) do
    title("Elixir looks at the results")
    [rows, columns] = Terrain.shape(terrain)
    check(Shm.shape(shading) == [rows, columns] and Shm.dtype(shading) == "float32", "The hillshade has another shape.")
    check(Shm.shape(means) == [rows] and Shm.dtype(means) == "float64", "The means have another shape.")

    heights = Shm.view!(means)
    {viewed, light} = timed(fn -> Shm.view!(shading) end)
    say("view", "#{Text.time(viewed)} for a binary of #{Text.bytes(byte_size(light))}: no copy")

    :rand.seed(:exsss, {1, 2, 3})
    corners = for row <- [0, rows - 1], column <- [0, columns - 1], do: {row, column}
    random = for _ <- 1..@points, do: {:rand.uniform(rows) - 1, :rand.uniform(columns) - 1}

    {took, differences} =
      timed(fn ->
        for {row, column} <- corners ++ random do
          skip = (row * columns + column) * 4
          <<_::binary-size(skip), seen::float-32-little, _::binary>> = light
          abs(seen - Terrain.brightness(terrain, row, column))
        end
      end)

    relative =
      for row <- [0, rows - 1 | for(_ <- 1..@means, do: :rand.uniform(rows) - 1)] do
        skip = row * 8
        <<_::binary-size(skip), seen::float-64-little, _::binary>> = heights
        expected = Terrain.mean(terrain, row)
        abs(seen - expected) / expected
      end

    worst = Enum.max(differences)
    check(worst < @tolerance, "The hillshade differs from Elixir's own by #{worst}.")

    check(
      Enum.max(relative) < @tolerance,
      "A row's mean differs from Elixir's own by a share of #{Enum.max(relative)}."
    )

    say("checked", "#{Text.count(length(differences))} points against Elixir's own calculation, in #{Text.time(took)}")
    say("", "and #{Text.count(length(relative))} rows; largest difference #{:io_lib.format("~.2e", [worst])}")
  end

  # ── What it cost ──────────────────────────────────────────────────────────────────────────────────────────────

  defp private_memory(watch, size) do
    title("Nobody has made a copy")
    allowed = @allowed * size

    for {name, {first, peak}} <- Memory.peaks(watch) do
      grown = peak - first

      say(
        to_string(name),
        "private memory #{Text.bytes(first)} before, at most #{Text.bytes(peak)} since: " <> grown(grown, size)
      )

      check(
        grown <= allowed,
        "The private memory of #{name} has grown by #{grown(grown, size)}; #{Text.bytes(allowed)} (5 %) is allowed."
      )
    end

    say("", "Private_Dirty of /proc/PID/smaps. The regions themselves are left out: the kernel calls a")
    say("", "shared page private as long as one process alone has it mapped.")
    send(watch, :stop)
  end

  defp grown(bytes, size),
    do: "+#{Text.bytes(bytes)}, #{:erlang.float_to_binary(100 * bytes / size, decimals: 1)} % of the data"

  # ── A worker is killed ────────────────────────────────────────────────────────────────────────────────────────

  defp kill(size) do
    title("A worker is killed while it holds a region")
    region = Shm.allocate!(size)

    Python.with_worker(Path.join(__DIR__, "support/holder.py"), fn worker ->
      {:ok, json} = Handle.to_json(Shm.handle(region))
      Python.call(worker, op: "hold", handle: json)
      %{reference_count: 1} = Shm.info!(region)
      [%{os_pid: os_pid, regions: [_]}] = Shm.sessions!()
      check(os_pid == worker.os_pid, "The session is not that of process #{worker.os_pid}.")
      say("holder", "process #{os_pid} holds #{Text.bytes(size)}: 1 reference")

      start = now()
      {_, 0} = System.cmd("kill", ["-KILL", "#{os_pid}"])
      signalled = now() - start
      await("the killed worker's reference", fn -> Shm.info!(region).reference_count == 0 and Shm.sessions!() == [] end)

      gone = now() - start
      Python.await_killed(worker)

      say(
        "kill -KILL",
        "reference and session gone after #{Text.time(gone)} (#{Text.time(signalled)} of it for the command)"
      )
    end)

    Shm.free!(region)
  end

  # ── Nothing is left ───────────────────────────────────────────────────────────────────────────────────────────

  defp nothing_left(before) do
    title("Nothing is left behind")
    # The views were binaries of this process.
    :erlang.garbage_collect()

    await("what the demo has made", fn -> leftovers() == before end, fn ->
      "#{inspect(leftovers())}, before: #{inspect(before)}"
    end)

    now = leftovers()

    say(
      "regions",
      "#{length(now.regions)}, with #{Text.bytes(now.bytes)}; references #{now.references}, sessions #{now.sessions}"
    )

    say("in the VM", "#{now.mappings} mappings and #{now.descriptors} descriptors of regions")
    say("/dev/shm", "#{length(now.files)} files of ours, as before")
  end

  defp leftovers do
    stats = Shm.stats!()

    Map.merge(Memory.regions_of_vm(), %{
      regions: Enum.map(Shm.list!(), & &1.id),
      bytes: stats.total_memory_allocated,
      references: stats.references,
      sessions: stats.sessions,
      files: for("snakepit" <> _ = file <- Enum.sort(File.ls!("/dev/shm")), do: file)
    })
  end

  # ── Telling ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp points(shape), do: Enum.map_join(shape, " x ", &Text.count/1)
  defp time(text), do: text |> String.to_integer() |> Text.time()
end

try do
  Demo.main()
  # In order: its socket and key go with the instance.
  Logger.configure(level: :error)
  Application.stop(:snakepit_shm)
rescue
  error in [Demo.Failed, Bench.Python.Failed, Snakepit.SharedMemory.Error, Snakepit.Isolation.Error] ->
    IO.puts(:stderr, "\nThe demo failed: #{Exception.message(error)}")
    System.halt(1)
end
