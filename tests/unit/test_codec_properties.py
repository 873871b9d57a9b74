"""What holds for every value and for all bytes."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from taskbus import frame
from taskbus.codec import decode, encode
from taskbus.codec.tree import readers
from taskbus.errors import DecodeError
from tests.unit.payload_values import ARRAYS, CONTAINERS, LIBRARY, NUMPY_SCALARS, REGISTERED, SCALARS
from tests.unit.payloads import Color, Level, Money, Pair, Point, Rights, join, same

LARGEST = 1 << 24

zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"]).map(ZoneInfo),
)
texts = st.text() | st.sampled_from(["!t", "!", "!l", "null"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
singles = st.one_of(
    scalars,
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    texts.map(PurePosixPath),
    texts.map(PureWindowsPath),
    st.sampled_from([Color.RED, Level.HIGH, Rights.READ]),
    nps.arrays(nps.scalar_dtypes(), ()).map(lambda array: array[()]),
)
dtypes = nps.nested_dtypes(nps.scalar_dtypes() | nps.byte_string_dtypes() | nps.unicode_string_dtypes())
arrays = nps.arrays(dtypes.filter(lambda dtype: dtype.subdtype is None), nps.array_shapes(min_dims=0, min_side=0))
keys = st.recursive(
    singles.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan())),  # which nobody can hash
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3), st.builds(Pair, inner, inner)),
    max_leaves=4,
)
values = st.recursive(
    st.one_of(singles, arrays, st.binary().map(bytearray), st.binary().map(lambda data: memoryview(data))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda table: defaultdict(list, table)),
        st.dictionaries(keys, st.integers(), max_size=4).map(Counter),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.lists(inner, max_size=4).map(deque),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Money, st.integers(), texts),
    ),
    max_leaves=12,
)
plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
    ),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=12,
)
arguments = st.tuples(st.lists(values, max_size=3).map(tuple), st.dictionaries(texts, values, max_size=3))

slow = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@slow
@given(arguments)
def test_whatever_goes_in_comes_out(event: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    [found] = decode(*join(encode(*event)))
    assert same(found, event)


@slow
@given(st.lists(arguments, min_size=1, max_size=4), st.sampled_from([None, b"secret"]), st.booleans())
def test_whatever_goes_into_a_frame_comes_out(events: list[Any], secret: bytes | None, beside: bool) -> None:
    text, buffers = join(*(encode(*event) for event in events))
    if beside:
        data, chunks = frame.pack_blob("p", 1, text, buffers, blob="b", count=len(events), secret=secret)
        blob = b"".join(chunks)
    else:
        data, blob = frame.pack("p", 1, len(events), text, buffers, secret=secret), None
    head = frame.unpack(data, max_size=LARGEST, secret=secret)
    assert same(frame.events(head, blob, secret=secret), events)


@given(plain)
@example([None, 1.5, {"null": None}])
def test_plain_values_are_written_as_orjson_writes_them(value: Any) -> None:
    assert encode((value,), {}) == (orjson.dumps([[value]]), ())
    assert encode((), {"k": value}) == (orjson.dumps({"k": value}), ())


json_values = st.recursive(
    st.one_of(
        scalars.filter(lambda value: type(value) is not int or abs(value) < 2**63), st.sampled_from(sorted(readers))
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.builds(lambda tag, rest: [tag, *rest], st.sampled_from(sorted(readers)), st.lists(inner, max_size=4)),
        st.dictionaries(texts, inner, max_size=3),
    ),
    max_leaves=20,
)


def decode_or_refuse(text: bytes, buffers: list[memoryview]) -> None:
    try:
        decode(text, buffers)
    except DecodeError as error:
        assert error.reason in ("malformed", "unknown type", "pickle")


@slow
@given(st.lists(st.lists(json_values, max_size=4), max_size=3), st.lists(st.binary(max_size=16), max_size=3))
def test_any_json_is_decoded_or_refused(events: list[Any], buffers: list[bytes]) -> None:
    decode_or_refuse(orjson.dumps(events), [memoryview(buffer) for buffer in buffers])


@slow
@given(
    st.lists(json_values, max_size=4),
    st.dictionaries(texts, json_values, max_size=3),
    st.lists(st.binary(max_size=16), max_size=3),
)
def test_any_tree_is_decoded_or_refused(args: list[Any], kwargs: dict[str, Any], buffers: list[bytes]) -> None:
    decode_or_refuse(orjson.dumps([[args, kwargs, len(buffers)]]), [memoryview(buffer) for buffer in buffers])


@slow
@given(st.binary(max_size=200), st.sampled_from([None, b"secret"]))
def test_any_bytes_are_no_frame(data: bytes, secret: bytes | None) -> None:
    with pytest.raises(DecodeError):
        frame.unpack(data, max_size=LARGEST, secret=secret)
    decode_or_refuse(data, [])


def samples(secret: bytes | None) -> list[tuple[bytes, bytes | None]]:
    """Frames that hold one of everything, small, large, beside and not."""
    kinds = [
        SCALARS[:-1],
        LIBRARY,
        CONTAINERS,
        REGISTERED,
        ARRAYS,
        NUMPY_SCALARS,
        [{"step": 1, "obs": [0.5] * 4}],
        [b"x" * 100],
    ]
    found: list[tuple[bytes, bytes | None]] = []
    for kind in kinds:
        events = [encode((value,), {"k": value}) for value in kind if not (type(value) is int and abs(value) > 2**999)]
        text, buffers = join(*events)
        found.append((frame.pack("producer", 7, len(events), text, buffers, only_to=["a*", "b"], secret=secret), None))
        data, chunks = frame.pack_blob("producer", 7, text, buffers, blob="id", count=len(events), secret=secret)
        found.append((data, b"".join(chunks)))
    return found


def read(data: bytes, blob: bytes | None, secret: bytes | None) -> None:
    frame.events(frame.unpack(data, max_size=LARGEST, secret=secret), blob, secret=secret, allow_pickle=True)


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(changed))
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice(b'\x00\x01\x7f\x80\xff[]{}",!0')
            case 2:
                del changed[at : at + chance.choice((1, 2, 8, 1 << 20))]
            case 3:
                changed[at:at] = chance.randbytes(chance.choice((1, 4, 8)))
            case 4:
                changed[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x00" * 7 + b"\x80"))
            case _:
                other = chance.randrange(len(changed))
                changed[at : at + 16] = changed[other : other + 16]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("secret", [None, b"secret"], ids=["unsigned", "signed"])
def test_fifty_thousand_mutated_frames_raise_nothing_but_decode_errors(secret: bytes | None) -> None:
    chance = random.Random(20240229)
    frames = samples(secret)
    for data, blob in frames:
        read(data, blob, secret)
    refused = 0
    for number in range(50_000):
        data, blob = frames[number % len(frames)]
        changed = mutate(data, chance)
        hurt = mutate(blob, chance) if blob is not None and chance.random() < 0.5 else blob
        try:
            read(changed, hurt, secret)
        except DecodeError:
            refused += 1
        else:
            assert changed == data  # the mutation changed nothing: the checksum would have seen it
    assert refused > 49_000


def test_fifty_thousand_mutated_payloads_are_decoded_or_refused() -> None:
    # Past the checksum: what a writer with bad intentions can make.
    chance = random.Random(20240301)
    texts_and_buffers = []
    for kind in (SCALARS[:-1], LIBRARY, CONTAINERS, REGISTERED, ARRAYS, NUMPY_SCALARS):
        for value in kind:
            if not (type(value) is int and abs(value) > 2**999):
                texts_and_buffers.append(join(encode((value, [value]), {"k": value})))
    for number in range(50_000):
        text, buffers = texts_and_buffers[number % len(texts_and_buffers)]
        decode_or_refuse(mutate(text, chance), buffers)
