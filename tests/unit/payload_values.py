"""Values that travel, kind by kind, with the traps among them; and values that must not."""

from __future__ import annotations

import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from tests.unit.payloads import Color, Level, Money, Pair, Point, Rights

BERLIN = ZoneInfo("Europe/Berlin")
HUGE = 7**20_000


SCALARS = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    HUGE,
    -HUGE,
    0.0,
    -0.0,
    1.0,
    1e16,
    5e-324,
    1.7976931348623157e308,
    math.nan,
    struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0],
    math.inf,
    -math.inf,
    "",
    "null",
    "é \x00 \U0001f600  ",
    "!t",
]

LIBRARY = [
    b"",
    b"\x00\xff",
    bytearray(b""),
    bytearray(b"abc"),
    memoryview(b""),
    memoryview(b"abc"),
    1j,
    complex(math.nan, -math.inf),
    complex(-0.0, 0.0),
    datetime(2024, 2, 29, 23, 59, 59, 999_999),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, tzinfo=UTC),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
    datetime(2024, 10, 27, 2, 30, fold=1),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=1, microseconds=1), "mine")),
    date(2024, 2, 29),
    clock(1, 2, 3, 4),
    clock(2, 30, fold=1, tzinfo=UTC),
    clock(2, 30, tzinfo=BERLIN),
    timedelta.min,
    timedelta.max,
    timedelta(microseconds=-1),
    UTC,
    timezone(timedelta(hours=1)),
    BERLIN,
    UUID(int=0),
    UUID("12345678-1234-5678-1234-567812345678"),
    Decimal("1.20"),
    Decimal("-0"),
    Decimal("NaN123"),
    Decimal("sNaN"),
    Decimal("-Infinity"),
    Decimal("1e-9999"),
    Decimal("9" * 100),
    Path("/a/b"),
    Path("é"),
    PurePosixPath("a"),
    PureWindowsPath("C:/a"),
]

CONTAINERS = [
    [],
    [[]],
    [[], {}],
    ["!t"],
    ["!t", 1],
    [["!t", 1]],
    ["!", []],
    ["!l", ["!l"]],
    [1, 2.0, None],
    [1, 2**64],
    [2**64, 1.0],
    ["a", "ü"],
    ["a", "!"],
    [True, False],
    [1.0, math.inf],
    {},
    {"a": {"b": []}},
    {"!t": 1},
    {"": 1},
    {"ü": 1},
    {1: "a", "1": "b"},
    {None: 1, "None": 2, "null": 3},
    {True: 1, "true": 2},
    {0: 1},
    {1.5: 1, "1.5": 2, math.inf: 3},
    {(1, "a", (None,)): 1, (): 2},
    {Color.RED: 1, Level.LOW: 2, Rights.READ: 3},
    {b"a": 1, "a": 2, frozenset([1]): 3},
    {date(2024, 1, 1): 1, UUID(int=1): 2, Path("a"): 3, Decimal(1): 4},
    {np.int64(1): 1, np.str_("a"): 2, np.float32(2): 3},
    (),
    (1,),
    ((), (1, (2,))),
    [(1, 2), (3, 4)],
    ("!t", "!l"),
    {"a": (1, [2, (3,)])},
    set(),
    {1, "a", None, (1, 2)},
    {frozenset({frozenset()})},
    frozenset({1.5, b"x"}),
    OrderedDict([("b", 1), ("a", 2)]),
    OrderedDict([((1, 2), [1]), (None, 2)]),
    OrderedDict(),
    Counter("abracadabra"),
    Counter({1: -1, "1": 0}),
    defaultdict(list, {"a": [1]}),
    defaultdict(None, {1: 2}),
    defaultdict(dict, {"a": {"b": (1,)}}),
    deque([1, (2,)]),
    deque([1, 2], maxlen=2),
    deque(maxlen=0),
]

REGISTERED = [
    Color.RED,
    Color.GREEN,
    Level.HIGH,
    Rights.READ | Rights.WRITE,
    Rights(0),
    Point(1, (2, 3)),
    Point(Point(None), Pair(1, [2])),
    Pair((), {}),
    Money(5, "EUR"),
    [Money(1, "a"), {"b": Money(2, "b")}],
    {Money(1, "a"): Point(math.nan)},
]

STRUCTURED = np.dtype([("a", "<f4"), ("b", "|S3"), ("c", [("d", ">i2", (2, 2)), ("e", "<M8[ms]")])])
ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
GAPS = np.dtype({"names": ["x", "y"], "formats": ["<i4", "<u1"], "offsets": [4, 0], "itemsize": 32})
TITLED = np.dtype({"names": ["x", "y"], "formats": ["<i4", "<u1"], "titles": ["the x", None]})
GRID = np.arange(24.0).reshape(2, 3, 4)

ARRAYS = [
    *(np.arange(3).astype(kind) for kind in "?bBhHiIlLqQefdgFDG"),
    np.array(7.5),
    np.array("abc"),
    np.empty((0,)),
    np.empty((3, 0, 2), "i2"),
    GRID,
    np.asfortranarray(GRID),
    GRID.T,
    np.asfortranarray(np.ones((1, 5))),
    np.array([1, 2, 3], ">i4"),
    np.array(["a", "ünï", ""], ">U7"),
    np.array([b"a", b"bc"]),
    np.array(["2024-01-01", "NaT"], "M8[ns]"),
    np.array([1, 2], "M8[25s]"),
    np.array([b"ab"], "V5"),
    np.zeros(2, STRUCTURED),
    np.zeros((2, 2), ALIGNED),
    np.zeros(3, GAPS),
    np.zeros(1, TITLED),
    np.zeros(0, STRUCTURED),
    np.array([math.nan, -0.0]),
    np.array([1 + 2j], "c8"),
]

NUMPY_SCALARS = [
    np.bool_(True),
    np.int8(-1),
    np.uint64(2**64 - 1),
    np.float16(0.1),
    np.float32(math.nan),
    np.float64(0.1),
    np.longdouble("0.1"),
    np.complex64(1 + 1j),
    np.datetime64("2024-01-01"),
    np.datetime64("NaT", "s"),
    np.timedelta64(3, "ms"),
    np.str_("é"),
    np.str_(""),
    np.bytes_(b"a\x00"),
    np.void(b"abc"),
    np.zeros((), STRUCTURED)[()],
]


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Items(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class Row(tuple[Any, ...]):
    __slots__ = ()


class Raw(bytes):
    pass


class Unknown(Enum):
    ONE = 1


class UnknownInt(IntEnum):
    ONE = 1


class UnknownText(StrEnum):
    ONE = "one"


@dataclass
class UnknownData:
    x: int = 1


class UnknownPair(NamedTuple):
    x: int = 1


class Array(np.ndarray[Any, Any]):
    pass


class Float(np.float64):
    pass


REFUSED: list[Any] = [
    print,
    lambda: None,
    object(),
    iter([1]),
    range(3),
    slice(1),
    Ellipsis,
    NotImplemented,
    int,
    sys,
    Text("a"),
    Number(1),
    Real(1.0),
    Items([1]),
    Table(a=1),
    Row((1,)),
    Raw(b"a"),
    Unknown.ONE,
    UnknownInt.ONE,
    UnknownText.ONE,
    UnknownData(),
    UnknownPair(),
    SimpleNamespace(a=1),
    MappingProxyType({"a": 1}),
    {"a": 1}.keys(),
    OSError("a"),
    np.array([object()]),
    np.zeros(1, [("a", "O")]),
    np.ma.masked_array([1], [True]),
    np.rec.array([(1,)], [("a", "i4")]),
    np.zeros(2, np.dtype([])),
    np.dtype("f4"),
    np.zeros(3).view(Array),
    Float(1.0),
    defaultdict(lambda: 1),
    defaultdict(UnknownData),
    np.zeros(2, "f2").data,
    np.zeros((2, 0)).data,
]
