"""Types that the user made known: by a pair of functions, or by what enums, dataclasses and named tuples are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

from taskbus.codec.tree import (
    Refused,
    TreeReader,
    TreeWriter,
    finders,
    malformed,
    readers,
    type_name,
    writers,
)
from taskbus.errors import ConfigError, DecodeError

__all__ = ["register_type"]

T = TypeVar("T")

_SCALARS = (type(None), bool, int, float, str)
_lock = Lock()
_names: dict[str, type] = {}
_reads: dict[str, Callable[[list[Any], TreeReader], Any]] = {}


def register_type(
    cls: type[T],
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
    name: str | None = None,
) -> type[T]:
    """Let values of ``cls`` travel; to be called with the same name on every node, before the first event.

    An enum, a dataclass or a named tuple needs no functions: the member's name, the fields (without a call of
    ``__init__`` or ``__post_init__``) or the items travel. It can be used as a class decorator then.

    Args:
        cls: The class itself; its subclasses are not meant.
        encode: Turns a value into one that can travel, at any depth; called on the emitting thread.
        decode: Turns that back; called on the reader's thread. It must not trust what it is given.
        name: What the class is called in a frame; by default its ``__qualname__``, whatever module it is in.

    Returns:
        ``cls``.

    Raises:
        ConfigError: One function is missing, the name means another class, or the class travels anyway.
    """
    if not isinstance(cls, type):
        raise ConfigError(f"register_type takes a class, not {type_name(type(cls))}")
    if (encode is None) != (decode is None):
        raise ConfigError(f"{type_name(cls)}: encode and decode are given together or not at all")
    tag = name or cls.__qualname__
    if encode is not None and decode is not None:
        write, read = _by_functions(cls, tag, encode, decode)
    else:
        write, read = _by_nature(cls, tag)
    with _lock:
        held = _names.get(tag, cls)
        if (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"{type_name(cls)}: the name {tag!r} is taken by {type_name(held)}; give another name=")
        if cls not in _names.values() and _travels(cls):
            raise ConfigError(f"{type_name(cls)} travels as it is and cannot be registered")
        for old in [old for old, kind in _names.items() if kind is cls]:
            del _names[old], _reads[old]
        _names[tag], _reads[tag], writers[cls] = cls, read, write
    return cls


_Pair = tuple[Callable[[Any, TreeWriter], list[Any]], Callable[[list[Any], TreeReader], Any]]


def _travels(cls: type) -> bool:
    if cls in _SCALARS or cls in writers:
        return True
    try:
        return any(find(cls) is not None for find in finders)
    except Refused:
        return False


def _by_functions(cls: type, tag: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> _Pair:
    def write(value: Any, writer: TreeWriter) -> list[Any]:
        try:
            plain = encode(value)
        except Exception as error:
            raise Refused(f"{type_name(cls)} could not be encoded by its registered function: {error!r}") from error
        return ["!x", tag, writer.value(plain)]

    def read(tree: list[Any], reader: TreeReader) -> Any:
        [_, _, plain] = tree
        value = reader.value(plain)
        try:
            return decode(value)
        except Exception as error:
            raise malformed(f"{type(error).__name__} in the function that decodes {tag!r}") from error

    return write, read


def _by_nature(cls: type, tag: str) -> _Pair:
    if issubclass(cls, Enum):
        return _enum(cls, tag)
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls, tag)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _named_tuple(cls, tag)
    raise ConfigError(f"{type_name(cls)} is no enum, dataclass or named tuple: give encode and decode")


def _enum(cls: type[Enum], tag: str) -> _Pair:
    def write(value: Enum, writer: TreeWriter) -> list[Any]:
        if isinstance(value, Flag):
            return ["!x", tag, writer.value(value.value)]
        return ["!x", tag, writer.value(value.name)]

    def read(tree: list[Any], reader: TreeReader) -> Enum:
        [_, _, told] = tree
        if not issubclass(cls, Flag):
            return cls.__members__[told]
        value = reader.value(told)
        if type(value) is not int:
            raise malformed("a flag that is no integer")
        found = cls(value)
        if found.value != value:  # some versions of Python drop the bits that they do not know
            raise malformed("a flag with bits that the class does not have")
        return found

    return write, read


def _named_tuple(cls: type[tuple[Any, ...]], tag: str) -> _Pair:
    size = len(getattr(cls, "_fields", ()))

    def write(value: tuple[Any, ...], writer: TreeWriter) -> list[Any]:
        _no_more_than(value, {})
        return writer.items(["!x", tag], value)

    def read(tree: list[Any], reader: TreeReader) -> tuple[Any, ...]:
        if len(tree) != size + 2:
            raise malformed("a named tuple of another length")
        return tuple.__new__(cls, reader.items(tree, 2))

    return write, read


def _dataclass(cls: type, tag: str) -> _Pair:
    if any("__new__" in base.__dict__ for base in cls.__mro__[:-1]):
        raise ConfigError(f"{type_name(cls)} is more than its fields: give encode and decode")
    fields = {field.name: field for field in dataclasses.fields(cls)}

    def write(value: Any, writer: TreeWriter) -> list[Any]:
        _no_more_than(value, fields)
        for name in fields:
            if not hasattr(value, name):
                raise Refused(f"{type_name(cls)} without its field {name!r} is not encodable")
        return ["!x", tag, *_flat(writer.named(((name, getattr(value, name)) for name in fields), ".{}"))]

    def read(tree: list[Any], reader: TreeReader) -> Any:
        told = dict(reader.pairs(tree, 2))
        if not told.keys() <= fields.keys():
            raise malformed("a dataclass with a field that it does not have here")
        value: Any = object.__new__(cls)
        for name, field in fields.items():
            object.__setattr__(value, name, told[name] if name in told else _default(field))
        return value

    return write, read


def _no_more_than(value: Any, fields: Mapping[str, Any]) -> None:
    """Refuse attributes that would stay behind: set at run time, or in slots of a base class."""
    cls = type(value)
    slots = [name for base in cls.__mro__ for name in _slots(base) if name not in fields and hasattr(value, name)]
    for name in (*getattr(value, "__dict__", ()), *slots):
        if name not in fields and not isinstance(getattr(cls, name, None), cached_property):
            raise Refused(f"{type_name(cls)} has {name!r}, which is no field; register it with encode and decode")


def _slots(base: type) -> list[str]:
    slots = base.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    private = f"_{base.__name__.lstrip('_')}"
    return [
        private + name if name.startswith("__") else name for name in names if name not in ("__dict__", "__weakref__")
    ]


def _flat(named: dict[str, Any]) -> list[Any]:
    return [part for pair in named.items() for part in pair]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise malformed("a dataclass without one of its fields")


def _read(tree: list[Any], reader: TreeReader) -> Any:
    name = tree[1]
    read = _reads.get(name) if type(name) is str else None
    if read is None:
        shown = name[:60] if type(name) is str else type(name).__name__
        raise DecodeError(f"type {shown!r} is not registered here", reason="unknown type", type_name=shown)
    return read(tree, reader)


readers["!x"] = _read
