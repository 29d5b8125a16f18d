"""Writing by turns, consistent reads, waiting."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import snakepit_shm as shm

# Flips a region between all-a and all-b for as long as its input is open, the way LAYOUT.md says.
WRITER = """
import mmap, select, struct, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
m = mmap.mmap(fd, 4096 + size)
word = memoryview(m)[4032:4040].cast("Q")
data = memoryview(m)[4096:4096 + size]
patterns = [b"a" * size, b"b" * size]
print("ready", flush=True)
n = 0
# A pause after each write, about as long as the write: readers are to meet both.
while not select.select([0], [], [], 0.0001)[0]:
    word[0] += 1
    half = size // 2
    data[:half] = patterns[n & 1][:half]
    data[half:] = patterns[n & 1][half:]
    word[0] += 1
    n += 1
print(n, flush=True)
"""


def test_a_write(broker):
    handle = broker.put(b"abc", mode="read_write")
    with shm.attach(handle) as region:
        with region.writing() as view:
            view[:] = b"xyz"
            assert not view.readonly and region.read() == b"xyz"
        assert region.generation == 1 and region.read() == b"xyz"
        with pytest.raises(ValueError):
            view[0]


def test_a_write_counts_when_the_block_raises(broker):
    with shm.attach(broker.put(b"abc", mode="read_write")) as region:
        with pytest.raises(KeyError):
            with region.writing() as view:
                view[0:1] = b"x"
                raise KeyError
        assert region.read() == b"xbc" and region.generation == 1
        with region.writing():
            pass
        assert region.generation == 2


def test_an_array_may_outlive_the_block(broker):
    np = pytest.importorskip("numpy")
    with shm.attach(broker.put(b"abc", mode="read_write")) as region:
        with region.writing() as view:
            array = np.frombuffer(view, "u1")
        assert region.generation == 1
        del array, view


def test_one_writer_among_processes(broker):
    handle = broker.put(b"abc", mode="read_write")
    broker.regions[handle["id"]].writer = "somebody"
    with shm.attach(handle) as region:
        with pytest.raises(shm.BusyError):
            with region.writing(timeout=0.05):
                pass
        with broker.cond:
            broker.regions[handle["id"]].writer = None
        with region.writing(timeout=0.05):
            pass


def test_one_writer_among_threads(broker):
    handle = broker.put(bytes(8), mode="read_write")
    first, second = shm.attach(handle), shm.attach(handle)
    with first.writing():
        with pytest.raises(shm.BusyError, match="Another thread"):
            with second.writing(timeout=0.05):
                pass
        assert broker.ops("write_begin") == 1

    def count(region):
        for _ in range(20):
            with region.writing() as view:
                number = int.from_bytes(view, "little")
                view[:] = (number + 1).to_bytes(8, "little")

    threads = [threading.Thread(target=count, args=(region,)) for region in (first, second, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int.from_bytes(first.read(), "little") == 60 and first.generation == 61
    first.close()
    second.close()


def test_somebody_else_in_the_process_who_only_reads_does_not_stop_the_writer(broker):
    handle = broker.put(b"abc", mode="read_write")
    with shm.attach(handle) as writer, shm.attach(handle, mode="read_only") as reader:
        # The broker's memory of the session says read_only now.
        with writer.writing() as view:
            view[:] = b"xyz"
        assert reader.read() == b"xyz"
        with pytest.raises(shm.PermissionDeniedError):
            with reader.writing():
                pass


def test_a_read_while_somebody_writes(broker):
    handle = broker.put(b"abc")
    stored = broker.regions[handle["id"]]
    with shm.attach(handle) as region:
        stored.sequence = 1
        stored.live()
        with pytest.raises(shm.BusyError):
            region.read(timeout=0.02)
        stored.sequence = 2
        stored.live()
        assert region.read(timeout=0.02) == b"abc"


def test_other_threads_do_not_read_into_a_write(broker):
    handle = broker.put(b"abc", mode="read_write")
    with shm.attach(handle) as region:
        with region.writing():
            caught = []

            def look():
                try:
                    region.read(timeout=0.01)
                except shm.BusyError as error:
                    caught.append(error)

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            assert caught


def test_no_read_is_torn(broker):
    size = 1 << 19
    handle = broker.put(b"a" * size)
    fd = broker.regions[handle["id"]].fd
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(fd), str(size)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"ready\n"
        seen = set()
        with shm.attach(handle) as region:
            while len(seen) < 2 or region.generation < 2000:
                copy = region.read(timeout=10)
                assert copy.count(copy[:1]) == size
                seen.add(copy[:1])
    finally:
        writer.stdin.close()
        assert int(writer.stdout.readline()) > 0
        writer.stdout.close()
        assert writer.wait(10) == 0


def test_wait_is_woken_by_a_write(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        got = []
        thread = threading.Thread(target=lambda: got.append(region.wait(timeout=20)))
        thread.start()
        broker.until(lambda: broker.ops("wait") == 1)
        broker.write(handle["id"], b"xyz")
        thread.join(10)
        assert got == [1] and region.read() == b"xyz"
        assert region.wait(0, timeout=0) == 1


def test_wait_times_out(broker):
    with shm.attach(broker.put(b"abc")) as region:
        with pytest.raises(shm.TimeoutError) as caught:
            region.wait(timeout=0.02)
        assert isinstance(caught.value, TimeoutError) and caught.value.reason == "timeout"


@pytest.mark.parametrize("call", [
    lambda r: r.wait(timeout=-1), lambda r: r.wait(timeout=float("nan")), lambda r: r.wait(timeout="1"), lambda r: r.wait(-1), lambda r: r.wait(True),
    lambda r: r.read(timeout=None), lambda r: r.writing(timeout=None).__enter__(),
])
def test_bad_arguments(broker, call):
    with shm.attach(broker.put(b"abc", mode="read_write")) as region:
        with pytest.raises(shm.InvalidArgumentError):
            call(region)
