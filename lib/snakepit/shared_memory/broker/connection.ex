defmodule Snakepit.SharedMemory.Broker.Connection do
  @moduledoc false
  # One peer's connection: owns the socket, reads frames, answers them. PROTOCOL.md says what they mean.
  #
  # It keeps nothing that matters: what a peer holds, was granted and is writing stands in the rows and the segments,
  # under its session, so that another connection can take up where this one was killed.

  use GenServer, restart: :temporary

  require Snakepit.SharedMemory.Fault

  alias Snakepit.Native

  alias Snakepit.SharedMemory.{
    Access,
    Allocation,
    Broker,
    Broker.Frame,
    Error,
    Fault,
    Manager,
    ReferenceCounter,
    Registry,
    SecurityController,
    Waiters
  }

  @version 1
  @frame_before 4_096
  @frame_after 65_536
  @hello_deadline 5_000
  @frame_deadline 5_000
  # A peer that does not read its answers is given up.
  @send_deadline 5_000
  @unanswered 64
  # Readers of the VM that stand in a writer's way do not announce that they have finished.
  @poll 20
  # Longer waits are asked for again by the peer.
  @longest_wait 86_400_000

  def start_link({instance, _socket, _peer} = args) do
    GenServer.start_link(__MODULE__, args, hibernate_after: instance.config.cleanup_interval)
  end

  @doc "An error as it crosses the wire."
  @spec describe(Error.t()) :: map()
  def describe(error), do: %{"type" => error.type, "reason" => error.reason, "message" => Exception.message(error)}

  # session  nil before hello      waiting  ref => a request that will be answered later
  @impl true
  def init({instance, socket, peer}) do
    timer = Process.send_after(self(), :hello_late, @hello_deadline)

    {:ok,
     %{
       instance: instance,
       socket: socket,
       peer: peer,
       session: nil,
       id: nil,
       buffer: "",
       waiting: %{},
       hello_timer: timer,
       frame_timer: nil
     }}
  end

  @impl true
  def handle_info(:go, state), do: receive_more(state)
  def handle_info({:"$socket", socket, :select, _}, %{socket: socket} = state), do: receive_more(state)
  def handle_info(:hello_late, %{session: nil} = state), do: close(state, :hello_late)
  def handle_info({:timeout, timer, :frame_late}, %{frame_timer: timer} = state), do: close(state, :frame_late)
  def handle_info({:snakepit_shm_changed, ref}, state), do: again(state, ref)
  def handle_info({:poll, ref}, state), do: polled(state, ref)
  def handle_info({:late, ref}, state), do: late(state, ref)
  def handle_info(_, state), do: {:noreply, state}

  # ── Frames ────────────────────────────────────────────────────────────────────────────────────────────────────

  # recv and never recvmsg: descriptors that a peer pushes are dropped by the kernel.
  defp receive_more(state) do
    case :socket.recv(state.socket, 0, [], :nowait) do
      {:ok, {data, _select}} -> state |> append(data) |> frames()
      {:ok, data} -> state |> append(data) |> frames() |> then_more()
      {:select, {:select_info, _, _}} -> {:noreply, state}
      {:select, {_info, data}} -> state |> append(data) |> frames()
      {:error, _} -> close(state, :closed)
    end
  end

  # By way of the mailbox: timers and notices have their turn also when a peer never stops sending.
  defp then_more({:noreply, state}) do
    send(self(), :go)
    {:noreply, state}
  end

  defp then_more(stop), do: stop

  defp append(state, data), do: %{state | buffer: state.buffer <> data}

  defp frames(state) do
    limit = if state.session, do: @frame_after, else: @frame_before

    case Frame.next(state.buffer, limit) do
      {:ok, request, rest} ->
        with {:noreply, state} <- request(stop_frame_timer(%{state | buffer: rest}), request), do: frames(state)

      :more ->
        {:noreply, start_frame_timer(state)}

      {:error, what} ->
        answer(state, nil, {:error, Error.new(:protocol, :frame, nil, %{what: what})})
        close(state, {:protocol, what})
    end
  end

  # The deadline of a frame runs from its first byte.
  defp start_frame_timer(%{buffer: ""} = state), do: stop_frame_timer(state)
  defp start_frame_timer(%{frame_timer: timer} = state) when timer != nil, do: state

  defp start_frame_timer(state), do: %{state | frame_timer: :erlang.start_timer(@frame_deadline, self(), :frame_late)}

  defp stop_frame_timer(%{frame_timer: nil} = state), do: state

  defp stop_frame_timer(%{frame_timer: timer} = state) do
    Process.cancel_timer(timer)
    %{state | frame_timer: nil}
  end

  # ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────

  defp request(state, %{"rid" => rid, "op" => op} = request) when is_integer(rid) and is_binary(op) do
    cond do
      map_size(state.waiting) >= @unanswered -> close(state, {:protocol, "too many requests"})
      state.session == nil and op != "hello" -> close(state, {:protocol, "#{op} before hello"})
      true -> handle(op, request, rid, state)
    end
  end

  defp request(state, _request), do: close(state, {:protocol, "a request without rid or op"})

  defp handle("hello", request, rid, %{session: nil} = state) do
    with :ok <- check_version(request["version"]),
         {:ok, name} <- name(request),
         {:ok, id, session} <- open(state, request["session"], name),
         state = %{state | session: session, id: id},
         grace = state.instance.config.reconnect_grace,
         :ok <- answer(state, rid, {:ok, %{"version" => @version, "session" => id, "grace" => grace}}) do
      Process.cancel_timer(state.hello_timer)
      {:noreply, state}
    else
      {:error, %Error{reason: :unknown_session} = error} ->
        # It may say hello again.
        reply(state, rid, {:error, error})

      {:error, %Error{} = error} ->
        answer(state, rid, {:error, error})
        close(state, {:protocol, error.reason})

      :closed ->
        close(state, :closed)
    end
  end

  defp handle("ping", _request, rid, state), do: reply(state, rid, {:ok, %{}})
  defp handle("attach", request, rid, state), do: reply(state, rid, attach(state, request))
  defp handle("detach", request, rid, state), do: reply(state, rid, detach(state, request))
  defp handle("allocate", request, rid, state), do: reply(state, rid, allocate(state, request))
  defp handle("seal", request, rid, state), do: reply(state, rid, seal(state, request))
  defp handle("write_end", request, rid, state), do: reply(state, rid, write_end(state, request))
  defp handle("handle", request, rid, state), do: reply(state, rid, make_handle(state, request))
  defp handle("info", request, rid, state), do: reply(state, rid, info(state, request))
  defp handle("free", request, rid, state), do: reply(state, rid, free(state, request))

  defp handle("write_begin", request, rid, state) do
    with {:ok, id} <- id(request),
         {:ok, timeout} <- timeout(request),
         {:ok, segment} <- writable(state, id) do
      number = state.session.number

      later(state, rid, id, timeout, {:write_begin, :busy}, fn ->
        case Native.write_begin(segment, number) do
          :ok -> {:ok, %{}}
          # Its own turn will not end by waiting for it.
          {:error, {:busy, %{writer: ^number} = details}} -> {:error, Error.new(:busy, :write_begin, id, details)}
          {:error, {:busy, details}} -> {:wait, details}
          failure -> Error.from_native(failure, :write_begin, id)
        end
      end)
    else
      error -> reply(state, rid, error)
    end
  end

  defp handle("wait", request, rid, state) do
    with {:ok, id} <- id(request),
         {:ok, timeout} <- timeout(request),
         {:ok, generation} <- integer(request, "generation"),
         {:ok, segment} <- held(state, id) do
      later(state, rid, id, timeout, {:wait, :timeout}, fn ->
        case Native.segment_generation(segment) do
          {:ok, newer} when newer > generation -> {:ok, %{"generation" => newer}}
          {:ok, same} -> {:wait, %{generation: same}}
          failure -> Error.from_native(failure, :wait, id)
        end
      end)
    else
      error -> reply(state, rid, error)
    end
  end

  defp handle(op, _request, rid, state),
    do: reply(state, rid, {:error, Error.new(:protocol, :request, nil, %{what: "unknown op #{inspect(op)}"})})

  # ── Session ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp check_version(@version), do: :ok

  defp check_version(other),
    do:
      {:error, Error.new(:protocol, :hello, nil, %{what: "version #{inspect(other)}; this broker speaks #{@version}"})}

  defp open(%{instance: instance, peer: peer}, nil, name) do
    with {:ok, session} <- Broker.open_session(instance, peer.id, peer |> Map.delete(:id) |> Map.put(:name, name)),
         do: {:ok, peer.id, session}
  end

  defp open(%{instance: instance, peer: peer}, session_id, _name) when is_binary(session_id) do
    with {:ok, session} <- Broker.resume_session(instance, session_id, peer) do
      # The session has its own watch of the same process.
      Native.peer_watch_close(peer.watch)
      {:ok, session_id, session}
    end
  end

  defp open(_state, other, _name),
    do: {:error, Error.new(:protocol, :hello, nil, %{what: "session #{inspect(other)} is neither text nor null"})}

  # ── Regions ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp attach(state, request) do
    with {:ok, id} <- id(request),
         {:ok, token} <- text(request, "token", 128),
         {:ok, mode} <- mode(request, "mode"),
         {:ok, wanted} <- mode(Map.put_new(request, "want", request["mode"]), "want"),
         {:ok, expires} <- expires(request),
         demand = %{uid: state.peer.uid, id: id, token: token, mode: mode, expires: expires},
         {:ok, granted, row} <- SecurityController.authorize(state.instance, demand) do
      Fault.point(:attach, state.instance.name)
      hold_and_export(state, row, Allocation.strictest([granted, wanted]))
    end
  end

  # The reference first: from then on the region cannot go. It is given back if the descriptor cannot be had.
  defp hold_and_export(state, {id, _, segment, _, _, _, _} = row, mode) do
    held_before? = Registry.holds?(state.instance, id, holder(state))

    with {:ok, _count} <- ReferenceCounter.increment(id, holder(state)),
         :ok <- not_invalid(segment, id) do
      # A second, stricter attach takes nothing away from the first.
      unless granted(state, id) == :read_write, do: :ets.insert(state.instance.tables.grants, {{state.id, id}, mode})

      case Native.segment_export(segment, mode) do
        {:ok, descriptor, number} ->
          Native.segment_touch(segment)
          {:ok, %{"region" => to_json(row, mode)}, {descriptor, number}}

        failure ->
          unless held_before?, do: let_go(state, id)
          Error.from_native(failure, :attach, id)
      end
    else
      error ->
        unless held_before?, do: let_go(state, id)
        error
    end
  end

  defp not_invalid(segment, id) do
    case Native.segment_generation(segment) do
      {:ok, _} -> :ok
      failure -> Error.from_native(failure, :attach, id)
    end
  end

  defp detach(state, request) do
    with {:ok, id} <- id(request) do
      Broker.abandon_write(state.instance, id, state.session)
      let_go(state, id)
      {:ok, %{}}
    end
  end

  defp let_go(state, id) do
    :ets.delete(state.instance.tables.grants, {state.id, id})
    ReferenceCounter.decrement(id, holder(state))
  end

  defp allocate(state, request) do
    metadata = request["metadata"] || %{}

    options = [
      instance: state.instance.name,
      owner: holder(state),
      peers: :read_write,
      huge_pages: false,
      dtype: request["dtype"],
      shape: request["shape"],
      metadata: metadata
    ]

    with {:ok, size} <- integer(request, "size"),
         {:ok, region} <- Allocation.allocate(size, options),
         {:ok, row} <- Registry.fetch(state.instance, region.id) do
      with {:error, _} = error <- hold_and_export(state, row, :read_write) do
        Manager.free(state.instance, row)
        error
      end
    else
      :error -> {:error, Error.new(:region_not_found, :allocate)}
      error -> error
    end
  end

  defp seal(state, request) do
    with {:ok, id} <- id(request),
         {:ok, row} <- own(state, id),
         {:ok, _sealed} <- Access.seal(Registry.region_of(state.instance, row)),
         {:ok, handle} <- SecurityController.handle(state.instance, row, [:read_only], nil),
         :ets.insert(state.instance.tables.grants, {{state.id, id}, :read_only}),
         {:ok, answer, descriptor} <- hold_and_export(state, row, :read_only) do
      {:ok, Map.put(answer, "handle", handle), descriptor}
    end
  end

  defp write_end(state, request) do
    with {:ok, id} <- id(request),
         {:ok, segment} <- held(state, id) do
      case Native.write_end(segment, state.session.number) do
        {:ok, generation} ->
          Waiters.notify(state.instance, id)
          {:ok, %{"generation" => generation}}

        failure ->
          Error.from_native(failure, :write_end, id)
      end
    end
  end

  defp make_handle(state, request) do
    with {:ok, id} <- id(request),
         {:ok, _} <- held(state, id),
         {:ok, row} <- fetch(state, id),
         {:ok, handle} <- SecurityController.handle(state.instance, row, [:read_only], nil),
         do: {:ok, %{"handle" => handle}}
  end

  defp info(state, request) do
    with {:ok, id} <- id(request),
         {:ok, _} <- held(state, id),
         {:ok, row} <- fetch(state, id) do
      {:ok, %{"region" => to_json(row, granted(state, id) || :read_only)}}
    end
  end

  defp free(state, request) do
    with {:ok, id} <- id(request),
         {:ok, row} <- own(state, id),
         :ok <- Manager.free(state.instance, row),
         do: {:ok, %{}}
  end

  # ── What a session may ────────────────────────────────────────────────────────────────────────────────────────

  defp holder(state), do: {:peer, state.id}

  defp granted(state, id) do
    case :ets.lookup(state.instance.tables.grants, {state.id, id}) do
      [{_, mode}] -> mode
      [] -> nil
    end
  end

  defp fetch(state, id), do: or_not_found(Registry.fetch(state.instance, id), id)

  defp or_not_found({:ok, _} = found, _id), do: found
  defp or_not_found(:error, id), do: {:error, Error.new(:region_not_found, :request, id)}

  defp held(state, id) do
    cond do
      not :ets.member(state.instance.tables.regions, id) ->
        {:error, Error.new(:region_not_found, :request, id)}

      granted(state, id) == nil ->
        {:error, Error.new(:not_held, :request, id)}

      not Registry.holds?(state.instance, id, holder(state)) ->
        {:error, Error.new(:region_not_found, :request, id)}

      true ->
        with :error <- Registry.segment(state.instance, id), do: {:error, Error.new(:region_not_found, :request, id)}
    end
  end

  defp writable(state, id) do
    with {:ok, segment} <- held(state, id) do
      if granted(state, id) == :read_write,
        do: {:ok, segment},
        else: {:error, Error.new(:read_only, :write_begin, id, %{because: "the region was attached read-only"})}
    end
  end

  defp own(state, id) do
    holder = holder(state)

    case Registry.fetch(state.instance, id) do
      {:ok, {_, :live, _, ^holder, _, _, _} = row} -> {:ok, row}
      {:ok, {_, :live, _, owner, _, _, _}} -> {:error, Error.new(:not_owner, :request, id, %{owner: owner})}
      _ -> {:error, Error.new(:region_not_found, :request, id)}
    end
  end

  defp to_json({id, _, segment, _, _, _, record}, mode) do
    native = Native.segment_info(segment)

    %{
      "id" => id,
      "size" => record.size,
      "data_offset" => native.data_offset,
      "length" => native.length,
      "dtype" => record.dtype,
      "shape" => record.shape,
      "state" => native.state,
      "mode" => mode,
      "generation" => native.generation,
      "named" => native.named,
      "metadata" => record.metadata
    }
  end

  # ── Answers that come later ───────────────────────────────────────────────────────────────────────────────────

  # `op` and `reason` are for the error when the time is up.
  defp later(state, rid, id, timeout, {op, reason}, attempt) do
    ref = make_ref()
    timer = Process.send_after(self(), {:late, ref}, timeout)

    request = %{rid: rid, id: id, op: op, reason: reason, timeout: timeout, attempt: attempt, timer: timer, poll: nil}
    again(%{state | waiting: Map.put(state.waiting, ref, request)}, ref)
  end

  defp again(state, ref) do
    case state.waiting do
      %{^ref => request} ->
        Waiters.subscribe(state.instance, request.id, ref, self())

        case request.attempt.() do
          {:wait, _details} -> {:noreply, poll(state, ref, request)}
          result -> state |> done(ref) |> reply(request.rid, result)
        end

      _ ->
        {:noreply, state}
    end
  end

  # One poll at a time, however often it was told to look again. Only a writer needs one: readers do not announce
  # that they have finished.
  defp poll(state, ref, %{reason: :busy, poll: nil} = request) do
    poll = Process.send_after(self(), {:poll, ref}, @poll)
    %{state | waiting: %{state.waiting | ref => %{request | poll: poll}}}
  end

  defp poll(state, _ref, _request), do: state

  defp polled(state, ref) do
    case state.waiting do
      %{^ref => request} -> again(%{state | waiting: %{state.waiting | ref => %{request | poll: nil}}}, ref)
      _ -> {:noreply, state}
    end
  end

  defp late(state, ref) do
    case state.waiting do
      %{^ref => request} ->
        state = done(state, ref)

        case request.attempt.() do
          {:wait, details} ->
            details = Map.put(details, :timeout, request.timeout)
            reply(state, request.rid, {:error, Error.new(request.reason, request.op, request.id, details)})

          result ->
            reply(state, request.rid, result)
        end

      _ ->
        {:noreply, state}
    end
  end

  defp done(state, ref) do
    {request, waiting} = Map.pop(state.waiting, ref)
    Waiters.unsubscribe(state.instance, request.id, ref)
    for timer <- [request.timer, request.poll], timer, do: Process.cancel_timer(timer)
    %{state | waiting: waiting}
  end

  # ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────

  defp reply(state, rid, result) do
    case answer(state, rid, result) do
      :ok -> {:noreply, state}
      :closed -> close(state, :closed)
    end
  end

  defp answer(state, rid, {:ok, object}), do: transmit(state, Map.merge(object, %{"rid" => rid, "ok" => true}), nil)

  defp answer(state, rid, {:ok, object, {descriptor, number}}) do
    transmit(state, Map.merge(object, %{"rid" => rid, "ok" => true, "fds" => 1}), number)
  after
    Native.descriptor_close(descriptor)
  end

  defp answer(state, rid, {:error, %Error{} = error}),
    do: transmit(state, %{"rid" => rid, "ok" => false, "error" => describe(error)}, nil)

  defp transmit(state, object, number) do
    Fault.point(:answer, state.instance.name)

    case Frame.encode(object) do
      {:ok, frame} ->
        if send_frame(state.socket, IO.iodata_to_binary(frame), number) == :ok, do: :ok, else: :closed

      {:error, {_, details}} ->
        # Nothing of ours is too large or deep for a frame; should it ever be, the peer hears of it.
        answer(state, object["rid"], {:error, Error.new(:invalid_json, :answer, nil, Map.take(details, [:message]))})
    end
  end

  defp send_frame(socket, frame, nil), do: :socket.send(socket, frame, @send_deadline)

  # The descriptor travels with the first bytes; what does not fit follows without it.
  defp send_frame(socket, frame, number) do
    rights = %{level: :socket, type: :rights, data: <<number::native-32>>}

    case :socket.sendmsg(socket, %{iov: [frame], ctrl: [rights]}, [], @send_deadline) do
      :ok -> :ok
      {:ok, rest} -> :socket.send(socket, rest, @send_deadline)
      error -> error
    end
  end

  # The broker takes this reason for the end of the session.
  defp close(state, why) do
    :socket.close(state.socket)
    if state.session == nil, do: Native.peer_watch_close(state.peer.watch)
    {:stop, {:shutdown, {:peer, why}}, state}
  end

  # ── Fields ────────────────────────────────────────────────────────────────────────────────────────────────────

  defp id(%{"id" => id}) when is_binary(id) and byte_size(id) <= 127, do: {:ok, id}
  defp id(request), do: bad("id", "text of at most 127 bytes", request["id"])

  # It goes into messages and logs.
  defp name(request) do
    with {:ok, name} <- text(request, "name", 64) do
      if name =~ ~r/\A[[:print:]]*\z/u, do: {:ok, name}, else: bad("name", "printable text", name)
    end
  end

  defp text(request, key, limit) do
    case request[key] do
      text when is_binary(text) and byte_size(text) <= limit -> {:ok, text}
      other -> bad(key, "text of at most #{limit} bytes", other)
    end
  end

  defp mode(request, key) do
    case request[key] do
      "read_only" -> {:ok, :read_only}
      "read_write" -> {:ok, :read_write}
      other -> bad(key, "\"read_only\" or \"read_write\"", other)
    end
  end

  defp expires(%{"expires" => expires}) when is_integer(expires) and expires >= 0, do: {:ok, expires}
  defp expires(request) when not is_map_key(request, "expires"), do: {:ok, nil}
  defp expires(%{"expires" => nil}), do: {:ok, nil}
  defp expires(request), do: bad("expires", "milliseconds or null", request["expires"])

  defp timeout(%{"timeout" => ms}) when is_integer(ms) and ms >= 0, do: {:ok, min(ms, @longest_wait)}
  defp timeout(request), do: bad("timeout", "milliseconds", request["timeout"])

  defp integer(request, key) do
    case request[key] do
      n when is_integer(n) and n >= 0 -> {:ok, n}
      other -> bad(key, "a non-negative integer", other)
    end
  end

  defp bad(key, expected, got),
    do: {:error, Error.new(:invalid_argument, :request, nil, %{key: key, expected: expected, got: got})}
end
