"""Descriptors become memory here, after everything that a descriptor can be wrong about has been checked."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from typing import Any, Callable, Optional, Set, Tuple
from weakref import finalize

from . import errors, header
from .channel import Reply
from .description import Description
from .transport import Descriptor

# Device and inode of a memory object.
Identity = Tuple[int, int]

# linux/fcntl.h; the fcntl module has the names from 3.8 on where the headers had them.
F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 0x2)
F_SEAL_GROW = getattr(fcntl, "F_SEAL_GROW", 0x4)

_DONTDUMP: Optional[int] = getattr(mmap, "MADV_DONTDUMP", None)


def descriptor_of(reply: Reply) -> Descriptor:
    if reply.descriptor is None:
        raise errors.protocol("no descriptor")
    return reply.descriptor


def examine(descriptor: Descriptor, info: Description) -> Identity:
    """Checks length, seals and header page without mapping anything."""
    fd = descriptor.fileno()
    status = os.fstat(fd)
    if status.st_size != info.length:
        raise errors.corrupted("length", info.length, status.st_size)
    if not info.named and sys.platform == "linux":
        # Without these somebody could truncate it under the mapping, and touching it would be SIGBUS.
        try:
            seals = fcntl.fcntl(fd, F_GET_SEALS)
        except OSError as error:
            raise errors.corrupted("seals", "those of a memfd", error) from None
        if ~seals & (F_SEAL_SHRINK | F_SEAL_GROW):
            raise errors.corrupted("seals", "SHRINK and GROW", seals)
    try:
        page = os.pread(fd, header.HEADER_SIZE, 0)
    except OSError as error:
        raise errors.corrupted("header page", "readable", error) from None
    found = header.parse(page, info.length)
    for field, expected, value in (("id", info.id, found.id), ("data size", info.size, found.size), ("named", info.named, found.named)):
        if expected != value:
            raise errors.corrupted(field, repr(expected), value)
    if found.state == header.INVALID:
        raise invalid_memory(info.id)
    if found.state == header.FREED:
        raise errors.RegionNotFoundError("region_not_found", "region_not_found", f"Region {info.id} has been freed.")
    return status.st_dev, status.st_ino


def invalid_memory(id: str) -> errors.CorruptionError:
    message = f"Region {id} is invalid: a writer died, or damage was found. Free it and write it again."
    error = errors.CorruptionError("corruption_detected", "invalid", message)
    error.field = "state"
    return error


def differs(reply: Reply, info: Description, mapped: Set[Identity]) -> Optional[errors.SnakepitShmError]:
    """Why what is mapped cannot stand for what the broker hands out now. The new descriptor is closed."""
    descriptor = descriptor_of(reply)
    try:
        identity = examine(descriptor, info)
    except errors.SnakepitShmError as error:
        return error
    finally:
        descriptor.close()
    # Sealing may have copied the region into another object. Nothing that is sealed can change any more.
    if info.sealed or identity in mapped or not mapped:
        return None
    return errors.RegionNotFoundError("region_not_found", "region_not_found", f"Region {info.id} has been replaced by another one.")


class Mapping:
    """One mapping of a region, header page included. ``on_gone`` runs when the last view of a dropped mapping has gone."""

    def __init__(self, descriptor: Descriptor, info: Description, writable: bool, on_gone: Callable[[], Any]) -> None:
        try:
            self.identity = examine(descriptor, info)
            # A private mapping that is never written shows the shared pages. A shared one of a write-sealed object is
            # refused before Linux 6.7 even when it is read-only, and counts as a writer.
            flags, prot = (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) if writable else (mmap.MAP_PRIVATE, mmap.PROT_READ)
            try:
                self._memory = _map(descriptor.fileno(), info.length, flags, prot)
            except OSError as error:
                reason = "emfile" if error.errno == errno.EMFILE else "mapping_failed"
                raise errors.MappingError("mapping_failed", reason, f"Region {info.id} could not be mapped ({error}).") from error
        finally:
            descriptor.close()
        if _DONTDUMP is not None:
            try:
                self._memory.madvise(_DONTDUMP)
            except OSError:
                pass
        self._start = info.data_offset
        self._end = info.data_offset + info.size
        self._finalizer = finalize(self._memory, on_gone)
        # At exit the connection closes, and the session ends with everything it holds.
        self._finalizer.atexit = False

    def view(self) -> memoryview:
        return memoryview(self._memory)[self._start : self._end]

    def copy(self, offset: int, length: int) -> bytes:
        start = self._start + offset
        return self._memory[start : start + length]

    def sequence(self) -> int:
        return header.sequence(self._memory)

    def state(self) -> int:
        return header.state(self._memory)

    @property
    def closed(self) -> bool:
        return self._memory.closed

    def close(self) -> None:
        """Unmaps, or raises ViewsAliveError and leaves everything as it is."""
        try:
            self._memory.close()
        except BufferError:
            message = "Memoryviews or arrays still stand on the region. Delete them (or release() the memoryviews) first."
            raise errors.ViewsAliveError("invalid_state", "views_alive", message) from None
        self._finalizer.detach()


def _map(fd: int, length: int, flags: int, prot: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        # Nothing here needs the descriptor again; before 3.13 every mapping keeps a duplicate of it.
        return mmap.mmap(fd, length, flags=flags, prot=prot, trackfd=False)
    return mmap.mmap(fd, length, flags=flags, prot=prot)
