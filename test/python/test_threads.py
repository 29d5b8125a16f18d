"""Several threads over one connection."""

from __future__ import annotations

import threading
import time

import snakepit_shm as shm
from snakepit_shm.channel import MAX_PATIENT


def run(functions, seconds=20):
    failed = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    return threads, failed


def finish(threads, failed):
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failed, failed


def test_a_wait_does_not_hold_up_the_others(broker):
    waited, other = broker.put(b"abc"), broker.put(b"xyz")
    region = shm.attach(waited)
    threads, failed = run([lambda: region.wait(timeout=20)])
    broker.until(lambda: broker.ops("wait") == 1)
    for _ in range(50):
        with shm.attach(other) as more:
            assert more.read() == b"xyz"
    assert broker.ops("hello") == 1
    broker.write(waited["id"], b"new")
    finish(threads, failed)
    region.close()


def test_many_waits_leave_room(broker):
    """More waits than may be unanswered: they queue, and a write still gets through to end them all."""
    handle = broker.put(b"abc", mode="read_write")
    region = shm.attach(handle)
    threads, failed = run([lambda: region.wait(0, timeout=20)] * (MAX_PATIENT + 20))
    broker.until(lambda: broker.ops("wait") == MAX_PATIENT)
    assert region.handle() and broker.ops("wait") == MAX_PATIENT
    broker.write(handle["id"], b"new")
    finish(threads, failed)
    region.close()


def test_the_reader_hands_over(broker):
    """The thread that reads for all leaves at its deadline; the next goes on."""
    handle = broker.put(b"abc")
    region = shm.attach(handle)
    got = []

    def short():
        try:
            region.wait(timeout=0.05)
        except shm.TimeoutError:
            got.append("timeout")

    threads, failed = run([short] * 4 + [lambda: got.append(region.wait(timeout=20))] * 4)
    broker.until(lambda: broker.ops("wait") == 8)
    for thread in threads[:4]:
        thread.join()
    broker.write(handle["id"], b"new")
    finish(threads, failed)
    assert sorted(map(str, got)) == ["1"] * 4 + ["timeout"] * 4
    region.close()


def test_attach_and_detach_of_one_region_never_cross(broker):
    handle = broker.put(b"abc")

    def loop():
        for _ in range(60):
            with shm.attach(handle) as region:
                assert region.handle()["id"] == region.id

    finish(*run([loop] * 6))
    assert broker.held(handle["id"]) == 0 and broker.ops("hello") == 1


def test_connections_that_break_under_load(broker):
    handle = broker.put(b"abc", mode="read_write")
    region = shm.attach(handle)
    stop = threading.Event()

    def asks():
        while not stop.is_set():
            assert region.handle()

    def writes():
        while not stop.is_set():
            with region.writing() as view:
                view[:] = bytes(reversed(view))

    threads, failed = run([asks, asks, writes])
    for n in range(5):
        seen = broker.ops("handle") + 20
        broker.until(lambda: broker.ops("handle") > seen or bool(failed))
        broker.drop_connections()
    stop.set()
    finish(threads, failed)
    assert region.read() in (b"abc", b"cba") and len(broker.sessions) == 1
    region.close()


def test_closing_and_using_at_once(broker):
    handle = broker.put(b"abc" * 1000)
    for _ in range(20):
        region = shm.attach(handle)
        ready = threading.Barrier(3)

        def use():
            ready.wait()
            try:
                while True:
                    region.read()
                    region.generation
                    region.sealed
            except shm.ClosedError:
                pass

        def close():
            ready.wait()
            while not region.closed:
                try:
                    region.close()
                except shm.ViewsAliveError:
                    pass

        finish(*run([use, use, close]))
    broker.until(lambda: not broker.held(handle["id"]))


def test_an_interrupt_leaves_the_connection_in_order(broker):
    """A signal handler that raises while the main thread reads for all."""
    import signal

    import pytest

    class Stop(Exception):
        pass

    armed = threading.Event()

    def stop(*_):
        if armed.is_set():
            armed.clear()
            raise Stop

    handle = broker.put(b"abc")
    region = shm.attach(handle)
    before = signal.signal(signal.SIGUSR1, stop)
    main = threading.main_thread().ident
    try:
        for n in range(1, 6):
            threads, failed = run([lambda: region.wait(n - 1, timeout=20)])
            broker.until(lambda: broker.ops("wait") == 2 * n - 1)

            def interrupt():
                broker.until(lambda: broker.ops("wait") == 2 * n)
                armed.set()
                # One that comes just before a system call does not end the call.
                while armed.is_set():
                    signal.pthread_kill(main, signal.SIGUSR1)
                    time.sleep(0.01)

            killer = threading.Thread(target=interrupt)
            killer.start()
            with pytest.raises(Stop):
                region.wait(n - 1, timeout=20)
            killer.join()
            # The answer that nobody waits for comes too, and the other thread gets its own.
            broker.write(handle["id"], b"%03d" % n)
            finish(threads, failed)
            assert region.handle() and region.read() == b"%03d" % n
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert broker.ops("hello") == 1
    region.close()
