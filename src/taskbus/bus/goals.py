"""What may happen only after the events that came before it have been handed over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskbus.bus.cursor import parse_id

if TYPE_CHECKING:
    from taskbus.bus.cursor import EntryId
    from taskbus.bus.keys import Keys
    from taskbus.bus.streams import Stream
    from taskbus.bus.wire import Wire

__all__ = ["Goals"]

_PATIENCE = 1.5
"""Seconds without a step towards it after which a call is made all the same: a finish has to be heard of within two."""


class _Goal:
    __slots__ = ("callback", "deadline", "left", "tails")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.deadline = time.monotonic() + _PATIENCE
        self.tails: list[tuple[Stream, EntryId]] | None = None
        self.left: list[EntryId] = []

    def is_over(self, now: float) -> bool:
        """Whether it is reached, or nothing comes any more."""
        if self.tails is None:
            return now >= self.deadline
        before = self.left
        self.left = [
            cursor.at
            for stream, tail in self.tails
            if not stream.wrong
            for cursor in stream.readers().cursors
            if cursor.at < tail
        ]
        if self.left != before:
            self.deadline = now + _PATIENCE
        return not self.left or now >= self.deadline


class Goals:
    """Calls that wait until the reader has passed the ends that its streams had when they were asked for.

    A stream whose listeners have no room holds nobody up.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self.open: list[_Goal] = []
        """Those that have not been reached."""
        self.on_added: Callable[[], None] = lambda: None

    @property
    def due(self) -> float:
        """When (monotonic) to check them at the latest, whatever the one who reads is at."""
        goals = self.open
        return min([goal.deadline for goal in goals]) if goals else math.inf

    def add(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self.open.append(_Goal(callback))
        self.on_added()

    def look(self, wire: Wire, streams: list[Stream]) -> None:
        """Note where the streams end, for the goals that do not know yet."""
        if not any(goal.tails is None for goal in self.open):
            return
        known = [stream for stream in streams if not stream.wrong]
        tails: list[tuple[Stream, EntryId]] = []
        if known:
            keys = (self._keys.streams, *(stream.key for stream in known))
            answer = wire.script("tail", keys, [stream.event for stream in known])
            tails = [(stream, parse_id(answer[2 * at])) for at, stream in enumerate(known)]
        with self._lock:
            for goal in self.open:
                if goal.tails is None:
                    goal.tails = tails

    def check(self) -> None:
        """Make the calls whose goal is reached, or will not be; from any thread."""
        if not self.open:
            return
        now = time.monotonic()
        with self._lock:
            due = [goal for goal in self.open if goal.is_over(now)]
            self.open = [goal for goal in self.open if goal not in due]
        for goal in due:
            goal.callback()
