"""The events of one producer as one entry of a stream: header, body, checksums, signature.

::

    header   magic · version · CRC of all that follows in the header
             flags · lengths · count · first · CRC of the body
             producer · blob id · label globs of only_to · zeros up to a multiple of 16
             SHA-256 of the body · HMAC-SHA256 of the header so far, but for its CRC    (signed frames)
    body     lengths of the buffers · text · the buffers, each at a multiple of 16

The body follows the header, or is a value of its own (a blob) that the header names. Integers are little-endian. What
is in the header can be trusted (as far as the frame can be) before the body is touched: readers drop repeats and other
nodes' events by it. An unsigned blob is checked by its lengths and the CRC of its text; only the signature covers its
buffers.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, unpack_from
from struct import error as StructError
from struct import pack as pack_struct
from zlib import crc32

from taskbus.codec import TAGGED, decode
from taskbus.errors import ConfigError, DecodeError
from taskbus.types import Event

__all__ = ["PIECE", "VERSION", "Frame", "body_size", "events", "pack", "pack_blob", "pieces", "unpack"]

VERSION = 1
PIECE = 64
"""Events of a text between two line ends, which JSON has there and nowhere else: each such piece can be decoded alone.

A page of 1000 small events takes 0.7 MB as objects, more than the inner caches of a core: decoded piece by piece, right
before the listener gets them, they cost it a third less.
"""

_MAGIC = b"\xf5tbf"
_SIGNED, _BESIDE, _ELSEWHERE = 1, 2, 4
_MARK = TAGGED[-1:]  # one byte is looked for ten times as fast
_ALIGN = 16
_DIGEST = 32
# magic, version, CRC of the rest
_START = Struct("<4sBI")
# flags, producer, blob id, only_to, count, buffers, text, body, first, CRC of the body
_REST = Struct("<BBBHIIQQQI")
_FIXED = Struct(_START.format + _REST.format[1:])
_CHECKED, _NAMED = _START.size, _FIXED.size
_ZEROS = tuple(bytes(count) for count in range(_ALIGN))
_MAX_NAME, _MAX_BLOB, _MAX_GLOBS = 64, 0xFF, 0xFFFF

_Bytes = bytes | bytearray | memoryview


@dataclass(slots=True)
class Frame:
    """A frame whose header was read and checked; the body is still as it came.

    ``first`` is the sequence number of its first event, counted by the producer for this stream from 1. ``blob`` is the
    id of the value that holds the body (``blob_size`` bytes), or ``None``. ``signed``: there was a secret to check the
    signature with, and it was right. ``elsewhere``: it is for all nodes but the one that emitted it.
    """

    producer: str
    first: int
    count: int
    only_to: tuple[str, ...]
    body: bytes | memoryview
    blob: str | None
    blob_size: int
    text_size: int
    buffers: int
    crc: int
    digest: bytes | None
    elsewhere: bool

    @property
    def signed(self) -> bool:
        return self.digest is not None


def body_size(text: _Bytes, buffers: Sequence[memoryview]) -> int:
    """How long the body of a frame with these parts is, in bytes."""
    size = 8 * len(buffers) + len(text)
    for buffer in buffers:
        size += -size % _ALIGN + buffer.nbytes
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


def unpack(data: bytes | memoryview, *, max_size: int, secret: bytes | None = None, scope: str = "") -> Frame:
    """Read and check the header of a frame; the body is checked by :func:`events`.

    A signed frame is taken without a ``secret`` too, but does not count as signed then.

    Raises:
        DecodeError: With ``reason`` ``"foreign"``, ``"version"``, ``"truncated"``, ``"oversized"`` (more than
            ``max_size`` bytes, in the frame or its body), ``"checksum"``, ``"signature"`` or ``"malformed"``.
    """
    found = len(data)
    if not _NAMED <= found <= max_size:
        raise _misfit(data, max_size)
    # One call for all that is fixed, and no other where none is needed: this is on the way of every wake-up.
    magic, version, check, flags, names, ids, globs, count, buffers, text_size, size, first, crc = _FIXED.unpack_from(
        data
    )
    if magic != _MAGIC or version != VERSION:
        raise _misfit(data, max_size)
    named = _NAMED + names
    listed = named + ids
    end = listed + globs
    zeros = _ZEROS[-end % _ALIGN]
    start = signed = end + len(zeros)
    if flags & _SIGNED:
        start += 2 * _DIGEST
    if found < start:
        raise _truncated()
    if check != crc32(data[_CHECKED:start]):
        raise DecodeError("the header of a frame does not match its checksum", reason="checksum")
    digest = _verify(data, flags, start, secret, scope) if secret is not None else None
    if size > max_size or found - start != (0 if flags & _BESIDE else size):
        raise _wrong_size(found - start, size, flags, max_size)
    if flags & ~(_SIGNED | _BESIDE | _ELSEWHERE) or (not flags & _BESIDE) != (not ids) or data[end:signed] != zeros:
        raise _malformed("flags that do not fit together")
    if first < 1 or not 0 < 3 * count <= text_size or 8 * buffers + text_size > size or not 0 < names <= _MAX_NAME:
        raise _malformed("numbers that cannot be")
    try:
        producer = str(data[_NAMED:named], "ascii")
        blob = str(data[named:listed], "ascii") if ids else None
    except UnicodeDecodeError:
        raise _malformed("a name that is not ASCII") from None
    only_to = _read_globs(data[listed:end]) if globs else ()
    # A text alone is copied sooner than a view on it is made.
    body = memoryview(data)[start:] if buffers else data[start:]
    size = size if ids else 0
    elsewhere = flags & _ELSEWHERE != 0
    return Frame(producer, first, count, only_to, body, blob, size, text_size, buffers, crc, digest, elsewhere)


def events(
    frame: Frame,
    blob: bytes | memoryview | None = None,
    *,
    secret: bytes | None = None,
    allow_pickle: bool = False,
    refused: dict[int, DecodeError] | None = None,
) -> list[Event]:
    """Check the body of a frame (``blob``, where the frame names one) and decode its events.

    Arrays are read-only views on the received bytes. Pickled events are loaded only with ``allow_pickle``, and only
    from a frame whose signature was checked by :func:`unpack`. ``refused`` takes the errors of single events of a type
    that is unknown here; see :func:`taskbus.codec.decode`.

    Raises:
        DecodeError: With ``reason`` ``"truncated"``, ``"oversized"``, ``"checksum"``, ``"signature"``, ``"malformed"``,
            ``"unknown type"`` or ``"pickle"``.
    """
    text, buffers = _check_body(frame, blob, secret)
    found = decode(text, buffers, allow_pickle and frame.digest is not None, refused)
    if len(found) != frame.count:
        raise _malformed(f"{len(found)} events instead of {frame.count}")
    return found


def pieces(frame: Frame, *, secret: bytes | None = None) -> list[bytes]:
    """Check the body as :func:`events` does; the texts of ``PIECE`` events each, the last of the rest.

    Empty where it was not written in pieces, or is too short for that to be of use.
    """
    text = frame.body
    if frame.count <= PIECE or frame.buffers or frame.blob is not None or not isinstance(text, bytes):
        return []
    if text[:1] != b"[" or text[-1:] != b"]":
        return []
    found: list[bytes] = []
    at = 1
    while (end := text.find(b"\n", at)) >= 0:  # ten times as fast as to split it
        found.append(b"[%b]" % text[at:end])
        at = end + 2
    if at < len(text):
        found.append(b"[%b" % text[at:])
    if len(found) != -(-frame.count // PIECE):
        return []
    _check_body(frame, None, secret)
    return found


def _check_body(
    frame: Frame, blob: bytes | memoryview | None, secret: bytes | None
) -> tuple[bytes | memoryview, Sequence[memoryview]]:
    """The text and the buffers."""
    digest = frame.digest
    if secret is not None and digest is None:
        raise DecodeError("a frame without a checked signature", reason="signature")
    body = frame.body
    if frame.blob is not None:
        body = blob if blob is not None else b""
        if len(body) != frame.blob_size:
            reason = "truncated" if len(body) < frame.blob_size else "oversized"
            raise DecodeError(f"a blob of {len(body)} bytes instead of {frame.blob_size}", reason=reason)
    table = 8 * frame.buffers
    end = table + frame.text_size
    if crc32(body if frame.blob is None else body[:end]) != frame.crc:
        raise DecodeError("the body of a frame does not match its checksum", reason="checksum")
    if digest is not None and not hmac.compare_digest(hashlib.sha256(body).digest(), digest):
        raise DecodeError("the body of a frame does not match its signature", reason="signature")
    buffers: Sequence[memoryview] = ()
    if table:
        buffers = _buffers(memoryview(body).toreadonly(), frame.buffers, end)
    elif len(body) != end:
        raise _malformed("bytes after the text")
    return body[table:end], buffers


def _buffers(body: memoryview, count: int, at: int) -> list[memoryview]:
    buffers = []
    for length in unpack_from(f"<{count}Q", body):
        at = _aligned(at)
        if length > body.nbytes - at:
            raise _malformed("a buffer longer than the body")
        buffers.append(body[at : at + length])
        at += length
    if at != body.nbytes:
        raise _malformed("bytes after the last buffer")
    return buffers


def _body(text: _Bytes, buffers: Sequence[memoryview]) -> list[_Bytes]:
    """The pieces of a body, which join without a copy of a buffer: the table, if there are buffers, the text, them."""
    if not buffers:
        return [text]
    parts: list[_Bytes] = [pack_struct(f"<{len(buffers)}Q", *[buffer.nbytes for buffer in buffers]), text]
    at = 8 * len(buffers) + len(text)
    for buffer in buffers:
        if at % _ALIGN:
            parts.append(_ZEROS[-at % _ALIGN])
        parts.append(buffer)
        at = _aligned(at) + buffer.nbytes
    return parts


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
    assert 0 < len(names) <= _MAX_NAME, producer
    assert len(ids) <= _MAX_BLOB, blob
    flags = (_SIGNED if secret is not None else 0) | (_BESIDE if blob else 0) | (_ELSEWHERE if elsewhere else 0)
    crc = 0
    for part in parts[:2] if blob else parts:
        crc = crc32(part, crc)
    size = body_size(text, buffers) if buffers else len(text)
    rest = _REST.pack(flags, len(names), len(ids), len(globs), count, len(buffers), len(text), size, first, crc)
    rest += names + ids + globs
    rest += _ZEROS[-(_CHECKED + len(rest)) % _ALIGN]
    if secret is not None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        rest += digest.digest()
        rest += _sign(rest, secret, scope)
    return _START.pack(_MAGIC, VERSION, crc32(rest)) + rest


def _misfit(data: bytes | memoryview, max_size: int) -> DecodeError:
    """What is wrong with bytes that do not start as a frame of ours, or have no length of one."""
    size = len(data)
    if data[:4] != _MAGIC[:size]:
        return DecodeError("not a frame of taskbus", reason="foreign")
    if size > max_size:
        return DecodeError(f"a frame of {size} bytes, at most {max_size} are taken", reason="oversized")
    if size > 4 and data[4] != VERSION:
        return DecodeError(f"a frame of version {data[4]}, this is version {VERSION}", reason="version")
    return _truncated()


def _wrong_size(found: int, size: int, flags: int, max_size: int) -> DecodeError:
    if size > max_size:
        return DecodeError(f"a body of {size} bytes, at most {max_size} are taken", reason="oversized")
    return _truncated() if found < size and not flags & _BESIDE else _malformed("bytes after the end")


def _sign(rest: bytes | memoryview, secret: bytes, scope: str) -> bytes:
    """Signs a header from behind its CRC on; magic and version stand for what is before that."""
    return hmac.digest(secret, b"".join((scope.encode(), b"\0", _MAGIC, bytes([VERSION]), rest)), "sha256")


def _verify(data: bytes | memoryview, flags: int, start: int, secret: bytes, scope: str) -> bytes:
    """The hash of the body, once the signature before ``start`` was found to be right."""
    if not flags & _SIGNED:
        raise DecodeError("a frame without a signature", reason="signature")
    end = start - _DIGEST
    if not hmac.compare_digest(_sign(data[_CHECKED:end], secret, scope), bytes(data[end:start])):
        raise DecodeError("a frame with a wrong signature", reason="signature")
    return bytes(data[end - _DIGEST : end])


def _pack_globs(only_to: Sequence[str]) -> bytes:
    try:
        parts = [glob.encode() for glob in only_to]
    except UnicodeEncodeError:
        raise ConfigError("a label glob with a lone surrogate cannot travel") from None
    packed = b"".join(pack_struct("<H", len(part)) + part for part in parts if len(part) <= _MAX_GLOBS)
    if len(packed) > _MAX_GLOBS or any(len(part) > _MAX_GLOBS for part in parts):
        raise ConfigError(f"the label globs of only_to take more than {_MAX_GLOBS} bytes")
    return packed


def _read_globs(packed: bytes | memoryview) -> tuple[str, ...]:
    globs, at = [], 0
    try:
        while at < len(packed):
            [length] = unpack_from("<H", packed, at)
            part = packed[at + 2 : at + 2 + length]
            if len(part) != length:
                raise _malformed("label globs that end early")
            globs.append(str(part, "utf-8"))
            at += 2 + length
    except (UnicodeDecodeError, StructError):
        raise _malformed("label globs that are none") from None
    return tuple(globs)


def _aligned(at: int) -> int:
    return at + -at % _ALIGN


def _truncated() -> DecodeError:
    return DecodeError("a frame that ends early", reason="truncated")


def _malformed(what: str) -> DecodeError:
    return DecodeError(f"malformed frame: {what}", reason="malformed")
