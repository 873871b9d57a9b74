"""Calls of a listener with many events of keyword arguments."""

from __future__ import annotations

from operator import itemgetter
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskbus.types import Bare

__all__ = ["in_order", "parameters"]


def parameters(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters that ``fn``, if it is a function in Python, takes by name and by position alike.

    Empty where it is none, or takes others by position. What it wraps does not count, whatever class it claims to be
    of: a wrapper may look at how it is called.
    """
    kind = type(fn)
    function: Any = fn
    own = 0
    if kind is MethodType:
        function, own = function.__func__, 1
    elif kind is not FunctionType:
        # Where a call looks for it: what `fn.__call__` gives can be something else.
        function, own = next((vars(each)["__call__"] for each in kind.__mro__ if "__call__" in vars(each)), None), 1
    if type(function) is not FunctionType or function.__code__.co_posonlyargcount:
        return ()
    code = function.__code__
    return code.co_varnames[own : code.co_argcount]


def in_order(names: tuple[str, ...], events: Sequence[Bare]) -> list[tuple[Any, ...]]:
    """The values of each event in the order of ``names``; empty where one has other names than these.

    A call by position costs half of one by keywords, which is 0.4 us: keys that come from JSON are not the very strings
    that a function has as the names of its parameters, so that each is compared with each.
    """
    count = len(names)
    if count < 2 or set(map(len, events)) != {count}:
        return []
    try:
        return list(map(itemgetter(*names), events))
    except KeyError:
        return []
