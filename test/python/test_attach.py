"""Attaching, looking, closing."""

from __future__ import annotations

import gc
import json
import multiprocessing
import pickle
import subprocess
import sys
import warnings

import pytest
from fake_broker import CLIENT

import snakepit_shm as shm


def test_a_region_is_what_its_handle_says(broker):
    handle = broker.put(b"\x01\x00\x00\x00\x02\x00\x00\x00", dtype="int32", shape=[2], metadata={"a": [1]})
    with shm.attach(handle) as region:
        assert (region.id, region.size, region.dtype, region.shape) == (handle["id"], 8, "int32", (2,))
        assert (region.mode, region.sealed, region.generation, region.named) == ("read_only", False, 0, False)
        assert region.metadata == {"a": [1]} and len(region) == 8
        assert bytes(region.memoryview()) == region.read() == b"\x01\x00\x00\x00\x02\x00\x00\x00"
        assert region.read(4, 2) == b"\x02\x00" and region.read(8) == b""
        assert "int32[2]" in repr(region) and "read_only" in repr(region)
    assert "closed" in repr(region)


@pytest.mark.parametrize("encode", [json.dumps, lambda h: json.dumps(h).encode(), lambda h: bytearray(json.dumps(h).encode())])
def test_a_handle_may_be_json(broker, encode):
    with shm.attach(encode(broker.put(b"abc"))) as region:
        assert region.read() == b"abc"


@pytest.mark.parametrize(
    "key, value",
    [
        ("snakepit_shm", 2), ("snakepit_shm", True), ("id", ""), ("id", "x" * 128), ("id", 5), ("instance", None), ("socket", "relative"),
        ("socket", "/" + "x" * 107), ("socket", "/a\0b"), ("token", ""), ("token", 7), ("mode", "write"), ("mode", ["read_only"]),
        ("expires", -1), ("expires", "soon"), ("size", 0), ("size", -1), ("size", 1.5), ("size", True), ("size", 2**70),
        ("dtype", "object"), ("dtype", 3), ("dtype", ["int32"]), ("shape", [2, -1]), ("shape", "2"), ("shape", [3]), ("shape", [1] * 33),
        ("metadata", None), ("metadata", []),
    ],
)
def test_a_bad_handle_is_refused_at_the_face(broker, key, value):
    handle = {**broker.put(b"x" * 8, dtype="int32", shape=[2]), key: value}
    with pytest.raises(shm.InvalidArgumentError) as caught:
        shm.attach(handle)
    assert caught.value.key == key and caught.value.expected and caught.value.reason == "invalid_handle"
    if key != "token":
        assert caught.value.got == value
    assert isinstance(caught.value, ValueError) and broker.ops("attach") == 0


@pytest.mark.parametrize("source", ["{", "[]", b"\xff", "[" * 60_000, "x" * 70_000, 5, None, "{}"])
def test_what_is_no_handle_at_all_is_refused(source):
    with pytest.raises(shm.InvalidArgumentError):
        shm.attach(source)


def test_a_missing_key_is_named(broker):
    handle = broker.put(b"x")
    del handle["token"]
    with pytest.raises(shm.InvalidArgumentError, match="token: expected text"):
        shm.attach(handle)


def test_an_error_of_the_broker_has_its_type_and_reason(broker):
    handle = broker.put(b"x")
    with pytest.raises(shm.SecurityViolationError) as caught:
        shm.attach({**handle, "token": "wrong"})
    assert (caught.value.type, caught.value.reason) == ("security_violation", "bad_token")
    assert "fake broker says" in str(caught.value) and isinstance(caught.value, PermissionError)
    with pytest.raises(shm.RegionNotFoundError):
        shm.attach({**handle, "id": "none", "token": "token-none-read_only"})


def test_nobody_listens(tmp_path):
    handle = {
        "snakepit_shm": 1, "id": "a", "instance": "i", "socket": str(tmp_path / "none"), "token": "t", "mode": "read_only",
        "expires": None, "size": 1, "dtype": None, "shape": None, "metadata": {},
    }
    with pytest.raises(shm.ConnectionLostError) as caught:
        shm.attach(handle)
    assert caught.value.reason == "unreachable" and isinstance(caught.value, ConnectionError)


def test_read_only_is_enforced_by_the_mapping(broker):
    with shm.attach(broker.put(b"abc")) as region:
        view = region.memoryview()
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises(shm.PermissionDeniedError) as caught:
            with region.writing():
                pass
        assert caught.value.reason == "read_only"


def test_mode_narrows_and_never_widens(broker):
    writable = broker.put(b"abc", mode="read_write")
    with shm.attach(writable, mode="read_only") as region:
        assert region.mode == "read_only" and region.memoryview().readonly
    with pytest.raises(shm.PermissionDeniedError):
        shm.attach(broker.put(b"abc"), mode="read_write")
    with pytest.raises(shm.InvalidArgumentError):
        shm.attach(writable, mode="write")


def test_the_policy_is_stricter_than_the_handle(broker):
    handle = broker.put(b"abc", mode="read_write")
    broker.regions[handle["id"]].mode = "read_only"
    with shm.attach(handle) as region:
        assert region.mode == "read_only" and region.memoryview().readonly
    with pytest.raises(shm.PermissionDeniedError):
        shm.attach(handle, mode="read_write")
    broker.until(lambda: not broker.held(handle["id"]))


def test_a_sealed_region(broker):
    with shm.attach(broker.put(b"abc", sealed=True)) as region:
        assert region.sealed and region.read() == b"abc"


def test_sealing_shows_in_what_is_attached(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        assert not region.sealed
        with broker.cond:
            broker._seal(broker.regions[handle["id"]])
        assert region.sealed


def test_close_refuses_while_views_live(broker):
    handle = broker.put(b"abc")
    region = shm.attach(handle)
    view = region.memoryview()
    for _ in range(2):
        with pytest.raises(shm.ViewsAliveError):
            region.close()
    assert region.read() == b"abc" and bytes(view) == b"abc" and not region.closed
    assert broker.held(handle["id"]) == 1
    view.release()
    region.close()
    region.close()
    assert region.closed and broker.held(handle["id"]) == 0
    for use in (region.memoryview, region.read, region.handle, lambda: region.generation, region.__enter__):
        with pytest.raises(shm.ClosedError):
            use()


def test_leaving_the_block_leaves_the_memory_to_its_views(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        view = region.memoryview()
    assert region.closed and bytes(view) == b"abc" and broker.held(handle["id"]) == 1
    del view, region
    gc.collect()
    broker.until(lambda: not broker.held(handle["id"]))


def test_a_dropped_region_is_given_back(broker):
    handle = broker.put(b"abc")
    region = shm.attach(handle)
    with pytest.warns(ResourceWarning, match="never closed"):
        del region
        gc.collect()
    broker.until(lambda: not broker.held(handle["id"]))


def test_a_dropped_region_waits_for_its_views(broker):
    handle = broker.put(b"abc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view = shm.attach(handle).memoryview()
        gc.collect()
    other = shm.attach(broker.put(b"x"))
    assert bytes(view) == b"abc" and broker.held(handle["id"]) == 1
    other.close()
    del view
    broker.until(lambda: not broker.held(handle["id"]))


def test_attached_twice_is_held_until_both_are_closed(broker):
    handle = broker.put(b"abc")
    first, second = shm.attach(handle), shm.attach(handle)
    first.close()
    assert broker.ops("detach") == 0 and second.read() == b"abc"
    second.close()
    assert broker.ops("detach") == 1 and broker.held(handle["id"]) == 0


def test_one_connection_for_all_regions(broker):
    regions = [shm.attach(broker.put(b"abc")) for _ in range(5)]
    assert len(broker.peers) == 1
    for region in regions:
        region.close()


def test_no_descriptor_stays_for_a_mapping(broker):
    import os

    with shm.attach(broker.put(b"a")):
        before = len(os.listdir("/proc/self/fd"))
        regions = [shm.attach(broker.put(b"abc")) for _ in range(5)]
        made = len(os.listdir("/proc/self/fd")) - before - 5  # five are the broker's own
        assert made == (0 if sys.version_info >= (3, 13) else 5)
        for region in regions:
            region.close()


def test_handle_and_pickle(broker):
    handle = broker.put(b"abc", mode="read_write")
    with shm.attach(handle, mode="read_only") as region:
        sent = region.handle()
        assert sent["mode"] == "read_only"
        with pickle.loads(pickle.dumps(region)) as copy:
            assert copy.read() == b"abc" and copy.mode == "read_only"
        with shm.attach(sent) as again:
            assert again.read() == b"abc"


def _read(region):
    with region:
        return region.read()


def test_a_region_goes_to_a_spawned_process(broker):
    with shm.attach(broker.put(b"abc")) as region:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_read, (region,)) == b"abc"


def test_the_process_ends_with_regions_open_and_says_nothing(broker):
    handle = broker.put(b"abc")
    code = "import sys, snakepit_shm; r = snakepit_shm.attach(sys.argv[1]); v = r.memoryview()"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(handle)], capture_output=True, text=True, timeout=20,
        cwd=str(CLIENT),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    broker.until(lambda: not broker.sessions)


def test_out_of_range(broker):
    with shm.attach(broker.put(b"abc")) as region:
        for offset, length in ((4, None), (0, 4), (-1, 1), (0, -1), (True, 1), (0, 1.5)):
            with pytest.raises(shm.InvalidArgumentError):
                region.read(offset, length)


def test_generation_is_read_from_the_page(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        broker.write(handle["id"], b"xyz")
        assert region.generation == 1 and region.read() == b"xyz"


def test_invalid_memory_is_not_read(broker):
    handle = broker.put(b"abc")
    with shm.attach(handle) as region:
        with broker.cond:
            stored = broker.regions[handle["id"]]
            stored.invalid = True
            stored.live()
        with pytest.raises(shm.CorruptionError) as caught:
            region.read()
        assert caught.value.reason == "invalid"


