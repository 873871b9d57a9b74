"""Containers: lists and dicts that JSON would bend, tuples, sets and the collections of the standard library."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Set
from math import isfinite
from typing import Any

from taskbus.codec.tree import MAX_INT, MIN_INT, Refused, TreeReader, TreeWriter, malformed, readers, type_name, writers

__all__: list[str] = []

_FACTORIES: dict[str, Any] = {
    "none": None,
    "list": list,
    "dict": dict,
    "set": set,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "tuple": tuple,
    "deque": deque,
}


def _all_plain(values: list[Any]) -> bool:
    """A list of one kind of scalar that JSON keeps as it is; ``False`` may also mean: look closer."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return all(map(isfinite, values))
    if kinds == {int}:
        return bool(min(values) >= MIN_INT and max(values) <= MAX_INT)
    if kinds == {str}:
        return values[0][:1] != "!" and all(map(str.isascii, values))
    return kinds == {bool}


def _write_list(values: list[Any], writer: TreeWriter) -> list[Any]:
    values = values.copy()
    if _all_plain(values):
        writer.spend(len(values))
        return values
    tagged = bool(values) and type(values[0]) is str and values[0][:1] == "!"
    return writer.items(["!l"] if tagged else [], values)


def _read_list(tree: list[Any], reader: TreeReader) -> list[Any]:
    return reader.items(tree, 1)


def _write_dict(value: dict[Any, Any], writer: TreeWriter) -> Any:
    items = list(value.items())
    if all(type(key) is str for key, _ in items):
        return writer.named(items)
    return writer.pairs(["!d"], items)


def _read_dict(tree: list[Any], reader: TreeReader) -> dict[Any, Any]:
    return dict(reader.pairs(tree))


def _write_tuple(value: tuple[Any, ...], writer: TreeWriter) -> list[Any]:
    return writer.items(["!t"], value)


def _read_tuple(tree: list[Any], reader: TreeReader) -> tuple[Any, ...]:
    return tuple(reader.items(tree, 1))


def _write_members(tag: str, value: Set[Any], writer: TreeWriter) -> list[Any]:
    members = list(value)
    writer.spread(members)
    return writer.items([tag], members, "{{item {}}}")


def _write_set(value: set[Any], writer: TreeWriter) -> list[Any]:
    return _write_members("!s", value, writer)


def _read_set(tree: list[Any], reader: TreeReader) -> set[Any]:
    return set(reader.hashable(reader.items(tree, 1)))


def _write_frozenset(value: frozenset[Any], writer: TreeWriter) -> list[Any]:
    return _write_members("!fs", value, writer)


def _read_frozenset(tree: list[Any], reader: TreeReader) -> frozenset[Any]:
    return frozenset(reader.hashable(reader.items(tree, 1)))


def _write_ordered(value: OrderedDict[Any, Any], writer: TreeWriter) -> list[Any]:
    # A model's state carries the versions of its modules in this attribute; no other one is known to be meant.
    extra = dict(vars(value))
    metadata = extra.pop("_metadata", None)
    if extra:
        raise Refused(f"OrderedDict with an attribute {next(iter(extra))!r} is not encodable")
    return writer.pairs(["!o", writer.value(metadata)], value.items())


def _read_ordered(tree: list[Any], reader: TreeReader) -> OrderedDict[Any, Any]:
    # The metadata was written first, so it is read first: buffers are taken in order.
    metadata = reader.value(tree[1])
    value = OrderedDict(reader.pairs(tree, 2))
    if metadata is not None:
        vars(value)["_metadata"] = metadata
    return value


def _write_defaultdict(value: defaultdict[Any, Any], writer: TreeWriter) -> list[Any]:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if name is None:
        what = type_name(factory) if isinstance(factory, type) else type_name(type(factory))
        raise Refused(f"defaultdict of {what} is not encodable; register it with taskbus.register_type")
    return writer.pairs(["!dd", name], value.items())


def _read_defaultdict(tree: list[Any], reader: TreeReader) -> defaultdict[Any, Any]:
    return defaultdict(_FACTORIES[tree[1]], reader.pairs(tree, 2))


def _write_counter(value: Counter[Any], writer: TreeWriter) -> list[Any]:
    if vars(value):
        raise Refused(f"Counter with an attribute {next(iter(vars(value)))!r} is not encodable")
    return writer.pairs(["!c"], value.items())


def _read_counter(tree: list[Any], reader: TreeReader) -> Counter[Any]:
    return Counter(dict(reader.pairs(tree)))


def _write_deque(value: deque[Any], writer: TreeWriter) -> list[Any]:
    return writer.items(["!q", value.maxlen], value)


def _read_deque(tree: list[Any], reader: TreeReader) -> deque[Any]:
    maxlen = tree[1]
    if maxlen is not None and (type(maxlen) is not int or len(tree) - 2 > maxlen):
        raise malformed("a deque longer than it may be")
    return deque(reader.items(tree, 2), maxlen)


writers.update(
    {
        list: _write_list,
        dict: _write_dict,
        tuple: _write_tuple,
        set: _write_set,
        frozenset: _write_frozenset,
        OrderedDict: _write_ordered,
        defaultdict: _write_defaultdict,
        Counter: _write_counter,
        deque: _write_deque,
    }
)
readers.update(
    {
        "!l": _read_list,
        "!d": _read_dict,
        "!t": _read_tuple,
        "!s": _read_set,
        "!fs": _read_frozenset,
        "!o": _read_ordered,
        "!dd": _read_defaultdict,
        "!c": _read_counter,
        "!q": _read_deque,
    }
)
