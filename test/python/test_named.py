"""Named regions: through the broker, and by the name alone."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import fake_broker
import pytest
from fake_broker import CLIENT

import snakepit_shm as shm

# The recipe of README.md.
RECIPE = '''
import sys
from multiprocessing import resource_tracker, shared_memory

name = sys.argv[1]
if sys.version_info >= (3, 13):
    memory = shared_memory.SharedMemory(name, track=False)
else:
    memory = shared_memory.SharedMemory(name)
    resource_tracker.unregister(memory._name, "shared_memory")

offset, size = (int.from_bytes(memory.buf[at:at + 8], "little") for at in (16, 24))
print(bytes(memory.buf[offset:offset + size]).decode())
memory.close()
'''


@pytest.fixture
def name():
    name = f"snakepit-test-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    yield name
    os.unlink(f"/dev/shm/{name}")


def make(name, data):
    fd = os.open(f"/dev/shm/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, fake_broker.pages(4096 + len(data)))
    os.pwrite(fd, fake_broker.header("shm_named", len(data), named=True, label="weights"), 0)
    os.pwrite(fd, data, 4096)
    return fd


def test_through_the_broker(broker, name):
    handle = broker.put(b"abc", id="shm_named", fd=make(name, b"abc"), named=True)
    with shm.attach(handle) as region:
        assert region.named and region.read() == b"abc"
    assert os.path.exists(f"/dev/shm/{name}")


def test_the_recipe_leaves_it_alive(name):
    os.close(make(name, b"hello"))
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", RECIPE, name], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert os.path.exists(f"/dev/shm/{name}")


def test_the_recipe_is_the_readmes():
    readme = CLIENT / "README.md"
    with open(readme, encoding="utf-8") as file:
        assert RECIPE.split("name = sys.argv[1]\n")[1].strip() in file.read()
