"""Requests of several threads over one transport.

No thread of its own reads the answers. Of the threads that wait for one, one (the leader) reads the socket and gives each
answer to whom it belongs; the others sleep. When the leader has its own answer, it wakes another to go on. So an answer
costs no thread switch when one thread is at work, and a long ``wait`` holds up only the thread that called it.

A channel that has broken stays broken (``dead`` says why). Getting a new one is connection.py's.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Union

from . import errors
from .transport import Descriptor, Frame, Transport, encode

MAX_UNANSWERED = 64
# Requests that may be answered late leave room for the others: a write_end must not queue behind 64 waits.
PATIENT = frozenset(("wait", "write_begin", "seal"))
MAX_PATIENT = 48

_HANGUP = getattr(select, "POLLRDHUP", 0)


class Reply(NamedTuple):
    fields: Dict[str, Any]
    descriptor: Optional[Descriptor]


class Broken(Exception):
    """The channel broke under a request. ``sent``: the broker may have had all of it, and may have acted."""

    def __init__(self, error: errors.SnakepitShmError, sent: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.sent = sent


class Abandoned(NamedTuple):
    """A request that nobody waits for any more, and its late answer (None: the channel broke first)."""

    op: str
    fields: Dict[str, Any]
    owner: Any
    answer: Optional[Dict[str, Any]]


class _Pending:
    __slots__ = ("op", "fields", "owner", "wake", "outcome", "waiting", "abandoned")

    def __init__(self, op: str, fields: Dict[str, Any], owner: Any, lock: threading.Lock) -> None:
        self.op = op
        self.fields = fields
        self.owner = owner
        self.wake = threading.Condition(lock)
        self.outcome: Optional[Union[Frame, errors.SnakepitShmError]] = None
        self.waiting = False
        self.abandoned = False


class Channel:
    """``on_abandoned`` gets each :class:`Abandoned` once; ``on_attention`` asks for :meth:`attend`. Neither may block."""

    def __init__(
        self, transport: Transport, on_abandoned: Callable[[Abandoned], None], on_attention: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._on_abandoned = on_abandoned
        self._on_attention = on_attention
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._over = threading.Condition(self._lock)
        self._pending: Dict[int, _Pending] = {}
        self._next_rid = 1
        self._leading = False
        # Threads that may use the socket's number. It is closed when the channel is dead and none is left: a number that
        # is closed earlier could be something else's by the time another thread polls it.
        self._users = 0
        self.dead: Optional[errors.SnakepitShmError] = None

    @property
    def hung_up(self) -> bool:
        """It was the broker that ended the connection, not this side."""
        return self._transport.hung_up

    def greeted(self) -> None:
        """Larger frames are allowed from here on."""
        self._transport.greeted()

    def call(self, op: str, fields: Dict[str, Any], deadline: float, descriptor: bool = False, owner: Any = None) -> Reply:
        """Sends a request and waits for its answer. Raises the broker's error, TimeoutError, or Broken."""
        pending = _Pending(op, fields, owner, self._lock)
        with self._using():
            rid = self._enter(pending, deadline)
            sent = False
            try:
                frame = encode({"op": op, "rid": rid, **fields})
                # An interrupt may come when the bytes have gone and before that is known here.
                sent = True
                try:
                    self._transport.send(frame, deadline)
                except errors.SnakepitShmError:
                    # The broker has nothing, or half a frame that it will never act on.
                    sent = False
                    raise
                self._await(pending, deadline)
            except errors.ConnectionLostError as error:
                self.lose(error)
                raise Broken(error, sent) from None
            finally:
                self._leave(rid, pending, sent)
            if pending.outcome is None:
                raise errors.timed_out(f"The broker did not answer {op} in time.")
            if isinstance(pending.outcome, errors.SnakepitShmError):
                raise Broken(errors.again(pending.outcome), sent)
            return self._reply(pending, pending.outcome, descriptor)

    def _enter(self, pending: _Pending, deadline: float) -> int:
        limit = MAX_PATIENT if pending.op in PATIENT else MAX_UNANSWERED
        with self._lock:
            while self.dead is None and len(self._pending) >= limit:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise errors.timed_out(f"{len(self._pending)} requests of this process are unanswered already.")
                self._room.wait(left)
            if self.dead is not None:
                raise Broken(errors.again(self.dead), False)
            rid = self._next_rid
            self._next_rid += 1
            self._pending[rid] = pending
            return rid

    def _leave(self, rid: int, pending: _Pending, sent: bool) -> None:
        with self._lock:
            if rid not in self._pending:
                return
            if not sent:
                del self._pending[rid]
                self._room.notify()
                return
            pending.abandoned = True
            if not self._leading:
                self._on_attention()

    def _await(self, pending: _Pending, deadline: float) -> None:
        lead = False
        try:
            with self._lock:
                try:
                    while self._leading and pending.outcome is None:
                        left = deadline - time.monotonic()
                        if left <= 0:
                            break
                        pending.waiting = True
                        pending.wake.wait(left)
                except BaseException:
                    pending.waiting = False
                    self._wake_leader()
                    raise
                pending.waiting = False
                if pending.outcome is not None:
                    # Perhaps this thread was woken to lead, and then its answer came first.
                    self._wake_leader()
                elif not self._leading:
                    lead = self._leading = True
            while lead and pending.outcome is None and time.monotonic() < deadline:
                self._read(deadline)
        finally:
            if lead:
                self._step_down()

    def _step_down(self) -> None:
        with self._lock:
            self._leading = False
            self._wake_leader()

    def _wake_leader(self) -> None:
        if self._leading:
            return
        anyone = False
        for pending in self._pending.values():
            if pending.waiting:
                pending.wake.notify()
                return
            anyone = anyone or pending.abandoned
        if anyone:
            self._on_attention()

    def _read(self, deadline: float) -> None:
        """Reads once, as the leader."""
        late: List[Abandoned] = []
        try:
            for frame in self._transport.read(deadline):
                self._give(frame, late)
        except (errors.ConnectionLostError, errors.ProtocolError) as error:
            self.lose(error)
        finally:
            for abandoned in late:
                self._on_abandoned(abandoned)

    def _give(self, frame: Frame, late: List[Abandoned]) -> None:
        rid = frame.fields.get("rid")
        complaint = frame.fields.get("error")
        if rid is None and isinstance(complaint, dict):
            # Before it hangs up on what it could not read.
            raise errors.protocol(f"or so it says of this side: {complaint.get('message')!r:.200}")
        if isinstance(rid, bool) or not isinstance(rid, int):
            raise errors.protocol(f"an answer without a rid: {frame.fields!r:.100}")
        if not isinstance(frame.fields.get("ok"), bool):
            raise errors.protocol(f"an answer without ok: {frame.fields!r:.100}")
        with self._lock:
            pending = self._pending.pop(rid, None)
            if pending is None:
                raise errors.protocol(f"an answer to request {rid}, which is not open")
            self._room.notify()
            if pending.abandoned:
                late.append(Abandoned(pending.op, pending.fields, pending.owner, frame.fields))
                if frame.descriptor is not None:
                    frame.descriptor.close()
            else:
                pending.outcome = frame
                pending.wake.notify()

    def _reply(self, pending: _Pending, frame: Frame, descriptor: bool) -> Reply:
        if not frame.fields["ok"]:
            error = frame.fields.get("error")
            if frame.descriptor is None and isinstance(error, dict):
                raise errors.from_broker(error)
            raise self._fault("a refusal without an error, or with a descriptor")
        if frame.descriptor_refused:
            # The broker has acted: as with a late answer, somebody has to undo it.
            self._on_abandoned(Abandoned(pending.op, pending.fields, pending.owner, frame.fields))
            message = "This process has no descriptor left. Close some, or raise RLIMIT_NOFILE (ulimit -n)."
            raise errors.AllocationError("allocation_failed", "emfile", message)
        if descriptor != (frame.descriptor is not None):
            raise self._fault(f"an answer to {pending.op} {'without' if descriptor else 'with'} a descriptor")
        return Reply(frame.fields, frame.descriptor)

    def _fault(self, what: str) -> Broken:
        error = errors.protocol(what)
        self.lose(error)
        return Broken(error, True)

    def lose(self, error: errors.SnakepitShmError) -> None:
        """Ends the channel, once; everybody who waits learns it."""
        late: List[Abandoned] = []
        with self._lock:
            if self.dead is not None:
                return
            self.dead = error
            self._transport.shutdown()
            for pending in self._pending.values():
                if pending.abandoned:
                    late.append(Abandoned(pending.op, pending.fields, pending.owner, None))
                else:
                    pending.outcome = error
                    pending.wake.notify()
            self._pending.clear()
            self._room.notify_all()
            self._over.notify_all()
            if self._users == 0:
                self._transport.close()
        for abandoned in late:
            self._on_abandoned(abandoned)

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            if self.dead is not None:
                raise Broken(errors.again(self.dead), False)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self.dead is not None and self._users == 0:
                    self._transport.close()

    # The rest is for the one thread that watches the connection.

    def attend(self, seconds: float) -> bool:
        """Reads the answers that nobody waits for, unless another thread reads. True: there may be more to do."""
        try:
            with self._using():
                with self._lock:
                    if self._leading or not any(p.abandoned for p in self._pending.values()):
                        return False
                    self._leading = True
                try:
                    self._read(time.monotonic() + seconds)
                finally:
                    self._step_down()
                return True
        except Broken:
            return True

    def sleep(self, wake: socket.socket, seconds: float) -> None:
        """Until the broker hangs up (then ``dead`` is set), ``wake`` is readable, or the time is over."""
        try:
            with self._using():
                poller = select.poll()
                poller.register(self._transport.fileno(), _HANGUP)
                poller.register(wake.fileno(), select.POLLIN)
                events = dict(poller.poll(seconds * 1000))
                if self._transport.fileno() in events:
                    self._drain()
        except Broken:
            pass

    def _drain(self) -> None:
        """The broker has hung up: what it said before is still to be read, by this thread if by no other."""
        deadline = time.monotonic() + 5.0
        while self.dead is None and time.monotonic() < deadline:
            with self._lock:
                if self._leading:
                    self._over.wait(1.0)
                    continue
                self._leading = True
            try:
                self._read(deadline)
            finally:
                self._step_down()
        self.lose(errors.lost("The broker closed the connection."))

    def forked(self) -> None:
        """In a forked child: closes this process's descriptors. Takes no lock, for its holder may not exist here."""
        self._transport.close()
