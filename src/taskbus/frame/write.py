"""Events to frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from struct import pack as pack_struct
from zlib import crc32

from taskbus.codec import TAGGED
from taskbus.errors import ConfigError
from taskbus.frame.layout import (
    ALIGN,
    BESIDE,
    CHECKED,
    ELSEWHERE,
    MAGIC,
    MAX_BLOB,
    MAX_GLOBS,
    MAX_NAME,
    NAMED,
    PIECE,
    REST,
    SIGNED,
    START,
    VERSION,
    ZEROS,
    aligned,
    sign,
)

__all__ = ["body_size", "pack", "pack_blob"]

_MARK = TAGGED[-1:]  # one byte is looked for ten times as fast

_Bytes = bytes | bytearray | memoryview


def body_size(text: _Bytes, buffers: Sequence[memoryview]) -> int:
    """How long the body of a frame with these parts is, in bytes."""
    size = 8 * len(buffers) + len(text)
    for buffer in buffers:
        size += -size % ALIGN + buffer.nbytes
    return size


def pack(
    producer: str,
    first: int,
    count: int,
    text: bytes | bytearray,
    buffers: Sequence[memoryview] = (),
    *,
    only_to: Sequence[str] = (),
    elsewhere: bool = False,
    secret: bytes | None = None,
    scope: str = "",
) -> bytes:
    """A whole frame; ``text`` is the JSON array of the events' texts, ``buffers`` are theirs, one after another.

    ``scope`` is where the frame belongs (its stream's key): it does not travel, but the signature covers it.
    """
    if count > PIECE and _MARK in text and TAGGED in text:
        # Values that only a registered reader makes are made once for all, and so not in pieces. It is looked for here,
        # once, and not by each who reads it.
        text = text.replace(b"\n,", b",")
    if not buffers and not only_to and secret is None:  # as mostly; the rest takes twice as long
        size, (length, named) = len(text), _plain_name(producer)
        flags = ELSEWHERE if elsewhere else 0
        rest = REST.pack(flags, length, 0, 0, count, 0, size, size, first, crc32(text)) + named
        return b"".join((START.pack(MAGIC, VERSION, crc32(rest)), rest, text))
    parts = _body(text, buffers) if buffers else [text]
    header = _header(producer, first, count, text, buffers, parts, "", only_to, elsewhere, secret, scope)
    return b"".join((header, *parts))


def pack_blob(
    producer: str,
    first: int,
    text: bytes | bytearray,
    buffers: Sequence[memoryview],
    *,
    blob: str,
    count: int = 1,
    only_to: Sequence[str] = (),
    elsewhere: bool = False,
    secret: bytes | None = None,
    scope: str = "",
) -> tuple[bytes, list[_Bytes]]:
    """A frame that names ``blob``, and the chunks of that value, in which no buffer was copied."""
    parts = _body(text, buffers)
    return _header(producer, first, count, text, buffers, parts, blob, only_to, elsewhere, secret, scope), parts


@lru_cache(100)
def _plain_name(producer: str) -> tuple[int, bytes]:
    """The end of a header in which nothing follows the producer, and how long the name is."""
    name = producer.encode("ascii")
    assert 0 < len(name) <= MAX_NAME, producer
    return len(name), name + ZEROS[-(NAMED + len(name)) % ALIGN]


def _header(
    producer: str,
    first: int,
    count: int,
    text: _Bytes,
    buffers: Sequence[memoryview],
    parts: Sequence[_Bytes],
    blob: str,
    only_to: Sequence[str],
    elsewhere: bool,
    secret: bytes | None,
    scope: str,
) -> bytes:
    names, ids = producer.encode("ascii"), blob.encode("ascii") if blob else b""
    globs = _pack_globs(only_to) if only_to else b""
    assert 0 < len(names) <= MAX_NAME, producer
    assert len(ids) <= MAX_BLOB, blob
    flags = (SIGNED if secret is not None else 0) | (BESIDE if blob else 0) | (ELSEWHERE if elsewhere else 0)
    crc = 0
    for part in parts[:2] if blob else parts:
        crc = crc32(part, crc)
    size = body_size(text, buffers) if buffers else len(text)
    rest = REST.pack(flags, len(names), len(ids), len(globs), count, len(buffers), len(text), size, first, crc)
    rest += names + ids + globs
    rest += ZEROS[-(CHECKED + len(rest)) % ALIGN]
    if secret is not None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        rest += digest.digest()
        rest += sign(rest, secret, scope)
    return START.pack(MAGIC, VERSION, crc32(rest)) + rest


def _body(text: _Bytes, buffers: Sequence[memoryview]) -> list[_Bytes]:
    """The pieces of a body, which join without a copy of a buffer: the table, if there are buffers, the text, them."""
    if not buffers:
        return [text]
    parts: list[_Bytes] = [pack_struct(f"<{len(buffers)}Q", *[buffer.nbytes for buffer in buffers]), text]
    at = 8 * len(buffers) + len(text)
    for buffer in buffers:
        if at % ALIGN:
            parts.append(ZEROS[-at % ALIGN])
        parts.append(buffer)
        at = aligned(at) + buffer.nbytes
    return parts


def _pack_globs(only_to: Sequence[str]) -> bytes:
    try:
        parts = [glob.encode() for glob in only_to]
    except UnicodeEncodeError:
        raise ConfigError("a label glob with a lone surrogate cannot travel") from None
    packed = b"".join(pack_struct("<H", len(part)) + part for part in parts if len(part) <= MAX_GLOBS)
    if len(packed) > MAX_GLOBS or any(len(part) > MAX_GLOBS for part in parts):
        raise ConfigError(f"the label globs of only_to take more than {MAX_GLOBS} bytes")
    return packed
