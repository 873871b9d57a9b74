"""Who minds a wire: the thread that is there for it, or whoever waits for what it brings, which is a hop less."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

__all__ = ["GRACE", "Turn"]

GRACE: Final = 0.1
"""Seconds for which the owner leaves alone what was given back, because who has used it tends to come again.

Each look at whether it still does costs whoever runs then 20 us: with looks every 50 ms the slowest hundredth of a
ping-pong on one CPU took 4 % longer, without any it took no less. The writer's thread leaves the answers to emits that
come one by one for as long, so that is how late the last of them may be found to be acknowledged, if nobody asks.
"""


class Turn:
    """Held by one thread at a time. Its owner lends it to who has asked for it, and takes it back after a while."""

    def __init__(self) -> None:
        self.is_wanted = False
        """Somebody asks the owner for it."""
        self._held = threading.RLock()  # which only the one who holds it can give back
        self.borrow_now: Callable[[], bool] = partial(self._held.acquire, blocking=False)
        """Hold it, if that can be at once."""
        self._call = threading.Lock()
        self._call.acquire()
        self._is_lent = self._dozes = self._is_called = False
        self._used = 0.0

    # The owner

    def take(self) -> None:
        """Begin to hold it."""
        self._held.acquire()

    def lend(self) -> None:
        """Let others hold it; returns, holding it again, once it is called for or has not been used for ``GRACE``."""
        self.is_wanted = False
        self._is_called, self._is_lent = False, True
        self._used = seen = monotonic()
        self._held.release()
        left = GRACE
        while True:
            if not self._is_called:
                self._call.acquire(timeout=left)
            left = GRACE
            if not self._held.acquire(blocking=False):
                if self._used != seen and not self._is_called:
                    seen = self._used  # it is used again and again, and who gives it back need not wake anybody
                    continue
                self._dozes = True  # before looking once more: who gives back does it in the other order
                if not self._held.acquire(blocking=False):
                    self._call.acquire()
                    self._dozes = False
                    continue
                self._dozes = False
            left -= monotonic() - self._used
            if self._is_called or left <= 0:
                self._is_lent = False
                return
            self._held.release()

    def call(self) -> None:
        """Have the owner take it back as soon as nobody else holds it."""
        if self._is_lent:
            self._is_called = True
            self._wake()

    def _wake(self) -> None:
        try:
            self._call.release()
        except RuntimeError:
            pass  # it is called already

    # Others

    def borrow(self, timeout: float) -> bool:
        """Hold it, if that can be within ``timeout`` seconds."""
        return self._held.acquire(timeout=timeout)

    def give_back(self, *, at_once: bool) -> None:
        """Hold it no more; the owner comes ``at_once``, or if nobody borrows it again soon.

        Harmless for who does not hold it: a signal handler may have raised just before it was borrowed, or after this.
        """
        try:
            if at_once:
                self._is_called = True
            self._used = monotonic()
        finally:
            try:
                self._held.release()
            except RuntimeError:
                pass  # it is somebody else's
            if self._is_called or self._dozes:
                self._wake()
