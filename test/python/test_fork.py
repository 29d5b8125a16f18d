"""A forked child has the memory of its parent, and a session of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback

import pytest

import snakepit_shm as shm
from snakepit_shm import connections


def in_child(function):
    """Runs it in a forked child that leaves without any clean-up of the parent's tests."""
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(20)
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def sockets():
    return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}") and "socket:" in os.readlink(f"/proc/self/fd/{n}")]


def test_the_child_reads_and_asks_for_itself(broker):
    handle = broker.put(b"abc", mode="read_write")
    region = shm.attach(handle)
    parent = set(broker.sessions)

    def child():
        assert region.read() == b"abc"
        with region.writing() as view:
            view[:] = b"xyz"
        with shm.attach(handle) as again:
            assert again.read() == b"xyz"
        region.close()

    in_child(child)
    assert region.read() == b"xyz" and region.generation == 1
    broker.until(lambda: set(broker.sessions) == parent)
    assert broker.held(handle["id"]) == 1 and region.handle()
    # Two sessions, each attached once for itself; the child's detach was its own.
    assert broker.ops("hello") == 2 and len({pid for op, _, pid in broker.log if op == "detach"}) == 1
    region.close()
    broker.until(lambda: not broker.held(handle["id"]))


def test_the_child_closes_and_drops_without_the_parent_noticing(broker):
    handle, other = broker.put(b"abc"), broker.put(b"xyz")
    region, dropped = [shm.attach(handle)], [shm.attach(other)]

    def child():
        region[0].close()
        dropped.clear()
        gc.collect()
        connections.close_all()

    in_child(child)
    assert broker.ops("detach") == 0 and broker.ops("hello") == 1
    assert region[0].handle() and dropped[0].handle()
    region[0].close()
    dropped[0].close()


def test_the_child_inherits_no_socket(broker):
    with shm.attach(broker.put(b"abc")):
        connection = connections.get(broker.path)
        ours = connection._channel._transport.fileno()

        def child():
            try:
                os.fstat(ours)
            except OSError:
                return
            assert str(ours) not in sockets()

        in_child(child)


def test_the_connection_ends_with_the_parent_though_a_child_lives(broker):
    handle = broker.put(b"abc")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        region = shm.attach(handle)
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(20)
            os.close(write)
            os.read(read, 1)
            os._exit(0 if region.read() == b"abc" else 1)
        os._exit(0)
    os.close(read)
    os.waitpid(pid, 0)
    broker.until(lambda: not broker.sessions)
    os.close(write)


def test_fork_while_threads_hold_the_locks(broker):
    handle = broker.put(b"abc", mode="read_write")
    region = shm.attach(handle)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            with shm.attach(handle) as other:
                with other.writing():
                    pass

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            in_child(lambda: region.handle() and region.close())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    region.close()


def test_what_the_parent_allocated_is_the_parents(broker):
    out = shm.allocate(3, socket=broker.path)
    out.write(b"abc")

    def child():
        assert bytes(out.memoryview()) == b"abc"
        with pytest.raises(shm.PermissionDeniedError):
            out.seal()
        out.close()

    in_child(child)
    assert broker.ops("free") == 0
    with shm.attach(out.seal()) as region:
        assert region.read() == b"abc"
    out.close()


def test_fork_inside_a_write(broker):
    with shm.attach(broker.put(b"abc", mode="read_write")) as region:

        def child():
            writing.__exit__(None, None, None)
            assert region.memoryview()[0] == ord("x")

        writing = region.writing()
        view = writing.__enter__()
        view[0:1] = b"x"
        in_child(child)
        assert broker.ops("write_end") == 0
        writing.__exit__(None, None, None)
        assert region.read() == b"xbc" and region.generation == 1


def test_a_region_that_is_gone_in_the_child(broker):
    handle = broker.put(b"abc")
    region = shm.attach(handle)
    with broker.cond:
        os.close(broker.regions.pop(handle["id"]).fd)

    def child():
        for _ in range(2):
            with pytest.raises(shm.RegionNotFoundError):
                region.handle()
        assert region.read() == b"abc"

    in_child(child)
    region.close()


def _double(region):
    with region.writing() as view:
        view[0] *= 2
    return bytes(region.read())


def test_multiprocessing_fork(broker):
    with shm.attach(broker.put(b"\x01", mode="read_write")) as region:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.map(_double, [region] * 5)
        assert region.read() == bytes([32]) and region.generation == 5
