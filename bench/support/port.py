"""The Python end of a Port that Elixir opened with ``{:packet, 4}``: a frame is a 4-byte length and that many bytes.

A request and its answer are lines of ``key=value``. What the program prints goes to the terminal, not into the Port.
"""

import os
import struct
import sys

_LENGTH = struct.Struct(">I")
_in = sys.stdin.buffer
_out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def receive():
    """The next request as a dict, or None when Elixir has closed the Port."""
    length = receive_length()
    if length is None:
        return None
    lines = _in.read(length).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def receive_length():
    header = _in.read(_LENGTH.size)
    return _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else None


def receive_into(buffer):
    """The next frame, straight into ``buffer``, which must have its length."""
    length = receive_length()
    if length != len(buffer):
        raise ValueError(f"a frame of {length} bytes, {len(buffer)} expected")
    view = memoryview(buffer)
    while view:
        count = _in.readinto(view)
        if not count:
            raise EOFError("the Port was closed")
        view = view[count:]


def answer(**fields):
    text = "\n".join(f"{key}={value}" for key, value in fields.items()).encode()
    _out.write(_LENGTH.pack(len(text)) + text)
    _out.flush()


def serve(handlers):
    """Answers requests until the Port is closed or says ``op=quit``.

    A handler takes the other fields and returns those of the answer.
    """
    while (request := receive()) is not None:
        op = request.pop("op")
        if op == "quit":
            return
        try:
            fields = handlers[op](**request)
        except Exception as error:
            fields = {"error": f"{op}: {type(error).__name__}: {error}".replace("\n", " ")}
        answer(**fields)
