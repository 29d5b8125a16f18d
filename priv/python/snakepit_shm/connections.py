"""The connections of this process, one per broker socket, and what becomes of them at fork and exit."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any, Dict, List
from weakref import WeakSet

from .connection import Connection

_lock = threading.Lock()
_open: Dict[str, Connection] = {}
# Regions: what a forked child has to cut loose from the parent's session.
_attached: "WeakSet[Any]" = WeakSet()


def get(path: str) -> Connection:
    with _lock:
        found = _open.get(path)
        if found is None:
            found = _open[path] = Connection(path)
        return found


def track(region: Any) -> None:
    """``region.forked()`` is called in a forked child."""
    _attached.add(region)


def close_all() -> None:
    """Ends all sessions, and with them what they hold. Memory that is mapped stays readable."""
    with _lock:
        connections: List[Connection] = list(_open.values())
        _open.clear()
    for connection in connections:
        connection.close()


def _forked() -> None:
    # The only thread of the child. Locks may be held by threads that exist in the parent only: none is taken, all are new.
    global _lock
    _lock = threading.Lock()
    inherited = list(_open.values())
    _open.clear()
    for connection in inherited:
        connection.forked()
    for region in list(_attached):
        region.forked()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
