"""NumPy arrays and scalars; NumPy itself is looked at only where it is loaded, and loaded when an array arrives.

An array is written from its own memory (a copy only where it is neither in C nor in Fortran order) and read as a
read-only view on the received bytes, which it keeps alive: ``array.copy()`` gives a writable one of its own.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import lru_cache
from math import prod
from typing import Any

from taskbus.codec.tree import Refused, TreeReader, TreeWriter, Writer, finders, malformed, readers, type_name
from taskbus.errors import DecodeError

__all__: list[str] = []

# A unit of zero seconds is no dtype either: NumPy takes it, and divides by it (SIGFPE) at the next comparison.
_SIMPLE = re.compile(
    r"[<>|=](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV]\d{1,9}"
    r"|[mM]8(?:\[(?:[1-9]\d{0,8})?(?:Y|M|W|D|h|m|s|ms|us|μs|ns|ps|fs|as)\])?)",
    re.ASCII,
)
_MAX_NESTED = 16


@lru_cache(maxsize=256)
def _simple_name(dtype: Any) -> str:
    text: str = dtype.str
    if not _SIMPLE.fullmatch(text) or _simple_dtype(text) != dtype:
        raise Refused(f"array of dtype {dtype!s:.60} is not encodable")
    return text


@lru_cache(maxsize=256)
def _simple_dtype(text: str) -> Any:
    if not _SIMPLE.fullmatch(text):
        raise malformed("a dtype that is none")
    try:
        return numpy().dtype(text)
    except TypeError:
        raise DecodeError("an array of a dtype that is not known here", reason="unknown type", type_name=text) from None


def _describe(dtype: Any, depth: int = 0) -> Any:
    """A dtype as JSON: its ``str``; ``[base, shape]``; or ``{names, formats, offsets, itemsize, ...}``."""
    if dtype.hasobject:
        raise Refused("array that holds Python objects is not encodable; give it a dtype, or send a list")
    if depth > _MAX_NESTED:
        raise Refused("dtype is nested too deeply")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base, depth + 1), list(shape)]
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        told: dict[str, Any] = {
            "names": list(dtype.names),
            "formats": [_describe(field[0], depth + 1) for field in fields],
            "offsets": [field[1] for field in fields],
            "itemsize": dtype.itemsize,
        }
        if any(len(field) > 2 for field in fields):
            told["titles"] = [field[2] if len(field) > 2 else None for field in fields]
        if dtype.isalignedstruct:
            told["aligned"] = True
        return told
    return _simple_name(dtype)


def _dtype(np: Any, told: Any, depth: int = 0) -> Any:
    """The dtype of a description, made of nothing but checked parts."""
    if depth > _MAX_NESTED:
        raise malformed("a dtype nested too deeply")
    if type(told) is str:
        return _simple_dtype(told)
    if type(told) is list:
        [base, shape] = told
        return np.dtype((_dtype(np, base, depth + 1), tuple(_shape(shape))))
    if type(told) is not dict or not told.keys() <= {"names", "formats", "offsets", "itemsize", "titles", "aligned"}:
        raise malformed("a dtype that is none")
    names, formats, aligned = told["names"], told["formats"], told.pop("aligned", False)
    if type(names) is not list or len(names) != len(formats) or any(type(name) is not str for name in names):
        raise malformed("a dtype whose fields have no names")
    told["formats"] = [_dtype(np, each, depth + 1) for each in formats]
    return np.dtype(told, align=aligned is True)


def _shape(shape: Any) -> list[int]:
    if type(shape) is not list or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        raise malformed("a shape that is none")
    return shape


def _write_array(np: Any, value: Any, writer: TreeWriter) -> list[Any]:
    told = _describe(value.dtype)
    if value.size and not value.dtype.itemsize:
        raise Refused("array of elements without a size is not encodable")
    flags = value.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    flat = value.T if order == "F" else value
    if not flat.flags.c_contiguous:
        flat = flat.copy(order="C")
    # Bytes by way of uint8: the buffer protocol knows neither datetime64 nor half the structured dtypes.
    raw = flat.reshape(-1).view(np.uint8) if value.nbytes else b""
    writer.buffers.append(memoryview(raw))
    return ["!n", told, list(value.shape), order]


def _read_array(tree: list[Any], reader: TreeReader) -> Any:
    [_, told, shape, order] = tree
    np = numpy()
    dtype = _dtype(np, told)
    raw = reader.take()
    # Python's integers: no product of hostile numbers overflows, and nothing is allocated before the sizes agree.
    count = prod(_shape(shape))
    if (
        count * dtype.itemsize != raw.nbytes
        or (count and not dtype.itemsize)
        or dtype.subdtype
        or order not in ("C", "F")
    ):
        raise malformed("an array of another size than its shape")
    return np.ndarray(tuple(shape), dtype, buffer=raw, order=order)


def _write_scalar(np: Any, value: Any, writer: TreeWriter) -> list[Any]:
    kind = type(value)
    if kind is np.str_:
        return ["!ns", writer.value(str.__str__(value))]
    if kind is np.bytes_:
        return ["!nb", bytes(value).hex()]
    # A void may be larger than the value it shows: tobytes() is the whole of it.
    return ["!n1", _describe(value.dtype), value.tobytes().hex()]


def _read_scalar(tree: list[Any], reader: TreeReader) -> Any:
    [_, told, text] = tree
    np = numpy()
    dtype, raw = _dtype(np, told), bytes.fromhex(text)
    if dtype.itemsize != len(raw) or dtype.kind in "SU" or dtype.subdtype is not None:
        raise malformed("a NumPy scalar of another size than its dtype")
    return np.ndarray((), dtype, buffer=raw)[()]


def _read_str(tree: list[Any], reader: TreeReader) -> Any:
    [_, text] = tree
    if type(text) is not str:
        raise malformed("a text was expected")
    return numpy().str_(text)


def _read_bytes(tree: list[Any], reader: TreeReader) -> Any:
    [_, text] = tree
    return numpy().bytes_(bytes.fromhex(text))


def numpy() -> Any:
    """NumPy, loaded now if need be; a host without it cannot take arrays."""
    try:
        return importlib.import_module("numpy")
    except ImportError:
        what = "an array arrived, and NumPy is not installed"
        raise DecodeError(what, reason="unknown type", type_name="numpy.ndarray") from None


def _find(kind: type) -> Writer | None:
    np: Any = sys.modules.get("numpy")
    if np is None or getattr(np, "sctypeDict", None) is None:
        return None
    if kind is np.ndarray:
        return lambda value, writer: _write_array(np, value, writer)
    if issubclass(kind, np.generic) and kind is not np.object_ and kind in np.sctypeDict.values():
        return lambda value, writer: _write_scalar(np, value, writer)
    if issubclass(kind, np.ndarray):
        name = type_name(kind)
        raise Refused(f"{name} is not encodable; make it a numpy.ndarray or register it with taskbus.register_type")
    return None


finders.append(_find)
readers.update({"!n": _read_array, "!n1": _read_scalar, "!ns": _read_str, "!nb": _read_bytes})
