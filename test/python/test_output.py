"""Allocating, filling, sealing."""

from __future__ import annotations

import gc
import pickle

import pytest

import snakepit_shm as shm


def test_a_result(broker):
    np = pytest.importorskip("numpy")
    with shm.allocate((2, 3), np.dtype("float32"), socket=broker.path, metadata={"k": "v"}) as out:
        out.numpy()[:] = 1.5
        assert not out.sealed and out.mode == "read_write" and out.shape == (2, 3)
        handle = out.seal()
        assert out.sealed and out.mode == "read_only" and not out.numpy().flags.writeable
        assert out.numpy().sum() == 9 and out.handle() == handle
        with shm.attach(handle) as region:
            assert region.sealed and region.numpy().sum() == 9 and region.metadata == {"k": "v"}
    # Sealed, it stays for those who have the handle.
    assert broker.held(handle["id"]) == 0 and handle["id"] in broker.regions
    with shm.attach(handle) as region:
        assert region.read()[:4] == b"\x00\x00\xc0\x3f"


def test_raw_bytes_by_the_environment(broker, monkeypatch):
    monkeypatch.setenv("SNAKEPIT_SHM_SOCKET", broker.path)
    with shm.allocate(5) as out:
        out.write(b"he")
        out.write(bytearray(b"llo"), 2)
        assert bytes(out.memoryview()) == b"hello"
        with shm.attach(out.seal()) as region:
            assert region.read() == b"hello" and region.dtype is None
        with pytest.raises(shm.InvalidStateError):
            out.write(b"x")
        with pytest.raises(shm.InvalidStateError):
            out.seal()


def test_by_the_region_that_was_the_argument(broker):
    with shm.attach(broker.put(b"abc")) as region:
        for out in (region.allocate((), "float64"), shm.allocate((), "float64", region=region)):
            with out:
                assert out.size == 8 and out.shape == ()
    assert len(broker.regions) == 1


@pytest.mark.parametrize(
    "shape, dtype, key",
    [
        (0, None, "shape"), (-1, None, "shape"), ((2, 0), "int32", "shape"), (1.5, "int32", "shape"), (True, None, "shape"), ("3", None, "shape"),
        ((2**40, 2**40), "int32", "shape"), ((2, 2), None, "shape"), ((1,) * 33, "int8", "shape"), (3, "object", "dtype"), (3, 5, "dtype"),
    ],
)
def test_bad_shapes_and_types(broker, shape, dtype, key):
    with pytest.raises(shm.InvalidArgumentError) as caught:
        shm.allocate(shape, dtype, socket=broker.path)
    assert caught.value.key == key and not broker.ops("allocate")


def test_a_foreign_byte_order_is_refused(broker):
    np = pytest.importorskip("numpy")
    with pytest.raises(shm.InvalidArgumentError):
        shm.allocate(3, np.dtype(">f4"), socket=broker.path)
    with shm.allocate(np.int64(3), np.float32, socket=broker.path) as out:
        assert out.dtype == "float32" and out.shape == (3,)


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": float("nan")}, [], {"a": "x" * 70_000}])
def test_bad_metadata(broker, metadata):
    with pytest.raises(shm.InvalidArgumentError):
        shm.allocate(3, socket=broker.path, metadata=metadata)
    with shm.allocate(3, socket=broker.path):
        pass


def test_nowhere_to_allocate(monkeypatch, broker):
    monkeypatch.delenv("SNAKEPIT_SHM_SOCKET", raising=False)
    with pytest.raises(shm.InvalidArgumentError, match="SNAKEPIT_SHM_SOCKET"):
        shm.allocate(3)
    with shm.attach(broker.put(b"a")) as region:
        with pytest.raises(shm.InvalidArgumentError):
            shm.allocate(3, socket=broker.path, region=region)


def test_over_a_limit(broker):
    with pytest.raises(shm.MemoryLimitError) as caught:
        shm.allocate(1 << 31, socket=broker.path)
    assert caught.value.reason == "size_exceeds_limit" and isinstance(caught.value, MemoryError)


def test_seal_refuses_while_views_live(broker):
    out = shm.allocate(3, socket=broker.path)
    view = out.memoryview()
    with pytest.raises(shm.ViewsAliveError):
        out.seal()
    view[:] = b"abc"
    view.release()
    assert broker.ops("seal") == 0
    assert shm.attach(out.seal()).read() == b"abc"
    out.close()


def test_seal_is_refused_and_tried_again(broker):
    out = shm.allocate(3, socket=broker.path)
    out.write(b"abc")

    def busy(peer, request):
        del broker.hooks["seal"]
        from fake_broker import Refused

        raise Refused("busy", "busy")

    broker.hooks["seal"] = busy
    with pytest.raises(shm.BusyError):
        out.seal()
    with pytest.raises(shm.ClosedError):
        out.memoryview()
    with shm.attach(out.seal()) as region:
        assert region.read() == b"abc"
    out.close()


def test_free(broker):
    out = shm.allocate(3, socket=broker.path)
    view = out.memoryview()
    with pytest.raises(shm.ViewsAliveError):
        out.free()
    with pytest.raises(shm.ViewsAliveError):
        out.close()
    view.release()
    out.free()
    out.free()
    out.close()
    assert not broker.regions
    with pytest.raises(shm.ClosedError):
        out.seal()


def test_what_was_sealed_can_be_freed(broker):
    with shm.allocate(3, socket=broker.path) as out:
        out.seal()
        out.free()
    assert not broker.regions


def test_what_is_not_sealed_goes_with_the_block(broker):
    with pytest.raises(KeyError):
        with shm.allocate(3, socket=broker.path) as out:
            view = out.memoryview()
            raise KeyError
    assert out.closed and bytes(view) == b"\0\0\0"
    del view, out
    gc.collect()
    broker.until(lambda: not broker.regions)


def test_a_dropped_one_is_freed(broker):
    out = shm.allocate(3, socket=broker.path)
    with pytest.warns(ResourceWarning):
        del out
        gc.collect()
    broker.until(lambda: not broker.regions)


def test_pickle_needs_a_handle(broker):
    with shm.allocate(3, socket=broker.path) as out:
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(out)
        out.seal()
        with pickle.loads(pickle.dumps(out)) as region:
            assert isinstance(region, shm.Region)
