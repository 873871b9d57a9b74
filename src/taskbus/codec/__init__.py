"""Values to bytes and back, type for type: the payload of an event.

What travels: ``None``, bool, int of any size, float, complex, str, bytes, bytearray, memoryview; list, tuple, dict with
any keys, set, frozenset, ``OrderedDict``, ``defaultdict`` of a builtin, ``Counter``, deque; datetime, date, time,
timedelta, timezone, ``ZoneInfo``, ``UUID``, ``Decimal``, paths; NumPy arrays (any dtype but object) and scalars; torch
tensors; and classes that :func:`register_type` made known. By exact type: a subclass is a type of its own, and what is
not in this list is refused at ``emit``.

What arrives is new: a value that was in two places arrives as two. Arrays and memoryviews arrive as read-only views on
the received bytes, tensors on the CPU in memory of their own.

``events`` is the way in and out, ``tree`` what it does with values that JSON does not know; the other modules know one
kind of value each. Pure functions throughout; the only place that imports orjson.
"""

from __future__ import annotations

from taskbus.codec.events import Encoded, decode, encode, encode_pickle
from taskbus.codec.registered import register_type
from taskbus.codec.tree import MAX_DEPTH, MAX_VALUES, TAGGED

__all__ = ["MAX_DEPTH", "MAX_VALUES", "TAGGED", "Encoded", "decode", "encode", "encode_pickle", "register_type"]
