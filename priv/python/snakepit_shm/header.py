"""The header page (native/shm/LAYOUT.md): its static part checked once, its live line read whenever asked."""

from __future__ import annotations

import struct
import threading
import zlib
from dataclasses import dataclass
from mmap import mmap
from typing import Optional, Tuple, Union

from .dtypes import ITEM_SIZES, count
from .errors import corrupted

HEADER_SIZE = 4096

ALLOCATED, SEALED, FREED, INVALID = 1, 2, 3, 4

FLAG_NAMED, FLAG_HUGE, FLAG_PEERS_WRITE, FLAG_ACCESS_READ_ONLY, FLAG_OWNER_READ_ONLY = 1, 2, 4, 8, 16

_FLAGS = 31
_NO_SHAPE = 0xFFFF_FFFF
# The end of the year 9999, in microseconds.
_MAX_CREATED_AT = 253_402_300_799_999_999
_MAX_METADATA = 3072
_CRC_AT = 4028
_SEQUENCE_AT = 4032
_STATE_AT = 4048

_START = struct.Struct("<8sIIQQIIII")
# On a little-endian machine "<Q" at an aligned address is one 8-byte load: CPython's struct swaps in the native routine.
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")

_MAGIC = b"SNKPSHM\0"


@dataclass(frozen=True)
class Header:
    """What the static part says."""

    id: str
    instance: str
    size: int
    data_offset: int
    flags: int
    dtype: Optional[str]
    shape: Optional[Tuple[int, ...]]
    metadata: bytes
    # As its user named it; None for an anonymous one.
    label: Optional[str]
    state: int

    @property
    def named(self) -> bool:
        return bool(self.flags & FLAG_NAMED)

    @property
    def access_read_only(self) -> bool:
        return bool(self.flags & FLAG_ACCESS_READ_ONLY)

    @property
    def owner_read_only(self) -> bool:
        return bool(self.flags & FLAG_OWNER_READ_ONLY)


def parse(page: bytes, length: int) -> Header:
    """Checks a private copy of the page against an object of ``length`` bytes. The first field that fails is named."""
    if len(page) != HEADER_SIZE:
        raise corrupted("length", f"at least {HEADER_SIZE} bytes", len(page))
    magic, version, header_size, offset, size, flags, _mode, policy, reserved = _START.unpack_from(page)
    _expect("magic", _MAGIC, magic)
    _expect("layout version", 1, version)
    _expect("header size", HEADER_SIZE, header_size)
    _expect("data offset", HEADER_SIZE, offset)
    if not 1 <= size <= length - offset:
        raise corrupted("data size", f"1 to {length - offset}", size)
    if flags & ~_FLAGS:
        raise corrupted("flags", "bits 0 to 4", flags)
    if policy not in (1, 2, 3):
        raise corrupted("cleanup policy", "1 to 3", policy)
    created_at = _U64.unpack_from(page, 56)[0]
    if created_at > _MAX_CREATED_AT:
        raise corrupted("created at", f"0 to {_MAX_CREATED_AT}", created_at)
    id = _text(page, "id", 112, 127)
    if not id.startswith("shm_"):
        raise corrupted("id", "shm_...", id)
    instance = _text(page, "instance", 240, 63)
    dtype = _text(page, "dtype", 304, 15)
    if dtype and dtype not in ITEM_SIZES:
        raise corrupted("dtype", f"one of {', '.join(sorted(ITEM_SIZES))}", dtype)
    dimensions = _U32.unpack_from(page, 320)[0]
    if dimensions > 32 and dimensions != _NO_SHAPE:
        raise corrupted("dimensions", f"0 to 32, or {_NO_SHAPE}", dimensions)
    used = 0 if dimensions == _NO_SHAPE else dimensions
    shape: Tuple[int, ...] = struct.unpack_from("<32Q", page, 328)
    if any(shape[used:]):
        raise corrupted("shape", f"zero beyond {used} dimensions", shape)
    if dtype and dimensions != _NO_SHAPE and count(shape[:used]) * ITEM_SIZES[dtype] != size:
        raise corrupted("shape", f"dimensions whose product times {ITEM_SIZES[dtype]} is {size}", shape[:used])
    metadata_length = _U32.unpack_from(page, 584)[0]
    if metadata_length > _MAX_METADATA:
        raise corrupted("metadata length", f"0 to {_MAX_METADATA}", metadata_length)
    label = _text(page, "name", 3664, 223)
    if label and not flags & FLAG_NAMED:
        raise corrupted("name", "none: it is anonymous", label)
    for at, gap in ((44, 4), (104, 8), (324, 4), (588, 4), (592 + metadata_length, _MAX_METADATA - metadata_length), (3888, 140)):
        if any(page[at : at + gap]):
            raise corrupted(f"reserved bytes at {at}", "zero", "others")
    _expect("checksum", zlib.crc32(page[:_CRC_AT]), _U32.unpack_from(page, _CRC_AT)[0])
    state = _U32.unpack_from(page, _STATE_AT)[0]
    if state not in (ALLOCATED, SEALED, FREED, INVALID):
        raise corrupted("state", "1 to 4", state)
    return Header(
        id=id,
        instance=instance,
        size=size,
        data_offset=offset,
        flags=flags,
        dtype=dtype or None,
        shape=None if dimensions == _NO_SHAPE else shape[:used],
        metadata=page[592 : 592 + metadata_length],
        label=label or None,
        state=state,
    )


def sequence(memory: Union[bytes, mmap]) -> int:
    """Even: stable; odd: being written; half of it: completed writes."""
    value: int = _U64.unpack_from(memory, _SEQUENCE_AT)[0]
    return value


def state(memory: Union[bytes, mmap]) -> int:
    value: int = _U32.unpack_from(memory, _STATE_AT)[0]
    return value


def barrier() -> None:
    """Keeps loads before it before loads after it.

    Python has no fence. A lock taken and released is acquire and release; loads can slip into such a pair but not out of
    its other end, and a release and the following acquire keep their order, so two pairs in a row are a barrier on
    every machine CPython has threads on. On x86-64 loads keep their order anyway.
    """
    lock = threading.Lock()
    with lock:
        pass
    with lock:
        pass


def _text(page: bytes, field: str, at: int, room: int) -> str:
    length = page[at]
    if length > room:
        raise corrupted(field, f"a length of 0 to {room}", length)
    raw, rest = page[at + 1 : at + 1 + length], page[at + 1 + length : at + 1 + room]
    if any(rest):
        raise corrupted(field, "zero-filled", rest)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise corrupted(field, "UTF-8", raw) from None


def _expect(field: str, expected: object, found: object) -> None:
    if found != expected:
        raise corrupted(field, repr(expected), found)
