"""What the broker says about a region: the ``region`` of its answers, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from . import errors
from .dtypes import MAX_SIZE
from .handle import MODES, is_int, is_shape, text_up_to
from .header import HEADER_SIZE


@dataclass(frozen=True)
class Description:
    id: str
    size: int
    data_offset: int
    length: int
    dtype: Optional[str]
    shape: Optional[Tuple[int, ...]]
    sealed: bool
    mode: str
    generation: int
    named: bool
    metadata: Dict[str, Any]


def parse(fields: Any, id: Optional[str] = None) -> Description:
    """Raises ProtocolError, naming the field. ``id`` is the one that was asked for."""
    if not isinstance(fields, dict):
        raise errors.protocol(f"region is not an object: {fields!r:.100}")

    def need(key: str, valid: bool) -> Any:
        if not valid:
            raise errors.protocol(f"region.{key} is {fields.get(key)!r:.100}")
        return fields[key]

    def whole(key: str, low: int) -> int:
        value: Any = fields.get(key)
        return int(need(key, is_int(value) and low <= value <= MAX_SIZE + HEADER_SIZE))

    name, dtype, shape = fields.get("id"), fields.get("dtype"), fields.get("shape")
    need("id", text_up_to(127)(name) and id in (None, name))
    size = whole("size", 1)
    offset = whole("data_offset", 0)
    need("data_offset", offset == HEADER_SIZE)
    length = whole("length", 1)
    need("length", length >= offset + size)
    need("dtype", dtype is None or text_up_to(15)(dtype))
    need("shape", is_shape(shape))
    return Description(
        id=fields["id"],
        size=size,
        data_offset=offset,
        length=length,
        dtype=dtype,
        shape=None if shape is None else tuple(shape),
        sealed=need("state", fields.get("state") in ("allocated", "sealed")) == "sealed",
        mode=need("mode", fields.get("mode") in MODES),
        generation=whole("generation", 0),
        named=need("named", isinstance(fields.get("named"), bool)),
        metadata=need("metadata", isinstance(fields.get("metadata"), dict)),
    )


def integer(fields: Dict[str, Any], key: str) -> int:
    value: Any = fields.get(key)
    if not is_int(value) or value < 0:
        raise errors.protocol(f"{key} is {value!r:.100}")
    return int(value)
