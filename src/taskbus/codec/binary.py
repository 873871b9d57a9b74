"""Raw bytes: ``bytes`` and ``bytearray`` are copied out of the frame, a ``memoryview`` stays a view on it."""

from __future__ import annotations

from math import prod
from struct import calcsize
from typing import Any

from taskbus.codec.tree import Refused, TreeReader, TreeWriter, malformed, readers, writers

__all__: list[str] = []

# Formats that memoryview.cast() knows and that hold no address.
_FORMATS = frozenset("BbchHiIlLqQnNfd?")


def _write_bytes(value: bytes, writer: TreeWriter) -> list[Any]:
    writer.buffers.append(memoryview(value))
    return ["!b"]


def _write_bytearray(value: bytearray, writer: TreeWriter) -> list[Any]:
    writer.buffers.append(memoryview(value))
    return ["!ba"]


def _write_memoryview(value: memoryview, writer: TreeWriter) -> list[Any]:
    if value.format not in _FORMATS or (value.ndim > 1 and not value.nbytes):
        raise Refused(f"memoryview of format {value.format!r} and shape {value.shape} is not encodable; use an array")
    flat = value if value.c_contiguous else memoryview(value.tobytes())
    writer.buffers.append(flat.cast("B"))
    if value.format == "B" and value.ndim == 1:
        return ["!mv"]
    return ["!mv", value.format, value.itemsize, *(value.shape or ())]


def _read_memoryview(tree: list[Any], reader: TreeReader) -> memoryview:
    view = reader.take()
    if len(tree) == 1:
        return view
    kind: Any = tree[1]
    size, shape = tree[2], tree[3:]
    if kind not in _FORMATS or size != calcsize(kind):
        raise malformed("a memoryview of a format that this host does not have")
    if any(type(n) is not int or n < 0 for n in shape) or prod(shape) * size != view.nbytes:
        raise malformed("a memoryview of another size than its shape")
    return view.cast(kind) if len(shape) == 1 else view.cast(kind, shape)


writers.update({bytes: _write_bytes, bytearray: _write_bytearray, memoryview: _write_memoryview})
readers.update(
    {
        "!b": lambda tree, reader: bytes(reader.take()),
        "!ba": lambda tree, reader: bytearray(reader.take()),
        "!mv": _read_memoryview,
    }
)
