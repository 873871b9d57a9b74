"""Waiting for a condition in tests."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from taskbus.errors import WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["until"]

T = TypeVar("T")


def until(cond: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """Look at ``cond()`` until it is true, and return its value.

    Args:
        cond: Looked at at once, then at growing distances of at most 20 ms; what it raises passes through.
        timeout: Seconds on the monotonic clock; it is looked at once more when they are over.
        what: The condition in words, for the error: ``"b hears finish"``.

    Raises:
        WaitTimeout: It did not become true in time.
    """
    deadline = time.monotonic() + timeout
    pause, never = 0.001, threading.Event()
    while True:
        late = time.monotonic() >= deadline
        value = cond()
        if value:
            return value
        if late:
            raise WaitTimeout(f"not within {timeout:g} s: {what or repr(cond)}", timeout=timeout)
        never.wait(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, 0.02)
