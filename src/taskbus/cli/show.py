"""Events for people and for ``jq``: every value that can travel has a short text and a plain JSON form."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
import time
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from taskbus.cli.common import clean

if TYPE_CHECKING:
    from taskbus.bus.follower import Sighting

__all__ = ["as_json", "as_line", "plain"]

_MOST_ITEMS = 1000
_MOST_BYTES = 4096
_LONGEST_VALUE = 120
_DEEPEST = 50


def as_json(sighting: Sighting, node: str) -> str:
    """One line of JSON; see :func:`plain` for what becomes of the values."""
    fields: dict[str, Any] = {
        "event": sighting.event,
        "id": sighting.entry,
        "number": sighting.number,
        "at": sighting.at,
        "node": node,
        "args": plain(sighting.args),
        "kwargs": plain(sighting.kwargs or {}),
    }
    if sighting.only_to:
        fields["only_to"] = sighting.only_to
    if sighting.problem:
        fields["problem"] = sighting.problem
    return json.dumps(fields, ensure_ascii=False)


def as_line(sighting: Sighting, node: str, width: int) -> str:
    """Time, event, node and a call's worth of arguments, cut to what is readable."""
    at = time.strftime("%H:%M:%S", time.localtime(sighting.at)) + f"{sighting.at % 1:.3f}"[1:]
    parts = [_short(value) for value in sighting.args]
    parts += [f"{name}={_short(value)}" for name, value in (sighting.kwargs or {}).items()]
    what = f"<{sighting.problem}>" if sighting.problem else f"({', '.join(parts)})"
    to = f" to {','.join(sighting.only_to)}" if sighting.only_to else ""
    return clean(f"{at}  {sighting.event:<{width}}  {node:<8}{to}  {what}")


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` in the words of JSON.

    Arrays and tensors become ``{"dtype", "shape", "data"}`` (beyond 1000 items ``"first"`` instead of ``"data"``),
    bytes ``{"bytes", "base64"}``, sets and tuples lists, dataclasses and named tuples objects, nan and infinities text,
    and everything else its text.
    """
    if value is None or isinstance(value, bool | int | str) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes | bytearray | memoryview):
        head = bytes(value[:_MOST_BYTES])
        return {"bytes": len(value), "base64": base64.b64encode(head).decode()}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _array(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name), depth + 1) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item, depth + 1) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item, depth + 1) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return str(value)


def _array(value: Any) -> Any:
    shape = [int(size) for size in value.shape]
    if not shape:
        return plain(value.tolist())
    flat = value.reshape(-1)
    known = {"dtype": str(value.dtype), "shape": shape}
    if math.prod(shape) > _MOST_ITEMS:
        return {**known, "first": plain(flat[:10].tolist())}
    return {**known, "data": plain(value.tolist())}


def _short(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "tolist") and len(value.shape):
        return f"{value.dtype}[{', '.join(str(size) for size in value.shape)}]"
    if isinstance(value, bytes | bytearray) and len(value) > 40:
        return f"bytes[{len(value)}]"
    text = repr(value) if isinstance(value, str | bytes) else str(_shortened(value))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _shortened(value: Any) -> Any:
    if type(value) in (list, tuple) and len(value) <= _MOST_ITEMS:
        items = [_short(item) for item in value[:20]] + (["..."] if len(value) > 20 else [])
        tail = "," if type(value) is tuple and len(value) == 1 else ""
        return f"({', '.join(items)}{tail})" if type(value) is tuple else f"[{', '.join(items)}]"
    if type(value) is dict and len(value) <= _MOST_ITEMS:
        items = [f"{key!r}: {_short(item)}" for key, item in list(value.items())[:20]]
        return f"{{{', '.join(items)}{', ...' if len(value) > 20 else ''}}}"
    return value
