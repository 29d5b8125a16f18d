defmodule Bench.Rows.Foreign do
  # Creating and attaching, beside what others offer. They neither reserve the memory nor say who may have it.

  alias Bench.{Measure, Peer, Python, Report, Text}
  alias Snakepit.SharedMemory, as: Shm
  alias Snakepit.SharedMemory.Handle

  def title, do: "create and attach, beside others"

  @sizes [4096, 64 * 1024 * 1024]

  def run(context) do
    Python.with_worker(context.worker, fn worker ->
      anchor = context.sealed.(4096)
      Python.call(worker, op: "keep", handle: json(anchor))
      rows = Enum.flat_map(@sizes, &rows(context, worker, &1))
      Python.stop(worker)
      Shm.free!(anchor)
      rows
    end)
  end

  defp rows(context, worker, size) do
    count = context.runs.(50)
    region = context.sealed.(size)
    handle = json(region)
    standard = fn what -> numbers(Python.call(worker, op: "standard", what: what, size: size, count: count)) end

    figures =
      Measure.interleave(
        %{
          create: fn -> create(context, size, count, []) end,
          unreserved: fn -> create(context, size, count, reserve: false) end,
          attach: fn -> numbers(Python.call(worker, op: "attach", handle: handle, count: count)) end,
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
  defp create(context, size, count, options) do
    for _ <- 1..count do
      start = Measure.now()
      {:ok, region} = Shm.allocate(size, [instance: context.instance] ++ options)
      took = Measure.now() - start
      :ok = Shm.free(region)
      if size > 65_536, do: :ok = Snakepit.Native.reaper_flush_dirty(60_000)
      took
    end
  end

  defp numbers(%{"ns" => ns}), do: for(text <- String.split(ns), do: String.to_integer(text))

  defp json(region) do
    {:ok, json} = Handle.to_json(Shm.handle(region))
    json
  end
end
