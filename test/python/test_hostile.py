"""A broker that lies, stops, or sends garbage: a clean error, no descriptor kept, no crash."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading

import fake_broker
import pytest

import snakepit_shm as shm
from snakepit_shm import transport
from snakepit_shm.transport import Decoder


def frame(fields):
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack(">I", len(body)) + body


def answer(request, **fields):
    return {"rid": request["rid"], "ok": True, **fields}


MALFORMED = {
    "garbage": lambda r: b"\xff" * 64,
    "giant": lambda r: struct.pack(">I", 2**31) + b"x",
    "empty": lambda r: struct.pack(">I", 0),
    "not json": lambda r: frame(b"{nope"),
    "not utf-8": lambda r: frame(b'{"rid": "\xff"}'),
    "not an object": lambda r: frame(b"[1]"),
    "deep": lambda r: frame(b"[" * 60_000),
    "huge number": lambda r: frame(b'{"rid": ' + b"9" * 20_000 + b"}"),
    "no rid": lambda r: frame({"ok": True}),
    "a complaint": lambda r: frame({"rid": None, "ok": False, "error": {"type": "x", "reason": "protocol", "message": "no"}}),
    "rid of another type": lambda r: frame({"rid": "7", "ok": True}),
    "rid of nobody": lambda r: frame({"rid": 10**6, "ok": True}),
    "no ok": lambda r: frame({"rid": r["rid"]}),
    "fds of another type": lambda r: frame({**answer(r), "fds": "1"}),
    "two fds announced": lambda r: frame({**answer(r), "fds": 2}),
    "announced and not sent": lambda r: frame({**answer(r), "fds": 1}),
    "no descriptor": lambda r: frame(answer(r)),
    "refused without an error": lambda r: frame({"rid": r["rid"], "ok": False}),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_malformed_frames_end_the_connection(broker, name):
    handle = broker.put(b"abc")

    def hook(peer, request):
        del broker.hooks["attach"]
        peer.send_raw(MALFORMED[name](request))
        return True

    broker.hooks["attach"] = hook
    with pytest.raises(shm.ProtocolError):
        shm.attach(handle)
    # A new connection starts afresh.
    with shm.attach(handle) as region:
        assert region.read() == b"abc"


@pytest.mark.parametrize("name", ["garbage", "giant", "not an object", "rid of nobody", "no ok", "a complaint"])
def test_a_malformed_greeting(broker, name):
    broker.hooks["hello"] = lambda peer, request: peer.send_raw(MALFORMED[name](request)) or True
    with pytest.raises(shm.ProtocolError):
        shm.attach(broker.put(b"abc"))


@pytest.mark.parametrize("fields", [{"version": 2}, {"session": 5}, {"session": ""}, {"grace": None}, {"version": None}])
def test_a_greeting_that_says_something_else(broker, fields):
    good = {"version": 1, "session": "s", "grace": 1}
    broker.hooks["hello"] = lambda peer, request: peer.send({**answer(request), **good, **fields}) or True
    with pytest.raises(shm.ProtocolError):
        shm.attach(broker.put(b"abc"))


def test_a_greeting_may_not_be_long(broker):
    broker.hooks["hello"] = lambda peer, request: peer.send({**answer(request, version=1, session="s", grace=1), "x": "x" * 5000}) or True
    with pytest.raises(shm.ProtocolError, match="4096"):
        shm.attach(broker.put(b"abc"))


def test_a_greeting_that_is_refused(broker):
    error = {"type": "security_violation", "reason": "too_many_connections", "message": "Enough."}
    broker.hooks["hello"] = lambda peer, request: peer.send({"rid": request["rid"], "ok": False, "error": error}) or True
    with pytest.raises(shm.SecurityViolationError, match="Enough"):
        shm.attach(broker.put(b"abc"))


def test_a_broker_that_hangs_up_at_once(broker):
    broker.hooks["hello"] = lambda peer, request: peer.shut() or True
    with pytest.raises(shm.ConnectionLostError):
        shm.attach(broker.put(b"abc"))


def test_a_broker_that_says_nothing(broker):
    shm.configure(request_timeout=0.05)
    broker.hooks["hello"] = lambda peer, request: True
    with pytest.raises((shm.ConnectionLostError, shm.TimeoutError)):
        shm.attach(broker.put(b"abc"))


def test_a_frame_that_does_not_end(broker, monkeypatch):
    monkeypatch.setattr(transport, "FRAME_SECONDS", 0.05)
    broker.hooks["attach"] = lambda peer, request: peer.send_raw(b"\0\0\0\x20{") or True
    with pytest.raises(shm.ProtocolError, match="complete"):
        shm.attach(broker.put(b"abc"))


def test_an_unknown_error_is_of_the_base_class(broker):
    broker.hooks["attach"] = lambda peer, request: peer.send(
        {"rid": request["rid"], "ok": False, "error": {"type": "new_type", "reason": "new_reason", "message": "New."}}
    ) or True
    with pytest.raises(shm.SnakepitShmError) as caught:
        shm.attach(broker.put(b"abc"))
    assert type(caught.value) is shm.SnakepitShmError and (caught.value.type, caught.value.reason) == ("new_type", "new_reason")


def test_an_error_without_words(broker):
    broker.hooks["attach"] = lambda peer, request: peer.send({"rid": request["rid"], "ok": False, "error": {"type": 5}}) or True
    with pytest.raises(shm.ProtocolError):
        shm.attach(broker.put(b"abc"))


def test_descriptors_that_nobody_asked_for(broker):
    handle = broker.put(b"abc")
    fd = broker.regions[handle["id"]].fd
    with shm.attach(handle) as region:
        for fields, fds in (({}, (fd,)), ({}, (fd,) * 3), ({"fds": 1}, (fd,))):
            broker.hooks["handle"] = lambda peer, request: peer.send_raw(frame({**answer(request, handle={}), **fields}), fds) or True
            with pytest.raises(shm.ProtocolError):
                region.handle()


def test_too_many_descriptors(broker):
    handle = broker.put(b"abc")
    stored = broker.regions[handle["id"]]
    for count in (2, 8, 200):
        broker.hooks["attach"] = lambda peer, request: peer.send_raw(
            frame(answer(request, fds=1, region=stored.describe("read_only"))), (stored.fd,) * count
        ) or True
        with pytest.raises(shm.ProtocolError, match="several descriptors"):
            shm.attach(handle)


@pytest.mark.parametrize(
    "key, value",
    [
        ("id", "other"), ("size", 0), ("size", "3"), ("data_offset", 0), ("data_offset", 8192), ("length", 10), ("length", 2**80), ("dtype", 5),
        ("shape", 3), ("state", "freed"), ("mode", "all"), ("generation", -1), ("named", 1), ("metadata", None),
    ],
)
def test_a_region_described_wrongly(broker, key, value):
    handle = broker.put(b"abc")
    stored = broker.regions[handle["id"]]
    broker.hooks["attach"] = lambda peer, request: peer.send(answer(request, region={**stored.describe("read_only"), key: value}), stored.fd) or True
    with pytest.raises(shm.ProtocolError, match=f"region.{key}"):
        shm.attach(handle)
    # It is given back all the same.
    broker.until(lambda: broker.ops("detach") == 1)


def attach_to(broker, fd, **described):
    handle = broker.put(b"abc")
    region = {**broker.regions[handle["id"]].describe("read_only"), **described}
    broker.hooks["attach"] = lambda peer, request: peer.send(answer(request, region=region), fd) or True
    try:
        with pytest.raises(shm.CorruptionError) as caught:
            shm.attach(handle)
        return caught.value.field
    finally:
        os.close(fd)


def test_an_object_that_is_shorter_or_longer(broker):
    page = fake_broker.header("shm_r1", 3)
    assert attach_to(broker, broker.memfd(b"abc", page, length=4096)) == "length"
    assert attach_to(broker, broker.memfd(b"abc", page, length=65536)) == "length"


@pytest.mark.parametrize("seals", [0, 2, 4, 8])
def test_an_object_that_can_be_truncated(broker, seals):
    assert attach_to(broker, broker.memfd(b"abc", fake_broker.header("shm_r1", 3), seals=seals)) == "seals"


def test_something_that_is_no_memory(broker, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert attach_to(broker, os.dup(ours.fileno())) == "length"
    assert attach_to(broker, os.open(tmp_path, os.O_RDONLY)) == "length"
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    assert attach_to(broker, os.open(path, os.O_RDONLY)) == "seals"
    assert attach_to(broker, os.open(path, os.O_WRONLY), named=True) == "header page"


@pytest.mark.parametrize(
    "at, change, field",
    [
        (0, b"X", "magic"), (8, b"\x02", "layout version"), (12, b"\x01", "header size"), (16, b"\x01", "data offset"), (24, b"\0", "data size"),
        (24, b"\xff" * 8, "data size"), (32, b"\xff", "flags"), (40, b"\0", "cleanup policy"), (44, b"\x01", "reserved bytes at 44"), (104, b"\x01", "reserved bytes at 104"),
        (112, b"\x80", "id"), (113, b"\xff", "id"), (120, b"x", "id"), (240, b"\xff", "instance"), (304, b"\x10", "dtype"), (320, b"\x21\0\0\0", "dimensions"),
        (328, b"\x01", "shape"), (584, b"\x01\x0c", "metadata length"), (3000, b"\x01", "reserved bytes at 594"), (3900, b"\x01", "reserved bytes at 3888"),
        (63, b"\x99", "created at"), (112, b"\0\0\0\0\0\0\0", "id"), (113, b"S", "id"), (304, b"\x05int17", "dtype"), (304, b"\x05int16\0\0\0\0\0\0\0\0\0\0\x01\0\0\0", "shape"),
        (3664, b"\xe0", "name"), (3664, b"\x01a", "name"), (3666, b"a", "name"), (90, b"\x01", "checksum"), (4028, b"\0\0\0\0", "checksum"), (4048, b"\x05", "state"), (4048, b"\x04", "state"),
    ],
)
def test_a_damaged_header_names_the_field(broker, at, change, field):
    page = bytearray(fake_broker.header("shm_r1", 3))
    page[at : at + len(change)] = change
    assert attach_to(broker, broker.memfd(b"abc", bytes(page))) == field


def test_a_header_of_another_region(broker):
    assert attach_to(broker, broker.memfd(b"abc", fake_broker.header("shm_r9", 3))) == "id"
    assert attach_to(broker, broker.memfd(b"abc", fake_broker.header("shm_r2", 2))) == "data size"
    assert attach_to(broker, broker.memfd(b"abc", fake_broker.header("shm_r3", 3, named=True))) == "named"


def test_no_descriptor_left(broker):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    handle = broker.put(b"abc")
    with shm.attach(broker.put(b"x")) as region:
        highest = max(int(n) for n in os.listdir("/proc/self/fd"))
        spare = [os.dup(0) for _ in range(highest)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, hard))
        try:
            with pytest.raises(shm.AllocationError) as caught:
                shm.attach(handle)
            assert caught.value.reason == "emfile"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in spare:
                os.close(fd)
        broker.until(lambda: not broker.held(handle["id"]))
        assert region.handle() and broker.ops("hello") == 1


def test_an_answer_to_one_is_not_given_to_another(broker):
    """Several requests, answered in reverse, each with its own descriptor."""
    handles = [broker.put(bytes([65 + n]) * 3) for n in range(4)]
    asked = []

    def hook(peer, request):
        asked.append((peer, request))
        if len(asked) == 4:
            for peer, request in reversed(asked):
                stored = broker.regions[request["id"]]
                peer.send(answer(request, region=stored.describe("read_only")), stored.fd)
        return True

    broker.hooks["attach"] = hook
    got = {}

    def one(handle):
        with shm.attach(handle) as region:
            got[handle["id"]] = region.read()

    threads = [threading.Thread(target=one, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got == {handle["id"]: bytes([65 + n]) * 3 for n, handle in enumerate(handles)}


class Counted(transport.Descriptor):
    def __init__(self):
        super().__init__(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def test_the_decoder_at_every_cut():
    """Whatever the kernel makes of the stream, a descriptor belongs to the frame that it came with."""
    stream = [frame({"a": 1}), frame({"b": 2, "fds": 1}), frame({"c": 3}), frame({"d": 4, "fds": 1})]
    before = b"".join(stream[:1])
    for cut in range(1, len(stream[1]) + 1):
        decoder = Decoder()
        # Linux ends a read with the bytes that carry descriptors, but may begin it before them.
        got = decoder.feed(before + stream[1][:cut], [Counted()], False)
        got += decoder.feed(stream[1][cut:] + stream[2], [], False)
        got += decoder.feed(stream[3], [Counted()], False)
        assert [set(f.fields) - {"fds"} for f in got] == [{"a"}, {"b"}, {"c"}, {"d"}]
        assert [f.descriptor is not None for f in got] == [False, True, False, True]
        assert not decoder.incomplete


def test_the_decoder_byte_by_byte():
    decoder = Decoder()
    data = frame({"a": 1}) + frame({"b": 2})
    got = [f for n in range(len(data)) for f in decoder.feed(data[n : n + 1], [], False)]
    assert [f.fields for f in got] == [{"a": 1}, {"b": 2}]


def test_the_decoder_wants_the_descriptor_with_the_first_byte():
    whole = frame({"b": 2, "fds": 1})
    for cut in range(1, len(whole)):
        decoder, descriptor = Decoder(), Counted()
        decoder.feed(whole[:cut], [], False)
        with pytest.raises(shm.ProtocolError):
            decoder.feed(whole[cut:], [descriptor], False)
        # It is with the next frame's bytes otherwise.
        decoder, descriptor = Decoder(), Counted()
        with pytest.raises(shm.ProtocolError):
            decoder.feed(frame({"a": 1}), [descriptor], False)
