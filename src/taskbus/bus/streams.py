"""The subscribed streams of one reader, and who reads each of them from where."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskbus.waiting import Trail

if TYPE_CHECKING:
    from taskbus.bus.cursor import Cursor, EntryId
    from taskbus.bus.taker import Admission
    from taskbus.types import Event, Sink

__all__ = ["Laggard", "Readers", "Rest", "Stream"]

Rest = tuple[Sequence["Event"], int, int]
"""Events of one frame, the index of the first that was not taken, and the size of the frame."""


class Laggard:
    """A sink on a cursor of its own, until it has caught up; it is read for while there is room for what was read."""

    __slots__ = ("cursor", "rest", "sink")

    def __init__(self, sink: Sink, cursor: Cursor, rest: Rest | None = None) -> None:
        self.sink = sink
        self.cursor = cursor
        self.rest = rest

    @property
    def has_room(self) -> bool:
        return self.rest is None and not self.is_parked

    @property
    def is_parked(self) -> bool:
        """Whether nobody comes for what it keeps, and so nobody waits for more."""
        return isinstance(self.sink, Trail) and (self.rest is not None or self.sink.is_full)

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> None:
        taken = self.sink.offer(events, start, nbytes)
        self.rest = (events, taken, nbytes) if taken < len(events) else None

    def retry(self) -> None:
        if self.rest is not None:
            self.offer(*self.rest)


class Stream:
    """One subscribed event name."""

    __slots__ = ("event", "key", "laggards", "listened", "scope", "shared", "wrong")

    def __init__(self, event: str, key: bytes) -> None:
        self.event = event
        self.key = key
        self.scope = key.decode()
        self.shared: Cursor | None = None
        self.laggards: list[Laggard] = []
        self.wrong = False  # the key holds something else than a stream
        self.listened = time.monotonic()

    def readers(self) -> Readers:
        """Who has room for a page that is asked for now."""
        return Readers.of(self.shared, [(one, one.cursor) for one in self.laggards if one.has_room])

    def cursors(self) -> list[Cursor]:
        """Everybody's."""
        own = [laggard.cursor for laggard in self.laggards]
        return own if self.shared is None else [self.shared, *own]

    def awaited(self) -> list[Cursor]:
        """Those of sinks that somebody waits at."""
        own = [laggard.cursor for laggard in self.laggards if not laggard.is_parked]
        return own if self.shared is None else [self.shared, *own]

    def part(self, node: Admission, shared: Cursor, at: EntryId, sink: Sink, rest: Rest | None) -> None:
        """Let ``sink``, which had no room, go on by itself from the entry ``at``, and the others without it."""
        own = node.fall_behind(sink)
        if own is None:
            return
        self.laggards = [*self.laggards, Laggard(sink, shared.parted(at, node.producer, own), rest)]
        if not node.is_listened(self.event):
            self.shared = None

    def merge(self, node: Admission, readers: Readers, end: EntryId) -> None:
        """Join laggards to the shared cursor, if they took all of a page that ended with the stream, at ``end``."""
        if self.shared is not readers.shared:
            return
        took = dict(readers.laggards)
        left = []
        for laggard in self.laggards:
            behind = not laggard.has_room or took.get(laggard) is not laggard.cursor or laggard.cursor.at < end
            if behind or not node.merge(laggard.sink, laggard.cursor):
                left.append(laggard)
            elif self.shared is None:
                self.shared = laggard.cursor
        self.laggards = left

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
    cursors: Sequence[Cursor]

    @classmethod
    def of(cls, shared: Cursor | None, laggards: Sequence[tuple[Laggard, Cursor]]) -> Readers:
        own = [cursor for _, cursor in laggards]
        return cls(shared, laggards, own if shared is None else [shared, *own])

    def with_room(self) -> Readers:
        return Readers.of(self.shared, [(laggard, cursor) for laggard, cursor in self.laggards if laggard.has_room])
