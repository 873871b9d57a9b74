"""The events of one producer as one entry of a stream: header, body, checksums, signature.

::

    header   magic · version · flags · lengths · count · first · CRC of the body   (fixed)
             producer · blob id · label globs of only_to                           (as long as they are)
             SHA-256 of the body · HMAC-SHA256 of the header so far                (signed frames)
             CRC of the header so far · zeros up to a multiple of 16
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

from taskbus.codec import decode
from taskbus.errors import ConfigError, DecodeError
from taskbus.types import Event

__all__ = ["VERSION", "Frame", "body_size", "events", "pack", "pack_blob", "unpack"]

VERSION = 1
_MAGIC = b"\xf5tbf"
_SIGNED, _BESIDE = 1, 2
_ALIGN = 16
_DIGEST = 32
# magic, version, flags, producer, blob id, only_to, count, buffers, text, body, first, CRC of the body
_FIXED = Struct("<4sBBBBHIIQQQI")
_CRC = Struct("<I")
_MAX_NAME, _MAX_BLOB, _MAX_GLOBS = 64, 0xFF, 0xFFFF

_Bytes = bytes | bytearray | memoryview


@dataclass(slots=True)
class Frame:
    """A frame whose header was read and checked; the body is still as it came.

    ``first`` is the sequence number of its first event, counted by the producer for this stream from 1. ``blob`` is the
    id of the value that holds the body (``blob_size`` bytes), or ``None``. ``signed``: there was a secret to check the
    signature with, and it was right.
    """

    producer: str
    first: int
    count: int
    only_to: tuple[str, ...]
    body: memoryview
    blob: str | None
    blob_size: int
    text_size: int
    buffers: int
    crc: int
    digest: bytes
    signed: bool


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
    secret: bytes | None = None,
    scope: str = "",
) -> bytes:
    """A whole frame; ``text`` is the JSON array of the events' texts, ``buffers`` are theirs, one after another.

    ``scope`` is where the frame belongs (its stream's key): it does not travel, but the signature covers it.
    """
    body = _Body(text, buffers, beside=False)
    return b"".join((_header(producer, first, count, body, "", only_to, secret, scope), *body.parts))


def pack_blob(
    producer: str,
    first: int,
    text: bytes | bytearray,
    buffers: Sequence[memoryview],
    *,
    blob: str,
    count: int = 1,
    only_to: Sequence[str] = (),
    secret: bytes | None = None,
    scope: str = "",
) -> tuple[bytes, list[_Bytes]]:
    """A frame that names ``blob``, and the chunks of that value, in which no buffer was copied."""
    body = _Body(text, buffers, beside=True)
    return _header(producer, first, count, body, blob, only_to, secret, scope), body.parts


def unpack(data: bytes | memoryview, *, max_size: int, secret: bytes | None = None, scope: str = "") -> Frame:
    """Read and check the header of a frame; the body is checked by :func:`events`.

    A signed frame is taken without a ``secret`` too, but does not count as signed then.

    Raises:
        DecodeError: With ``reason`` ``"foreign"``, ``"version"``, ``"truncated"``, ``"oversized"`` (more than
            ``max_size`` bytes, in the frame or its body), ``"checksum"``, ``"signature"`` or ``"malformed"``.
    """
    _check_start(data, max_size)
    _, _, flags, names, ids, globs, count, buffers, text_size, size, first, crc = _FIXED.unpack_from(data)
    named = _FIXED.size + names
    listed = named + ids
    signed = listed + globs
    end = signed + (2 * _DIGEST if flags & _SIGNED else 0)
    start = _aligned(end + _CRC.size)
    if len(data) < start:
        raise _truncated()
    if _CRC.unpack_from(data, end)[0] != crc32(data[:end]):
        raise DecodeError("the header of a frame does not match its checksum", reason="checksum")
    if secret is not None:
        _verify(data, flags, signed, secret, scope)
    _check_size(len(data) - start, size, flags, max_size)
    if flags & ~(_SIGNED | _BESIDE) or bool(flags & _BESIDE) != bool(ids) or any(data[end + _CRC.size : start]):
        raise _malformed("flags that do not fit together")
    if first < 1 or not 0 < 3 * count <= text_size or 8 * buffers + text_size > size:
        raise _malformed("numbers that cannot be")
    return Frame(
        producer=_ascii(data[_FIXED.size : named], _MAX_NAME),
        first=first,
        count=count,
        only_to=_read_globs(data[listed:signed]) if globs else (),
        body=memoryview(data)[start:].toreadonly(),
        blob=_ascii(data[named:listed], _MAX_BLOB) if ids else None,
        blob_size=size if ids else 0,
        text_size=text_size,
        buffers=buffers,
        crc=crc,
        digest=bytes(data[signed : signed + _DIGEST]) if secret is not None else b"",
        signed=secret is not None,
    )


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
    if secret is not None and not frame.signed:
        raise DecodeError("a frame without a checked signature", reason="signature")
    body = frame.body
    if frame.blob is not None:
        body = memoryview(blob if blob is not None else b"").toreadonly()
        if body.nbytes != frame.blob_size:
            reason = "truncated" if body.nbytes < frame.blob_size else "oversized"
            raise DecodeError(f"a blob of {body.nbytes} bytes instead of {frame.blob_size}", reason=reason)
    table = 8 * frame.buffers
    head = body[: table + frame.text_size]
    if crc32(body if frame.blob is None else head) != frame.crc:
        raise DecodeError("the body of a frame does not match its checksum", reason="checksum")
    if frame.signed and not hmac.compare_digest(hashlib.sha256(body).digest(), frame.digest):
        raise DecodeError("the body of a frame does not match its signature", reason="signature")
    buffers = _buffers(body, frame.buffers, head.nbytes)
    found = decode(head[table:], buffers, allow_pickle=allow_pickle and frame.signed, refused=refused)
    if len(found) != frame.count:
        raise _malformed(f"{len(found)} events instead of {frame.count}")
    return found


def _buffers(body: memoryview, count: int, at: int) -> list[memoryview]:
    buffers = []
    for length in unpack_from(f"<{count}Q", body) if count else ():
        at = _aligned(at)
        if length > body.nbytes - at:
            raise _malformed("a buffer longer than the body")
        buffers.append(body[at : at + length])
        at += length
    if at != body.nbytes:
        raise _malformed("bytes after the last buffer")
    return buffers


class _Body:
    """The pieces of a body, which join without a copy of a buffer, and what the header tells of it."""

    def __init__(self, text: bytes | bytearray, buffers: Sequence[memoryview], beside: bool) -> None:
        self.text_size = len(text)
        self.buffers = len(buffers)
        self.size = body_size(text, buffers)
        self.parts: list[_Bytes] = [text]
        if buffers:
            self.parts.insert(0, pack_struct(f"<{len(buffers)}Q", *[buffer.nbytes for buffer in buffers]))
        checked = len(self.parts) if beside else None
        at = 8 * len(buffers) + len(text)
        for buffer in buffers:
            if at % _ALIGN:
                self.parts.append(bytes(-at % _ALIGN))
            self.parts.append(buffer)
            at = _aligned(at) + buffer.nbytes
        self.crc = 0
        for part in self.parts[:checked]:
            self.crc = crc32(part, self.crc)


def _header(
    producer: str,
    first: int,
    count: int,
    body: _Body,
    blob: str,
    only_to: Sequence[str],
    secret: bytes | None,
    scope: str,
) -> bytes:
    names, ids, globs = producer.encode("ascii"), blob.encode("ascii"), _pack_globs(only_to) if only_to else b""
    assert 0 < len(names) <= _MAX_NAME, producer
    assert len(ids) <= _MAX_BLOB, blob
    flags = (_SIGNED if secret is not None else 0) | (_BESIDE if blob else 0)
    sizes = body.buffers, body.text_size, body.size
    header = (
        _FIXED.pack(_MAGIC, VERSION, flags, len(names), len(ids), len(globs), count, *sizes, first, body.crc)
        + names
        + ids
        + globs
    )
    if secret is not None:
        digest = hashlib.sha256()
        for part in body.parts:
            digest.update(part)
        header += digest.digest()
        header += _sign(header, secret, scope)
    return header + _CRC.pack(crc32(header)) + bytes(-(len(header) + _CRC.size) % _ALIGN)


def _check_start(data: bytes | memoryview, max_size: int) -> None:
    size = len(data)
    if data[:4] != _MAGIC[:size]:
        raise DecodeError("not a frame of taskbus", reason="foreign")
    if size > max_size:
        raise DecodeError(f"a frame of {size} bytes, at most {max_size} are taken", reason="oversized")
    if size > 4 and data[4] != VERSION:
        raise DecodeError(f"a frame of version {data[4]}, this is version {VERSION}", reason="version")
    if size < _FIXED.size:
        raise _truncated()


def _check_size(found: int, size: int, flags: int, max_size: int) -> None:
    if size > max_size:
        raise DecodeError(f"a body of {size} bytes, at most {max_size} are taken", reason="oversized")
    expected = 0 if flags & _BESIDE else size
    if found < expected:
        raise _truncated()
    if found > expected:
        raise _malformed("bytes after the end")


def _sign(header: bytes | memoryview, secret: bytes, scope: str) -> bytes:
    return hmac.digest(secret, scope.encode() + b"\0" + header, "sha256")


def _verify(data: bytes | memoryview, flags: int, at: int, secret: bytes, scope: str) -> None:
    if not flags & _SIGNED:
        raise DecodeError("a frame without a signature", reason="signature")
    mac = bytes(data[at + _DIGEST : at + 2 * _DIGEST])
    if not hmac.compare_digest(_sign(data[: at + _DIGEST], secret, scope), mac):
        raise DecodeError("a frame with a wrong signature", reason="signature")


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


def _ascii(part: bytes | memoryview, longest: int) -> str:
    try:
        name = str(part, "ascii")
    except UnicodeDecodeError:
        raise _malformed("a name that is not ASCII") from None
    if not 0 < len(name) <= longest:
        raise _malformed("a name that is too long or empty")
    return name


def _aligned(at: int) -> int:
    return at + -at % _ALIGN


def _truncated() -> DecodeError:
    return DecodeError("a frame that ends early", reason="truncated")


def _malformed(what: str) -> DecodeError:
    return DecodeError(f"malformed frame: {what}", reason="malformed")
