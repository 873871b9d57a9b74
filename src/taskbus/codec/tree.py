"""Values that JSON does not know, as a tree that it does know.

Scalars, lists and dicts with ``str`` keys stand for themselves. Everything else is a list that begins with a tag, a
``str`` that begins with ``!``; a list that happens to begin with such a ``str`` gets the tag ``!l``. One value is one
level of the tree, so a depth limit on values bounds the JSON too. Raw bytes are no part of the tree: they are buffers
beside it, each used once, in the order of the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from math import isfinite
from struct import pack, unpack
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from taskbus.errors import DecodeError

__all__ = [
    "MAX_DEPTH",
    "MAX_VALUES",
    "TAGGED",
    "Refused",
    "TreeReader",
    "TreeWriter",
    "finders",
    "malformed",
    "readers",
    "type_name",
    "writers",
]

MAX_DEPTH = 100
"""How deep values may be nested: what fits into Python's stack, whatever the values, and into orjson's 253 levels."""

MAX_VALUES = 1 << 24
"""How many values one event may hold in all; an array or a ``bytes`` is one. Ends what shared references multiply."""

TAGGED = b'["!'
"""How values that JSON does not know begin in a text that a writer of ours wrote."""

MIN_INT, MAX_INT = -(1 << 63), (1 << 64) - 1
_CODE = (FunctionType, BuiltinFunctionType, MethodType, partial)
_MANY_KEYS, _SAME_HASH = 1000, 64

Writer = Callable[[Any, "TreeWriter"], list[Any]]
Reader = Callable[[list[Any], "TreeReader"], Any]

writers: dict[type, Writer] = {}
"""How to write a value, by its exact type; the result begins with a tag, or is a plain list."""

readers: dict[str, Reader] = {}
"""How to read what follows a tag."""

finders: list[Callable[[type], Writer | None]] = []
"""Asked in turn for a type that is in no table: libraries that may or may not be loaded."""


class Refused(Exception):
    """A value cannot travel; collects the way to it while it passes the containers."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    @property
    def path(self) -> str:
        return "".join(reversed(self.steps))


def is_crowded(keys: Sequence[Hashable]) -> bool:
    """So many keys have the same hash that a set or dict of them takes quadratic time."""
    return len(keys) > _MANY_KEYS and max(Counter(map(hash, keys)).values()) > _SAME_HASH


def malformed(what: str) -> DecodeError:
    """The error for a tree that no writer of ours wrote."""
    return DecodeError(f"malformed payload: {what}", reason="malformed")


def type_name(kind: type) -> str:
    """The name of a type as a person would look for it."""
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


class TreeWriter:
    """Writes the values of one event; ``buffers`` are what goes beside the tree."""

    __slots__ = ("_count", "_open", "buffers")

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self._open: set[int] = set()
        self._count = 0

    def value(self, value: Any) -> Any:
        """The tree of ``value``; raises :class:`Refused`."""
        kind = type(value)
        if kind is str:
            return value if value.isascii() else _utf8(value)
        if kind is float:
            return value if isfinite(value) else ["!f", pack(">d", value).hex()]
        if kind is int:
            return value if MIN_INT <= value <= MAX_INT else ["!i", format(value, "x")]
        if value is None or kind is bool:
            return value
        if kind is tuple and len(self._open) < MAX_DEPTH and _all_simple(value):
            self.spend(len(value))
            return ["!t", *value]
        write = writers.get(kind) or _find(kind)
        ident = id(value)
        if ident in self._open:
            raise Refused(f"{type_name(kind)} contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise Refused(f"nested more than {MAX_DEPTH} levels deep")
        self._open.add(ident)
        tree = write(value, self)
        self._open.discard(ident)
        return tree

    def items(self, tree: list[Any], values: Iterable[Any], step: str = "[{}]") -> list[Any]:
        """Append the trees of ``values`` to ``tree``."""
        values = list(values)
        self.spend(len(values))
        before = len(tree)
        try:
            for value in values:
                tree.append(self.value(value))
        except Refused as refused:
            refused.steps.append(step.format(len(tree) - before))
            raise
        return tree

    def pairs(self, tree: list[Any], items: Iterable[tuple[Any, Any]]) -> list[Any]:
        """Append key, value, key, value ... to ``tree``."""
        items = list(items)
        self.spend(2 * len(items))
        self.spread([key for key, _ in items])
        key, in_key = None, True
        try:
            for key, value in items:
                in_key = True
                tree.append(self.value(key))
                in_key = False
                tree.append(self.value(value))
        except Refused as refused:
            refused.steps.append(f".key({_short(key)})" if in_key else f"[{_short(key)}]")
            raise
        return tree

    def named(self, items: Iterable[tuple[str, Any]], step: str = "[{!r}]") -> dict[str, Any]:
        """The trees of values that have names: a dict's keys, a dataclass's fields."""
        items = list(items)
        self.spend(len(items))
        tree: dict[str, Any] = {}
        name = ""
        try:
            for name, value in items:
                tree[name if name.isascii() else _utf8(name)] = self.value(value)
        except Refused as refused:
            refused.steps.append(step.format(name))
            raise
        return tree

    def spread(self, keys: Sequence[Hashable]) -> None:
        """Refuse keys that no reader would take."""
        if is_crowded(keys):
            raise Refused(f"more than {_SAME_HASH} keys with the same hash are not encodable")

    def spend(self, count: int) -> None:
        """Count values, so that a few lists that share one another cannot fill the memory."""
        self._count += count
        if self._count > MAX_VALUES:
            raise Refused(f"more than {MAX_VALUES} values in one event; use an array")


class TreeReader:
    """Reads the values of one event; ``buffers`` are its own, each to be taken once."""

    __slots__ = ("_buffers", "_depth", "_taken")

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = buffers
        self._depth = 0
        self._taken = 0

    def value(self, tree: Any) -> Any:
        """The value of ``tree``, whose lists and dicts it may use; raises ``DecodeError`` and what readers raise."""
        kind = type(tree)
        if kind is not list and kind is not dict:
            return tree
        self._depth += 1
        if self._depth > MAX_DEPTH + 2:
            raise malformed(f"nested more than {MAX_DEPTH} levels deep")
        value: Any
        if kind is dict:
            value = self._dict(tree)
        elif tree and type(tree[0]) is str and tree[0][:1] == "!":
            read = readers.get(tree[0])
            if read is None:
                name = tree[0][:20]
                raise DecodeError(f"malformed payload: no tag {name!r}", reason="unknown type", type_name=name)
            value = read(tree, self)
        else:
            value = self.items(tree)
        self._depth -= 1
        return value

    def items(self, trees: list[Any], start: int = 0) -> list[Any]:
        """The values of ``trees[start:]``."""
        if start:
            trees = trees[start:]
        for index, tree in enumerate(trees):
            kind = type(tree)
            if kind is list or kind is dict:
                trees[index] = self.value(tree)
        return trees

    def pairs(self, trees: list[Any], start: int = 1) -> list[tuple[Any, Any]]:
        """The keys and values of ``trees[start:]``; the keys can be put into a dict."""
        if (len(trees) - start) % 2:
            raise malformed("a key without a value")
        values = self.items(trees, start)
        keys = self.hashable(values[::2])
        return list(zip(keys, values[1::2], strict=True))

    def hashable(self, keys: list[Hashable]) -> list[Hashable]:
        """``keys``, when a set or dict of them costs what it should: no repeats, no flood of equal hashes."""
        if is_crowded(keys):
            raise malformed("too many keys with the same hash")
        if len(set(keys)) != len(keys):
            raise malformed("a key comes twice")
        return keys

    def take(self) -> memoryview:
        """The next buffer."""
        if self._taken >= len(self._buffers):
            raise malformed("a buffer is missing")
        self._taken += 1
        return self._buffers[self._taken - 1]

    def done(self) -> None:
        """Every buffer was used."""
        if self._taken != len(self._buffers):
            raise malformed("a buffer is left over")

    def _dict(self, tree: dict[str, Any]) -> dict[str, Any]:
        for key, value in tree.items():
            kind = type(value)
            if kind is list or kind is dict:
                tree[key] = self.value(value)
        return tree


def _all_simple(values: tuple[Any, ...]) -> bool:
    """Only scalars that stand for themselves: what most tuples hold."""
    for value in values:
        kind = type(value)
        if kind is float:
            if not isfinite(value):
                return False
        elif kind is int:
            if not MIN_INT <= value <= MAX_INT:
                return False
        elif kind is str:
            if not value.isascii():
                return False
        elif value is not None and kind is not bool:
            return False
    return True


def _find(kind: type) -> Writer:
    for find in finders:
        write = find(kind)
        if write is not None:
            writers[kind] = write
            return write
    if issubclass(kind, _CODE):
        raise Refused(f"{type_name(kind)} is not encodable: functions do not travel; send data, or a name")
    raise Refused(f"{type_name(kind)} is not encodable; register it with taskbus.register_type")


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"str with a lone surrogate at {error.start} is not encodable") from None
    return text


def _short(key: Any) -> str:
    text = repr(key) if type(key) in (str, float, bool, type(None)) else type_name(type(key))
    if type(key) is int:
        # Python refuses to write very long integers in decimals.
        text = str(key) if MIN_INT <= key <= MAX_INT else hex(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_float(tree: list[Any], reader: TreeReader) -> float:
    [_, text] = tree
    [value] = unpack(">d", bytes.fromhex(text))
    return float(value)


def _read_int(tree: list[Any], reader: TreeReader) -> int:
    [_, text] = tree
    return int(text, 16)


readers["!f"] = _read_float
readers["!i"] = _read_int
