"""One socket to the broker: frames out, frames and descriptors in. Who waits for which answer is connection.py's."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional

from . import errors

MAX_FRAME = 65_536
MAX_GREETING = 4_096
FRAME_SECONDS = 5.0

_LENGTH = struct.Struct(">I")
# Room for more descriptors than a frame may carry, so that a broker that sends too many is seen and not only cut short.
_ANCILLARY = socket.CMSG_SPACE(8 * array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Descriptor:
    """A file descriptor with one owner, closed once: by :meth:`close`, or when the owner drops it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError("the descriptor is closed")
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Frame(NamedTuple):
    fields: Dict[str, Any]
    descriptor: Optional[Descriptor]
    # The frame announced a descriptor that the kernel could not install: this process has none left.
    descriptor_refused: bool


class Batch(NamedTuple):
    """Descriptors, and the bytes of the stream that they came with."""

    start: int
    end: int
    descriptors: List[Descriptor]
    truncated: bool


class Decoder:
    """Cuts the stream into frames and gives each the descriptor that came with its first byte.

    Linux may put what stood in the queue *before* the bytes that carry descriptors into the same read, but ends the
    read with them. So a batch belongs to the one frame that says ``"fds": 1`` and begins among the batch's bytes; a batch
    without such a frame, or a frame without such a batch, is a fault of the broker.
    """

    def __init__(self) -> None:
        self.limit = MAX_GREETING
        self._bytes = bytearray()
        self._position = 0
        self._batches: Deque[Batch] = deque()

    @property
    def incomplete(self) -> bool:
        return bool(self._bytes)

    def feed(self, data: bytes, descriptors: List[Descriptor], truncated: bool) -> List[Frame]:
        if descriptors or truncated:
            start = self._position + len(self._bytes)
            self._batches.append(Batch(start, start + len(data), descriptors, truncated))
        self._bytes += data
        frames: List[Frame] = []
        while len(self._bytes) >= _LENGTH.size:
            length: int = _LENGTH.unpack_from(self._bytes)[0]
            if not 0 < length <= self.limit:
                raise errors.protocol(f"a frame of {length} bytes, where 1 to {self.limit} are allowed")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            body = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            start, self._position = self._position, self._position + end
            frames.append(self._frame(body, start))
        return frames

    def _frame(self, body: bytes, start: int) -> Frame:
        try:
            fields = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise errors.protocol(f"a frame that is not JSON: {body!r:.60}") from None
        if not isinstance(fields, dict):
            raise errors.protocol(f"a frame that is not an object: {body!r:.60}")
        announced = fields.get("fds", 0)
        if isinstance(announced, bool) or announced not in (0, 1):
            raise errors.protocol(f"fds: {announced!r:.60}, where 1 is allowed")
        batch: Optional[Batch] = None
        if announced and self._batches and self._batches[0].start <= start < self._batches[0].end:
            batch = self._batches.popleft()
        if self._batches and self._batches[0].end <= self._position:
            raise errors.protocol("a descriptor with a frame that announces none")
        if not announced:
            return Frame(fields, None, False)
        if batch is None:
            raise errors.protocol("a frame announces a descriptor and none came with its first byte")
        if batch.truncated and not batch.descriptors:
            return Frame(fields, None, True)
        if len(batch.descriptors) != 1 or batch.truncated:
            raise errors.protocol("a frame came with several descriptors, where 1 is allowed")
        return Frame(fields, batch.descriptors[0], False)

    def clear(self) -> None:
        """Drops what has not been handed out, and so closes its descriptors."""
        self._batches.clear()
        self._bytes = bytearray()


class Transport:
    """A connected socket. One thread reads at a time, any number send. Which, and for how long, the channel says."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._begun: Optional[float] = None
        self._sending = threading.Lock()
        self._readable = select.poll()
        self._readable.register(sock.fileno(), select.POLLIN)
        self._shut = False
        # The other side ended it. If this side does, the session is over: the broker takes it for the end of the peer.
        self.hung_up = False

    @classmethod
    def connect(cls, path: str, deadline: float) -> Transport:
        """May raise OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(path)
            sock.setblocking(False)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def greeted(self) -> None:
        self._decoder.limit = MAX_FRAME

    def send(self, frame: bytes, deadline: float) -> None:
        """Sends all of a frame. Raises TimeoutError if not a byte has gone, ConnectionLostError if the socket is broken."""
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise errors.timed_out("The broker takes no more requests: other threads wait to send theirs.")
        rest = memoryview(frame)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest, _NOSIGNAL) :]
                except BlockingIOError:
                    self._wait_writable(deadline, begun=len(rest) < len(frame))
                except OSError as error:
                    raise self._hang_up(f"The connection to the broker was lost ({error}).") from None
        finally:
            # A deadline or an interrupt in the middle: nothing can follow half a frame.
            if 0 < len(rest) < len(frame):
                self.shutdown()
            self._sending.release()

    def _wait_writable(self, deadline: float, begun: bool) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            if begun:
                raise errors.lost("The broker stopped reading in the middle of a request.")
            raise errors.timed_out("The broker takes no more requests.")
        writable = select.poll()
        writable.register(self._socket.fileno(), select.POLLOUT)
        writable.poll(left * 1000)

    def read(self, deadline: float) -> List[Frame]:
        """The frames that are complete. None at the deadline. Raises ConnectionLostError or ProtocolError: then it is over."""
        until = deadline if self._begun is None else min(deadline, self._begun + FRAME_SECONDS)
        if not self._readable.poll(max(0.0, until - time.monotonic()) * 1000):
            if self._begun is not None and time.monotonic() >= self._begun + FRAME_SECONDS:
                raise errors.protocol(f"a frame was not complete within {FRAME_SECONDS:.0f} seconds")
            return []
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MAX_FRAME, _ANCILLARY, _CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise self._hang_up(f"The connection to the broker was lost ({error}).") from None
        descriptors = _descriptors(ancillary)
        if not data:
            raise self._hang_up("The broker closed the connection.")
        frames = self._decoder.feed(data, descriptors, bool(flags & socket.MSG_CTRUNC))
        if frames or not self._decoder.incomplete:
            self._begun = None
        if self._decoder.incomplete and self._begun is None:
            self._begun = time.monotonic()
        return frames

    def _hang_up(self, what: str) -> errors.ConnectionLostError:
        self.hung_up = self.hung_up or not self._shut
        return errors.lost(what)

    def shutdown(self) -> None:
        self._shut = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Closes this process's descriptor and no more: a forked child calls it too, and the parent's goes on."""
        self._decoder.clear()
        self._socket.close()


def encode(fields: Dict[str, Any], limit: int = MAX_FRAME) -> bytes:
    try:
        body = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.invalid("request", f"what JSON can say ({error})", fields.get("metadata"), "invalid_json") from None
    if len(body) > limit:
        raise errors.invalid("request", f"at most {limit} bytes of JSON; is metadata large?", f"{len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


def _descriptors(ancillary: List[Any]) -> List[Descriptor]:
    found: List[Descriptor] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            found.extend(Descriptor(fd) for fd in fds)
    if not _CLOEXEC:
        for descriptor in found:
            os.set_inheritable(descriptor.fileno(), False)
    return found
