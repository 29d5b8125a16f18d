defmodule Snakepit.RawPeer do
  @moduledoc false
  # The broker's protocol by hand, from within this VM: frames and bytes, also wrong ones. Descriptors are not
  # taken (`recv` lets the kernel drop them, a VM could not close them again); `Snakepit.OsPeer` takes them.

  alias Snakepit.Native
  alias Snakepit.SharedMemory.Instance

  @patience 10_000

  @enforce_keys [:socket]
  defstruct [:socket, :session]

  @doc "Where the broker of an instance listens."
  def path(shm) do
    {:ok, instance} = Instance.fetch(shm, :test)
    [{:socket, path}] = :ets.lookup(instance.tables.house, :socket)
    path
  end

  @doc "A connection that has said nothing yet. Ends with the calling process."
  def connect(shm) when is_atom(shm), do: shm |> path() |> connect()

  def connect(path) do
    {:ok, socket} = :socket.open(:local, :stream, :default)
    :ok = :socket.connect(socket, %{family: :local, path: path})
    %__MODULE__{socket: socket}
  end

  @doc "A connection with a session."
  def open(shm, name \\ "raw"), do: shm |> connect() |> hello!(nil, name)

  def hello!(peer, session, name \\ "raw") do
    %{"ok" => true, "session" => session} = hello(peer, session, name)
    %{peer | session: session}
  end

  def hello(peer, session, name \\ "raw"),
    do: request(peer, "hello", %{"version" => 1, "session" => session, "name" => name})

  @doc "Sends a request and waits for its answer."
  def request(peer, op, fields \\ %{}), do: answer(peer, ask(peer, op, fields))

  @doc "Sends a request. Its rid, for `answer/2`."
  def ask(peer, op, fields \\ %{}) do
    rid = System.unique_integer([:positive])
    :ok = transmit(peer, Map.merge(%{"rid" => rid, "op" => op}, fields))
    rid
  end

  @doc "The answer to a request, whatever comes before it."
  def answer(peer, rid) do
    case Process.delete({peer.socket, rid}) do
      nil ->
        case receive_frame(peer) do
          %{"rid" => ^rid} = answer ->
            answer

          %{"rid" => other} = answer when other != nil ->
            Process.put({peer.socket, other}, answer)
            answer(peer, rid)

          other ->
            other
        end

      answer ->
        answer
    end
  end

  @doc "The reason of a refusal."
  def refusal(%{"ok" => false, "error" => %{"type" => type, "reason" => reason, "message" => message}})
      when is_binary(type) and is_binary(message),
      do: String.to_existing_atom(reason)

  @doc "Holds the region of a handle; the answer."
  def attach(peer, handle, fields \\ %{}) do
    request(peer, "attach", handle |> Map.take(["id", "token", "mode", "expires"]) |> Map.merge(fields))
  end

  def attach!(peer, handle, fields \\ %{}) do
    %{"ok" => true, "fds" => 1, "region" => region} = attach(peer, handle, fields)
    region
  end

  def transmit(peer, object) do
    {:ok, body} = Native.json_encode(object)
    transmit_bytes(peer, frame(body))
  end

  @doc "Bytes with their length in front."
  def frame(body), do: <<byte_size(body)::32, body::binary>>

  @doc "Bytes as they are. `{:error, _}` when the other side has closed, or does not read."
  def transmit_bytes(peer, bytes, timeout \\ @patience), do: :socket.send(peer.socket, bytes, timeout)

  @doc "The next frame; `:closed`, or `:silent` when none comes."
  def receive_frame(peer, timeout \\ @patience) do
    with {:ok, <<length::32>>} <- :socket.recv(peer.socket, 4, timeout),
         {:ok, body} <- :socket.recv(peer.socket, length, timeout) do
      {:ok, object} = Native.json_decode(body)
      object
    else
      {:error, {:timeout, _}} -> :silent
      {:error, :timeout} -> :silent
      {:error, _} -> :closed
    end
  end

  @doc "Whether the broker ends the connection, whatever it says before."
  def closed?(peer) do
    case receive_frame(peer) do
      :closed -> true
      :silent -> false
      _answer -> closed?(peer)
    end
  end

  def close(peer), do: :socket.close(peer.socket)
end

defmodule Snakepit.OsPeer do
  @moduledoc false
  # A peer in a process of its own (raw_peer.py): sockets, descriptors, mappings, forks, seals, by hand.

  alias Snakepit.Native

  @enforce_keys [:port, :os_pid]
  defstruct [:port, :os_pid]

  @doc "With another interpreter, or a command in front of it (to become another user, for example)."
  def start(command \\ [Snakepit.Python.executable()]) do
    [executable | arguments] = command ++ ["-u", Path.join(__DIR__, "raw_peer.py")]

    port =
      Port.open({:spawn_executable, System.find_executable(executable)}, [
        :binary,
        :exit_status,
        {:packet, 4},
        args: arguments,
        env: [{~c"PYTHONDONTWRITEBYTECODE", ~c"1"}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    kill_at_exit(os_pid)
    %__MODULE__{port: port, os_pid: os_pid}
  end

  @doc "One of raw_peer.py's functions; its result."
  def call(%__MODULE__{port: port} = peer, function, arguments \\ %{}) do
    {:ok, command} = Native.json_encode([function, arguments])
    Port.command(port, command)

    case result(peer) do
      %{"ok" => value} -> value
      other -> raise "#{function}: #{inspect(other)}"
    end
  end

  defp result(%__MODULE__{port: port}) do
    receive do
      {^port, {:data, data}} ->
        {:ok, result} = Native.json_decode(data)
        result

      {^port, {:exit_status, status}} ->
        {:exit, status}
    after
      30_000 -> :silent
    end
  end

  @doc "Another process that this one has made: killed when the test ends."
  def kill_at_exit(os_pid),
    do: ExUnit.Callbacks.on_exit(fn -> System.cmd("kill", ["-9", "#{os_pid}"], stderr_to_stdout: true) end)

  @doc "Forks: the child keeps every descriptor and does nothing."
  def fork(peer) do
    pid = call(peer, "fork")
    kill_at_exit(pid)
    pid
  end

  @doc "Connections of a new child of the peer, which keeps them; the peer speaks on them. The child's pid."
  def connect_in_child(peer, path, names) do
    pid = call(peer, "connect_in_child", %{path: path, names: List.wrap(names)})
    kill_at_exit(pid)
    pid
  end

  @doc "A connection with a session, named `name`. The session's id."
  def open(peer, path, name \\ "a") do
    call(peer, "connect", %{path: path, name: name})
    %{"ok" => true, "session" => session} = hello(peer, name)
    session
  end

  def hello(peer, name \\ "a", session \\ nil),
    do: request(peer, name, "hello", %{version: 1, session: session, name: name})

  @doc "The answer; a descriptor that came with it under `\"fd\"`."
  def request(peer, name \\ "a", op, fields),
    do: call(peer, "request", %{name: name, op: op, fields: fields})

  def attach!(peer, handle, fields \\ %{}) do
    handle = Map.take(handle, ["id", "token", "mode", "expires"])
    %{"ok" => true} = answer = request(peer, "attach", Map.merge(handle, fields))
    answer
  end

  def kill(%__MODULE__{os_pid: os_pid}), do: kill(os_pid)

  def kill(os_pid) do
    {_, 0} = System.cmd("kill", ["-9", "#{os_pid}"])
    :ok
  end

  @doc "Whether the process has a socket open."
  def sockets?(os_pid) do
    case File.ls("/proc/#{os_pid}/fd") do
      {:ok, numbers} -> Enum.any?(numbers, &match?({:ok, "socket:" <> _}, File.read_link("/proc/#{os_pid}/fd/#{&1}")))
      {:error, _} -> false
    end
  end
end

defmodule Snakepit.PeerCase do
  @moduledoc false
  # As ShmCase, for tests that act as peers; and afterwards nothing is left in this VM: no descriptor, mapping or watch.
  # (Of tests that run beside others nothing can be said.)

  use ExUnit.CaseTemplate

  import Snakepit.ShmCase

  alias Snakepit.Native

  using do
    quote do
      import Snakepit.ShmCase
      import Snakepit.PeerCase

      alias Snakepit.{Native, OsPeer, RawPeer}
      alias Snakepit.SharedMemory, as: Shm
      alias Snakepit.SharedMemory.{Error, Region, Registry}
    end
  end

  setup_all do
    # The thread that waits for the ends of peers keeps its descriptors.
    {:ok, socket} = :socket.open(:local, :stream, :default)
    path = Path.join(System.tmp_dir!(), "first-#{System.pid()}-#{System.unique_integer([:positive])}")
    :ok = :socket.bind(socket, %{family: :local, path: path})
    :ok = :socket.listen(socket)
    client = Snakepit.RawPeer.connect(path)
    File.rm!(path)
    {:ok, number} = :socket.getopt(client.socket, {:otp, :fd})
    with {:ok, watch, _} <- Native.peer_watch(number, self(), :first), do: Native.peer_watch_close(watch)
    Enum.each([client.socket, socket], &:socket.close/1)
  end

  setup context do
    unless context.async do
      Native.reaper_flush_dirty(10_000)
      before = inventory()
      on_exit(fn -> nothing_new(before) end)
    end

    case Map.get(context, :shm, []) do
      false -> :ok
      options -> {:ok, start_instance(options)}
    end
  end

  @doc "What this VM has open."
  def inventory do
    live = Map.take(Native.live(), [:mappings, :descriptors, :watches])
    Map.put(live, :open, length(File.ls!("/proc/self/fd")))
  end

  @doc "Waits until there is no more than at `before`."
  def nothing_new(before) do
    eventually(fn ->
      for pid <- Process.list(), do: :erlang.garbage_collect(pid)
      Native.reaper_flush_dirty(10_000)
      now = inventory()
      Enum.all?(before, fn {key, count} -> now[key] <= count end)
    end)
  rescue
    error in RuntimeError ->
      links = for n <- File.ls!("/proc/self/fd"), {:ok, link} <- [File.read_link("/proc/self/fd/#{n}")], do: link

      reraise "left behind: #{inspect(before)} -> #{inspect(inventory())} #{inspect(links)} (#{error.message})",
              __STACKTRACE__
  end

  @doc "The one process that serves a peer."
  def connection(shm, session) do
    [connection] = for %{session: ^session, connection: pid} <- Snakepit.SharedMemory.sessions!(shm), do: pid
    connection
  end

  @doc "Waits until the broker has ended every session and each of their rows is gone."
  def nobody_left(shm) do
    tables = Map.take(instance(shm).tables, [:sessions, :grants, :waiters])
    eventually(fn -> Enum.all?(tables, fn {_, table} -> :ets.tab2list(table) == [] end) end)
    peers = fn -> for {{_, {:peer, _}}} = row <- :ets.tab2list(instance(shm).tables.holders), do: row end
    eventually(fn -> peers.() == [] end)
    eventually(fn -> DynamicSupervisor.count_children(child(shm, :connections)).active == 0 end)
    :ok
  end

  @doc "Waits for the successor of a process of the instance that was killed."
  def successor(shm, role, old) do
    pid = eventually(fn -> with(pid when pid != old <- child(shm, role), do: pid) end)
    # It has a name before it is ready.
    :sys.get_state(pid)
    pid
  end

  @doc "Waits until a process has been sent `count` messages that it has not looked at."
  def queued(pid, count), do: eventually(fn -> Process.info(pid, :message_queue_len) |> elem(1) >= count end)
end
