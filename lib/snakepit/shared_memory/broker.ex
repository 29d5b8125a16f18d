defmodule Snakepit.SharedMemory.Broker do
  @moduledoc """
  Hands regions to other processes of this machine: listens, and keeps the peers' sessions.

  A session is what a peer's references, grants and writing hang on. It ends when the peer closes its connection or its
  process ends (the VM watches the process itself, so a forked child that keeps the socket open keeps nothing). When our
  side of a connection dies, the session stays for `reconnect_grace` milliseconds for the same process to resume it. PROTOCOL.md is what they
  say to each other.
  """

  use GenServer

  require Snakepit.SharedMemory.Fault

  alias Snakepit.Native

  alias Snakepit.SharedMemory.{
    Broker.Connection,
    Broker.Frame,
    Call,
    Error,
    Fault,
    Instance,
    Manager,
    ReferenceCounter,
    Registry,
    SecurityController,
    Telemetry,
    Waiters
  }

  # Out of descriptors: a new attempt costs nothing, but must not be a busy loop.
  @back_off 100
  @backlog 128
  @a_turn 32

  @type session :: %{
          number: pos_integer(),
          connection: pid(),
          os_pid: pos_integer(),
          start_time: non_neg_integer(),
          name: String.t(),
          watch: Native.watch()
        }

  # ── For connections ───────────────────────────────────────────────────────────────────────────────────────────

  @doc false
  @spec open_session(Instance.t(), String.t(), map()) :: {:ok, session()} | {:error, Error.t()}
  def open_session(instance, id, session), do: Call.call(instance, :broker, {:open, id, session}, :hello)

  @doc false
  @spec resume_session(Instance.t(), String.t(), map()) :: {:ok, session()} | {:error, Error.t()}
  def resume_session(instance, id, session), do: Call.call(instance, :broker, {:resume, id, session}, :hello)

  @doc false
  # Something that the session was writing is torn now.
  @spec abandon_write(Instance.t(), String.t(), session()) :: :ok
  def abandon_write(instance, region_id, %{number: number} = session) do
    with {:ok, segment} <- Registry.segment(instance, region_id),
         %{writer: ^number} <- Native.segment_info(segment) do
      Native.segment_invalidate(segment, "#{session.name} (process #{session.os_pid}) ended in the middle of a write")
      Waiters.notify(instance, region_id)
    end

    :ok
  end

  @doc false
  # Time to see whether the socket is still there.
  @spec look(Instance.t()) :: :ok
  def look(instance) do
    with pid when is_pid(pid) <- Process.whereis(Instance.child(instance, :broker)), do: send(pid, :look)
    :ok
  end

  @doc "The sessions of the peers, for the operator's eyes."
  @spec sessions(Instance.t()) :: [map()]
  def sessions(instance) do
    for {id, session} <- :ets.tab2list(instance.tables.sessions) do
      regions = Registry.held_by(instance, {:peer, id})
      session |> Map.take([:name, :os_pid, :connection]) |> Map.merge(%{session: id, regions: regions})
    end
  end

  # ── The process ───────────────────────────────────────────────────────────────────────────────────────────────

  @doc false
  def start_link(instance),
    do: GenServer.start_link(__MODULE__, instance, name: Instance.child(instance, :broker))

  # monitors  monitor => session id
  # pending   session id => timer: its connection is lost, and may be resumed
  # ended     session ids whose peer is dead, and whose connection is just going
  @impl true
  def init(instance) do
    Process.flag(:trap_exit, true)
    state = %{instance: instance, listener: nil, inode: nil, monitors: %{}, pending: %{}, ended: %{}}

    case listen(instance) do
      {:ok, listener} ->
        :ets.insert(instance.tables.house, {:has_listened, true})
        {:ok, take_up_all(%{state | listener: listener, inode: inode(instance)}), {:continue, :accept}}

      {:error, reason} ->
        # Once it has worked, it will again (descriptors come back); until then the sessions need their broker. A first start
        # that cannot listen is refused.
        if :ets.member(instance.tables.house, :has_listened),
          do: {:ok, take_up_all(state), {:continue, :listen_again}},
          else:
            {:stop, Error.new(:os_error, :start, nil, %{call: "listen on #{path(instance)}", message: inspect(reason)})}
    end
  end

  defp path(%{tables: %{house: house}}), do: :ets.lookup_element(house, :socket, 2)

  defp inode(instance) do
    case File.lstat(path(instance)) do
      {:ok, %{inode: inode, major_device: device}} -> {device, inode}
      {:error, _} -> nil
    end
  end

  # The key's lock says that the path is ours: what lies there is left over.
  defp listen(instance) do
    path = path(instance)
    File.rm(path)

    with {:ok, socket} <- :socket.open(:local, :stream, :default),
         :ok <- or_close(socket, :socket.bind(socket, %{family: :local, path: path})),
         :ok <- or_close(socket, File.chmod(path, 0o600)),
         :ok <- or_close(socket, :socket.listen(socket, @backlog)),
         do: {:ok, socket}
  end

  defp or_close(_socket, :ok), do: :ok

  defp or_close(socket, error) do
    :socket.close(socket)
    error
  end

  # Sessions of before our own restart.
  defp take_up_all(state), do: Enum.reduce(:ets.tab2list(state.instance.tables.sessions), state, &take_up/2)

  defp take_up({id, session}, state) do
    # The monitor of a connection that has died meanwhile fires at once; the watch too.
    Native.peer_watch_move(session.watch, self(), id)
    monitor(state, id, session.connection)
  end

  @impl true
  def handle_continue(:accept, state), do: {:noreply, accept(state)}

  def handle_continue(:listen_again, state) do
    with :ok <- SecurityController.restore_place(state.instance),
         {:ok, listener} <- listen(state.instance) do
      {:noreply, accept(%{state | listener: listener, inode: inode(state.instance)})}
    else
      {:error, _} ->
        Process.send_after(self(), :listen_again, @back_off)
        {:noreply, state}
    end
  end

  @impl true
  # Everything here can be done twice.
  def handle_call({:again, request}, from, state), do: handle_call(request, from, state)

  def handle_call({:open, id, session}, {pid, _}, state) do
    session = Map.merge(session, %{number: System.unique_integer([:positive, :monotonic]) + 1, connection: pid})
    :ets.insert(state.instance.tables.sessions, {id, session})
    # The watch may be of a broker before us; it speaks at once when the peer has gone already.
    Native.peer_watch_move(session.watch, self(), id)
    announce(state, id, :open)
    {:reply, {:ok, session}, monitor(state, id, pid)}
  end

  def handle_call({:resume, id, peer}, {pid, _}, state) do
    case :ets.lookup(state.instance.tables.sessions, id) do
      [{_, %{os_pid: os_pid, start_time: start_time} = session}]
      when os_pid == peer.os_pid and start_time == peer.start_time and not is_map_key(state.ended, id) ->
        # Its old connection may be half dead and not know.
        if session.connection != pid, do: Process.exit(session.connection, :kill)
        session = %{session | connection: pid}
        :ets.insert(state.instance.tables.sessions, {id, session})
        announce(state, id, :resume)
        {:reply, {:ok, session}, state |> cancel(id) |> monitor(id, pid)}

      _ ->
        {:reply, {:error, Error.new(:unknown_session, :hello)}, state}
    end
  end

  @impl true
  def handle_info({:"$socket", listener, :select, _}, %{listener: listener} = state), do: {:noreply, accept(state)}
  def handle_info(:accept, state), do: {:noreply, accept(state)}

  # Is what lies at our path still our socket?
  def handle_info(:look, %{listener: listener, inode: inode} = state) when listener != nil do
    if inode(state.instance) == inode do
      {:noreply, state}
    else
      :socket.close(listener)
      {:noreply, %{state | listener: nil}, {:continue, :listen_again}}
    end
  end

  def handle_info(:listen_again, state), do: {:noreply, state, {:continue, :listen_again}}

  # The peer's process has ended, whatever its children do with the socket. Its connection goes first: what it was just
  # doing for the peer must not come after the end of the session.
  def handle_info({:snakepit_peer_down, id}, state) do
    case :ets.lookup(state.instance.tables.sessions, id) do
      [{_, _}] when is_map_key(state.pending, id) ->
        {:noreply, finish(state, id)}

      [{_, session}] ->
        Process.exit(session.connection, :kill)
        {:noreply, %{state | ended: Map.put(state.ended, id, true)}}

      [] ->
        {:noreply, state}
    end
  end

  def handle_info({:DOWN, monitor, :process, pid, reason}, state) do
    {id, monitors} = Map.pop(state.monitors, monitor)
    state = %{state | monitors: monitors}
    # What it was waiting for, if it was killed.
    :ets.match_delete(state.instance.tables.waiters, {:_, :_, pid})

    case id && :ets.lookup(state.instance.tables.sessions, id) do
      [{_, %{connection: ^pid}}] -> {:noreply, lost(state, id, reason)}
      _ -> {:noreply, state}
    end
  end

  def handle_info({:timeout, timer, {:give_up, id}}, state) do
    # Resumed at the last moment?
    if match?(%{^id => ^timer}, state.pending), do: {:noreply, finish(state, id)}, else: {:noreply, state}
  end

  def handle_info({:EXIT, _, reason}, state), do: {:stop, reason, state}
  def handle_info(_, state), do: {:noreply, state}

  @impl true
  def terminate(:shutdown, %{instance: instance}) do
    for {:socket, path} <- :ets.lookup(instance.tables.house, :socket), do: File.rm(path)
  end

  def terminate(_reason, _state), do: :ok

  # ── Accepting ─────────────────────────────────────────────────────────────────────────────────────────────────

  defp accept(state, turn \\ @a_turn)

  # Peers that never stop connecting do not keep everything else waiting.
  defp accept(state, 0) do
    send(self(), :accept)
    state
  end

  defp accept(%{listener: nil} = state, _turn), do: state

  defp accept(state, turn) do
    case :socket.accept(state.listener, :nowait) do
      {:ok, socket} ->
        welcome(state.instance, socket)
        accept(state, turn - 1)

      {:select, _info} ->
        state

      {:error, reason} when reason in [:emfile, :enfile, :enobufs, :enomem] ->
        Process.send_after(self(), :accept, @back_off)
        state

      # The peer has gone already.
      {:error, reason} when reason in [:econnaborted, :eintr] ->
        accept(state, turn - 1)

      {:error, reason} ->
        exit({:accept, reason})
    end
  end

  defp welcome(instance, socket) do
    with {:ok, peer} <- identify(socket),
         :ok <- room(instance) do
      start(instance, socket, peer)
    else
      {:error, %Error{} = error} ->
        refuse(socket, error)

      _ ->
        :socket.close(socket)
    end
  end

  # The kernel says who it is, and tells when it ends.
  defp identify(socket) do
    id = Base.url_encode64(:crypto.strong_rand_bytes(18), padding: false)

    with {:ok, number} <- :socket.getopt(socket, {:otp, :fd}),
         {:ok, watch, %{pid: pid, uid: uid, start_time: start_time}} <- Native.peer_watch(number, self(), id) do
      own = Native.effective_uid()

      if uid == own do
        {:ok, %{id: id, watch: watch, os_pid: pid, uid: uid, start_time: start_time}}
      else
        Native.peer_watch_close(watch)
        {:error, Error.new(:foreign_user, :hello, nil, %{uid: uid, expected: own})}
      end
    end
  end

  defp room(%{config: %{max_connections: limit}} = instance) do
    %{active: active} = DynamicSupervisor.count_children(Instance.child(instance, :connections))
    if active < limit, do: :ok, else: {:error, Error.new(:too_many_connections, :hello, nil, %{limit: limit})}
  end

  defp start(instance, socket, peer) do
    Fault.point(:accept, instance.name)
    child = {Connection, {instance, socket, peer}}

    with {:ok, pid} <- DynamicSupervisor.start_child(Instance.child(instance, :connections), child),
         :ok <- :socket.setopt(socket, {:otp, :controlling_process}, pid) do
      send(pid, :go)
    else
      _ ->
        Native.peer_watch_close(peer.watch)
        :socket.close(socket)
    end
  end

  # One frame that fits into any socket's buffer; a peer that does not read it is not waited for.
  defp refuse(socket, error) do
    answer = %{"rid" => nil, "ok" => false, "error" => Connection.describe(error)}
    with {:ok, frame} <- Frame.encode(answer), do: :socket.send(socket, frame, 0)
    :socket.close(socket)
  end

  # ── Sessions ──────────────────────────────────────────────────────────────────────────────────────────────────

  # Closed by the peer, or because of what it sent.
  defp lost(state, id, {:shutdown, {:peer, _}}), do: finish(state, id)

  # Our side died: the peer may not even know, unless it is dead too.
  defp lost(state, id, _reason) do
    if is_map_key(state.ended, id), do: finish(state, id), else: suspend(state, id)
  end

  defp suspend(state, id) do
    announce(state, id, :pending)
    timer = :erlang.start_timer(state.instance.config.reconnect_grace, self(), {:give_up, id})
    %{state | pending: Map.put(state.pending, id, timer)}
  end

  # The row goes last: if we are killed in between, our successor does this again.
  defp finish(%{instance: instance} = state, id) do
    with [{_, session}] <- :ets.lookup(instance.tables.sessions, id) do
      holder = {:peer, id}
      for region <- Registry.held_by(instance, holder), do: abandon_write(instance, region, session)
      Fault.point(:session_ending, instance.name)

      with :ok <- ReferenceCounter.drop_holder(instance, holder),
           :ok <- Manager.owner_gone(instance, holder) do
        :ets.select_delete(instance.tables.grants, [{{{id, :_}, :_}, [], [true]}])
        :ets.delete(instance.tables.sessions, id)
        Native.peer_watch_close(session.watch)
        announce(state, id, :end)
        cancel(%{state | ended: Map.delete(state.ended, id)}, id)
      else
        # They are being restarted, and that takes long.
        {:error, _} -> suspend(state, id)
      end
    else
      [] -> cancel(%{state | ended: Map.delete(state.ended, id)}, id)
    end
  end

  defp cancel(state, id) do
    with {:ok, timer} <- Map.fetch(state.pending, id), do: Process.cancel_timer(timer)
    %{state | pending: Map.delete(state.pending, id)}
  end

  defp monitor(state, id, pid), do: %{state | monitors: Map.put(state.monitors, Process.monitor(pid), id)}

  defp announce(state, id, event) do
    count = :ets.info(state.instance.tables.sessions, :size)
    Telemetry.execute(state.instance, :session, %{count: count}, %{session: id, event: event})
  end
end
