"""Shared memory with the BEAM: regions that an Elixir VM owns, without copying.

    import snakepit_shm

    with snakepit_shm.attach(handle) as region:
        print(region.numpy().sum())

Standard library only; NumPy and pyarrow are used when they are there and asked for.
"""

import logging

from .errors import (
    AllocationError,
    BusyError,
    ClosedError,
    ConnectionLostError,
    CorruptionError,
    InvalidArgumentError,
    InvalidStateError,
    MappingError,
    MemoryLimitError,
    NotWriterError,
    PermissionDeniedError,
    PlatformError,
    ProtocolError,
    RegionNotFoundError,
    SecurityViolationError,
    SnakepitShmError,
    TimeoutError,
    ViewsAliveError,
)
from .options import configure
from .output import OutRegion, allocate
from .region import Region, attach

logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "AllocationError",
    "BusyError",
    "ClosedError",
    "ConnectionLostError",
    "CorruptionError",
    "InvalidArgumentError",
    "InvalidStateError",
    "MappingError",
    "MemoryLimitError",
    "NotWriterError",
    "OutRegion",
    "PermissionDeniedError",
    "PlatformError",
    "ProtocolError",
    "Region",
    "RegionNotFoundError",
    "SecurityViolationError",
    "SnakepitShmError",
    "TimeoutError",
    "ViewsAliveError",
    "allocate",
    "attach",
    "configure",
]
