"""The VM's side of a connection dies; the VM restarts."""

from __future__ import annotations

import threading

import pytest

import snakepit_shm as shm
from snakepit_shm import connections


def drop_in(broker, op, *, handle_it=False, once=True):
    """The connection breaks when ``op`` comes: before the broker acts, or after."""

    def hook(peer, request):
        if once:
            del broker.hooks[op]
        if handle_it:
            with broker.cond:
                getattr(broker, f"_op_{op}")(peer, request)
        broker.drop_connections()
        return True

    broker.hooks[op] = hook


def test_an_idle_process_resumes_its_session(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        session = set(broker.sessions)
        for n in range(3):
            broker.drop_connections()
            # Nobody asks for anything: it comes back by itself.
            broker.until(lambda: broker.ops("hello") == n + 2 and len(broker.peers) == 1)
        assert set(broker.sessions) == session and broker.held(handle["id"]) == 1
        assert broker.ops("attach") == 1 and region.read() == b"abc"
        assert region.handle()["id"] == handle["id"]


def test_a_process_that_holds_nothing_does_not_come_back_by_itself(broker):
    handle = broker.put(b"abc")
    shm.attach(handle).close()
    watcher = connections.get(broker.path)._watcher
    broker.drop_connections()
    watcher.join(5)
    assert not watcher.is_alive() and broker.ops("hello") == 1
    with shm.attach(handle) as region:
        assert region.read() == b"abc"
    assert broker.ops("hello") == 2


def test_it_waits_until_the_broker_is_back(broker):
    with shm.attach(broker.put(b"abc")) as region:
        broker.stop_listening()
        broker.drop_connections()
        later = threading.Timer(0.1, broker.start)
        later.start()
        assert region.handle()["id"] == region.id
        later.join()
        assert broker.ops("attach") == 1


def test_it_gives_up_in_time(broker):
    shm.configure(reconnect_timeout=0.1)
    with shm.attach(broker.put(b"abc")) as region:
        broker.stop_listening()
        broker.drop_connections()
        for _ in range(2):
            with pytest.raises(shm.ConnectionLostError) as caught:
                region.handle()
            assert caught.value.reason == "unreachable"
        assert region.read() == b"abc"
        broker.start()
        assert region.handle()


def test_a_new_session_attaches_again(broker):
    handle, gone = broker.put(b"abc", mode="read_write"), broker.put(b"xyz")
    region, other, lost = shm.attach(handle), shm.attach(handle, mode="read_only"), shm.attach(gone)
    view = lost.memoryview()
    with broker.cond:
        broker.forget_sessions()
        import os

        os.close(broker.regions.pop(gone["id"]).fd)
    broker.drop_connections()
    broker.until(lambda: broker.held(handle["id"]) == 1 and len(broker.peers) == 1)
    with region.writing() as writable:
        writable[:] = b"new"
    assert other.read() == b"new"
    # What is no longer there stays readable, and that is all.
    for _ in range(2):
        with pytest.raises(shm.RegionNotFoundError):
            lost.handle()
    assert lost.read() == b"xyz" and bytes(view) == b"xyz"
    view.release()
    for each in (region, other, lost):
        each.close()
    broker.until(lambda: not broker.held(handle["id"]))


def test_another_region_under_the_same_name_is_not_taken_for_it(broker):
    handle = broker.put(b"abc")
    region = shm.attach(handle)
    with broker.cond:
        broker.forget_sessions()
        import os

        os.close(broker.regions.pop(handle["id"]).fd)
    broker.put(b"xyz", id=handle["id"])
    broker.drop_connections()
    with pytest.raises(shm.RegionNotFoundError, match="replaced"):
        region.handle()
    assert region.read() == b"abc"
    with shm.attach(handle) as fresh:
        assert fresh.read() == b"xyz"
    region.close()
    broker.until(lambda: not broker.held(handle["id"]))


def test_what_was_not_sealed_goes_with_the_session(broker):
    out = shm.allocate(3, socket=broker.path)
    kept = shm.allocate(3, socket=broker.path)
    kept.seal()
    with broker.cond:
        for session in list(broker.sessions):
            broker._end(session)
    broker.drop_connections()
    with pytest.raises(shm.RegionNotFoundError):
        out.seal()
    out.close()
    broker.until(lambda: broker.held(kept.id) == 1)
    kept.close()


@pytest.mark.parametrize("handle_it", [False, True])
def test_safe_requests_are_repeated(broker, handle_it):
    handle = broker.put(b"abc")
    drop_in(broker, "attach", handle_it=handle_it)
    with shm.attach(handle) as region:
        assert region.read() == b"abc" and broker.ops("attach") == 2
        drop_in(broker, "handle")
        assert region.handle()
    broker.until(lambda: not broker.held(handle["id"]))


def test_a_wait_goes_on(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        got = []
        thread = threading.Thread(target=lambda: got.append(region.wait(timeout=20)))
        thread.start()
        broker.until(lambda: broker.ops("wait") == 1)
        broker.drop_connections()
        broker.until(lambda: broker.ops("wait") == 2)
        broker.write(handle["id"], b"xyz")
        thread.join(10)
        assert got == [1]


@pytest.mark.parametrize("op", ["write_begin", "write_end"])
@pytest.mark.parametrize("handle_it", [False, True])
def test_a_write_across_a_broken_connection(broker, op, handle_it):
    handle = broker.put(b"abc", mode="read_write")
    with shm.attach(handle) as region:
        drop_in(broker, op, handle_it=handle_it)
        with region.writing() as view:
            view[:] = b"xyz"
        stored = broker.regions[handle["id"]]
        assert stored.writer is None and not stored.sequence & 1 and region.read() == b"xyz"
        with region.writing():
            pass


def test_a_write_whose_session_went(broker):
    handle = broker.put(b"abc", mode="read_write")
    region = shm.attach(handle)
    with pytest.raises(shm.CorruptionError) as caught:
        with region.writing():
            with broker.cond:
                for session in list(broker.sessions):
                    broker._end(session)
            broker.drop_connections()
    assert caught.value.reason == "invalid"
    region.close()


@pytest.mark.parametrize("handle_it", [False, True])
def test_a_seal_across_a_broken_connection(broker, handle_it):
    with shm.allocate(3, socket=broker.path) as out:
        out.write(b"abc")
        drop_in(broker, "seal", handle_it=handle_it)
        with shm.attach(out.seal()) as region:
            assert region.read() == bytes(out.memoryview()) == b"abc"


@pytest.mark.parametrize("handle_it", [False, True])
def test_a_free_across_a_broken_connection(broker, handle_it):
    out = shm.allocate(3, socket=broker.path)
    drop_in(broker, "free", handle_it=handle_it)
    out.free()
    assert not broker.regions


def test_an_allocation_is_not_repeated(broker):
    drop_in(broker, "allocate", handle_it=True)
    with pytest.raises(shm.ConnectionLostError) as caught:
        shm.allocate(3, socket=broker.path)
    assert caught.value.reason == "connection_lost" and broker.ops("allocate") == 1


def test_a_broker_that_always_hangs_up_is_left_alone(broker):
    with shm.attach(broker.put(b"abc")) as region:
        drop_in(broker, "handle", once=False)
        with pytest.raises(shm.ConnectionLostError, match="4 times"):
            region.handle()


def test_closing_while_the_broker_is_away(broker):
    handle = broker.put(b"abc")
    keep, region = shm.attach(broker.put(b"k")), shm.attach(handle)
    broker.stop_listening()
    broker.drop_connections()
    region.close()
    assert broker.held(handle["id"]) == 1
    broker.start()
    # The resumed session still held it.
    broker.until(lambda: not broker.held(handle["id"]))
    assert keep.handle()
    keep.close()


def test_a_late_answer_is_undone(broker):
    handle = broker.put(b"abc")
    shm.attach(handle).close()
    shm.configure(request_timeout=0.05)
    go = threading.Event()
    late = []

    def slow(peer, request):
        def answer():
            go.wait(10)
            with broker.cond:
                fields, fd = getattr(broker, f"_op_{request['op']}")(peer, request)
                peer.send({"rid": request["rid"], "ok": True, **fields}, fd)

        thread = threading.Thread(target=answer)
        thread.start()
        late.append(thread)
        return True

    broker.hooks["attach"] = broker.hooks["allocate"] = slow
    with pytest.raises(shm.TimeoutError):
        shm.attach(handle)
    with pytest.raises(shm.TimeoutError):
        shm.allocate(3, socket=broker.path)
    shm.configure(request_timeout=10)
    broker.until(lambda: broker.ops("detach") == 2)
    go.set()
    for thread in late:
        thread.join()
    broker.until(lambda: not broker.held(handle["id"]) and broker.ops("free") == 1)
    broker.hooks.clear()
    with shm.attach(handle) as region:
        assert region.read() == b"abc"


def test_a_grant_that_comes_late_is_given_back(broker, monkeypatch):
    from snakepit_shm import connection

    monkeypatch.setattr(connection, "SLACK", 0.0)
    handle = broker.put(b"abc", mode="read_write")
    stored = broker.regions[handle["id"]]
    with shm.attach(handle) as region:
        def slow(peer, request):
            del broker.hooks["write_begin"]
            request["timeout"] = 10_000

        broker.hooks["write_begin"] = slow
        stored.writer = "somebody"
        with pytest.raises(shm.TimeoutError):
            with region.writing(timeout=0.05):
                pass
        monkeypatch.undo()
        with broker.cond:
            stored.writer = None
            broker.cond.notify_all()
        broker.until(lambda: broker.ops("write_end") == 1 and stored.writer is None)
        with region.writing():
            pass
