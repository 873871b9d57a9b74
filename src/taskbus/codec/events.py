"""The arguments of events to the text and buffers of a frame, and back."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import orjson

# What these modules know is in the tables of tree once they are imported.
from taskbus.codec import arrays, binary, containers, leaves, registered, tensors  # noqa: F401
from taskbus.codec.tree import MAX_DEPTH, MAX_VALUES, Refused, TreeReader, TreeWriter, malformed
from taskbus.errors import DecodeError, EncodeError
from taskbus.types import Event

__all__ = ["Encoded", "decode", "encode", "encode_pickle"]

_SCALARS = frozenset({type(None), bool, int, float, str})
_CONTAINERS = frozenset({list, dict})
_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_all_scalars = _SCALARS.issuperset
_all_dicts = frozenset({dict}).issuperset
_inside = gc.get_referents
_dumps = orjson.dumps
_loads = orjson.loads
_N = ord("n")
_LONG = 8192
_FEW = 8


Encoded = tuple[bytes, tuple[memoryview, ...]]
"""The text and the buffers of one event, ready to join a frame.

The text is JSON: ``kwargs``, ``[args]`` or ``[args, kwargs]`` of plain values, ``[args, kwargs, n]`` with tagged values
and ``n`` buffers, or ``[[], {}, n, "pickle"]``. The buffers are flat views of the caller's own memory: they have to be
copied or written before ``emit`` returns.
"""


def encode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
    """Encode the arguments of one event, on the thread that emits it.

    Raises:
        EncodeError: A value cannot travel, contains itself or is nested deeper than ``MAX_DEPTH``; ``path`` says which.
    """
    # This is the cost of a small event: no call that is not needed, the frequent types first.
    nested: list[Any] | None = None
    nones = 0
    for value in (*args, *kwargs.values()) if args else kwargs.values():
        kind = type(value)
        if kind is float or kind is int or kind is str:
            continue
        if kind is list:
            if len(value) < _FEW:
                for each in value:
                    kind = type(each)
                    if kind is not float and kind is not int and kind not in _SCALARS:
                        break
                else:
                    continue
            elif _all_scalars(map(type, value)):
                continue
        elif value is None:
            nones += 1
            continue
        elif kind is bool:
            continue
        elif kind is not dict:
            return _encode_tree(args, kwargs)
        if nested is None:
            nested = []
        nested.append(value)
    try:
        if nested is None or _is_plain(nested):
            event = kwargs if not args else [[*args], kwargs] if kwargs else [[*args]]
            text = _dumps(event)
            # orjson writes null for a float that is not finite: one null too many, and what comes back is not equal.
            if _N not in text or text.count(b"null") == nones or _loads(text) == event:
                return text, ()
    except (TypeError, RecursionError):
        pass  # A large integer, a lone surrogate, a key that is no str: the tree writes it, or says where it is.
    return _encode_tree(args, kwargs)


def encode_pickle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
    """Encode by pickle protocol 5, for runs that chose ``codec="pickle"``; only signed frames of it are ever read.

    Raises:
        EncodeError: Something in the arguments cannot be pickled.
    """
    buffers: list[memoryview] = []
    try:
        import pickle  # here: most nodes never need it

        data = pickle.dumps((args, kwargs), protocol=5, buffer_callback=lambda each: buffers.append(each.raw()))
    except Exception as error:
        raise EncodeError(f"the arguments cannot be pickled: {error!r}", path="") from error
    return b'[[],{},%d,"pickle"]' % (len(buffers) + 1), (memoryview(data), *buffers)


def decode(
    text: bytes | bytearray | memoryview,
    buffers: Sequence[memoryview],
    allow_pickle: bool = False,
    refused: dict[int, DecodeError] | None = None,
    bare: bool = False,
) -> list[Any]:
    """Decode a JSON array of events; ``buffers`` are those of all events, one after another.

    Arrays and memoryviews are views on ``buffers``, read-only where these are. Values of plain events may be nested as
    deep as orjson reads (1024), others ``MAX_DEPTH``.

    Args:
        allow_pickle: Also load pickled events: only for frames whose signature was checked.
        refused: Takes, by their index, the errors of events of an unknown type; in their place comes an event without
            arguments, and the others are decoded. Without it such an error is raised.
        bare: Where all have nothing but keyword arguments, give those instead of events.

    Raises:
        DecodeError: Whatever is wrong; ``reason`` is ``"malformed"``, ``"unknown type"`` (``type_name`` says which) or
            ``"pickle"``.
    """
    # Values by the thousand, none of them garbage yet: the collector would go through them again and again, and through
    # all else in the process. Without it a frame of 1000 small events takes a third of the time (0.4 us each, not 1.3).
    pause = len(text) >= _LONG and gc.isenabled()
    if pause:
        gc.disable()
    try:
        found = _loads(text)
        if not buffers and type(found) is list and _all_dicts(map(type, found)):
            return found if bare else [((), event) for event in found]
        events: list[Event] = []
        at = 0
        for event in found:
            if type(event) is dict:
                events.append(((), event))
                continue
            size = len(event)
            if size <= 2:
                args, kwargs = event if size == 2 else (event[0], {})
                if type(args) is list and type(kwargs) is dict:
                    events.append(((*args,), kwargs))
                    continue
            args, kwargs, own, codec = _parts(event, buffers, at)
            at += len(own)
            try:
                events.append(_decode_pickle(own, codec, allow_pickle) if codec else _decode_tree(args, kwargs, own))
            except DecodeError as error:
                if refused is None or error.__dict__.get("reason") != "unknown type":
                    raise
                refused[len(events)] = error
                events.append(((), {}))
        if type(found) is not list or at != len(buffers):
            raise malformed("not an array of events with their buffers")
        return events
    except DecodeError:
        raise
    except Exception as error:
        # Bytes from outside can make any reader fail in its own way, the registered ones above all.
        raise malformed(f"{type(error).__name__} while reading it") from error
    finally:
        if pause:
            gc.enable()


def _is_plain(level: list[Any]) -> bool:
    """Only values that JSON keeps as they are, as far as types can tell, in these lists and dicts.

    Goes level by level, so that the work for each of many values is done in C, and ends for cycles too.
    """
    for _ in range(MAX_DEPTH):
        if sum(map(len, level)) > MAX_VALUES:
            return False
        values = _inside(*level)
        if _all_scalars(map(type, values)):
            return True
        level = [each for each in values if type(each) not in _SCALARS]
        if not _CONTAINERS.issuperset(map(type, level)):
            return False
    return False


def _encode_tree(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoded:
    writer = TreeWriter()
    top = "args"
    try:
        trees = writer.items([], args)
        top = "kwargs"
        names = writer.named(kwargs.items())
        text = _dumps([trees, names, len(writer.buffers)], None, _OPTIONS)
    except Refused as refused:
        path = top + refused.path
        raise EncodeError(f"{path}: {refused.reason}", path=path) from refused.__cause__
    except RecursionError:
        raise EncodeError(f"{top}: nested too deeply for what is left of the stack", path=top) from None
    except (TypeError, AttributeError) as error:
        raise EncodeError(f"{top}: {error}", path=top) from error
    return text, tuple(writer.buffers)


def _parts(
    event: Any, buffers: Sequence[memoryview], at: int
) -> tuple[list[Any], dict[str, Any], Sequence[memoryview], str]:
    """The arguments, the buffers and the codec (``""`` is ours) of an event that is not plain."""
    if type(event) is not list or len(event) not in (3, 4):
        raise malformed("an event that is none")
    args, kwargs, count, codec = event if len(event) == 4 else (*event, "")
    if type(args) is not list or type(kwargs) is not dict or type(count) is not int or type(codec) is not str:
        raise malformed("an event that is none")
    if not 0 <= count <= len(buffers) - at:
        raise malformed("a buffer is missing")
    return args, kwargs, buffers[at : at + count], codec


def _decode_tree(args: list[Any], kwargs: dict[str, Any], buffers: Sequence[memoryview]) -> Event:
    reader = TreeReader(buffers)
    # Not by value(): the arguments are no list of the user's, and their first may look like a tag.
    event = tuple(reader.items(args)), reader.value(kwargs)
    reader.done()
    return event


def _decode_pickle(buffers: Sequence[memoryview], codec: str, allow_pickle: bool) -> Event:
    if codec != "pickle" or not buffers:
        raise malformed("an event of no known codec")
    if not allow_pickle:
        raise DecodeError("a pickled event, and this reader takes none", reason="pickle")
    import pickle

    args, kwargs = pickle.loads(buffers[0], buffers=buffers[1:])
    if type(args) is not tuple or type(kwargs) is not dict:
        raise malformed("a pickle of something else")
    return args, kwargs
