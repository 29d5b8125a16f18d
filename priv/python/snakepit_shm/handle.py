"""Handles: the JSON objects that name a region, say where its broker is, and carry the right to attach."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from .dtypes import ITEM_SIZES, MAX_DIMENSIONS, MAX_SIZE, count
from .errors import InvalidArgumentError, invalid

HandleLike = Union[Mapping[str, Any], str, bytes, bytearray]

READ_ONLY = "read_only"
READ_WRITE = "read_write"
MODES = (READ_ONLY, READ_WRITE)

_MAX_JSON = 65_536
_MAX_SOCKET = 107


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def text_up_to(limit: int) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        # A lone surrogate, which JSON can spell, is no UTF-8.
        return isinstance(value, str) and 0 < len(value.encode("utf-8", "surrogatepass")) <= limit

    return check


def is_shape(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) <= MAX_DIMENSIONS and all(is_int(n) and n >= 0 for n in value)
    )


def is_socket(value: object) -> bool:
    """An absolute path that fits into sun_path with its final zero."""
    return isinstance(value, str) and value.startswith("/") and "\0" not in value and len(os.fsencode(value)) <= _MAX_SOCKET


_FIELDS: Tuple[Tuple[str, str, Callable[[Any], bool]], ...] = (
    ("snakepit_shm", "1", lambda v: is_int(v) and v == 1),
    ("id", "text of 1 to 127 bytes", text_up_to(127)),
    ("instance", "text of 1 to 63 bytes", text_up_to(63)),
    ("socket", f"an absolute path of at most {_MAX_SOCKET} bytes", is_socket),
    ("token", "text of 1 to 1024 bytes", text_up_to(1024)),
    ("mode", f"one of {', '.join(MODES)}", lambda v: v in MODES),
    ("expires", "milliseconds since 1970, or null", lambda v: v is None or (is_int(v) and v >= 0)),
    ("size", f"an integer from 1 to {MAX_SIZE}", lambda v: is_int(v) and 1 <= v <= MAX_SIZE),
    ("dtype", f"null, or one of {', '.join(sorted(ITEM_SIZES))}", lambda v: v is None or (isinstance(v, str) and v in ITEM_SIZES)),
    ("shape", f"null, or a list of at most {MAX_DIMENSIONS} non-negative integers", is_shape),
    ("metadata", "an object", lambda v: isinstance(v, dict)),
)


@dataclass(frozen=True)
class Handle:
    """A handle whose fields have been checked. The token is left out of what is printed."""

    id: str
    instance: str
    socket: str
    token: str
    mode: str
    expires: Optional[int]
    size: int
    dtype: Optional[str]
    shape: Optional[List[int]]
    metadata: Dict[str, Any]

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r}, instance={self.instance!r}, mode={self.mode!r}, size={self.size})"

    def to_dict(self) -> Dict[str, Any]:
        return {
            "snakepit_shm": 1,
            "id": self.id,
            "instance": self.instance,
            "socket": self.socket,
            "token": self.token,
            "mode": self.mode,
            "expires": self.expires,
            "size": self.size,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def parse(cls, source: HandleLike) -> Handle:
        """Checks a handle, a mapping or its JSON text. Fields that are not known are left alone, for later versions."""
        fields = _load(source)
        for key, expected, valid in _FIELDS:
            if key not in fields:
                raise _invalid(key, expected, "nothing")
            if not valid(fields[key]):
                raise _invalid(key, expected, "a text (hidden)" if key == "token" else fields[key])
        dtype, shape, size = fields["dtype"], fields["shape"], fields["size"]
        if shape is not None and dtype is None:
            raise _invalid("shape", "null, as there is no dtype", shape)
        if dtype is not None:
            item = ITEM_SIZES[dtype]
            if size % item:
                raise _invalid("dtype", f"an element size that divides the {size} bytes", dtype)
            if shape is not None and count(shape) * item != size:
                raise _invalid("shape", f"dimensions whose product times {item} ({dtype}) is the size, {size} bytes", shape)
        return cls(**{key: fields[key] for key, _, _ in _FIELDS if key != "snakepit_shm"})


def _load(source: HandleLike) -> Mapping[str, Any]:
    if isinstance(source, (str, bytes, bytearray)):
        if len(source) > _MAX_JSON:
            raise _invalid("handle", f"JSON text of at most {_MAX_JSON} bytes", f"{len(source)} bytes")
        try:
            loaded = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise _invalid("handle", "JSON text", f"{source!r:.60} ({error})") from None
    else:
        loaded = source
    if not isinstance(loaded, Mapping):
        raise _invalid("handle", "an object (a dict), or its JSON text", loaded)
    return loaded


def _invalid(key: str, expected: str, got: object) -> InvalidArgumentError:
    return invalid(key, expected, got, "invalid_handle")
