from __future__ import annotations

import gc
import os
import sys
import threading
from multiprocessing import resource_tracker
from typing import Iterator, Set

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from fake_broker import CLIENT, FakeBroker  # noqa: E402

sys.path.insert(0, str(CLIENT))

from snakepit_shm import connections, options  # noqa: E402


# Its pipe would look like a leak of the first test that spawns.
resource_tracker.ensure_running()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def named() -> Set[str]:
    # What this process's tests make; others may be at work on the same machine.
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"snakepit-test-{os.getpid()}-")}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No test leaves a descriptor, a thread, a name in /dev/shm, or a changed option."""
    gc.collect()
    before = descriptors()
    names = named()
    threads = set(threading.enumerate())
    yield
    connections.close_all()
    options.current = options.Options()
    gc.collect()
    left = [t for t in threading.enumerate() if t not in threads]
    for thread in left:
        thread.join(5)
    assert not [t for t in left if t.is_alive()]
    assert descriptors() == before, [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
    assert named() <= names


@pytest.fixture
def broker(clean: None) -> Iterator[FakeBroker]:
    made = FakeBroker()
    yield made
    connections.close_all()
    made.stop()
