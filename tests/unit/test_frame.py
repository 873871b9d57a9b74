"""Frames: what a reader may believe, and what it must not."""

from __future__ import annotations

import hashlib
import pickle
import struct
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from taskbus import frame
from taskbus.codec import decode, encode, encode_pickle
from taskbus.errors import ConfigError, DecodeError
from tests.unit.payloads import Bomb, join, ran, same

LARGEST = 1 << 20
EVENTS: list[Any] = [((1, np.arange(5.0)), {}), ((), {"x": "y"}), ((b"abc", b"", bytearray(b"d")), {"k": (1,)})]
TEXT, BUFFERS = join(*(encode(*event) for event in EVENTS))
SECRETS = pytest.mark.parametrize("secret", [None, b"secret"], ids=["unsigned", "signed"])
FIXED, CRC = 50, 46


def packed(secret: bytes | None = None, **more: Any) -> bytes:
    return frame.pack("producer", 7, len(EVENTS), TEXT, BUFFERS, secret=secret, **more)


def packed_beside(secret: bytes | None = None, **more: Any) -> tuple[bytes, bytes]:
    data, chunks = frame.pack_blob("producer", 7, TEXT, BUFFERS, blob="b1", count=len(EVENTS), secret=secret, **more)
    return data, b"".join(chunks)


def unpacked(data: bytes, secret: bytes | None = None, **more: Any) -> frame.Frame:
    return frame.unpack(data, max_size=LARGEST, secret=secret, **more)


def reason(data: bytes, blob: bytes | None = None, secret: bytes | None = None, **more: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        frame.events(frame.unpack(data, max_size=LARGEST, secret=secret), blob, secret=secret, **more)
    found: str = caught.value.reason
    return found


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def sealed(data: bytes, at: int, new: bytes) -> bytes:
    """``data`` with a changed header whose checksum is right again, as a writer with bad intentions makes it."""
    start = FIXED + data[10] + data[11] + int.from_bytes(data[12:14], "little")
    start += -start % 16 + (64 if data[9] & 1 else 0)
    data = changed(data, at, new)
    return changed(data, 5, struct.pack("<I", crc32(data[9:start])))


@SECRETS
def test_a_frame_arrives(secret: bytes | None) -> None:
    head = unpacked(packed(secret, only_to=["gpu-*", "ü", ""]), secret)
    assert (head.producer, head.first, head.count, head.only_to) == ("producer", 7, 3, ("gpu-*", "ü", ""))
    assert (head.blob, head.blob_size, head.signed) == (None, 0, secret is not None)
    assert len(head.body) == frame.body_size(TEXT, BUFFERS)
    assert same(frame.events(head, secret=secret), EVENTS)


@SECRETS
def test_a_frame_whose_body_travels_beside_arrives(secret: bytes | None) -> None:
    data, blob = packed_beside(secret, only_to=["a"])
    head = unpacked(data, secret)
    assert (head.producer, head.first, head.count, head.only_to) == ("producer", 7, 3, ("a",))
    assert (head.blob, head.blob_size, len(head.body)) == ("b1", len(blob), 0)
    assert len(blob) == frame.body_size(TEXT, BUFFERS)
    assert same(frame.events(head, blob, secret=secret), EVENTS)


def test_a_frame_can_be_read_from_any_bytes() -> None:
    for data in (packed(), memoryview(packed()), memoryview(b"xx" + packed())[2:]):
        assert same(frame.events(frame.unpack(data, max_size=LARGEST)), EVENTS)


def test_a_frame_without_buffers_has_nothing_but_its_text() -> None:
    data = frame.pack("p", 1, 1, b"[[[1]]]")
    assert data.endswith(b"[[[1]]]")
    assert frame.events(unpacked(data)) == [((1,), {})]


@SECRETS
@pytest.mark.parametrize("count", [65, 128, 1000])
def test_a_text_of_many_events_can_be_read_in_pieces(secret: bytes | None, count: int) -> None:
    events = [((), {"line\n,": f"{number}\n,"}) for number in range(count)]
    texts = [encode(*event)[0] + (b"," if number % 64 else b"\n,") for number, event in enumerate(events, 1)]
    text = b"[" + b"".join(texts)[:-1] + b"]"
    head = unpacked(frame.pack("p", 1, count, text, secret=secret), secret)
    pieces = frame.pieces(head, secret=secret)
    assert len(pieces) == -(-count // 64)
    assert [event for piece in pieces for event in decode(piece, ())] == frame.events(head, secret=secret) == events
    with pytest.raises(DecodeError, match="checksum"):
        frame.pieces(unpacked(frame.pack("p", 1, count, text, secret=secret).replace(b"line", b"lime")))


def test_what_was_not_written_in_pieces_is_not_read_so() -> None:
    whole = b"[" + b",".join([b"[[1]]"] * 100) + b"]"
    assert frame.pieces(unpacked(frame.pack("p", 1, 100, whole))) == []
    assert frame.pieces(unpacked(frame.pack("p", 1, 3, b"[{},{}\n,{}]"))) == []
    assert frame.pieces(unpacked(packed())) == []


def test_a_text_with_values_of_registered_types_is_not_read_in_pieces() -> None:
    texts = [encode((), {"number": number, "pair": (1, 2)})[0] for number in range(100)]
    text = b"[" + b",".join(texts[:64]) + b"\n," + b",".join(texts[64:]) + b"]"
    head = unpacked(frame.pack("p", 1, 100, text))
    assert frame.pieces(head) == []
    assert frame.events(head)[99] == ((), {"number": 99, "pair": (1, 2)})


def test_arrays_are_aligned_read_only_views_on_what_was_received() -> None:
    data = packed()
    [(args, _), *_] = frame.events(unpacked(data))
    assert np.shares_memory(args[1], np.frombuffer(data, "u1"))
    assert args[1].flags.aligned
    assert not args[1].flags.writeable
    data = bytearray(data)  # type: ignore[assignment]
    [(args, _), *_] = frame.events(unpacked(data))
    assert not args[1].flags.writeable


def test_the_chunks_of_a_blob_are_the_buffers_themselves() -> None:
    array = np.arange(1000.0)
    text, buffers = join(encode((array,), {}))
    _, chunks = frame.pack_blob("p", 1, text, buffers, blob="b")
    assert any(isinstance(chunk, memoryview) and np.shares_memory(np.asarray(chunk), array) for chunk in chunks)


def test_a_secret_accepts_only_its_own_signature() -> None:
    for made in (None, b"other"):
        assert reason(packed(made), secret=b"secret") == "signature"
        data, blob = packed_beside(made)
        assert reason(data, blob, secret=b"secret") == "signature"
    assert not unpacked(packed(b"secret")).signed
    with pytest.raises(DecodeError):
        frame.events(unpacked(packed(b"secret")), secret=b"secret")


def test_a_signature_is_bound_to_its_place() -> None:
    data = packed(b"secret", scope="events:a")
    assert unpacked(data, b"secret", scope="events:a").signed
    with pytest.raises(DecodeError):
        unpacked(data, b"secret", scope="events:b")


def test_a_signed_header_or_body_cannot_be_changed() -> None:
    data = packed(b"secret")
    for at in range(9, FIXED + 8):
        assert reason(sealed(data, at, bytes([data[at] ^ 1])), secret=b"secret") in (
            "signature",
            "truncated",
            "checksum",
        )
    body = bytearray(data)
    body[-1] ^= 1
    assert reason(bytes(body), secret=b"secret") == "checksum"
    end = FIXED + 8
    crc = crc32(body[end + -end % 16 + 64 :])
    assert reason(sealed(bytes(body), CRC, struct.pack("<I", crc)), secret=b"secret") == "signature"


def test_the_signature_covers_a_blob_and_its_checksum_only_the_text() -> None:
    data, blob = packed_beside(b"secret")
    buffer, text = blob.rindex(b"abc"), blob.index(b"{")
    assert reason(data, changed(blob, buffer, b"x"), b"secret") == "signature"
    assert reason(data, changed(blob, text, b"["), b"secret") == "checksum"
    data, blob = packed_beside()
    assert frame.events(unpacked(data), changed(blob, buffer, b"x"))[2][0][0] == b"xbc"
    assert reason(data, changed(blob, text, b"[")) == "checksum"


def test_a_blob_of_another_size_is_refused() -> None:
    data, blob = packed_beside()
    assert reason(data, None) == "truncated"
    assert reason(data, blob[:-1]) == "truncated"
    assert reason(data, blob + b"x") == "oversized"


@SECRETS
def test_what_is_not_a_frame_of_ours_is_foreign(secret: bytes | None) -> None:
    for data in (
        b"{}",
        b"\x80\x04\x95",
        b"\x00" * 100,
        b"\xf5tbg" + bytes(60),
        b"GET / HTTP/1.1\r\n",
        pickle.dumps([1] * 99),
    ):
        assert reason(data, secret=secret) == "foreign"


@SECRETS
def test_another_version_is_named(secret: bytes | None) -> None:
    assert reason(changed(packed(secret), 4, b"\x02"), secret=secret) == "version"
    assert reason(b"\xf5tbf\x00", secret=secret) == "version"


@SECRETS
def test_every_shorter_frame_is_truncated(secret: bytes | None) -> None:
    for data in (packed(secret, only_to=["a"]), packed_beside(secret)[0]):
        for length in range(len(data)):
            assert reason(data[:length], secret=secret) == "truncated"


@SECRETS
def test_a_longer_frame_is_malformed(secret: bytes | None) -> None:
    for data in (packed(secret), packed_beside(secret)[0]):
        assert reason(data + b"\x00", secret=secret) == "malformed"
        assert reason(data + data, secret=secret) == "malformed"


@SECRETS
def test_every_flipped_bit_is_noticed(secret: bytes | None) -> None:
    data = packed(secret)
    for at in range(len(data)):
        for bit in range(8):
            assert reason(changed(data, at, bytes([data[at] ^ 1 << bit])), secret=secret)


def test_too_large_is_refused_before_it_is_read() -> None:
    data = packed()
    with pytest.raises(DecodeError) as caught:
        frame.unpack(data, max_size=len(data) - 1)
    assert caught.value.reason == "oversized"
    beside, blob = packed_beside()
    with pytest.raises(DecodeError) as caught:
        frame.unpack(beside, max_size=len(blob) - 1)
    assert caught.value.reason == "oversized"
    assert frame.unpack(beside, max_size=len(blob)).blob_size == len(blob)


# flags, producer, blob id, only_to, count, buffers, text, body, first, CRC of the body
@pytest.mark.parametrize(
    ("at", "kind", "value"),
    [
        (9, "B", 8),
        (9, "B", 255),
        (9, "B", 2),
        (10, "B", 0),
        (10, "B", 255),
        (11, "B", 1),
        (12, "H", 1),
        (12, "H", 0xFFFF),
        (14, "I", 0),
        (14, "I", 2),
        (14, "I", 0xFFFFFFFF),
        (18, "I", 0),
        (18, "I", 4),
        (18, "I", 0xFFFFFFFF),
        (22, "Q", 0),
        (22, "Q", 2**64 - 1),
        (30, "Q", 0),
        (30, "Q", 2**64 - 1),
        (38, "Q", 0),
    ],
)
def test_lengths_that_lie_are_refused_with_a_right_checksum_too(at: int, kind: str, value: int) -> None:
    new = struct.pack("<" + kind, value)
    for data, blob in ((packed(), None), packed_beside()):
        if data[at : at + len(new)] != new:
            assert reason(sealed(data, at, new), blob) in ("malformed", "truncated", "oversized", "checksum", "version")


def test_buffers_that_lie_are_refused_with_a_right_checksum_too() -> None:
    data, blob = packed_beside()
    for lengths in (
        (0, 0, 0, 0),
        (2**64 - 1, 0, 0, 0),
        (2**63, 2**63, 0, 0),
        (40, 3, 0, 2),
        (41, 3, 0, 1),
        (1 << 40, 3, 0, 1),
    ):
        table = struct.pack("<4Q", *lengths)
        lying = table + blob[len(table) :]
        crc = struct.pack("<I", crc32(lying[: 32 + len(TEXT)]))
        assert reason(sealed(data, CRC, crc), lying) == "malformed"


def test_the_number_of_events_must_be_the_right_one() -> None:
    for count in (1, 2, 4):
        assert reason(frame.pack("p", 1, count, TEXT, BUFFERS)) == "malformed"


def test_names_must_be_names() -> None:
    data = packed()
    assert reason(sealed(data, FIXED, b"\xff")) == "malformed"
    beside, blob = packed_beside()
    assert reason(sealed(beside, FIXED + 8, b"\xff"), blob) == "malformed"
    listed = packed(only_to=["abc"])
    for globs in (b"\x04\x00abc", b"\x02\x00abc", b"\x00\x00\x00\x00a", b"\x03\x00ab\xff"):
        assert reason(sealed(listed, FIXED + 8, globs)) == "malformed"


def test_globs_that_cannot_travel_are_refused_where_they_are_given() -> None:
    for globs in (["a" * 70_000], ["a" * 40_000, "b" * 40_000], ["\ud800"]):
        with pytest.raises(ConfigError):
            packed(only_to=globs)


def test_a_body_that_is_no_json_is_malformed() -> None:
    for text in (b"xxxxx", b"[[[1]]", b"[1]  ", b"[null]"):
        assert reason(frame.pack("p", 1, 1, text)) == "malformed"


def test_unknown_types_are_named() -> None:
    with pytest.raises(DecodeError) as caught:
        frame.events(unpacked(frame.pack("p", 1, 1, b'[[[["!x","Nobody",1]],{},0]]')))
    assert (caught.value.reason, caught.value.type_name) == ("unknown type", "Nobody")


def test_a_pickle_needs_a_checked_signature_and_the_readers_consent() -> None:
    text, buffers = join(encode_pickle((Bomb(),), {}))
    signed = frame.pack("p", 1, 1, text, buffers, secret=b"s")
    unsigned = frame.pack("p", 1, 1, text, buffers)
    assert reason(unsigned, allow_pickle=True) == "pickle"
    assert reason(signed, allow_pickle=True) == "pickle"  # no secret: nobody checked the signature
    assert reason(signed, secret=b"s") == "pickle"
    assert reason(signed, secret=b"x", allow_pickle=True) == "signature"
    assert ran == []
    head = unpacked(signed, b"s")
    assert frame.events(head, secret=b"s", allow_pickle=True) == [((None,), {})]
    assert ran == ["boom"]
    ran.clear()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_any_field_of_a_frame_never_runs(protocol: int) -> None:
    bomb = pickle.dumps(Bomb(), protocol)
    for secret in (None, b"secret"):
        data, (beside, blob) = packed(secret, only_to=["a" * 99]), packed_beside(secret)
        for whole in (bomb, data + bomb, bomb + data, frame.pack("p", 1, 1, bomb, secret=secret)):
            assert reason(whole, secret=secret, allow_pickle=True)
        for at in range(len(data) - len(bomb)):
            for hurt in (changed(data, at, bomb), sealed(data, at, bomb) if at > 10 else bomb):
                try:
                    frame.events(unpacked(hurt, secret), secret=secret, allow_pickle=True)
                except DecodeError:
                    pass
        for hurt in (bomb, bomb.ljust(len(blob), b"."), blob[: -len(bomb)] + bomb, changed(blob, 32, bomb)):
            try:
                frame.events(unpacked(beside, secret), hurt, secret=secret, allow_pickle=True)
            except DecodeError:
                pass
    assert ran == []


def test_the_hash_of_the_body_is_part_of_the_signed_header() -> None:
    data = packed(b"secret")
    head = unpacked(data, b"secret")
    assert head.digest == hashlib.sha256(head.body).digest()
