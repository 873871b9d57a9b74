"""Frames to events."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from struct import error as StructError
from struct import unpack_from
from zlib import crc32

from taskbus.codec import decode
from taskbus.errors import DecodeError
from taskbus.frame.layout import (
    ALIGN,
    BESIDE,
    CHECKED,
    DIGEST,
    ELSEWHERE,
    FIXED,
    MAGIC,
    MAX_NAME,
    NAMED,
    PIECE,
    SIGNED,
    VERSION,
    ZEROS,
    aligned,
    sign,
)
from taskbus.types import Event

__all__ = ["Frame", "events", "pieces", "unpack"]


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


def unpack(data: bytes | memoryview, *, max_size: int, secret: bytes | None = None, scope: str = "") -> Frame:
    """Read and check the header of a frame; the body is checked by :func:`events`.

    A signed frame is taken without a ``secret`` too, but does not count as signed then.

    Raises:
        DecodeError: With ``reason`` ``"foreign"``, ``"version"``, ``"truncated"``, ``"oversized"`` (more than
            ``max_size`` bytes, in the frame or its body), ``"checksum"``, ``"signature"`` or ``"malformed"``.
    """
    found = len(data)
    if not NAMED <= found <= max_size:
        raise _misfit(data, max_size)
    # One call for all that is fixed, and no other where none is needed: this is on the way of every wake-up.
    magic, version, check, flags, names, ids, globs, count, buffers, text_size, size, first, crc = FIXED.unpack_from(
        data
    )
    if magic != MAGIC or version != VERSION:
        raise _misfit(data, max_size)
    named = NAMED + names
    if not (flags or ids or globs or buffers) and secret is None:
        # As mostly, and all in order: these checks are those below, of which half are for what is not here.
        start = named + -named % ALIGN
        if (
            found - start == size == text_size
            and data[named:start] == ZEROS[start - named]
            and check == crc32(data[CHECKED:start])
            and 0 < 3 * count <= size
            and first > 0
            and 0 < names <= MAX_NAME
            and (name := bytes(data[NAMED:named])).isascii()
        ):
            return Frame(name.decode(), first, count, (), data[start:], None, 0, size, 0, crc, None, False)
    listed = named + ids
    end = listed + globs
    zeros = ZEROS[-end % ALIGN]
    start = signed = end + len(zeros)
    if flags & SIGNED:
        start += 2 * DIGEST
    if found < start:
        raise _truncated()
    if check != crc32(data[CHECKED:start]):
        raise DecodeError("the header of a frame does not match its checksum", reason="checksum")
    digest = _verify(data, flags, start, secret, scope) if secret is not None else None
    if size > max_size or found - start != (0 if flags & BESIDE else size):
        raise _wrong_size(found - start, size, flags, max_size)
    if flags & ~(SIGNED | BESIDE | ELSEWHERE) or (not flags & BESIDE) != (not ids) or data[end:signed] != zeros:
        raise _malformed("flags that do not fit together")
    if first < 1 or not 0 < 3 * count <= text_size or 8 * buffers + text_size > size or not 0 < names <= MAX_NAME:
        raise _malformed("numbers that cannot be")
    try:
        producer = str(data[NAMED:named], "ascii")
        blob = str(data[named:listed], "ascii") if ids else None
    except UnicodeDecodeError:
        raise _malformed("a name that is not ASCII") from None
    only_to = _read_globs(data[listed:end]) if globs else ()
    # A text alone is copied sooner than a view on it is made.
    body = memoryview(data)[start:] if buffers else data[start:]
    size = size if ids else 0
    elsewhere = flags & ELSEWHERE != 0
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
        at = aligned(at)
        if length > body.nbytes - at:
            raise _malformed("a buffer longer than the body")
        buffers.append(body[at : at + length])
        at += length
    if at != body.nbytes:
        raise _malformed("bytes after the last buffer")
    return buffers


def _misfit(data: bytes | memoryview, max_size: int) -> DecodeError:
    """What is wrong with bytes that do not start as a frame of ours, or have no length of one."""
    size = len(data)
    if data[:4] != MAGIC[:size]:
        return DecodeError("not a frame of taskbus", reason="foreign")
    if size > max_size:
        return DecodeError(f"a frame of {size} bytes, at most {max_size} are taken", reason="oversized")
    if size > 4 and data[4] != VERSION:
        return DecodeError(f"a frame of version {data[4]}, this is version {VERSION}", reason="version")
    return _truncated()


def _wrong_size(found: int, size: int, flags: int, max_size: int) -> DecodeError:
    if size > max_size:
        return DecodeError(f"a body of {size} bytes, at most {max_size} are taken", reason="oversized")
    return _truncated() if found < size and not flags & BESIDE else _malformed("bytes after the end")


def _verify(data: bytes | memoryview, flags: int, start: int, secret: bytes, scope: str) -> bytes:
    """The hash of the body, once the signature before ``start`` was found to be right."""
    if not flags & SIGNED:
        raise DecodeError("a frame without a signature", reason="signature")
    end = start - DIGEST
    if not hmac.compare_digest(sign(data[CHECKED:end], secret, scope), bytes(data[end:start])):
        raise DecodeError("a frame with a wrong signature", reason="signature")
    return bytes(data[end - DIGEST : end])


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


def _truncated() -> DecodeError:
    return DecodeError("a frame that ends early", reason="truncated")


def _malformed(what: str) -> DecodeError:
    return DecodeError(f"malformed frame: {what}", reason="malformed")
