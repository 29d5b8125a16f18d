defmodule Snakepit.ShmCase do
  @moduledoc false
  # A test gets an instance of its own: `%{shm: name}`, with the options of its `@tag shm: [...]`.
  # After it, nothing of the instance may be left: no region, no charge, no socket.

  use ExUnit.CaseTemplate

  alias Snakepit.Native
  alias Snakepit.SharedMemory.Instance

  using do
    quote do
      import Snakepit.ShmCase

      alias Snakepit.SharedMemory, as: Shm
      alias Snakepit.SharedMemory.{Error, Region}
    end
  end

  setup context do
    case Map.get(context, :shm, []) do
      false -> :ok
      options -> {:ok, start_instance(options)}
    end
  end

  @doc "Starts an instance under the test's supervisor; its files are in a directory of its own."
  def start_instance(options \\ []) do
    name = Keyword.get_lazy(options, :name, fn -> :"t#{System.unique_integer([:positive])}" end)
    directory = temporary_directory("shm")
    options = options |> Keyword.put_new(:socket_dir, directory) |> Keyword.put(:name, name)
    supervisor = ExUnit.Callbacks.start_supervised!({Snakepit.SharedMemory, options}, id: name)
    %{shm: name, supervisor: supervisor, socket_dir: options[:socket_dir]}
  end

  @doc "A new directory that is removed when the test has ended."
  def temporary_directory(prefix) do
    path = Path.join(System.tmp_dir!(), "#{prefix}-#{System.pid()}-#{System.unique_integer([:positive])}")
    File.mkdir!(path)
    File.chmod!(path, 0o700)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(path) end)
    path
  end

  @doc "A directory of a tmpfs, for named regions of one test: away from those of others."
  def tmpfs_directory do
    path = "/dev/shm/test-#{System.pid()}-#{System.unique_integer([:positive])}"
    File.mkdir!(path)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(path) end)
    path
  end

  def instance(name) do
    {:ok, instance} = Instance.fetch(name, :test)
    instance
  end

  def child(name, role), do: Process.whereis(Instance.child(name, role))

  @doc "Waits for a condition, by asking often; fails when it does not come."
  def eventually(check, patience \\ 5_000) do
    deadline = System.monotonic_time(:millisecond) + patience
    eventually_until(check, deadline)
  end

  defp eventually_until(check, deadline) do
    case check.() do
      value when value not in [nil, false] ->
        value

      value ->
        if System.monotonic_time(:millisecond) > deadline, do: raise("did not come true, last: #{inspect(value)}")

        receive do
        after
          1 -> eventually_until(check, deadline)
        end
    end
  end

  @doc "A process that lives until it is told to end; runs functions in between."
  def spawn_worker do
    spawn(fn -> worker_loop() end)
  end

  defp worker_loop do
    receive do
      {:run, from, ref, fun} ->
        send(from, {ref, fun.()})
        worker_loop()

      :stop ->
        :ok
    end
  end

  def in_worker(pid, fun) do
    ref = make_ref()
    send(pid, {:run, self(), ref, fun})

    receive do
      {^ref, result} -> result
    after
      5_000 -> raise "the worker does not answer"
    end
  end

  def kill(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^monitor, _, _, _} -> :ok
    after
      5_000 -> raise "#{inspect(pid)} does not die"
    end
  end

  @doc """
  Kills a process and waits until the instance has taken notice: a monitor's message to us says nothing of those to
  others.
  """
  def kill(pid, shm) do
    kill(pid)

    eventually(fn ->
      with %{owners: owners} <- state(shm, :manager),
           %{monitors: monitors} <- state(shm, :reference_counter),
           do: not is_map_key(owners, pid) and not is_map_key(monitors, pid)
    end)

    settle(shm)
  end

  defp state(shm, role) do
    with pid when is_pid(pid) <- child(shm, role), do: :sys.get_state(pid)
  catch
    :exit, _ -> nil
  end

  @doc "For a process of another node: holds the region, and releases it when told to."
  def hold_until_released(test, region) do
    send(test, {:held, Snakepit.SharedMemory.hold(region)})

    receive do
      :release -> send(test, {:released, Snakepit.SharedMemory.release(region)})
    end
  end

  @doc "Bytes charged to the instance, once the reaper has finished."
  def charged(name) do
    :ok = Native.reaper_flush_dirty(10_000)
    {bytes, _} = Native.budget_usage(instance(name).budget)
    bytes
  end

  @doc "Waits until every process of the instance has handled what was sent to it before."
  def settle(name) do
    for role <- [:manager, :reference_counter, :manager, :broker], do: eventually(fn -> answers?(name, role) end)
    :ok
  end

  # Killed in between by the test: its successor answers.
  defp answers?(name, role) do
    case child(name, role) do
      nil -> role == :broker and not instance(name).config.broker
      pid -> :sys.get_state(pid) && true
    end
  catch
    :exit, _ -> false
  end
end
