"""A broker in Python: PROTOCOL.md and LAYOUT.md from the other side, with handles to break things by.

It is written from the documents and shares no code with the package that it tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

# The package under test.
CLIENT = Path(__file__).resolve().parents[2] / "priv" / "python"

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8

with open("/proc/sys/kernel/random/boot_id") as _file:
    BOOT_ID = bytes.fromhex(_file.read().strip().replace("-", ""))

ITEM = {"uint8": 1, "int32": 4, "float32": 4, "float64": 8, "bfloat16": 2, "complex128": 16, "bool": 1, "int16": 2}


def header(
    id: str, size: int, *, dtype: Optional[str] = None, shape: Optional[List[int]] = None, metadata: Optional[Dict[str, Any]] = None,
    named: bool = False, peers_write: bool = True, state: int = 1, sequence: int = 0,
    access_read_only: bool = False, owner_read_only: bool = False, label: str = "",
) -> bytes:
    """The page of native/shm/LAYOUT.md."""
    page = bytearray(4096)

    def text(at: int, room: int, value: str) -> None:
        raw = value.encode()
        page[at] = len(raw)
        page[at + 1 : at + 1 + len(raw)] = raw
        assert len(raw) <= room

    page[0:8] = b"SNKPSHM\0"
    struct.pack_into("<IIQQ", page, 8, 1, 4096, 4096, size)
    struct.pack_into("<IIII", page, 32, int(named) | peers_write << 2 | access_read_only << 3 | owner_read_only << 4, 0o600, 1, 0)
    struct.pack_into("<QQ", page, 48, 2**64 - 1, int(time.time() * 1e6))
    page[64:80] = BOOT_ID
    struct.pack_into("<QQQ", page, 80, os.stat("/proc/self/ns/pid").st_ino, os.getpid(), 1)
    text(112, 127, id)
    text(240, 63, "fake")
    text(304, 15, dtype or "")
    struct.pack_into("<I", page, 320, 0xFFFFFFFF if shape is None else len(shape))
    for i, n in enumerate(shape or []):
        struct.pack_into("<Q", page, 328 + 8 * i, n)
    raw = json.dumps(metadata or {}).encode()
    struct.pack_into("<I", page, 584, len(raw))
    page[592 : 592 + len(raw)] = raw
    text(3664, 223, label)
    struct.pack_into("<I", page, 4028, zlib.crc32(page[:4028]))
    struct.pack_into("<QQI", page, 4032, sequence, 0, state)
    return bytes(page)


def pages(n: int) -> int:
    return (n + 4095) // 4096 * 4096


class Refused(Exception):
    def __init__(self, type: str, reason: str) -> None:
        super().__init__(reason)
        self.answer = {"type": type, "reason": reason, "message": f"The fake broker says {reason}."}


class Stored:
    """A region."""

    def __init__(self, id: str, fd: int, size: int, dtype: Optional[str], shape: Optional[List[int]], metadata: Dict[str, Any], mode: str, named: bool = False) -> None:
        self.id, self.fd, self.size, self.dtype, self.shape, self.metadata = id, fd, size, dtype, shape, metadata
        self.mode, self.named, self.sealed, self.sequence = mode, named, False, 0
        self.writer: Optional[str] = None
        self.owner: Optional[str] = None
        self.invalid = False
        self.length = os.fstat(fd).st_size

    def live(self) -> None:
        state = 4 if self.invalid else 2 if self.sealed else 1
        os.pwrite(self.fd, struct.pack("<QQI", self.sequence, 2 if self.writer else 0, state), 4032)

    def describe(self, mode: str) -> Dict[str, Any]:
        return {
            "id": self.id, "size": self.size, "data_offset": 4096, "length": self.length, "dtype": self.dtype, "shape": self.shape,
            "state": "sealed" if self.sealed else "allocated", "mode": mode, "generation": self.sequence // 2, "named": self.named,
            "metadata": self.metadata,
        }


class Peer:
    """A connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.session: Optional[str] = None
        self.lock = threading.Lock()
        self.pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def send_raw(self, data: bytes, fds: Tuple[int, ...] = ()) -> None:
        with self.lock:
            if fds:
                sent = socket.send_fds(self.sock, [data], list(fds))
                data = data[sent:]
            self.sock.sendall(data)

    def send(self, fields: Dict[str, Any], fd: Optional[int] = None) -> None:
        if fd is not None:
            fields = {**fields, "fds": 1}
        body = json.dumps(fields).encode()
        self.send_raw(struct.pack(">I", len(body)) + body, () if fd is None else (fd,))

    def shut(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


Hook = Callable[[Peer, Dict[str, Any]], Any]


class FakeBroker:
    def __init__(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="snakepit-test-")
        self.path = os.path.join(self.dir, "b.sock")
        self.cond = threading.Condition()
        self.regions: Dict[str, Stored] = {}
        self.sessions: Dict[str, Dict[str, str]] = {}
        self.peers: Set[Peer] = set()
        self.log: List[Tuple[str, Optional[str], int]] = []
        # op -> what to do instead (or, answering None, before). Called without the lock.
        self.hooks: Dict[str, Hook] = {}
        self.count = 0
        self.greeted = 0
        self.listener: Optional[socket.socket] = None
        self.threads: List[threading.Thread] = []
        self.stopped = False
        self.start()

    # Life

    def start(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self._spawn(self._accept, self.listener)

    def _spawn(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def stop_listening(self) -> None:
        assert self.listener is not None
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.unlink(self.path)

    def drop_connections(self) -> None:
        """As when the VM's side of the connections dies: the sessions stay."""
        with self.cond:
            peers = list(self.peers)
            for peer in peers:
                self.peers.discard(peer)
            self.cond.notify_all()
        for peer in peers:
            peer.shut()

    def forget_sessions(self) -> None:
        with self.cond:
            self.sessions.clear()

    def stop(self) -> None:
        self.stopped = True
        try:
            self.stop_listening()
        except (OSError, FileNotFoundError):
            pass
        self.drop_connections()
        with self.cond:
            self.cond.notify_all()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive(), "a thread of the fake broker hangs"
        for region in self.regions.values():
            os.close(region.fd)
        os.rmdir(self.dir)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            peer = Peer(sock)
            with self.cond:
                self.peers.add(peer)
                self.cond.notify_all()
            self._spawn(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        buffer = b""
        try:
            while True:
                data = peer.sock.recv(65536)
                if not data:
                    return
                buffer += data
                while len(buffer) >= 4:
                    length = struct.unpack_from(">I", buffer)[0]
                    assert 0 < length <= (65536 if peer.session else 4096)
                    if len(buffer) < 4 + length:
                        break
                    request, buffer = json.loads(buffer[4 : 4 + length]), buffer[4 + length :]
                    if request["op"] in ("wait", "write_begin"):
                        self._spawn(self._handle, peer, request)
                    else:
                        self._handle(peer, request)
        except OSError:
            pass
        finally:
            with self.cond:
                # The peer closed: its session ends. (When drop_connections did it, the peer is not in the set.)
                if peer in self.peers:
                    self.peers.discard(peer)
                    self._end(peer.session)
                self.cond.notify_all()
            peer.sock.close()

    def _end(self, session: Optional[str]) -> None:
        self.sessions.pop(session or "", None)
        for region in list(self.regions.values()):
            if session is not None and region.writer == session:
                region.writer, region.invalid = None, True
                region.live()
            if session is not None and region.owner == session and not region.sealed:
                os.close(region.fd)
                del self.regions[region.id]

    # Regions

    def memfd(self, data: bytes, page: bytes, *, seals: int = SHRINK | GROW, length: Optional[int] = None) -> int:
        fd = os.memfd_create("snakepit-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, pages(4096 + len(data)) if length is None else length)
        os.pwrite(fd, page, 0)
        os.pwrite(fd, data, 4096)
        if seals:
            fcntl.fcntl(fd, F_ADD_SEALS, seals)
        return fd

    def put(self, data: bytes, *, id: Optional[str] = None, dtype: Optional[str] = None, shape: Optional[List[int]] = None, mode: str = "read_only", sealed: bool = False, metadata: Optional[Dict[str, Any]] = None, fd: Optional[int] = None, named: bool = False) -> Dict[str, Any]:
        """Makes a region; answers its handle."""
        with self.cond:
            self.count += 1
            id = id or f"shm_r{self.count}"
            if fd is None:
                fd = self.memfd(data, header(id, len(data), dtype=dtype, shape=shape, metadata=metadata))
            region = self.regions[id] = Stored(id, fd, len(data), dtype, shape, metadata or {}, mode, named)
            if sealed:
                self._seal(region)
            return self.handle(region, mode)

    def handle(self, region: Stored, mode: str) -> Dict[str, Any]:
        return {
            "snakepit_shm": 1, "id": region.id, "instance": "fake", "socket": self.path, "token": f"token-{region.id}-{mode}",
            "mode": mode, "expires": None, "size": region.size, "dtype": region.dtype, "shape": region.shape, "metadata": region.metadata,
        }

    def _seal(self, region: Stored) -> None:
        region.sealed = True
        region.live()
        try:
            fcntl.fcntl(region.fd, F_ADD_SEALS, WRITE | SEAL)
        except OSError:
            region.sealed = False
            region.live()
            raise Refused("busy", "busy") from None

    def write(self, id: str, data: bytes) -> None:
        """A write by the VM."""
        with self.cond:
            region = self.regions[id]
            region.sequence += 1
            region.live()
            os.pwrite(region.fd, data, 4096)
            region.sequence += 1
            region.live()
            self.cond.notify_all()

    # What tests look at

    def held(self, id: str) -> int:
        with self.cond:
            return sum(id in held for held in self.sessions.values())

    def ops(self, op: str) -> int:
        with self.cond:
            return sum(entry[0] == op for entry in self.log)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits for something that the broker will see."""
        with self.cond:
            assert self.cond.wait_for(condition, seconds), "it did not happen"

    # Requests

    def _handle(self, peer: Peer, request: Dict[str, Any]) -> None:
        op, rid = request["op"], request["rid"]
        with self.cond:
            self.log.append((op, peer.session, peer.pid))
            self.cond.notify_all()
        try:
            hook = self.hooks.get(op)
            if hook is not None and hook(peer, request) is not None:
                return
            with self.cond:
                if peer not in self.peers:
                    # What a connection had not got to dies with it.
                    return
                fields, fd = getattr(self, f"_op_{op}")(peer, request)
                self.cond.notify_all()
                peer.send({"rid": rid, "ok": True, **fields}, fd)
        except Refused as refused:
            try:
                peer.send({"rid": rid, "ok": False, "error": refused.answer})
            except OSError:
                pass
        except OSError:
            pass

    def _op_hello(self, peer: Peer, request: Dict[str, Any]) -> Any:
        assert request["version"] == 1 and len(request["name"].encode()) <= 64
        session = request["session"]
        if session is None:
            self.greeted += 1
            session = f"s-{self.greeted}"
            self.sessions[session] = {}
        elif session not in self.sessions:
            raise Refused("security_violation", "unknown_session")
        peer.session = session
        return {"version": 1, "session": session, "grace": 5000}, None

    def _region(self, request: Dict[str, Any]) -> Stored:
        region = self.regions.get(request["id"])
        if region is None:
            raise Refused("region_not_found", "region_not_found")
        return region

    def _holds(self, peer: Peer) -> Dict[str, str]:
        assert peer.session is not None
        held = self.sessions.get(peer.session)
        if held is None:
            raise Refused("security_violation", "unknown_session")
        return held

    def _held_region(self, peer: Peer, request: Dict[str, Any]) -> Stored:
        if request["id"] not in self._holds(peer):
            raise Refused("permission_denied", "not_held")
        return self._region(request)

    def _op_attach(self, peer: Peer, request: Dict[str, Any]) -> Any:
        if request["token"] != f"token-{request['id']}-{request['mode']}":
            raise Refused("security_violation", "bad_token")
        region = self._region(request)
        if region.invalid:
            raise Refused("corruption_detected", "invalid")
        mode = "read_only" if "read_only" in (region.mode, request["mode"], request.get("want")) else "read_write"
        self._holds(peer)[region.id] = mode
        return {"region": region.describe(mode)}, region.fd

    def _op_detach(self, peer: Peer, request: Dict[str, Any]) -> Any:
        self._holds(peer).pop(request["id"], None)
        return {}, None

    def _until(self, peer: Peer, condition: Callable[[], bool], request: Dict[str, Any]) -> bool:
        def gone() -> bool:
            return self.stopped or peer not in self.peers

        found = self.cond.wait_for(lambda: gone() or condition(), request["timeout"] / 1000)
        if gone():
            raise ConnectionResetError
        return found

    def _op_write_begin(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._held_region(peer, request)
        if self._holds(peer)[region.id] != "read_write":
            raise Refused("permission_denied", "read_only")
        if not self._until(peer, lambda: region.writer is None, request):
            raise Refused("busy", "busy")
        region.writer = peer.session
        region.sequence += 1
        region.live()
        return {}, None

    def _op_write_end(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._held_region(peer, request)
        if region.writer != peer.session:
            raise Refused("invalid_state", "not_writer")
        region.writer = None
        region.sequence += 1
        region.live()
        return {"generation": region.sequence // 2}, None

    def _op_wait(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._held_region(peer, request)
        seen = request["generation"]
        if not self._until(peer, lambda: region.sequence // 2 > seen, request):
            raise Refused("timeout", "timeout")
        return {"generation": region.sequence // 2}, None

    def _op_allocate(self, peer: Peer, request: Dict[str, Any]) -> Any:
        size, dtype, shape = request["size"], request["dtype"], request["shape"]
        if size > 1 << 30:
            raise Refused("memory_limit_exceeded", "size_exceeds_limit")
        product = 1
        for n in shape or []:
            product *= n
        assert (dtype is None and shape is None) or product * ITEM[dtype] == size
        self.count += 1
        id = f"shm_r{self.count}"
        fd = self.memfd(b"", header(id, size, dtype=dtype, shape=shape, metadata=request["metadata"]), length=pages(4096 + size))
        region = self.regions[id] = Stored(id, fd, size, dtype, shape, request["metadata"], "read_write")
        region.owner = peer.session
        self._holds(peer)[id] = "read_write"
        return {"region": region.describe("read_write")}, fd

    def _owned(self, peer: Peer, request: Dict[str, Any]) -> Stored:
        region = self._region(request)
        if region.owner != peer.session:
            raise Refused("permission_denied", "not_owner")
        return region

    def _op_seal(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._owned(peer, request)
        if region.sealed:
            raise Refused("invalid_state", "sealed")
        self._seal(region)
        region.mode = "read_only"
        self._holds(peer)[region.id] = "read_only"
        return {"region": region.describe("read_only"), "handle": self.handle(region, "read_only")}, region.fd

    def _op_handle(self, peer: Peer, request: Dict[str, Any]) -> Any:
        return {"handle": self.handle(self._held_region(peer, request), "read_only")}, None

    def _op_info(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._held_region(peer, request)
        return {"region": region.describe(self._holds(peer)[region.id])}, None

    def _op_free(self, peer: Peer, request: Dict[str, Any]) -> Any:
        region = self._owned(peer, request)
        os.close(region.fd)
        del self.regions[region.id]
        for held in self.sessions.values():
            held.pop(region.id, None)
        return {}, None

    def _op_ping(self, peer: Peer, request: Dict[str, Any]) -> Any:
        return {}, None
