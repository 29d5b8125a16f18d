"""Classes, reasons, and what an error says."""

from __future__ import annotations

import builtins
import pickle

import pytest

import snakepit_shm as shm
from snakepit_shm import errors


@pytest.mark.parametrize(
    "type, reason, expected",
    [
        ("region_not_found", "region_not_found", shm.RegionNotFoundError),
        ("permission_denied", "not_owner", shm.PermissionDeniedError),
        ("permission_denied", "not_held", shm.RegionNotFoundError),
        ("security_violation", "expired", shm.SecurityViolationError),
        ("security_violation", "protocol", shm.ProtocolError),
        ("invalid_state", "not_writer", shm.NotWriterError),
        ("invalid_state", "sealed", shm.InvalidStateError),
        ("busy", "busy", shm.BusyError),
        ("timeout", "timeout", shm.TimeoutError),
        ("corruption_detected", "writer_died", shm.CorruptionError),
        ("memory_limit_exceeded", "not_enough_memory", shm.MemoryLimitError),
        ("allocation_failed", "emfile", shm.AllocationError),
        ("mapping_failed", "too_many_mappings", shm.MappingError),
        ("platform_error", "os_error", shm.PlatformError),
        ("invalid_argument", "out_of_range", shm.InvalidArgumentError),
        ("cleanup_failed", "cleanup_failed", shm.SnakepitShmError),
        ("of tomorrow", "unheard of", shm.SnakepitShmError),
    ],
)
def test_a_class_for_each_type(type, reason, expected):
    error = errors.from_broker({"type": type, "reason": reason, "message": "What to do."})
    assert error.__class__ is expected
    assert (error.type, error.reason, error.message) == (type, reason, "What to do.")
    assert str(error) == f"What to do. ({type}: {reason})"
    for copy in (pickle.loads(pickle.dumps(error)), errors.again(error)):
        assert copy.__class__ is expected and copy is not error and str(copy) == str(error) and copy.reason == reason


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (shm.TimeoutError, builtins.TimeoutError), (shm.ConnectionLostError, ConnectionError), (shm.PermissionDeniedError, PermissionError),
        (shm.InvalidArgumentError, ValueError), (shm.MemoryLimitError, MemoryError), (shm.RegionNotFoundError, LookupError),
    ],
)
def test_they_are_what_python_calls_them(ours, theirs):
    assert issubclass(ours, theirs) and issubclass(ours, shm.SnakepitShmError)
    error = ours("t", "r", "m")
    assert error.args == ("t", "r", "m") and getattr(error, "errno", None) is None


@pytest.mark.parametrize("value", [-1, float("nan"), "1", True])
def test_options_are_checked(value):
    with pytest.raises(shm.InvalidArgumentError):
        shm.configure(request_timeout=value)
    with pytest.raises(shm.InvalidArgumentError):
        shm.configure(reconnect_timeout=value)
