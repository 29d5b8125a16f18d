"""The requests whose outcome may stay open when the connection breaks under them, and how each is settled.

attach, detach, wait, info, handle and ping do no harm when done twice: connection.py repeats them. Here are the others.
"""

from __future__ import annotations

import time
from typing import Any, Dict, Optional

from . import description, errors, mapping
from .channel import Reply
from .connection import ATTEMPTS, Connection, Hold
from .description import Description
from .handle import READ_WRITE


def _open_outcome(error: errors.ConnectionLostError) -> bool:
    return error.reason == "connection_lost"


def write_begin(connection: Connection, hold: Hold, timeout: float) -> Optional[str]:
    """Makes this session the writer, and gives the session's name. Within the process ``hold.writing`` says which thread it is."""
    started = time.monotonic()

    def left() -> float:
        return max(0.0, started + timeout - time.monotonic())

    if not hold.writing.acquire(timeout=timeout):
        raise errors.BusyError("busy", "busy", f"Another thread of this process is writing to region {hold.id}.")
    fields = {"id": hold.id}
    try:
        for attempt in range(ATTEMPTS):
            try:
                connection.request("write_begin", fields, timeout=left(), retry=False, hold=hold)
                break
            except errors.ConnectionLostError as error:
                if not _open_outcome(error) or attempt == ATTEMPTS - 1:
                    raise
                # It may have been granted. A write that is ended at once does no harm.
                try:
                    connection.request("write_end", fields, hold=hold)
                except errors.NotWriterError:
                    pass
            except errors.PermissionDeniedError as error:
                # The broker remembers one mode per session and region, the last one: another Region of this process
                # that came to read has narrowed it.
                grant = next(iter(hold.strongest_first()), None)
                if error.reason != "read_only" or grant is None or grant.want != READ_WRITE or attempt == ATTEMPTS - 1:
                    raise
                reply = connection.request("attach", grant.fields(), descriptor=True, hold=hold)
                mapping.descriptor_of(reply).close()
        return connection.session
    except BaseException:
        # A grant that comes too late is given back by the connection's chores.
        hold.writing.release()
        raise


def write_end(connection: Connection, hold: Hold, session: Optional[str]) -> int:
    """Ends the write that ``session`` began; gives the generation."""
    fields = {"id": hold.id}
    try:
        try:
            reply = connection.request("write_end", fields, retry=False, hold=hold)
        except errors.ConnectionLostError as error:
            if not _open_outcome(error):
                raise
            try:
                reply = connection.request("write_end", fields, hold=hold)
            except errors.NotWriterError:
                if connection.session != session:
                    raise
                # The same session is not the writer any more, so the first one was heard.
                return info(connection, hold).generation
        return description.integer(reply.fields, "generation")
    finally:
        hold.writing.release()


def info(connection: Connection, hold: Hold) -> Description:
    return description.parse(connection.request("info", {"id": hold.id}, hold=hold).fields.get("region"), hold.id)


def handle(connection: Connection, hold: Hold) -> Dict[str, Any]:
    return _handle_in(connection.request("handle", {"id": hold.id}, hold=hold))


def allocate(connection: Connection, fields: Dict[str, Any]) -> Reply:
    """Never repeated once the broker may have had it: a second region would be made. A region whose answer was lost lives as
    long as the session."""
    return connection.request("allocate", fields, descriptor=True, retry=False)


def seal(connection: Connection, hold: Hold) -> Reply:
    """The answer has ``handle``, ``region`` and a read-only descriptor, also when it has to be put together anew."""
    fields = {"id": hold.id}
    for attempt in range(ATTEMPTS):
        try:
            return connection.request("seal", fields, descriptor=True, retry=False, hold=hold)
        except errors.ConnectionLostError as error:
            if not _open_outcome(error) or attempt == ATTEMPTS - 1:
                raise
        except errors.InvalidStateError as error:
            # An earlier attempt got through, and its answer did not.
            if error.reason != "sealed":
                raise
        if info(connection, hold).sealed:
            break
    sent = handle(connection, hold)
    wanted = {key: sent.get(key) for key in ("id", "token", "mode", "expires")}
    reply = connection.request("attach", wanted, descriptor=True, hold=hold)
    return Reply({**reply.fields, "handle": sent}, reply.descriptor)


def free(connection: Connection, hold: Hold) -> None:
    try:
        try:
            connection.request("free", {"id": hold.id}, retry=False, hold=hold)
        except errors.ConnectionLostError as error:
            if not _open_outcome(error):
                raise
            connection.request("free", {"id": hold.id}, hold=hold)
    except errors.RegionNotFoundError:
        # It is gone, by the first request or with its session.
        pass
    connection.freed(hold)


def _handle_in(reply: Reply) -> Dict[str, Any]:
    sent = reply.fields.get("handle")
    if not isinstance(sent, dict):
        raise errors.protocol(f"an answer without a handle: {sent!r:.100}")
    return sent
