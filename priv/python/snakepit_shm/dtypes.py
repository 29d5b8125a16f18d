"""Element types by their NumPy names, the same table as ``Snakepit.SharedMemory.DType``."""

from __future__ import annotations

import operator
from typing import Any, List, Optional, Sequence, Tuple

from .errors import invalid

ITEM_SIZES = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

MAX_DIMENSIONS = 32
MAX_SIZE = 1 << 62


def name_of(dtype: Any) -> str:
    """The name of a NumPy type, given as a name, a ``numpy.dtype`` or a scalar type such as ``numpy.float32``."""
    if isinstance(dtype, str):
        name: Any = dtype
    elif isinstance(dtype, type):
        name = dtype.__name__
    else:
        # A big-endian float32 has the name "float32" too; the memory is little-endian.
        name = getattr(dtype, "name", None) if getattr(dtype, "isnative", False) else None
    if not isinstance(name, str) or name not in ITEM_SIZES:
        raise invalid("dtype", f"a native NumPy type, one of {', '.join(sorted(ITEM_SIZES))}", dtype)
    return name


def dimensions(shape: Any, key: str = "shape") -> Tuple[int, ...]:
    """A shape as a tuple; a single integer is one dimension."""
    expected = f"a non-negative integer or at most {MAX_DIMENSIONS} of them"
    try:
        items: Sequence[Any] = shape if isinstance(shape, (tuple, list)) else (shape,)
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        # Takes numpy.int64 too, and no float.
        dims = tuple(operator.index(item) for item in items)
    except TypeError:
        raise invalid(key, expected, shape) from None
    if len(dims) > MAX_DIMENSIONS or any(n < 0 for n in dims):
        raise invalid(key, expected, shape)
    return dims


def count(dims: Sequence[int]) -> int:
    total = 1
    for n in dims:
        total *= n
    return total


def plan(shape: Any, dtype: Any) -> Tuple[int, Optional[str], Optional[List[int]]]:
    """Size in bytes, type and shape of what is to be allocated, as the broker wants them."""
    dims = dimensions(shape)
    if dtype is None:
        if len(dims) != 1:
            raise invalid("shape", "the size in bytes, one integer, when there is no dtype", shape)
        size, name, listed = dims[0], None, None
    else:
        name = name_of(dtype)
        size, listed = count(dims) * ITEM_SIZES[name], list(dims)
    if not 1 <= size <= MAX_SIZE:
        raise invalid("shape", f"between 1 and {MAX_SIZE} bytes in all", shape, "invalid_size")
    return size, name, listed
