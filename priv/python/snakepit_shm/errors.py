"""What can go wrong.

Every error has a ``type`` (the broad kind), a ``reason`` (the exact cause) and a ``message`` (a sentence and a remedy).
Types and reasons are those of ``Snakepit.SharedMemory.Error`` on the Elixir side, whether the broker reported the error
or this package found it. ``connection_lost``, ``closed`` and ``views_alive`` exist on this side only.
"""

from __future__ import annotations

import builtins
from typing import Any, Dict, Mapping, Type


class SnakepitShmError(Exception):
    """The base of all errors here, and the class of those that have no class of their own."""

    def __init__(self, type: str, reason: str, message: str) -> None:
        # Past OSError, which some of the classes below are too, and which would take these for errno and filename.
        Exception.__init__(self, type, reason, message)
        self.type = type
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.type}: {self.reason})"


class InvalidArgumentError(SnakepitShmError, ValueError):
    """An argument is not what it has to be. ``key``, ``expected`` and ``got`` say which (None where the broker found it)."""

    key: Any = None
    expected: Any = None
    got: Any = None


class InvalidStateError(SnakepitShmError):
    """The region is sealed, or not sealed, and the operation needs the other."""


class NotWriterError(InvalidStateError):
    """A write was ended by a session that is not the writer."""


class ClosedError(InvalidStateError, ValueError):
    """The Region object has been closed."""


class ViewsAliveError(InvalidStateError):
    """Memoryviews or arrays still stand on the mapping. Nothing has changed; drop them and try again."""


class BusyError(SnakepitShmError):
    """Somebody else writes, or maps, the region, and went on for longer than the timeout."""


class TimeoutError(SnakepitShmError, builtins.TimeoutError):
    """Nothing happened, or nobody answered, within the timeout."""


class RegionNotFoundError(SnakepitShmError, LookupError):
    """The region was freed, expired, or went with its VM."""


class PermissionDeniedError(SnakepitShmError, builtins.PermissionError):
    """The policy, the mode of the handle, or the ownership of the region does not allow it."""


class SecurityViolationError(PermissionDeniedError):
    """A token that does not fit, an expired handle, a foreign user."""


class CorruptionError(SnakepitShmError):
    """The memory is not what it has to be. ``field`` names what differs where the check was made here."""

    field: Any = None


class MemoryLimitError(SnakepitShmError, MemoryError):
    """A limit on memory or on a region's size."""


class AllocationError(SnakepitShmError):
    """A limit on the number of regions or descriptors, or no space."""


class MappingError(SnakepitShmError):
    """The memory could not be mapped."""


class PlatformError(SnakepitShmError):
    """The operating system, or the way this side is set up, does not allow it."""


class ProtocolError(SnakepitShmError):
    """The other side does not speak the protocol."""


class ConnectionLostError(SnakepitShmError, ConnectionError):
    """The broker cannot be reached (``unreachable``), or was lost while a request was under way whose outcome is not known
    (``connection_lost``)."""


# A reason that has a class narrower than its type's.
_BY_REASON: Mapping[str, Type[SnakepitShmError]] = {
    "not_writer": NotWriterError,
    "not_held": RegionNotFoundError,
    "protocol": ProtocolError,
    "unknown_session": ConnectionLostError,
}

_BY_TYPE: Mapping[str, Type[SnakepitShmError]] = {
    "allocation_failed": AllocationError,
    "mapping_failed": MappingError,
    "permission_denied": PermissionDeniedError,
    "region_not_found": RegionNotFoundError,
    "memory_limit_exceeded": MemoryLimitError,
    "platform_error": PlatformError,
    "security_violation": SecurityViolationError,
    "corruption_detected": CorruptionError,
    "invalid_argument": InvalidArgumentError,
    "invalid_state": InvalidStateError,
    "busy": BusyError,
    "timeout": TimeoutError,
}


def from_broker(error: Dict[str, Any]) -> SnakepitShmError:
    """The error of an answer. What is not known becomes a plain :class:`SnakepitShmError`."""
    type, reason, message = error.get("type"), error.get("reason"), error.get("message")
    if not (isinstance(type, str) and isinstance(reason, str) and isinstance(message, str)):
        return protocol(f"an error without type, reason and message: {error!r:.200}")
    found = _BY_REASON.get(reason) or _BY_TYPE.get(type, SnakepitShmError)
    return found(type, reason, message)


def again(error: SnakepitShmError) -> SnakepitShmError:
    """A copy, to raise an error that is kept a second time without its old traceback."""
    copy = error.__class__(error.type, error.reason, error.message)
    copy.__dict__.update(error.__dict__)
    return copy


def invalid(key: str, expected: str, got: object, reason: str = "invalid_argument") -> InvalidArgumentError:
    error = InvalidArgumentError("invalid_argument", reason, f"{key}: expected {expected}, got {got!r:.100}.")
    error.key, error.expected, error.got = key, expected, got
    return error


def corrupted(field: str, expected: object, found: object) -> CorruptionError:
    message = f"The memory is damaged: {field} is {found!r:.100}, expected {expected}. Free the region and write it again."
    error = CorruptionError("corruption_detected", "corrupted", message)
    error.field = field
    return error


def protocol(what: str) -> ProtocolError:
    return ProtocolError("security_violation", "protocol", f"The broker broke the protocol: {what}.")


def lost(what: str) -> ConnectionLostError:
    return ConnectionLostError("connection_lost", "connection_lost", what)


def unreachable(what: str) -> ConnectionLostError:
    """Unlike with :func:`lost`, nothing is under way whose outcome would be open."""
    return ConnectionLostError("connection_lost", "unreachable", what)


def timed_out(what: str) -> TimeoutError:
    return TimeoutError("timeout", "timeout", what)
