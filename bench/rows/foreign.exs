defmodule Bench.Rows.Foreign do
  # Creating and attaching, beside what others offer. They neither reserve the memory nor say who may have it.

  alias Bench.{Measure, Peer, Python, Regions, Report, Text}
  alias Snakepit.SharedMemory, as: Shm

  def title, do: "create and attach"

  @sizes [4096, 64 * 1024 * 1024]

  def run(context) do
    Python.with_worker(context.worker, fn worker ->
      anchor = Regions.sealed(4096)
      Python.call(worker, op: "keep", handle: Regions.json(anchor))
      rows = Enum.flat_map(@sizes, &rows(context, worker, &1))
      Python.stop(worker)
      Shm.free!(anchor)
      rows
    end)
  end

  defp rows(context, worker, size) do
    count = context.runs.(50)
    region = Regions.sealed(size)
    handle = Regions.json(region)

    standard = fn what ->
      Python.nanoseconds(Python.call(worker, op: "standard", what: what, size: size, count: count))
    end

    figures =
      Measure.interleave(
        %{
          create: fn -> create(size, count, []) end,
          unreserved: fn -> create(size, count, reserve: false) end,
          attach: fn -> Python.nanoseconds(Python.call(worker, op: "attach", handle: handle, count: count)) end,
          standard_create: fn -> standard.("create") end,
          standard_attach: fn -> standard.("attach") end,
          crate_create: fn -> Peer.run(context.peer, ["crate", "create", size, count]) end,
          crate_attach: fn -> Peer.run(context.peer, ["crate", "open", size, count]) end
        },
        context.rounds
      )

    Shm.free!(region)
    text = Text.bytes(size)

    for {name, ours, what, other} <- [
          {"create #{text}, in Elixir", :create, "Python's shared_memory", :standard_create},
          {"create #{text}, in Elixir", :create, "the shared_memory crate", :crate_create},
          {"create #{text}, reserve: false", :unreserved, "Python's shared_memory", :standard_create},
          {"attach #{text}, in Python", :attach, "Python's shared_memory", :standard_attach},
          {"attach #{text}, in Python", :attach, "the shared_memory crate", :crate_attach}
        ] do
      Report.row(%{group: title(), name: name, ours: figures[ours], against: {what, figures[other]}, bytes: size})
    end
  end

  # Freeing is not timed, nor is it for the others.
  defp create(size, count, options) do
    for _ <- 1..count do
      start = Measure.now()
      region = Regions.allocate(size, options)
      took = Measure.now() - start
      :ok = Shm.free(region)
      if size > 65_536, do: Regions.settle()
      took
    end
  end
end
