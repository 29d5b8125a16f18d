"""NumPy and Arrow views. Both packages are imported when first asked for."""

from __future__ import annotations

from typing import Any, Optional, Tuple

from . import errors
from .dtypes import count, dimensions


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise _missing("numpy", "numpy()", error) from error
    return numpy


def _missing(package: str, what: str, error: ImportError, instead: str = "") -> errors.PlatformError:
    message = f"{what} needs the package {package} (pip install {package}){instead}: {error}."
    return errors.PlatformError("platform_error", "not_supported", message)


def _resolve(numpy: Any, dtype: Any) -> Any:
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise _missing("ml_dtypes", "A bfloat16 array", error, "; numpy(dtype='uint16') gives the raw bits without it") from error
        return numpy.dtype(ml_dtypes.bfloat16)
    try:
        resolved = numpy.dtype(dtype)
    except TypeError:
        raise errors.invalid("dtype", "a NumPy type", dtype) from None
    if resolved.hasobject or resolved.itemsize == 0:
        raise errors.invalid("dtype", "a NumPy type of plain values, of fixed size", dtype)
    return resolved


def array(view: memoryview, own_dtype: Optional[str], own_shape: Optional[Tuple[int, ...]], dtype: Any, shape: Any) -> Any:
    """An array over ``view``. The region's own type and shape count unless others are asked for."""
    numpy = _numpy()
    wanted = _resolve(numpy, (own_dtype or "uint8") if dtype is None else dtype)
    if shape is not None:
        dims = dimensions(shape)
    elif own_shape is not None and count(own_shape) * wanted.itemsize == len(view):
        dims = own_shape
    elif len(view) % wanted.itemsize == 0:
        dims = (len(view) // wanted.itemsize,)
    else:
        raise errors.invalid("dtype", f"an element size that divides the {len(view)} bytes", str(wanted))
    size = count(dims) * wanted.itemsize
    if size > len(view):
        raise errors.invalid("shape", f"at most {len(view)} bytes of {wanted}", dims)
    if size == 0:
        return numpy.empty(dims, wanted)
    # Not numpy.ndarray(buffer=...): it lets go of the buffer and keeps the bare mmap, which could then be unmapped under
    # the array. frombuffer keeps the memoryview. Types of other packages come in as a view of raw bytes.
    return numpy.frombuffer(view[:size], numpy.uint8).view(wanted).reshape(dims)


def arrow(view: memoryview) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise _missing("pyarrow", "arrow()", error) from error
    return pyarrow.py_buffer(view)
