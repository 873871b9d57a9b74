"""Commands in the wire format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis

__all__ = ["Arg", "Part", "bulk", "pack", "pack_value"]

Arg = bytes | str | int | float
Part = bytes | bytearray | memoryview


def pack(*args: Arg) -> bytes:
    """One command in the wire format."""
    # Numbers as text, for hiredis makes that by str(), in which a signal handler may raise, and then it crashes.
    command: Any = tuple([arg if type(arg) is bytes or type(arg) is str else str(arg) for arg in args])
    packed: bytes = hiredis.pack_command(command)
    return packed


def bulk(argument: bytes) -> bytes:
    """One argument in the wire format, for commands of which a part is packed once and kept."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


def pack_value(command: Sequence[bytes], value: Sequence[Part], tail: Sequence[bytes]) -> list[Part]:
    """One command whose middle argument is large and given in parts, which are not copied."""
    head = b"*%d\r\n" % (len(command) + 1 + len(tail)) + b"".join(map(bulk, command))
    size = sum(memoryview(part).nbytes for part in value)
    end = b"\r\n" + b"".join(map(bulk, tail))
    return [head + b"$%d\r\n" % size, *value, end]
