"""A peer that keeps to nothing: sockets, descriptors and memory by hand, as told over stdin.

A command is a 4-byte length and JSON, `[function, arguments]`; the answer has the same form.
"""

import array
import base64
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FAILED = ctypes.c_void_p(-1).value
PUNCH_HOLE = 0x02 | 0x01
# Whoever forgets to kill a process of ours need not wait for ever.
LONGEST = 120

sockets = {}
mappings = {}
last_rid = 0


def whole(sock, count):
    """That many bytes, and the descriptors that came with them."""
    data, descriptors = b"", array.array("i")
    while len(data) < count:
        part, ancillary, _, _ = sock.recvmsg(count - len(data), socket.CMSG_SPACE(64 * 4))
        if not part:
            raise EOFError("the broker has closed the connection")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % 4])
        data += part
    return data, list(descriptors)


def receive(sock):
    head, descriptors = whole(sock, 4)
    body, more = whole(sock, struct.unpack(">I", head)[0])
    answer = json.loads(body)
    answer["descriptors"] = descriptors + more
    return answer


def framed(message):
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def attempt(function, *arguments):
    """"ok", or the name of the errno."""
    try:
        function(*arguments)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def checked(result):
    if result == -1 or result == FAILED:
        raise OSError(ctypes.get_errno(), "")
    return result


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def connect(path, name):
    sock = socket.socket(socket.AF_UNIX)
    # With a timeout it would be refused when the queue is full, instead of waiting.
    sock.connect(path)
    sock.settimeout(20)
    sockets[name] = sock


def idle():
    signal.alarm(LONGEST)
    for number in (0, 1):
        os.close(number)
    while True:
        signal.pause()


def fork():
    pid = os.fork()
    if pid == 0:
        idle()
    return pid


def connect_in_child(path, names):
    """Connections of a child, which keeps them; we have them too, as if we were the forked one."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for name in names:
            connect(path, name)
        socket.send_fds(theirs, [b"x"], [sockets[name].fileno() for name in names])
        ours.close()
        theirs.close()
        idle()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, len(names))
    ours.close()
    theirs.close()
    for name, descriptor in zip(names, descriptors):
        sockets[name] = socket.socket(fileno=descriptor)
        sockets[name].settimeout(20)
    return pid


def connect_as(uid, path):
    """As another user: what connecting, and then the broker, says."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(LONGEST)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            connect(path, "as")
            answer = receive(sockets["as"])
            try:
                receive(sockets["as"])
                answer["then"] = "frame"
            except (EOFError, ConnectionResetError):
                answer["then"] = "closed"
        except OSError as error:
            answer = {"errno": errno.errorcode[error.errno]}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as source:
        answer = json.loads(source.read())
    os.waitpid(pid, 0)
    return answer


def storm(path, processes):
    """Processes that connect and hang up, as fast as they can."""
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            signal.alarm(LONGEST)
            os.close(0)
            os.close(1)
            while True:
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.connect(path)
                except OSError:
                    pass
                sock.close()
        pids.append(pid)
    return pids


def request(name, op, fields):
    global last_rid
    last_rid += 1
    sockets[name].sendall(framed(dict(fields, op=op, rid=last_rid)))
    answer = receive(sockets[name])
    assert answer["rid"] == last_rid, answer
    assert len(answer["descriptors"]) == answer.get("fds", 0), answer
    answer["fd"] = answer["descriptors"][0] if answer["descriptors"] else None
    return answer


def push(name, op, fields, descriptors):
    """A request with descriptors of ours on its first and its last byte."""
    global last_rid
    last_rid += 1
    null = os.open("/dev/null", os.O_RDONLY)
    message = framed(dict(fields, op=op, rid=last_rid))
    socket.send_fds(sockets[name], [message[:1]], [null] * descriptors)
    sockets[name].sendall(message[1:-1])
    socket.send_fds(sockets[name], [message[-1:]], [null] * descriptors)
    os.close(null)
    return receive(sockets[name])


def pipeline(name, op, fields, count):
    """Requests, and only then their answers: each with the descriptor that belongs to it."""
    global last_rid
    rids = set()
    for _ in range(count):
        last_rid += 1
        rids.add(last_rid)
        sockets[name].sendall(framed(dict(fields, op=op, rid=last_rid)))
    wrong = 0
    for _ in range(count):
        answer = receive(sockets[name])
        rids.discard(answer["rid"])
        wrong += len(answer["descriptors"]) != answer.get("fds", 0)
        for number in answer["descriptors"]:
            os.close(number)
    return {"unanswered": len(rids), "wrong": wrong}


def send(name, op, fields):
    """A request whose answer nobody waits for yet."""
    sockets[name].sendall(framed(dict(fields, op=op, rid=0)))


def answer(name):
    return receive(sockets[name])


def close(name):
    sockets.pop(name).close()


def close_fd(fd):
    os.close(fd)


def read(fd, offset, length):
    return base64.b64encode(os.pread(fd, length, offset)).decode()


def map_shared(fd, length, name):
    """Maps it shared and writable: "ok", or why not."""

    def go():
        mappings[name] = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    return attempt(go)


def poke(name, offset, data):
    raw = base64.b64decode(data)
    mappings[name][offset : offset + len(raw)] = raw


def unmap(name):
    mappings.pop(name).close()


def mode(fd):
    return {os.O_RDONLY: "read_only", os.O_RDWR: "read_write"}[fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]


def seal(fd, names):
    """Adds seals, through a descriptor of its own that is open for writing."""
    wanted = 0
    for name in names:
        wanted |= {"seal": 0x1, "shrink": 0x2, "grow": 0x4, "write": 0x8, "future_write": 0x10}[name]

    def go():
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            fcntl.fcntl(again, fcntl.F_ADD_SEALS, wanted)
        finally:
            os.close(again)

    return attempt(go)


def chmod(fd, bits):
    return attempt(os.fchmod, fd, bits)


def break_out(fd, length):
    """Every way to write memory, or take it away, that a reader could try. What each says."""
    results = {}
    both, shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED

    def in_place(number):
        return {
            "map": attempt(mmap.mmap, number, length, shared, both),
            "pwrite": attempt(os.pwrite, number, b"!", 4096),
            "shrink": attempt(os.ftruncate, number, length - 4096),
            "empty": attempt(os.ftruncate, number, 0),
            "grow": attempt(os.ftruncate, number, length + 4096),
            "punch": attempt(lambda: checked(libc.fallocate(number, PUNCH_HOLE, 0, length))),
            "zero": attempt(lambda: checked(libc.fallocate(number, 0x10, 0, length))),
        }

    def upgrade():
        address = checked(libc.mmap(None, length, mmap.PROT_READ, shared, fd, 0))
        try:
            checked(libc.mprotect(address, length, both))
        finally:
            libc.munmap(address, length)

    results["as given"] = in_place(fd)
    results["mprotect"] = attempt(upgrade)
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        results["reopened"] = in_place(again)
        os.close(again)
    except OSError as error:
        results["reopened"] = errno.errorcode[error.errno]
    return results


def main():
    commands = {name: value for name, value in globals().items() if callable(value)}
    # Not copies of them: children close 0 and 1, and a pipe that they keep would hide our own end.
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while True:
        head = source.read(4)
        if len(head) < 4:
            return
        function, arguments = json.loads(source.read(struct.unpack(">I", head)[0]))
        try:
            answer = {"ok": commands[function](**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        target.write(framed(answer))
        target.flush()


if __name__ == "__main__":
    main()
