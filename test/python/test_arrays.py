"""NumPy and Arrow views."""

from __future__ import annotations

import builtins
import gc
import struct

import pytest

import snakepit_shm as shm
from snakepit_shm.dtypes import ITEM_SIZES


def test_without_numpy_the_error_names_it(broker, monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name in ("numpy", "pyarrow"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args)

    with shm.attach(broker.put(b"abc")) as region:
        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(shm.PlatformError, match="pip install numpy"):
            region.numpy()
        with pytest.raises(shm.PlatformError, match="pip install pyarrow"):
            region.arrow()
        monkeypatch.undo()
        region.close()


def test_type_and_shape(broker):
    np = pytest.importorskip("numpy")
    data = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
    with shm.attach(broker.put(data, dtype="float32", shape=[2, 3])) as region:
        array = region.numpy()
        assert array.dtype == np.float32 and array.shape == (2, 3) and array[1, 2] == 5
        assert not array.flags.writeable and not array.flags.owndata
        with pytest.raises(ValueError):
            array[0, 0] = 1
        with pytest.raises(ValueError):
            array.flags.writeable = True
        assert region.numpy("uint16").shape == (12,) and region.numpy("int32").shape == (2, 3)
        assert region.numpy(shape=(3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
        assert region.numpy(np.uint8, shape=4).tolist() == list(data[:4])
        assert region.numpy(shape=(0, 3)).shape == (0, 3)
        del array


def test_raw_bytes_are_uint8(broker):
    np = pytest.importorskip("numpy")
    with shm.attach(broker.put(b"abc")) as region:
        assert region.numpy().dtype == np.uint8 and region.numpy().tolist() == [97, 98, 99]


def test_no_dimensions(broker):
    pytest.importorskip("numpy")
    with shm.attach(broker.put(struct.pack("<d", 2.5), dtype="float64", shape=[])) as region:
        assert region.shape == () and region.numpy().shape == () and region.numpy() == 2.5


def test_every_type_has_its_size(broker):
    np = pytest.importorskip("numpy")
    for name, size in ITEM_SIZES.items():
        if name != "bfloat16":
            assert np.dtype(name).itemsize == size
            with shm.attach(broker.put(bytes(2 * size), dtype=name, shape=[2])) as region:
                assert region.numpy().dtype == np.dtype(name)


def test_bfloat16(broker):
    np = pytest.importorskip("numpy")
    handle = broker.put(struct.pack("<2H", 0x3F80, 0x4000), dtype="bfloat16", shape=[2])
    with shm.attach(handle) as region:
        assert region.numpy(dtype="uint16").tolist() == [0x3F80, 0x4000]
        try:
            import ml_dtypes
        except ImportError:
            with pytest.raises(shm.PlatformError, match="uint16"):
                region.numpy()
        else:
            array = region.numpy()
            assert array.dtype == np.dtype(ml_dtypes.bfloat16) and array.astype("f4").tolist() == [1.0, 2.0]
            del array


@pytest.mark.parametrize("dtype, shape", [("object", None), ("no such", None), ("S0", None), ("int64", None), (None, (4,)), (None, -1), ("O,i4", None)])
def test_what_does_not_fit_or_is_no_value_is_refused(broker, dtype, shape):
    pytest.importorskip("numpy")
    with shm.attach(broker.put(b"abc")) as region:
        with pytest.raises(shm.InvalidArgumentError):
            region.numpy(dtype, shape)


def test_arrays_keep_the_mapping(broker):
    np = pytest.importorskip("numpy")
    region = shm.attach(broker.put(bytes(8), dtype="int32", shape=[2]))
    derived = np.asarray(region.numpy()).reshape(2, 1)[1:]
    gc.collect()
    with pytest.raises(shm.ViewsAliveError):
        region.close()
    assert derived[0, 0] == 0
    del derived
    region.close()


def test_a_store_is_seen_by_others(broker):
    pytest.importorskip("numpy")
    handle = broker.put(bytes(8), dtype="int32", shape=[2], mode="read_write")
    with shm.attach(handle) as region, shm.attach(handle, "read_only") as other:
        with region.writing():
            region.numpy()[:] = [7, 8]
        assert other.numpy().tolist() == [7, 8]


def test_arrow(broker):
    pa = pytest.importorskip("pyarrow")
    np = pytest.importorskip("numpy")
    region = shm.attach(broker.put(struct.pack("<2i", 5, 6), dtype="int32", shape=[2]))
    buffer = region.arrow()
    assert buffer.size == 8 and not buffer.is_mutable
    assert buffer.address == region.numpy().__array_interface__["data"][0]
    assert np.frombuffer(buffer, "int32").tolist() == [5, 6]
    array = pa.Array.from_buffers(pa.int32(), 2, [None, buffer])
    assert array.to_pylist() == [5, 6]
    del buffer
    with pytest.raises(shm.ViewsAliveError):
        region.close()
    del array
    gc.collect()
    region.close()
