"""Regions that this process makes: allocated, filled, sealed, and handed on as a handle."""

from __future__ import annotations

import os
import pickle
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Type, Union

from . import connections, description, errors, mapping, operations
from .connection import Connection, Hold, grant_of
from .dtypes import plan
from .handle import READ_ONLY, READ_WRITE, Handle, is_socket
from .memory import Lease, Memory

if TYPE_CHECKING:
    from .region import Region

SOCKET_VARIABLE = "SNAKEPIT_SHM_SOCKET"


def allocate(
    shape: Any,
    dtype: Any = None,
    *,
    socket: Optional[str] = None,
    region: Optional[Union[Region, OutRegion]] = None,
    metadata: Optional[Dict[str, Any]] = None,
) -> OutRegion:
    """Asks the broker for a new region, to be filled, sealed, and handed on.

    ``shape`` is an integer or a tuple (``()`` is one element); without a ``dtype`` it is the size in bytes. The broker is
    the one at ``socket``, else the one of ``region``, else the one that ``SNAKEPIT_SHM_SOCKET`` names.
    """
    if socket is not None and region is not None:
        raise errors.invalid("socket", "None, as region says where", socket)
    if region is not None:
        connection, _ = region._held()
    else:
        path = socket if socket is not None else os.environ.get(SOCKET_VARIABLE)
        if path is None or not is_socket(path):
            expected = f"the absolute path of a broker's socket, in socket=, by region=, or in {SOCKET_VARIABLE}"
            raise errors.invalid("socket", expected, path)
        connection = connections.get(path)
    return allocate_over(connection, shape, dtype, metadata)


def allocate_over(connection: Connection, shape: Any, dtype: Any, metadata: Optional[Dict[str, Any]]) -> OutRegion:
    size, name, dims = plan(shape, dtype)
    if metadata is not None and not isinstance(metadata, dict):
        raise errors.invalid("metadata", "a dict that JSON can say, or None", metadata)
    fields = {"size": size, "dtype": name, "shape": dims, "metadata": metadata or {}}
    reply = operations.allocate(connection, fields)
    info = description.parse(reply.fields.get("region"))
    hold = connection.allocated(info.id)
    lease = Lease(connection, hold, "free_hold")
    try:
        if info.size != size or info.mode != READ_WRITE:
            raise errors.protocol(f"{size} writable bytes were asked for, and {info.size} came, {info.mode}")
        out = OutRegion(lease, info, None, READ_WRITE)
        out._map(mapping.descriptor_of(reply), True)
        return out
    except BaseException:
        lease.drop()
        raise


class OutRegion(Memory):
    """A region that this process allocated: writable until :meth:`seal`, read-only afterwards. A context manager, which
    frees what was not sealed."""

    _freed = False

    @property
    def sealed(self) -> bool:
        return self._handle is not None

    def write(self, data: Any, offset: int = 0) -> None:
        """Stores ``data`` (anything with a buffer of contiguous bytes) at ``offset``."""
        try:
            source = memoryview(data).cast("B")
        except TypeError:
            raise errors.invalid("data", "contiguous bytes", type(data)) from None
        start, count = self._range(offset, source.nbytes)
        if self.sealed:
            raise self._is_sealed()
        self.memoryview()[start : start + count] = source

    def seal(self) -> Dict[str, Any]:
        """Makes the region immutable and gives its handle, to return or send. The memory stays readable here.

        Raises :class:`ViewsAliveError` while memoryviews or arrays live: the kernel refuses to seal what is mapped
        writable. If the broker refuses, the data is safe there but unmapped here; call ``seal()`` again, or ``free()``.
        """
        with self._lock:
            if self._closed:
                raise self._is_closed()
            if self._handle is not None:
                raise self._is_sealed()
            connection, hold = self._held()
            if self._mapping is not None:
                self._mapping.close()
                self._mapping = None
            reply = operations.seal(connection, hold)
            handle = Handle.parse(reply.fields.get("handle") or {})
            info = description.parse(reply.fields.get("region"), self.id)
            if not info.sealed or handle.id != self.id:
                raise errors.protocol("an answer to seal about something else, or not sealed")
            # From here on the region outlives this session, and can be attached again like any other.
            hold.allocated = False
            hold.grants.add(grant_of(handle))
            hold.objects.clear()
            self._lease.dropped = "release"
            self._info, self._handle, self._mode = info, handle, READ_ONLY
            self._map(mapping.descriptor_of(reply), False)
            return handle.to_dict()

    def handle(self) -> Dict[str, Any]:
        """The handle that :meth:`seal` gave."""
        if self._handle is None:
            raise errors.InvalidStateError("invalid_state", "not_sealed", f"Region {self.id} has a handle once it is sealed.")
        return self._handle.to_dict()

    def free(self) -> None:
        """Gives the memory back, sealed or not; others who have it mapped keep their mappings. Doing it twice is no error."""
        with self._lock:
            if self._freed:
                return
            if self._mapping is not None:
                self._mapping.close()
                self._mapping = None
            self._closed = True
            hold, self._lease.hold = self._lease.hold, None
            self._freed = True
        if hold is not None and hold.lost is None:
            operations.free(self._lease.connection, hold)

    def _ended(self) -> None:
        if self.sealed:
            self._lease.release()
        else:
            self.free()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        except errors.ConnectionLostError:
            # What was not sealed ends with the session anyway; the block's own error, or its result, counts more.
            pass

    def _held(self) -> Tuple[Connection, Hold]:
        hold = self._lease.hold
        if hold is None:
            message = f"Region {self.id} was allocated by the process that this one was forked from."
            raise errors.PermissionDeniedError("permission_denied", "not_owner", message)
        if hold.lost is not None:
            raise errors.again(hold.lost)
        return self._lease.connection, hold

    def _is_sealed(self) -> errors.InvalidStateError:
        return errors.InvalidStateError("invalid_state", "sealed", f"Region {self.id} is sealed and can no longer change.")

    def __reduce__(self) -> Tuple[Any, ...]:
        if self._handle is None:
            raise pickle.PicklingError(f"region {self.id} has no handle before it is sealed")
        from .region import attach

        return attach, (self._handle.to_dict(), None)
