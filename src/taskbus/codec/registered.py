"""Types that the user made known: by a pair of functions, or by what enums, dataclasses and named tuples are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import Enum, Flag
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

from taskbus.codec.tree import Refused, TreeReader, TreeWriter, malformed, readers, type_name, writers
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
        if cls in _SCALARS or (cls in writers and cls not in _names.values()):
            raise ConfigError(f"{type_name(cls)} travels as it is and cannot be registered")
        for old in [old for old, kind in _names.items() if kind is cls]:
            del _names[old], _reads[old]
        _names[tag], _reads[tag], writers[cls] = cls, read, write
    return cls


_Pair = tuple[Callable[[Any, TreeWriter], list[Any]], Callable[[list[Any], TreeReader], Any]]


def _by_functions(cls: type, tag: str, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> _Pair:
    def write(value: Any, writer: TreeWriter) -> list[Any]:
        try:
            plain = encode(value)
        except Exception as error:
            raise Refused(f"{type_name(cls)} could not be encoded by its registered function: {error!r}") from error
        return ["!x", tag, writer.value(plain)]

    def read(tree: list[Any], reader: TreeReader) -> Any:
        [_, _, plain] = tree
        return decode(reader.value(plain))

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
        return cls(reader.value(told)) if issubclass(cls, Flag) else cls.__members__[told]

    return write, read


def _named_tuple(cls: type[tuple[Any, ...]], tag: str) -> _Pair:
    size = len(cls.__dict__.get("_fields", getattr(cls, "_fields", ())))

    def write(value: tuple[Any, ...], writer: TreeWriter) -> list[Any]:
        return writer.items(["!x", tag], value)

    def read(tree: list[Any], reader: TreeReader) -> tuple[Any, ...]:
        if len(tree) != size + 2:
            raise malformed("a named tuple of another length")
        return tuple.__new__(cls, reader.items(tree, 2))

    return write, read


def _dataclass(cls: type, tag: str) -> _Pair:
    fields = {field.name: field for field in dataclasses.fields(cls)}

    def write(value: Any, writer: TreeWriter) -> list[Any]:
        for name in vars(value) if hasattr(value, "__dict__") else ():
            if name not in fields and not isinstance(getattr(cls, name, None), cached_property):
                raise Refused(f"{type_name(cls)} has {name!r}, which is no field; register it with encode and decode")
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
        raise DecodeError(f"type {name!s:.60} is not registered here", reason="unknown type", type_name=f"{name!s:.60}")
    return read(tree, reader)


readers["!x"] = _read
