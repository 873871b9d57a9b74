"""Sinks without a function: a waiter takes one event, a trail keeps the events between two waits."""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbus.types import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskbus.types import Event, Place

__all__ = ["LEAST_TRY", "Trail", "Waiter"]

LEAST_TRY: Final = 0.25
"""Seconds that a look at Redis may take however short the wait: what is there already should be seen."""


_Result = tuple["Event | None", "Place | None", BaseException | None]
_TIMEOUT: Final[_Result] = None, None, None


class Waiter:
    """Resolves at its first event, once, whoever comes first: an event, :meth:`cancel` or the timeout."""

    by_pieces = False
    __slots__ = (
        "_result",
        "_wake",
        "alarm",
        "end",
        "event",
        "has_looked",
        "is_resolved",
        "ready",
    )

    def __init__(self, event: str) -> None:
        self.event = event
        self.ready = True
        self.has_looked = False
        """Whether what was kept for it was looked at; before that nothing should :meth:`cancel` it."""
        self.end: Callable[[], BaseException | None] | None = None
        """What has ended it before it had looked."""
        self.alarm: Callable[[], None] | None = None
        """Called by the one who resolves, while the thread that waits does not look at this waiter but at a socket."""
        # Set once, and by a single call in C: who is interrupted there has either done nothing or told the result.
        self._result: dict[str, _Result] = {}
        self.is_resolved = self._result.__len__
        """Whether an event, a cancel or the timeout has come."""
        self._wake: threading.Lock | None = None  # made by who sleeps, and a wait that reads by itself does not

    @property
    def taken(self) -> Event | None:
        """The event that it was resolved with."""
        return self._result["is"][0] if self._result else None

    @property
    def place(self) -> Place | None:
        """Where the event stands in its stream; unknown for one that was emitted here."""
        return self._result["is"][1] if self._result else None

    @property
    def timed_out(self) -> bool:
        """Whether the timeout came first."""
        return bool(self._result) and self._result["is"] is _TIMEOUT

    def wait(self, deadline: float = math.inf) -> Event | None:
        """Block until resolved; ``None`` when cancelled without a reason, or at ``deadline`` (monotonic clock).

        Raises:
            BaseException: The reason given to :meth:`cancel`.
        """
        if not self._result:
            self._sleep(deadline)
        event, _, reason = self._result["is"]
        if reason is not None:
            raise reason
        return event

    def _sleep(self, deadline: float) -> None:
        wake = threading.Lock()
        wake.acquire()
        self._wake = wake  # before looking once more: who resolves does it in the other order
        if self._result:
            return
        if deadline == math.inf:
            wake.acquire()
        elif not wake.acquire(timeout=_seconds_until(deadline)):
            self._result.setdefault("is", _TIMEOUT)

    def cancel(self, reason: BaseException | None = None) -> None:
        """End the wait, with ``reason`` as its error if given; no effect once resolved."""
        self.resolve(None, None, reason)

    def resolve(self, event: Event | None, place: Place | None = None, reason: BaseException | None = None) -> bool:
        """Take ``event``, or the ``reason`` why none comes; false when resolved before."""
        result = event, place, reason
        try:
            if self._result.setdefault("is", result) is not result:
                return False
            if (wake := self._wake) is not None:
                wake.release()
            if (alarm := self.alarm) is not None:  # which may be taken off meanwhile
                alarm()
        except BaseException:  # a signal handler's, on a thread that is not the one that waits
            if self._result.get("is") is result:
                if (wake := self._wake) is not None:
                    with suppress(RuntimeError):  # woken already
                        wake.release()
                if (alarm := self.alarm) is not None:
                    alarm()
            raise
        return True

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        self.resolve((args, kwargs))

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        self.resolve(events[start], events.place(start) if isinstance(events, Page) else None)
        return len(events)

    def close(self) -> None:
        self.cancel()


class Trail:
    """Keeps the events of one name between waits, so that a repeated wait misses none and sees each once.

    When nobody comes for them it takes no more than it has room for: the run keeps the others, and it goes on there.

    Args:
        event: Exact name.
        max_events: How many to keep at the most.
        max_bytes: How much to keep by the size of frames, one event of any size aside.
        on_missed: Called with the number of events that are kept nowhere, when there was no room for them.
        on_room: Called with the event's name when there is room again, after some were not taken.
        on_full: Called with the trail, at each event of this process, while it is full and should be passed over.
    """

    def __init__(
        self,
        event: str,
        *,
        max_events: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        on_missed: Callable[[int], None] | None = None,
        on_room: Callable[[str], None] | None = None,
        on_full: Callable[[Trail], None] | None = None,
    ) -> None:
        self.event = event
        self.ready = True
        self.by_pieces = False
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._on_missed = on_missed
        self._on_room = on_room
        self._on_full = on_full
        self._refused = False  # something was not taken, or will not be
        self._dropped = 0  # events that the run does not keep, while there was no room at all
        self._kept: deque[tuple[Event, Place | None, int]] = deque()  # each with its share of the bytes of its frame
        self._bytes = 0
        self._waiters: deque[Waiter] = deque()
        self._newcomers: list[Waiter] = []
        self._left = False  # for another trail
        self._ended = False
        self._reason: BaseException | None = None
        self._lock = threading.Lock()

    def join(self, waiter: Waiter) -> bool:
        """Give ``waiter`` the oldest event, now or when one comes; false when another trail has taken over."""
        with self._lock:
            if self._left:
                return False
            if self._kept:
                event, place, _ = self._kept[0]
                if waiter.resolve(event, place):
                    self._drop_first()
            elif self._ended:
                waiter.cancel(self._reason)
            else:
                self._waiters.append(waiter)
            if not (self._refused or self._dropped):
                return True
            half_empty = len(self._kept) <= self._max_events // 2 and self._bytes <= self._max_bytes // 2
            has_room, self._refused = self._refused and half_empty, self._refused and not half_empty
            dropped, self._dropped = self._dropped, 0
        if has_room and self._on_room is not None:
            self._on_room(self.event)
        if dropped and self._on_missed is not None:
            self._on_missed(dropped)
        return True

    def join_from_now(self, waiter: Waiter) -> bool:
        """Give ``waiter`` the next event that comes, and forget what came before it; false when this lies behind."""
        with self._lock:
            if self._left or not self.ready or self.is_full:
                return False
            if self._ended:
                waiter.cancel(self._reason)
            else:
                self._newcomers.append(waiter)
        return True

    def leave(self, waiter: Waiter) -> None:
        """Forget ``waiter``."""
        with self._lock:
            for waiters in (self._waiters, self._newcomers):
                if waiter in waiters:
                    waiters.remove(waiter)

    def take_back(self, event: Event, place: Place | None) -> None:
        """Keep ``event`` for the next one who waits; the wait that took it was interrupted."""
        with self._lock:
            if not self._hand_over(event, place) and not self._left:
                self._kept.appendleft((event, place, 0))

    def forget_through(self, event: Event, place: Place | None) -> None:
        """Drop ``event``, which a wait elsewhere has returned, and what came before it.

        It is known by its place, or, when it was emitted here, by being the very same one.
        """
        with self._lock:
            through = 0
            for index, (kept, at, _) in enumerate(self._kept):
                if kept[1] is event[1] or (place is not None and at is not None and at <= place):
                    through = index + 1
            for _ in range(through):
                self._drop_first()

    def give_way(self, other: Trail) -> None:
        """Send everybody to ``other``, who waits here and who comes."""
        with self._lock:
            self._left = True
            self._kept.clear()
            waiters, self._waiters = self._waiters, deque()
            newcomers, self._newcomers = self._newcomers, []
        for waiter in waiters:
            other.join(waiter)
        for waiter in newcomers:
            other.join_from_now(waiter)

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
            waiters, self._waiters = [*self._waiters, *self._newcomers], deque()
            self._newcomers = []
        for waiter in waiters:
            waiter.cancel(reason)

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        with self._lock:
            if not self.ready and len(self._kept) >= 2 * self._max_events:  # twice, for those on their way here
                self._dropped += 1
                return
            self._take((args, kwargs), None, 0)
            is_full = self.ready and self.is_full
            self._refused |= is_full
        if is_full and self._on_full is not None:
            self._on_full(self)

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        count = taken = len(events)
        page = events if isinstance(events, Page) else None
        with self._lock:
            for index in range(start, count):
                if self._kept and self.is_full:
                    self._refused, taken = True, index
                    break
                event, place = events[index], page.place(index) if page is not None else None
                if self._waiters and not self._newcomers and self._waiters.popleft().resolve(event, place):
                    continue  # as mostly
                self._take(event, place, nbytes // count)
            if self._kept and self.is_full:
                self._refused = True  # nothing more is read for it
        return taken

    def _take(self, event: Event, place: Place | None, share: int) -> None:
        if self._newcomers:
            newcomers, self._newcomers = self._newcomers, []
            if sum(waiter.resolve(event, place) for waiter in newcomers):
                self._kept.clear()
                self._bytes = 0
                self._hand_over(event, place)
                return
        if not self._hand_over(event, place) and not self._left:
            self._kept.append((event, place, share))
            self._bytes += share

    def _hand_over(self, event: Event, place: Place | None) -> bool:
        while self._waiters:
            if self._waiters.popleft().resolve(event, place):
                return True
        return False

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another event."""
        return len(self._kept) >= self._max_events or self._bytes >= self._max_bytes

    def _drop_first(self) -> None:
        self._bytes -= self._kept.popleft()[2]

    def close(self) -> None:
        self.cancel()


def _seconds_until(deadline: float) -> float:
    """For ``Lock.acquire``, which takes nothing below 0 and nothing above ``TIMEOUT_MAX``."""
    return min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
