"""Regions that somebody else made, attached by their handle."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from . import connections, description, errors, header, mapping, operations, options
from .connection import Connection, Hold, grant_of
from .handle import MODES, READ_ONLY, READ_WRITE, Handle, HandleLike
from .memory import Lease, Memory
from .output import OutRegion, allocate_over

# Copies are tried this often without a pause: a writer of a few bytes has finished by then.
_EAGER = 64


def attach(handle: HandleLike, mode: Optional[str] = None) -> Region:
    """Maps the region that ``handle`` names: a dict, or its JSON text.

    ``mode`` is the handle's own unless given. ``"read_only"`` narrows a handle that may write; ``"read_write"`` insists,
    and raises :class:`PermissionDeniedError` where the handle or the policy allow reading only.
    """
    wanted = Handle.parse(handle)
    if mode is not None and mode not in MODES:
        raise errors.invalid("mode", f"one of {', '.join(MODES)}, or None for the handle's", mode)
    if mode == READ_WRITE and wanted.mode != READ_WRITE:
        raise _read_only(wanted.id, "the handle is for reading")
    connection = connections.get(wanted.socket)
    hold, reply = connection.attach(grant_of(wanted, mode))
    lease = Lease(connection, hold, "release")
    try:
        info = description.parse(reply.fields.get("region"), wanted.id)
        if mode == READ_WRITE and info.mode != READ_WRITE:
            raise _read_only(wanted.id, "the broker allows reading")
        granted = READ_ONLY if READ_ONLY in (mode, info.mode) else READ_WRITE
        region = Region(lease, info, wanted, granted)
        region._asked = mode
        region._map(mapping.descriptor_of(reply), granted == READ_WRITE)
        return region
    except BaseException:
        lease.drop()
        raise


class Region(Memory):
    """A region of shared memory that this process holds, made by :func:`attach`. A context manager."""

    _asked: Optional[str] = None
    _writer: Optional[int] = None

    @property
    def sealed(self) -> bool:
        """Nobody can change it any more."""
        return self._info.sealed or (not self._closed and self._live(mapping.Mapping.state) == header.SEALED)

    @property
    def generation(self) -> int:
        """How many writes have been completed."""
        return self._live(mapping.Mapping.sequence) // 2

    def _live(self, read: Callable[[mapping.Mapping], int]) -> int:
        try:
            return read(self._mapped())
        except ValueError:
            # Closed by another thread in between.
            raise self._is_closed() from None

    def read(self, offset: int = 0, length: Optional[int] = None, *, timeout: float = 1.0) -> bytes:
        """A copy of which no byte is older or newer than a write by ``writing()`` or by the VM.

        Raises :class:`BusyError` if writers left no moment for it within ``timeout`` seconds. Stores through raw views of a
        read-write region are not writes in this sense, and may be seen half done.
        """
        offset, count = self._range(offset, length)
        limit = options.seconds("timeout", timeout)
        mapped = self._mapped()
        try:
            if self._writer == threading.get_ident():
                # Inside its own writing(): the sequence is odd because of it.
                return mapped.copy(offset, count)
            return self._consistent(mapped, offset, count, limit)
        except ValueError as error:
            if isinstance(error, errors.SnakepitShmError) or not mapped.closed:
                raise
            raise self._is_closed() from None

    def _consistent(self, mapped: mapping.Mapping, offset: int, count: int, limit: float) -> bytes:
        deadline = time.monotonic() + limit
        attempt = 0
        while True:
            if mapped.state() == header.INVALID:
                raise mapping.invalid_memory(self.id)
            before = mapped.sequence()
            if not before & 1:
                header.barrier()
                copy = mapped.copy(offset, count)
                header.barrier()
                if mapped.sequence() == before:
                    return copy
            attempt += 1
            if time.monotonic() >= deadline:
                message = f"Region {self.id} was being written at each of {attempt} looks within {limit} s. Pass a longer timeout."
                raise errors.BusyError("busy", "busy", message)
            if attempt > _EAGER:
                time.sleep(0.0002)

    @contextmanager
    def writing(self, timeout: float = 5.0) -> Iterator[memoryview]:
        """Gives a writable memoryview while this is the one writer.

        The write counts, and bumps the generation, however the block is left: an exception in it does not undo stores.
        """
        limit = options.seconds("timeout", timeout)
        if self._mode != READ_WRITE:
            raise _read_only(self.id, "it was attached read-only")
        mapped = self._mapped()
        connection, hold = self._held()
        session = operations.write_begin(connection, hold, limit)
        self._writer = threading.get_ident()
        try:
            view = mapped.view()
            try:
                yield view
            finally:
                try:
                    view.release()
                except BufferError:
                    # Arrays stand on it. What they store from here on is no write that anybody is told of.
                    pass
        finally:
            self._writer = None
            # A child that was forked inside the block leaves the write to its parent.
            if connection.pid == os.getpid():
                operations.write_end(connection, hold, session)

    def wait(self, generation: Optional[int] = None, *, timeout: float = 30.0) -> int:
        """Waits until there have been more than ``generation`` writes (default: more than now); says how many.

        Raises :class:`TimeoutError` after ``timeout`` seconds.
        """
        limit = options.seconds("timeout", timeout)
        if generation is None:
            generation = self.generation
        elif isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
            raise errors.invalid("generation", "an integer, 0 or more", generation)
        connection, hold = self._held()
        reply = connection.request("wait", {"id": self.id, "generation": generation}, timeout=limit, hold=hold)
        newer = description.integer(reply.fields, "generation")
        if newer <= generation:
            raise errors.protocol(f"wait ended at generation {newer}, which is not over {generation}")
        return newer

    def handle(self) -> Dict[str, Any]:
        """A new read-only handle, to send to others."""
        return operations.handle(*self._held())

    def allocate(self, shape: Any, dtype: Any = None, *, metadata: Optional[Dict[str, Any]] = None) -> OutRegion:
        """A new region from the broker of this one; see :func:`snakepit_shm.allocate`."""
        connection, _ = self._held()
        return allocate_over(connection, shape, dtype, metadata)

    def _held(self) -> Tuple[Connection, Hold]:
        with self._lock:
            mapped = self._mapped()
            hold = self._lease.hold
            if hold is None:
                hold = self._attach_again(mapped)
            if hold.lost is not None:
                raise errors.again(hold.lost)
            return self._lease.connection, hold

    def _attach_again(self, mapped: mapping.Mapping) -> Hold:
        """In a forked child: a session and a hold of its own, for the memory that it has inherited."""
        assert self._handle is not None
        connection = connections.get(self._handle.socket)
        hold, reply = connection.attach(grant_of(self._handle, self._asked))
        try:
            problem = mapping.differs(reply, description.parse(reply.fields.get("region"), self.id), {mapped.identity})
            if problem is not None:
                raise problem
            hold.objects.add(mapped.identity)
        except BaseException:
            connection.drop(hold)
            raise
        self._lease.connection = connection
        self._lease.hold = hold
        return hold

    def __reduce__(self) -> Tuple[Callable[..., Region], Tuple[Any, ...]]:
        assert self._handle is not None
        return attach, (self._handle.to_dict(), self._asked)


def _read_only(id: str, because: str) -> errors.PermissionDeniedError:
    message = f"Region {id} cannot be written: {because}. Allocate it with peers: :read_write and make the handle with mode: :read_write."
    return errors.PermissionDeniedError("permission_denied", "read_only", message)
