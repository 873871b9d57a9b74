"""Sinks without a function: a waiter takes one event, a trail keeps the events between two waits."""

from __future__ import annotations

import math
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskbus.types import Event

__all__ = ["Trail", "Waiter"]


class Waiter:
    """Resolves at its first event, once, whoever comes first: an event, :meth:`cancel` or the timeout."""

    __slots__ = ("_claim", "_event", "_reason", "_wake", "event", "ready", "timed_out")

    def __init__(self, event: str) -> None:
        self.event = event
        self.ready = True
        self.timed_out = False
        self._claim = threading.Lock()  # taken for ever by the one who resolves
        self._wake = threading.Lock()
        self._wake.acquire()
        self._event: Event | None = None
        self._reason: BaseException | None = None

    def wait(self, deadline: float = math.inf) -> Event | None:
        """Block until resolved; ``None`` when cancelled without a reason, or at ``deadline`` (monotonic clock).

        Raises:
            BaseException: The reason given to :meth:`cancel`.
        """
        if deadline == math.inf:
            self._wake.acquire()
        elif not self._wake.acquire(timeout=_seconds_until(deadline)):
            self.timed_out = self._claim.acquire(blocking=False)
            if not self.timed_out:
                self._wake.acquire()  # somebody resolves it at the very deadline
        if self._reason is not None:
            raise self._reason
        return self._event

    @property
    def is_resolved(self) -> bool:
        """Whether an event, a cancel or the timeout has come."""
        return self._claim.locked()

    def resolve(self, event: Event) -> bool:
        """Take ``event``; false when resolved before."""
        if not self._claim.acquire(blocking=False):
            return False
        self._event = event
        self._wake.release()
        return True

    def cancel(self, reason: BaseException | None = None) -> None:
        """End the wait, with ``reason`` as its error if given; no effect once resolved."""
        if self._claim.acquire(blocking=False):
            self._reason = reason
            self._wake.release()

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        # `resolve`, written out: a call less between the emitter and the one who waits for it.
        if self._claim.acquire(blocking=False):
            self._event = args, kwargs
            self._wake.release()

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        self.resolve(events[start])
        return len(events)

    def close(self) -> None:
        self.cancel()


class Trail:
    """Keeps the events of one name between waits, so that a repeated wait misses none and sees each once.

    Args:
        event: Exact name.
        max_events: How many to keep; beyond that the oldest is dropped.
        max_bytes: How much to keep by the size of frames, one event of any size aside.
        on_drop: Called with the number of events just dropped, on the thread that brought the newest.
    """

    def __init__(
        self,
        event: str,
        *,
        max_events: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        on_drop: Callable[[int], None] | None = None,
    ) -> None:
        self.event = event
        self.ready = True
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._kept: deque[tuple[Event, int]] = deque()  # each with its share of the bytes of its frame
        self._bytes = 0
        self._waiters: deque[Waiter] = deque()
        self._ended = False
        self._reason: BaseException | None = None
        self._lock = threading.Lock()

    def join(self, waiter: Waiter) -> None:
        """Give ``waiter`` the oldest event, now or when one comes."""
        with self._lock:
            if self._kept:
                if waiter.resolve(self._kept[0][0]):
                    self._drop_first()
            elif self._ended:
                waiter.cancel(self._reason)
            else:
                self._waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Forget ``waiter``."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def forget_through(self, event: Event) -> None:
        """Drop ``event``, the very same one, and what came before it; nothing when it is not here."""
        with self._lock:
            for index, (kept, _) in enumerate(self._kept):
                if kept[1] is event[1]:
                    for _ in range(index + 1):
                        self._drop_first()
                    return

    def wait(self, deadline: float = math.inf) -> Event | None:
        """The oldest event, or the next one; as :meth:`Waiter.wait`."""
        waiter = Waiter(self.event)
        self.join(waiter)
        try:
            return waiter.wait(deadline)
        finally:
            self.leave(waiter)

    def cancel(self, reason: BaseException | None = None) -> None:
        """End every wait that finds nothing kept, from now on, each as :meth:`Waiter.cancel`."""
        with self._lock:
            self._ended, self._reason = True, reason
            waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.cancel(reason)

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        self.offer([(args, kwargs)], 0, 0)

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        share = nbytes // len(events)
        with self._lock:
            for index in range(start, len(events)):
                if not self._hand_over(events[index]):
                    self._kept.append((events[index], share))
                    self._bytes += share
            dropped = self._drop_excess()
        if dropped and self._on_drop is not None:
            self._on_drop(dropped)
        return len(events)

    def _hand_over(self, event: Event) -> bool:
        while self._waiters:
            if self._waiters.popleft().resolve(event):
                return True
        return False

    def _drop_excess(self) -> int:
        before = len(self._kept)
        while len(self._kept) > self._max_events or (self._bytes > self._max_bytes and len(self._kept) > 1):
            self._drop_first()
        return before - len(self._kept)

    def _drop_first(self) -> None:
        _, share = self._kept.popleft()
        self._bytes -= share

    def close(self) -> None:
        self.cancel()


def _seconds_until(deadline: float) -> float:
    """For ``Lock.acquire``, which takes nothing below 0 and nothing above ``TIMEOUT_MAX``."""
    return min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
