"""The subscribed streams of one reader, and who reads each of them from where."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taskbus.bus.cursor import Cursor, EntryId
    from taskbus.types import Event, Sink

__all__ = ["Laggard", "Readers", "Stream"]


class Laggard:
    """A sink that still catches up, with what it had no room for."""

    __slots__ = ("cursor", "rest", "sink")

    def __init__(self, sink: Sink, cursor: Cursor) -> None:
        self.sink = sink
        self.cursor = cursor
        self.rest: list[tuple[Sequence[Event], int, int]] = []

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> None:
        if not self.rest:
            start = self.sink.offer(events, start, nbytes)
        if start < len(events):
            self.rest.append((events, start, nbytes))

    def retry(self) -> None:
        rest, self.rest = self.rest, []
        for events, start, nbytes in rest:
            self.offer(events, start, nbytes)


class Stream:
    """One subscribed event name."""

    __slots__ = ("event", "key", "laggards", "listened", "paused", "scope", "shared", "wrong")

    def __init__(self, event: str, key: bytes) -> None:
        self.event = event
        self.key = key
        self.scope = key.decode()
        self.shared: Cursor | None = None
        self.laggards: list[Laggard] = []
        self.paused = False
        self.wrong = False  # the key holds something else than a stream
        self.listened = time.monotonic()

    def readers(self) -> Readers:
        """Who has room for a page that is asked for now."""
        shared = None if self.paused else self.shared
        return Readers(shared, [(laggard, laggard.cursor) for laggard in self.laggards if not laggard.rest])

    def cursors(self) -> list[Cursor]:
        """Everybody's."""
        own = [laggard.cursor for laggard in self.laggards]
        return own if self.shared is None else [self.shared, *own]

    def rewind(self, last: EntryId | None = None) -> None:
        """Have everybody read again; ``last`` is where the stream ends if it is still the same."""
        if self.shared is not None:
            self.shared = self.shared.rewound(last)
        for laggard in self.laggards:
            laggard.cursor = laggard.cursor.rewound(last)


class Readers(NamedTuple):
    """Those for whom a page was asked for; a cursor that came later may have a gap before the page."""

    shared: Cursor | None
    laggards: Sequence[tuple[Laggard, Cursor]]

    def cursors(self) -> list[Cursor]:
        own = [cursor for _, cursor in self.laggards]
        return own if self.shared is None else [self.shared, *own]
