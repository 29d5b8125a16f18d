"""One broker, one session: getting the channel back when it breaks, and knowing what the session holds.

* :class:`Hold` is what the session holds of one region, counted here: the broker knows only held or not held.
* The *watcher* is one daemon thread per connection, alive while there is a channel. It sleeps in ``poll`` until the broker
  hangs up, then resumes the session, which an idle process has to do within the broker's ``grace``. It also does the
  chores: what finalizers, which may run at any instruction and so may take no lock, have dropped; and what has to be
  undone because an answer came when nobody waited for it any more.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

from . import description, errors, handle, mapping, options
from .channel import Abandoned, Broken, Channel, Reply
from .transport import Transport

VERSION = 1
# What an answer that comes at the last moment may take to get here.
SLACK = 5.0
GREETING_SECONDS = 5.0
# A broker that greets, and hangs up on the request each time, is not tried for ever.
ATTEMPTS = 4

log = logging.getLogger("snakepit_shm")


class Grant(NamedTuple):
    """What was presented for a region, and the mode that was asked for."""

    id: str
    token: str
    mode: str
    expires: Optional[int]
    want: str

    def fields(self) -> Dict[str, Any]:
        fields: Dict[str, Any] = {"id": self.id, "token": self.token, "mode": self.mode, "expires": self.expires}
        return fields if self.want == self.mode else {**fields, "want": self.want}


def grant_of(wanted: handle.Handle, mode: Optional[str] = None) -> Grant:
    return Grant(wanted.id, wanted.token, wanted.mode, wanted.expires, mode or wanted.mode)


class Hold:
    """What this process's session holds of one region. Guarded by the connection's lock, but for ``writing``."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.count = 1
        self.leaving = False
        self.lost: Optional[errors.SnakepitShmError] = None
        # How it was attached, and will be again when the session is gone.
        self.grants: Set[Grant] = set()
        # Allocated here and not sealed: it ends with the session.
        self.allocated = False
        # The memory objects that are mapped for it.
        self.objects: Set[mapping.Identity] = set()
        # The broker knows one writer a session; within the session it is the holder of this.
        self.writing = threading.Lock()

    def strongest_first(self) -> List[Grant]:
        return sorted(self.grants, key=lambda grant: grant.want != handle.READ_WRITE)


class Connection:
    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._channel: Optional[Channel] = None
        self._opening: Optional[Channel] = None
        self._connecting = False
        self._closed = False
        self._session: Optional[str] = None
        self._holds: Dict[str, Hold] = {}
        self._chores: Deque[Tuple[Optional[str], str, Any]] = deque()
        self._watcher: Optional[threading.Thread] = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    # Requests

    def request(
        self,
        op: str,
        fields: Dict[str, Any],
        *,
        timeout: Optional[float] = None,
        descriptor: bool = False,
        retry: bool = True,
        hold: Optional[Hold] = None,
    ) -> Reply:
        """Asks the broker, and asks again when the connection breaks.

        With ``retry=False`` it asks again only if the broker cannot have had the first request. ``timeout`` (seconds) is
        the one that the request itself carries. A ``hold`` that is lost, also while asking, raises why.
        """
        started = time.monotonic()
        deadline = started + (options.current.request_timeout if timeout is None else timeout + SLACK)
        attempt = 0
        while True:
            channel = self._ready(deadline)
            if hold is not None and hold.lost is not None:
                raise errors.again(hold.lost)
            if timeout is not None:
                left = max(0.0, started + timeout - time.monotonic())
                fields = {**fields, "timeout": math.ceil(left * 1000)}
            try:
                return channel.call(op, fields, deadline, descriptor, hold)
            except Broken as broken:
                attempt += 1
                if isinstance(broken.error, errors.ProtocolError):
                    raise errors.again(broken.error) from None
                if broken.sent and not retry:
                    message = f"The connection was lost while {op} was under way; whether it was done is not known."
                    raise errors.lost(message) from broken.error
                if attempt == ATTEMPTS:
                    raise errors.lost(f"The connection was lost {attempt} times during {op}.") from broken.error

    @property
    def session(self) -> Optional[str]:
        return self._session

    # Holding

    def attach(self, grant: Grant) -> Tuple[Hold, Reply]:
        hold = self._take(grant.id)
        try:
            reply = self.request("attach", grant.fields(), descriptor=True)
        except BaseException:
            self.drop(hold)
            raise
        with self._lock:
            hold.grants.add(grant)
        return hold, reply

    def _take(self, id: str) -> Hold:
        deadline = time.monotonic() + options.current.request_timeout
        with self._lock:
            while True:
                hold = self._holds.get(id)
                if hold is None:
                    hold = self._holds[id] = Hold(id)
                    return hold
                if not hold.leaving:
                    hold.count += 1
                    return hold
                # A detach that is under way would undo an attach that overtakes it.
                left = deadline - time.monotonic()
                if left <= 0:
                    raise errors.timed_out(f"Region {id} is being detached, and the broker does not answer.")
                self._changed.wait(left)

    def allocated(self, id: str) -> Hold:
        with self._lock:
            hold = self._holds[id] = Hold(id)
            hold.allocated = True
            return hold

    def release(self, hold: Hold) -> None:
        """One user of the hold less; with the last one the region is detached. Never fails: the memory is gone already."""
        with self._lock:
            if hold.leaving:
                return
            hold.count -= 1
            if hold.count > 0:
                return
            hold.leaving = True
        self._detach(hold)

    def _detach(self, hold: Hold) -> None:
        with self._lock:
            channel = self._channel
            session = self._session
        try:
            if hold.lost is None and not self._closed and channel is not None:
                channel.call("detach", {"id": hold.id}, time.monotonic() + SLACK)
        except Broken:
            # Should the session be resumed, it still holds the region.
            self._chores.append((session, "detach", hold.id))
            self._wake()
        except errors.SnakepitShmError as error:
            log.warning("detach of region %s: %s", hold.id, error)
        finally:
            self._forget(hold)

    def _forget(self, hold: Hold) -> None:
        with self._lock:
            hold.count = 0
            hold.leaving = True
            if self._holds.get(hold.id) is hold:
                del self._holds[hold.id]
            self._changed.notify_all()

    def freed(self, hold: Hold) -> None:
        """The region is no more, so nothing holds it."""
        self._forget(hold)

    def drop(self, hold: Hold, op: str = "release") -> None:
        """Releases (or frees) later, from the watcher. Takes no lock: finalizers call it."""
        if not self._closed and self.pid == os.getpid():
            self._chores.append((self._session, op, hold))
            self._wake()

    # Getting a channel

    def _ready(self, deadline: float) -> Channel:
        """A channel that has greeted. One thread connects, the others wait for it."""
        with self._lock:
            while True:
                if self._closed:
                    raise errors.unreachable("The connections of this process are closed.")
                if self._channel is not None and self._channel.dead is None:
                    return self._channel
                if not self._connecting:
                    self._connecting = True
                    break
                left = deadline - time.monotonic()
                if left <= 0:
                    raise errors.unreachable(f"The broker at {self.path} was not reached in time.")
                self._changed.wait(left)
        channel: Optional[Channel] = None
        try:
            channel = self._establish(deadline)
            return channel
        finally:
            with self._lock:
                self._connecting = False
                self._opening = None
                if channel is not None:
                    self._channel = channel
                    if self._closed:
                        channel.lose(errors.unreachable("The connections of this process are closed."))
                    else:
                        self._start_watcher()
                self._changed.notify_all()

    def _establish(self, deadline: float) -> Channel:
        # A first connection waits for nothing but a full queue; a lost one may be between two lives of the VM.
        before = self._channel is not None
        if self._channel is not None and not self._channel.hung_up:
            # This side ended the connection, over a broken protocol or in the middle of a frame, and with it the session.
            self._session = None
        deadline = min(deadline, time.monotonic() + options.current.reconnect_timeout)
        delay = 0.005
        while True:
            try:
                return self._open(deadline)
            except (OSError, Broken, errors.TimeoutError) as error:
                if isinstance(error, errors.SnakepitShmError) and not isinstance(error, errors.TimeoutError):
                    raise
                if isinstance(error, Broken) and isinstance(error.error, errors.ProtocolError):
                    raise errors.again(error.error) from None
                if not (before or isinstance(error, BlockingIOError)) or self._closed or time.monotonic() + delay >= deadline:
                    raise errors.unreachable(f"The broker at {self.path} cannot be reached ({error}).") from error
            with self._lock:
                if not self._closed:
                    self._changed.wait(delay)
            delay = min(2 * delay, 0.5)

    def _open(self, deadline: float) -> Channel:
        channel = Channel(Transport.connect(self.path, deadline), self._abandoned, self._wake)
        self._opening = channel
        try:
            self._greet(channel, min(deadline, time.monotonic() + GREETING_SECONDS))
            return channel
        except BaseException:
            channel.lose(errors.unreachable("The greeting failed."))
            raise

    def _greet(self, channel: Channel, deadline: float) -> None:
        asked = self._session
        hello: Dict[str, Any] = {"version": VERSION, "session": asked, "name": _name()}
        try:
            fields = channel.call("hello", hello, deadline).fields
        except errors.ConnectionLostError as error:
            if error.reason != "unknown_session" or asked is None:
                raise
            asked = self._session = None
            fields = channel.call("hello", {**hello, "session": None}, deadline).fields
        session, version, grace = fields.get("session"), fields.get("version"), fields.get("grace")
        if version != VERSION or not handle.text_up_to(1024)(session) or not handle.is_int(grace):
            raise errors.protocol(f"an answer to hello without version, session or grace: {fields!r:.200}")
        channel.greeted()
        self._session = session
        if session != asked:
            self._attach_again(channel)

    def _attach_again(self, channel: Channel) -> None:
        """A new session holds nothing. The mappings stay as they are, wherever the memory is still the same."""
        with self._lock:
            holds = [hold for hold in self._holds.values() if not hold.leaving and hold.lost is None]
        for hold in holds:
            error: Optional[errors.SnakepitShmError] = None
            if hold.allocated:
                message = f"Region {hold.id} was allocated by a session that is gone, and not sealed: it went with it."
                error = errors.RegionNotFoundError("region_not_found", "region_not_found", message)
            for grant in hold.strongest_first():
                try:
                    reply = channel.call("attach", grant.fields(), time.monotonic() + GREETING_SECONDS, descriptor=True)
                    info = description.parse(reply.fields.get("region"), hold.id)
                    error = mapping.differs(reply, info, hold.objects)
                except errors.TimeoutError:
                    raise
                except errors.SnakepitShmError as refused:
                    error = refused
                if error is None:
                    break
            if error is not None:
                self._lost(hold, error)

    def _lost(self, hold: Hold, error: errors.SnakepitShmError) -> None:
        log.warning("region %s is lost: %s", hold.id, error)
        with self._lock:
            hold.lost = error
            # Who attaches it from now on starts anew.
            if self._holds.get(hold.id) is hold:
                del self._holds[hold.id]

    # The watcher

    def _start_watcher(self) -> None:
        if self._watcher is not None:
            return
        watcher = threading.Thread(target=self._watch, name="snakepit_shm", daemon=True)
        try:
            watcher.start()
        except RuntimeError:
            # No more threads: the interpreter ends, and the session with it; or a limit, and then the next operation resumes.
            return
        self._watcher = watcher

    def _watch(self) -> None:
        failed = False
        while True:
            with self._lock:
                channel = self._channel
                alive = channel is not None and channel.dead is None
                if self._closed or (not alive and (failed or not self._worth_resuming())):
                    self._watcher = None
                    return
            if not alive:
                try:
                    self._ready(time.monotonic() + options.current.reconnect_timeout)
                except errors.SnakepitShmError as error:
                    # The next operation tries again, and starts another watcher.
                    log.info("the session was not resumed: %s", error)
                    failed = True
                continue
            assert channel is not None
            failed = False
            self._do_chores(channel)
            if not channel.attend(1.0):
                channel.sleep(self._wake_out, 60.0)
            try:
                self._wake_out.recv(4096)
            except OSError:
                pass

    def _worth_resuming(self) -> bool:
        return any((h.grants or h.allocated) and h.lost is None and not h.leaving for h in self._holds.values())

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except OSError:
            # Full: it is awake. Closed: it has gone.
            pass

    def _abandoned(self, late: Abandoned) -> None:
        """Queues what undoes a request that nobody waits for. Where the channel broke, it may have been done or not."""
        answer = late.answer
        if answer is not None and answer.get("ok") is not True:
            return
        if late.op == "attach":
            self._chores.append((self._session, "detach", late.fields["id"]))
        elif late.op == "write_begin":
            self._chores.append((self._session, "write_end", late.owner))
        elif late.op == "allocate" and answer is not None and isinstance(answer.get("region"), dict):
            self._chores.append((self._session, "free", answer["region"].get("id")))
        self._wake()

    def _do_chores(self, channel: Channel) -> None:
        for _ in range(len(self._chores)):
            try:
                session, op, what = self._chores.popleft()
            except IndexError:
                return
            try:
                self._do_chore(channel, session, op, what)
            except Broken:
                self._chores.append((session, op, what))
                return
            except errors.SnakepitShmError as error:
                log.info("%s of a dropped region: %s", op, error)

    def _do_chore(self, channel: Channel, session: Optional[str], op: str, what: Any) -> None:
        deadline = time.monotonic() + SLACK
        if op == "release":
            self.release(what)
        elif op == "free_hold":
            try:
                if what.lost is None:
                    channel.call("free", {"id": what.id}, deadline)
            finally:
                self._forget(what)
        elif session != self._session:
            # What that session had is gone with it.
            return
        elif op == "detach":
            with self._lock:
                if what in self._holds:
                    return
                hold = self._holds[what] = Hold(what)
                hold.leaving = True
            self._detach(hold)
        elif op == "free":
            channel.call("free", {"id": what}, deadline)
        elif op == "write_end":
            if not what.writing.acquire(timeout=1.0):
                # A thread of ours writes, or tries to: not now.
                self._chores.append((session, op, what))
                self._wake()
                return
            try:
                channel.call("write_end", {"id": what.id}, deadline)
            finally:
                what.writing.release()

    # Ends

    def close(self) -> None:
        with self._lock:
            self._closed = True
            watcher, channel = self._watcher, self._channel
            self._changed.notify_all()
        if channel is not None:
            channel.lose(errors.unreachable("The connections of this process are closed."))
        self._wake()
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(1.0)
        self._wake_in.close()
        self._wake_out.close()

    def forked(self) -> None:
        """In a forked child: the session is the parent's. Closes the copies of its descriptors and takes no lock."""
        self._closed = True
        for channel in (self._channel, self._opening):
            if channel is not None:
                channel.forked()
        self._wake_in.close()
        self._wake_out.close()


def _name() -> str:
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    name = f"python {os.getpid()} {program}".strip()
    return name.encode("utf-8", "replace")[:64].decode("utf-8", "ignore")
