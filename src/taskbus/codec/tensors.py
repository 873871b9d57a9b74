"""Torch tensors, in a process that has loaded torch; nothing here loads it.

A tensor arrives on the CPU, dense and in row-major order, in memory of its own: torch has no read-only tensors, and the
received bytes must not change. ``requires_grad`` is kept, the graph behind it is not.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from math import prod
from typing import Any

from taskbus.codec.tree import Refused, TreeReader, TreeWriter, Writer, finders, malformed, readers, type_name
from taskbus.errors import DecodeError

__all__: list[str] = []

_NAMES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)


@lru_cache(maxsize=1)
def _dtypes(torch: Any) -> dict[str, Any]:
    return {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}


def _write(torch: Any, value: Any, writer: TreeWriter) -> list[Any]:
    dtype = value.dtype
    name = next((name for name, known in _dtypes(torch).items() if known is dtype), None)
    if name is None or value.layout != torch.strided or value.device.type == "meta":
        raise Refused(f"tensor of {dtype}, {value.layout}, on {value.device.type} is not encodable")
    try:
        dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # Bytes by way of uint8: NumPy knows neither bfloat16 nor the float8 family.
        raw = dense.reshape(-1).view(torch.uint8).numpy() if dense.numel() else b""
    except RuntimeError as error:
        raise Refused(f"tensor without plain memory is not encodable: {error}") from error
    writer.buffers.append(memoryview(raw))
    return ["!T", name, list(value.shape), value.requires_grad]


def _read(tree: list[Any], reader: TreeReader) -> Any:
    [_, name, shape, requires_grad] = tree
    torch: Any = sys.modules.get("torch")
    dtype = _dtypes(torch).get(name) if torch is not None else None
    if dtype is None:
        what = (
            f"this torch has no dtype {name[:20]!r}" if torch is not None else "torch is not imported in this process"
        )
        raise DecodeError(f"a tensor arrived, and {what}", reason="unknown type", type_name="torch.Tensor")
    raw = reader.take()
    if type(shape) is not list or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        raise malformed("a shape that is none")
    if prod(shape) * dtype.itemsize != raw.nbytes:
        raise malformed("a tensor of another size than its shape")
    if raw.nbytes:
        tensor = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
    else:
        tensor = torch.empty(shape, dtype=dtype)
    return tensor.requires_grad_() if requires_grad is True else tensor


def _find(kind: type) -> Writer | None:
    torch: Any = sys.modules.get("torch")
    base = getattr(torch, "Tensor", None)
    if base is None:
        return None
    if kind is base:
        return lambda value, writer: _write(torch, value, writer)
    if issubclass(kind, base):
        raise Refused(f"{type_name(kind)} is not encodable; detach() it or register it with taskbus.register_type")
    return None


finders.append(_find)
readers["!T"] = _read
