"""What was emitted and is not acknowledged: counted, bounded, and waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from taskbus.bus.bell import Bell
from taskbus.condition import Condition, Flag
from taskbus.errors import BusDenied, BusError, BusUnavailable, NotAcknowledged, NotStarted

if TYPE_CHECKING:
    from taskbus.bus.batch import Batch
    from taskbus.bus.openframe import OpenFrame
    from taskbus.config import RouterConfig

__all__ = ["SOON", "STOPPED", "Backlog"]

SOON: Final = 0.002
"""Seconds in which an answer mostly comes: for so long it is waited for on the thread that wants it."""

STOPPED = "the router was stopped"


class Backlog:
    """What callers of any thread, and the thread that writes, know of each other."""

    def __init__(self, config: RouterConfig, where: str) -> None:
        self._config = config
        self._where = where
        self.numbering = self._lock = Condition()
        """Held while an event gets its number."""
        self._changed = self._lock  # acknowledged, refused, failed, stopped
        self._waiting = 0
        self._bell = Bell()
        self._closed = False
        self._idle = False  # nothing is under way, and the thread waits for the bell
        self._gathers = False  # the thread lets some come together before they leave
        self._rests = False  # the thread does not look whether what is under way is answered
        self._stopping = Flag()
        self._refusal: BusError | None = None
        self.fatal: BusError | None = None
        self._denied: BusDenied | None = None
        self._until = config.outbox_events
        """How many events may have been emitted before an emit has to ask whether there is room, and nothing wrong."""
        self._growing: OpenFrame | None = None
        """The frame of the last event, while the next of that name is just added to it: nobody has to be woken, nothing
        is wrong, and there is room, up to its ``most`` events and to less than ``until`` bytes."""
        self.emitted = self.acknowledged = 0
        self.bytes_waiting = 0

    @property
    def waiting(self) -> int:
        """Events that are not acknowledged."""
        return self.emitted - self.acknowledged

    def sync(self, timeout: float) -> None:
        """Return when all that was appended before is acknowledged.

        Raises what stands in the way, at the latest in ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        target = self.emitted
        self.take_note(min(timeout, SOON))
        with self._changed:
            while self.acknowledged < target:
                self._raise_what_stays()
                missing = target - self.acknowledged
                self._wait(deadline, f"{missing} events are not acknowledged by Redis at {self._where}")
            self._raise_what_stays()

    def take_note(self, timeout: float) -> None:
        """Hear of what is under way, if that is within ``timeout`` seconds; else the thread is to hear of it."""
        if self._rests and self.waiting:
            self._expect_answer(timeout)
            with self._lock:
                if self._rests and self.waiting:
                    self._idle = self._hear()

    def close(self) -> None:
        """Take nothing more: what is counted as left afterwards is all that is."""
        with self._changed:
            self._closed = True
            self._look_again()
            self._changed.notify_all()

    def flush(self, deadline: float) -> None:
        """Return when nothing waits any more, or it cannot be written, or at ``deadline`` (monotonic)."""
        self.take_note(min(deadline - time.monotonic(), SOON))
        with self._changed:
            while self.waiting and self.fatal is None and time.monotonic() < deadline:
                self._wait_for_change(deadline - time.monotonic())

    def fail(self, error: BusError | None) -> None:
        """Let every caller that waits or comes later see ``error``; ``None`` only wakes them and the thread."""
        with self._changed:
            if error is not None and self.fatal is None:
                self.fatal = error
                self._look_again()
            self._changed.notify_all()
            if self._idle:
                self._idle = False
                self._bell.ring()

    def deny(self, error: BusDenied) -> None:
        """Raise ``error`` at the next emit or sync."""
        with self._lock:
            self._denied = error
            self._look_again()

    def _look_again(self) -> None:
        """Whether there is room, and nothing wrong, is another question now. The lock is held."""
        wrong = self._closed or (self._refusal or self.fatal or self._denied) is not None
        self._until = 0 if wrong else self.acknowledged + self._config.outbox_events
        self._growing = None

    def _wait(self, deadline: float, what: str) -> None:
        if self._stopping.is_set:
            raise BusUnavailable(f"{STOPPED}: {what}")
        if not self._wait_for_change(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
            if isinstance(self._refusal, NotAcknowledged):
                raise self._refusal.anew()
            reason = f" ({self._refusal})" if self._refusal and str(self._refusal) not in what else ""
            raise BusUnavailable(what + reason, where=self._where, waiting=self.waiting)

    def _wait_for_change(self, timeout: float) -> bool:
        self._waiting += 1
        try:
            if self._gathers or self._rests:
                self._rests = False
                self._bell.ring()
            return self._changed.wait(timeout)
        finally:
            self._waiting -= 1

    def check_place(self) -> None:
        """Raise ``Fenced`` when another process has this node's place on the run."""
        if self.fatal is not None:
            raise self.fatal.anew()

    def _raise_what_stays(self) -> None:
        """Raise what no waiting heals: for ever (fenced), until somebody repairs it, or once for an event refused."""
        self.check_place()
        denied = self._refusal if isinstance(self._refusal, BusDenied) else self._denied
        self._denied = None
        self._look_again()
        if denied is not None:
            raise denied.anew()

    def _is_full(self, size: int) -> bool:
        waiting = self.emitted - self.acknowledged
        return waiting >= self._config.outbox_events or (
            waiting > 0 and self.bytes_waiting + size > self._config.outbox_bytes
        )

    def _make_room(self, size: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if self._closed:
                raise NotStarted(STOPPED)
            self._raise_what_stays()
            if self._refusal is not None and self._refusal.__dict__.get("full"):
                raise BusUnavailable(str(self._refusal), where=self._where, full=True)
            if not self._is_full(size):
                return
            cause = f": {self._refusal}" if self._refusal else ""
            self._wait(deadline, f"the outbox is full ({self.waiting} events, {self.bytes_waiting} bytes){cause}")

    def _expect_answer(self, timeout: float) -> None:
        """Wait until there is something to hear, for up to ``timeout`` seconds, without the lock."""

    def _hear(self) -> bool:
        """Whether what is under way is answered; if not, the thread looks after it from now on."""
        return False

    # For the thread --------------------------------------------------------------------------------------------------

    def _settle(self, batch: Batch) -> bool:
        """The batch is acknowledged; true when Redis had refused before. The lock is held."""
        if len(batch.frames) == 1:
            count, size = batch.frames[0].count, batch.frames[0].size
        else:
            count, size = sum([item.count for item in batch.frames]), sum([item.size for item in batch.frames])
        # Once, however often the answer comes; nothing is called in between.
        self.acknowledged += count
        self.bytes_waiting -= size
        batch.frames = ()
        refused, self._refusal = self._refusal is not None, None
        if self._until:
            self._until += count  # nothing was wrong before, so nothing is
            self._growing = None
        else:
            self._look_again()
        if self._waiting:
            self._changed.notify_all()
        return refused

    def _refuse(self, error: BusError) -> bool:
        """The batch was not taken; true when the last attempt did not end the same way."""
        with self._changed:
            news = type(self._refusal) is not type(error)
            self._refusal = error
            self._look_again()
            self._changed.notify_all()
        return news
