"""What a frame looks like, for those who write and those who read it."""

from __future__ import annotations

import hmac
from struct import Struct

__all__ = [
    "ALIGN",
    "BESIDE",
    "CHECKED",
    "DIGEST",
    "ELSEWHERE",
    "FIXED",
    "MAGIC",
    "MAX_BLOB",
    "MAX_GLOBS",
    "MAX_NAME",
    "NAMED",
    "PIECE",
    "REST",
    "SIGNED",
    "START",
    "VERSION",
    "ZEROS",
    "aligned",
    "sign",
]

VERSION = 1
PIECE = 64
"""Events of a text between two line ends, which JSON has there and nowhere else: each such piece can be decoded alone.

A page of 1000 small events takes 0.7 MB as objects, more than the inner caches of a core: decoded piece by piece, right
before the listener gets them, they cost it a third less.
"""

MAGIC = b"\xf5tbf"
SIGNED, BESIDE, ELSEWHERE = 1, 2, 4
ALIGN = 16
DIGEST = 32
# magic, version, CRC of the rest
START = Struct("<4sBI")
# flags, producer, blob id, only_to, count, buffers, text, body, first, CRC of the body
REST = Struct("<BBBHIIQQQI")
FIXED = Struct(START.format + REST.format[1:])
CHECKED, NAMED = START.size, FIXED.size
ZEROS = tuple(bytes(count) for count in range(ALIGN))
MAX_NAME, MAX_BLOB, MAX_GLOBS = 64, 0xFF, 0xFFFF


def sign(rest: bytes | memoryview, secret: bytes, scope: str) -> bytes:
    """Signs a header from behind its CRC on; magic and version stand for what is before that."""
    return hmac.digest(secret, b"".join((scope.encode(), b"\0", MAGIC, bytes([VERSION]), rest)), "sha256")


def aligned(at: int) -> int:
    return at + -at % ALIGN
