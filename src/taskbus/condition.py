"""The lock and condition that callers wait on, whose threads signals may interrupt."""

from __future__ import annotations

import threading
from _thread import RLock
from collections.abc import Callable
from typing import Any

__all__ = ["Condition", "Flag"]


class Condition(RLock):  # type: ignore[misc]
    """A reentrant lock with the ``wait`` and ``notify_all`` of ``threading.Condition``.

    That class enters and leaves a ``with`` block by functions of Python, in which the exception of a signal handler may
    come and leave the lock held for ever; this one by those of the lock. And where such an exception comes in ``wait``,
    before the lock is held again, it is taken first.
    """

    _is_owned: Callable[[], bool]  # of the lock, which does not tell types of it

    def __init__(self) -> None:
        self._condition = threading.Condition(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock away until notified, or for ``timeout`` seconds: then false."""
        return self._hold_after(self._condition.wait, timeout)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``predicate()``; false if it is not so after ``timeout`` seconds."""
        return self._hold_after(self._condition.wait_for, predicate, timeout)

    def _hold_after(self, wait: Callable[..., bool], *args: Any) -> bool:
        try:
            return wait(*args)
        except BaseException:
            if not self._is_owned():
                self.acquire()
            raise

    def notify_all(self) -> None:
        """Wake all who wait."""
        self._condition.notify_all()


class Flag:
    """``threading.Event`` on that condition: what interrupts who waits or sets never leaves it locked."""

    def __init__(self) -> None:
        self._changed = Condition()
        self.is_set = False

    def set(self) -> None:
        with self._changed:
            self.is_set = True
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Return once it is set, or false after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_set, timeout)
