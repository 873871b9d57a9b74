"""What the tests of payloads share: the way there and back, and what "type for type, value for value" means."""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict, deque
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, time
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from taskbus.codec import Encoded, decode, encode, register_type


@register_type
class Color(enum.Enum):
    RED = 1
    GREEN = "green"


@register_type
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@register_type
class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@register_type
@dataclass(frozen=True)
class Point:
    x: Any
    y: Any = None


@register_type
class Pair(NamedTuple):
    left: Any
    right: Any


class Money:
    """Travels by two functions."""

    def __init__(self, cents: int, currency: str) -> None:
        self.cents = cents
        self.currency = currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and (other.cents, other.currency) == (self.cents, self.currency)

    def __hash__(self) -> int:
        return hash((self.cents, self.currency))


register_type(Money, lambda money: (money.cents, money.currency), lambda parts: Money(*parts))


ran: list[str] = []


def go_off(what: str) -> None:
    ran.append(what)


class Bomb:
    """Leaves a trace in ``ran`` when its pickle is loaded."""

    def __reduce__(self) -> Any:
        return go_off, ("boom",)


def join(*encoded: Encoded) -> tuple[bytes, list[memoryview]]:
    """The text and the buffers of a frame with these events; the buffers as read-only as they arrive."""
    text = b"[" + b",".join(text for text, _ in encoded) + b"]"
    return text, [buffer.toreadonly() for _, buffers in encoded for buffer in buffers]


def round_trip(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    event: tuple[tuple[Any, ...], dict[str, Any]]
    [event] = decode(*join(encode(args, kwargs)))
    return event


def there_and_back(value: Any) -> Any:
    """``value`` after its way as an argument and as a keyword argument, which must be the same."""
    args, kwargs = round_trip(value, key=value)
    assert same(args[0], kwargs["key"])
    assert same(args[0], round_trip(value)[0][0])
    assert same(args[0], round_trip(key=value)[1]["key"])
    return args[0]


def same(a: Any, b: Any) -> bool:
    """Equal in type and value at any depth; nan equals nan, 0.0 does not equal -0.0, order counts in dicts."""
    if type(a) is not type(b):
        return False
    compare = _COMPARE.get(type(a))
    if compare is not None:
        return bool(compare(a, b))
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype) and _same_bytes(a, b)
    if isinstance(a, tuple):
        return _same_items(a, b)
    if isinstance(a, dict):
        return _same_items([*a.items()], [*b.items()]) and getattr(a, "default_factory", 0) is getattr(
            b, "default_factory", 0
        )
    if is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return bool(a == b)


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _same_set(a: Any, b: Any) -> bool:
    rest = list(b)
    for item in a:
        found = next((index for index, other in enumerate(rest) if same(item, other)), None)
        if found is None:
            return False
        del rest[found]
    return not rest


def _same_array(a: Any, b: Any) -> bool:
    return bool(
        a.dtype == b.dtype and a.shape == b.shape and a.flags.f_contiguous == b.flags.f_contiguous and _same_bytes(a, b)
    )


def _same_bytes(a: Any, b: Any) -> bool:
    if a.dtype.type in (np.longdouble, np.clongdouble):  # parts of their bytes mean nothing
        return np.array_equal(a, b, equal_nan=True)
    return bool(a.tobytes() == b.tobytes())


def _same_clock(a: Any, b: Any) -> bool:
    return bool(a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold) and same(a.tzinfo, b.tzinfo)


def _same_ordered(a: Any, b: Any) -> bool:
    return _same_items([*a.items()], [*b.items()]) and same(vars(a), vars(b))


_COMPARE: dict[type, Any] = {
    float: lambda a, b: struct.pack("d", a) == struct.pack("d", b),
    complex: lambda a, b: struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag),
    Decimal: lambda a, b: a.as_tuple() == b.as_tuple(),
    list: _same_items,
    deque: lambda a, b: a.maxlen == b.maxlen and _same_items(a, b),
    set: _same_set,
    frozenset: _same_set,
    datetime: _same_clock,
    time: _same_clock,
    memoryview: lambda a, b: (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes()),
    np.ndarray: _same_array,
    OrderedDict: _same_ordered,
}
