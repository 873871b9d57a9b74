"""Values to bytes and back, type for type: the payload of an event.

``events`` is the way in and out, ``tree`` what it does with values that JSON does not know; the other modules know one
kind of value each. Pure functions throughout; the only place that imports orjson.
"""

from __future__ import annotations

from taskbus.codec.events import Encoded, decode, encode, encode_pickle
from taskbus.codec.registered import register_type
from taskbus.codec.tree import MAX_DEPTH, MAX_VALUES

__all__ = ["MAX_DEPTH", "MAX_VALUES", "Encoded", "decode", "encode", "encode_pickle", "register_type"]
