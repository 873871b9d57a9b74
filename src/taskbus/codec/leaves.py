"""Single values of the standard library: times, numbers, ids, paths."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from struct import pack, unpack
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from taskbus.codec.tree import Refused, TreeReader, TreeWriter, malformed, readers, writers
from taskbus.errors import DecodeError

__all__: list[str] = []

_EXACT = Context(traps=[InvalidOperation])


def _zone(value: Any) -> tzinfo | None:
    if value is not None and not isinstance(value, tzinfo):
        raise malformed("a zone that is none")
    return value


def _write_datetime(value: datetime, writer: TreeWriter) -> list[Any]:
    text = value.replace(tzinfo=None).isoformat()
    if value.tzinfo is None and not value.fold:
        return ["!dt", text]
    return ["!dt", text, value.fold, writer.value(value.tzinfo)]


def _read_datetime(tree: list[Any], reader: TreeReader) -> datetime:
    value = datetime.fromisoformat(tree[1])
    if len(tree) == 2:
        return value
    [_, _, fold, zone] = tree
    return value.replace(fold=fold, tzinfo=_zone(reader.value(zone)))


def _write_time(value: time, writer: TreeWriter) -> list[Any]:
    return ["!ti", value.replace(tzinfo=None).isoformat(), value.fold, writer.value(value.tzinfo)]


def _read_time(tree: list[Any], reader: TreeReader) -> time:
    [_, text, fold, zone] = tree
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_zone(reader.value(zone)))


def _write_timezone(value: timezone, writer: TreeWriter) -> list[Any]:
    if value is UTC:
        return ["!tz"]
    offset = value.utcoffset(None)
    # Only a zone that was given a name has one of its own; str() of the others is made from the offset.
    name = value.tzname(None)
    named = name != timezone(offset).tzname(None)
    tree = ["!tz", offset.days, offset.seconds, offset.microseconds]
    return [*tree, writer.value(name)] if named else tree


def _read_timezone(tree: list[Any], reader: TreeReader) -> timezone:
    if len(tree) == 1:
        return UTC
    offset = timedelta(*_integers(tree[1:4], 3))
    return timezone(offset, *tree[4:])


@lru_cache(maxsize=1)
def _zones() -> set[str]:
    return available_timezones()


def _write_zoneinfo(value: ZoneInfo, writer: TreeWriter) -> list[Any]:
    if value.key is None or value.key not in _zones():
        raise Refused("ZoneInfo without a known key is not encodable")
    return ["!zi", value.key]


def _read_zoneinfo(tree: list[Any], reader: TreeReader) -> ZoneInfo:
    [_, key] = tree
    # The name picks a zone of this host's list and nothing else: ZoneInfo would import or open what it names.
    if type(key) is not str or key not in _zones():
        raise DecodeError("malformed payload: no such time zone here", reason="unknown type", type_name="ZoneInfo")
    return ZoneInfo(key)


def _write_timedelta(value: timedelta, writer: TreeWriter) -> list[Any]:
    return ["!td", value.days, value.seconds, value.microseconds]


def _read_timedelta(tree: list[Any], reader: TreeReader) -> timedelta:
    return timedelta(*_integers(tree[1:], 3))


def _integers(values: list[Any], count: int) -> list[int]:
    if len(values) != count or any(type(value) is not int for value in values):
        raise malformed("integers were expected")
    return values


def _write_complex(value: complex, writer: TreeWriter) -> list[Any]:
    if isfinite(value.real) and isfinite(value.imag):
        return ["!cx", value.real, value.imag]
    return ["!cx", pack(">dd", value.real, value.imag).hex()]


def _read_complex(tree: list[Any], reader: TreeReader) -> complex:
    if len(tree) == 2:
        return complex(*unpack(">dd", bytes.fromhex(tree[1])))
    [_, real, imag] = tree
    if type(real) is not float or type(imag) is not float:
        raise malformed("a complex number of other things than floats")
    return complex(real, imag)


def _write_path(value: PurePath, writer: TreeWriter) -> list[Any]:
    return [_PATH_TAGS[type(value)], writer.value(str(value))]


def _text(make: Callable[[str], Any]) -> Callable[[list[Any], TreeReader], Any]:
    def read(tree: list[Any], reader: TreeReader) -> Any:
        [_, text] = tree
        if type(text) is not str:
            raise malformed("a text was expected")
        return make(text)

    return read


_PATH_TAGS: dict[type, str] = {type(Path()): "!p", PurePosixPath: "!pp", PureWindowsPath: "!pw"}

writers.update(dict.fromkeys(_PATH_TAGS, _write_path))
writers.update(
    {
        datetime: _write_datetime,
        date: lambda value, writer: ["!da", value.isoformat()],
        time: _write_time,
        timezone: _write_timezone,
        ZoneInfo: _write_zoneinfo,
        timedelta: _write_timedelta,
        UUID: lambda value, writer: ["!u", value.hex],
        Decimal: lambda value, writer: ["!de", str(value)],
        complex: _write_complex,
    }
)
readers.update(
    {
        "!dt": _read_datetime,
        "!da": _text(date.fromisoformat),
        "!ti": _read_time,
        "!tz": _read_timezone,
        "!zi": _read_zoneinfo,
        "!td": _read_timedelta,
        "!u": _text(UUID),
        "!de": _text(lambda text: Decimal(text, _EXACT)),
        "!cx": _read_complex,
        "!p": _text(Path),
        "!pp": _text(PurePosixPath),
        "!pw": _text(PureWindowsPath),
    }
)
