"""What a region that was attached and one that was allocated have in common: a mapping, its views, its end."""

from __future__ import annotations

import os
import threading
import warnings
from types import TracebackType
from typing import Any, Dict, Optional, Tuple, Type, TypeVar

from . import arrays, connections, errors
from .connection import Connection, Hold
from .description import Description
from .handle import Handle
from .mapping import Mapping
from .transport import Descriptor

Self = TypeVar("Self", bound="Memory")


class Lease:
    """One user of a hold. It ends once: with the region, or, when the region was dropped, with the last view of its memory."""

    def __init__(self, connection: Connection, hold: Hold, dropped: str) -> None:
        self.connection = connection
        self.hold: Optional[Hold] = hold
        # What the connection does when the memory is dropped without close(): "release" or "free_hold".
        self.dropped = dropped

    def drop(self) -> None:
        """For finalizers: takes no lock, and does nothing in a process that did not make the lease."""
        hold, self.hold = self.hold, None
        if hold is not None and self.connection.pid == os.getpid():
            self.connection.drop(hold, self.dropped)

    def release(self) -> None:
        hold, self.hold = self.hold, None
        if hold is not None:
            self.connection.release(hold)


class Memory:
    def __init__(self, lease: Lease, info: Description, handle: Optional[Handle], mode: str) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._lease = lease
        self._info = info
        self._handle = handle
        self._mode = mode
        self._mapping: Optional[Mapping] = None
        connections.track(self)

    def _map(self, descriptor: Descriptor, writable: bool) -> Mapping:
        hold = self._lease.hold
        self._mapping = made = Mapping(descriptor, self._info, writable, self._lease.drop)
        if hold is not None:
            hold.objects.add(made.identity)
        return made

    # What it is

    @property
    def id(self) -> str:
        return self._info.id

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self._info.size

    @property
    def dtype(self) -> Optional[str]:
        """The NumPy name of the element type, or None: raw bytes."""
        return self._info.dtype

    @property
    def shape(self) -> Optional[Tuple[int, ...]]:
        return self._info.shape

    @property
    def metadata(self) -> Dict[str, Any]:
        return dict(self._info.metadata)

    @property
    def mode(self) -> str:
        """``"read_only"`` or ``"read_write"``: what this object may do, whatever others may."""
        return self._mode

    @property
    def named(self) -> bool:
        return self._info.named

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return self._info.size

    def __repr__(self) -> str:
        parts = [self.id, f"{self.size} bytes"]
        if self.dtype is not None:
            parts.append(self.dtype + (str(list(self.shape)) if self.shape is not None else ""))
        parts.append("closed" if self._closed else self._mode)
        return f"<{type(self).__module__.split('.')[0]}.{type(self).__name__} {', '.join(parts)}>"

    # Views

    def memoryview(self) -> memoryview:
        """The data, without a copy; read-only when the region is. The region cannot be closed while it lives."""
        try:
            return self._mapped().view()
        except ValueError:
            # Closed by another thread in between.
            raise self._is_closed() from None

    def numpy(self, dtype: Any = None, shape: Any = None) -> Any:
        """The data as a ``numpy.ndarray``, without a copy, by the region's type and shape (``uint8`` without a type)."""
        return arrays.array(self.memoryview(), self.dtype, self.shape, dtype, shape)

    def arrow(self) -> Any:
        """The data as a ``pyarrow.Buffer``, without a copy."""
        return arrays.arrow(self.memoryview())

    def _mapped(self) -> Mapping:
        mapped = self._mapping
        if self._closed or mapped is None:
            raise self._is_closed()
        return mapped

    def _is_closed(self) -> errors.ClosedError:
        return errors.ClosedError("invalid_state", "closed", f"Region {self.id} is closed here.")

    def _range(self, offset: Any, length: Any) -> Tuple[int, int]:
        for key, value in (("offset", offset), ("length", length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise errors.invalid(key, "bytes, 0 or more", value)
        count = self.size - offset if length is None else length
        if count < 0 or offset + count > self.size:
            raise errors.invalid("offset and length", f"a range inside the {self.size} bytes", (offset, length), "out_of_range")
        return offset, count

    # Ends

    def close(self) -> None:
        """Unmaps the memory and gives the region back. Doing it twice is no error.

        While memoryviews or arrays live it raises :class:`ViewsAliveError`, and nothing changes.
        """
        with self._lock:
            if self._closed:
                return
            if self._mapping is not None:
                self._mapping.close()
            self._mapping = None
            self._closed = True
        self._ended()

    def _ended(self) -> None:
        self._lease.release()

    def _give_up(self) -> None:
        """Leaves the mapping to the views that still stand on it: the region goes with the last of them."""
        with self._lock:
            self._closed = True
            self._mapping = None

    def __enter__(self: Self) -> Self:
        self._mapped()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        try:
            self.close()
        except errors.ViewsAliveError:
            self._give_up()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._mapping is None:
                # There is no memory whose end would end the lease.
                self._lease.drop()
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def forked(self) -> None:
        """In a forked child: the mapping stays, the session and what it holds are the parent's."""
        self._lock = threading.Lock()
        self._lease.hold = None
