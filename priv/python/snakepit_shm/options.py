"""How long to wait for the broker, for the whole process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from .errors import invalid

LONGEST = 7 * 24 * 3600.0


@dataclass
class Options:
    # For answers that the broker gives at once; what may take longer (wait, writing) has its own timeout.
    request_timeout: float = 10.0
    # For getting a lost connection back.
    reconnect_timeout: float = 10.0


current = Options()


def seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
        raise invalid(key, "seconds, 0 or more", value)
    return min(float(value), LONGEST)


def configure(*, request_timeout: Optional[float] = None, reconnect_timeout: Optional[float] = None) -> None:
    """Sets the timeouts of this process, in seconds. What is not given stays."""
    if request_timeout is not None:
        current.request_timeout = seconds("request_timeout", request_timeout)
    if reconnect_timeout is not None:
        current.reconnect_timeout = seconds("reconnect_timeout", reconnect_timeout)
