"""The events of a run in their order, across streams, for somebody who is no node."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from taskbus import frame
from taskbus.bus.cursor import Cursor, EntryId, format_id, parse_id
from taskbus.bus.packing import pack
from taskbus.bus.wire import Wire
from taskbus.errors import DecodeError

if TYPE_CHECKING:
    from taskbus.bus.guest import Guest
    from taskbus.types import Event

__all__ = ["Follower", "Sighting"]

_COUNT = 64
_LOOK_EVERY = 1.0
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One event of a stream, with what is known of it.

    ``entry`` is the id that ``since`` takes to go on behind it; ``number`` counts the events of that name from 1;
    ``at`` is Redis' time (Unix, seconds). ``problem`` says why the arguments could not be read; they are empty then.
    """

    event: str
    entry: str
    number: int
    at: float
    producer: str
    only_to: tuple[str, ...] = ()
    size: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    problem: str = ""


class _Stream:
    """One stream that is followed: where in it, and what was read and waits for its turn."""

    __slots__ = ("cursor", "event", "key", "more", "page")

    def __init__(self, event: str, key: bytes, cursor: Cursor) -> None:
        self.event = event
        self.key = key
        self.cursor = cursor
        self.page: deque[tuple[EntryId, Any]] = deque()
        self.more = True  # Redis may hold further entries behind the page


_PLACES = {"taskbus.node_joined": -1, "taskbus.node_failed": 1, "taskbus.node_left": 2}
"""Among events of one millisecond: a node joins before it does anything, and leaves in the end."""


class Follower:
    """Reads the streams of one run whose names match, from one point on.

    Events come in the order of their entries' ids, which is that of Redis' clock; events of different names that were
    appended within one millisecond may come in any order, but nodes join first and leave last. A name that turns up
    later is followed from its first event.

    Args:
        patterns: Globs of event names; an exact name is followed before it exists.
        since: ``"now"``, ``"start"`` or the id of an entry.
        largest: Events beyond so many bytes are not fetched; they are reported with a problem.
    """

    def __init__(self, guest: Guest, patterns: Sequence[str] = ("*",), since: str = "now", largest: int = 0) -> None:
        self._guest = guest
        self._patterns = tuple(patterns)
        self._largest = largest or guest.config.max_payload
        self._wire = Wire(guest.target, guest.config.block + 1.2)
        self._streams: dict[str, _Stream] = {}
        self._since = since
        self._looked = 0.0
        self._never = threading.Event()
        self.missed = 0
        """Events that were trimmed before they were read."""
        if since != "now":
            Cursor.since(since)  # refuse nonsense now
        self._look(first=True)

    def read(self, timeout: float) -> list[Sighting]:
        """What came next, in order: at once where something is there, else within ``timeout`` seconds; may be empty.

        Raises ``BusUnavailable`` when Redis is away; reading can go on later, and misses nothing.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self._wire.is_open:
                self._wire.open()
            if time.monotonic() - self._looked >= _LOOK_EVERY:
                self._look()
            behind = any(stream.more and not stream.page for stream in self._streams.values())
            self._fill(0.0 if behind else min(deadline - time.monotonic(), _LOOK_EVERY))
            found = self._merge()
            if found or (time.monotonic() >= deadline and not self._is_behind()):
                return found

    def matches(self, event: str) -> bool:
        """Whether events of that name are followed."""
        return any(fnmatchcase(event, pattern) for pattern in self._patterns)

    def close(self) -> None:
        self._wire.close()

    def _is_behind(self) -> bool:
        return any(stream.more or stream.page for stream in self._streams.values())

    # Which streams ---------------------------------------------------------------------------------------------------

    def _look(self, first: bool = False) -> None:
        """Take up names that are new, and begin anew in streams that Redis has lost."""
        self._looked = time.monotonic()
        known = self._guest.streams()
        for name, stream in self._streams.items():
            events = known[name].events if name in known else 0
            if stream.cursor.expected is not None and events < stream.cursor.expected - 1:
                stream.cursor = stream.cursor.rewound()
                stream.more = True
        exact = [pattern for pattern in self._patterns if not _GLOB & set(pattern)]
        wanted = [name for name in known if self.matches(name)]
        new = [name for name in dict.fromkeys((*wanted, *exact)) if name not in self._streams]
        begins = self._begin(new) if first else {name: Cursor((0, 0), 1) for name in new}
        for name in new:
            self._streams[name] = _Stream(name, self._guest.keys.events(name), begins[name])

    def _begin(self, names: list[str]) -> dict[str, Cursor]:
        if self._since != "now":
            return {name: Cursor.since(self._since) for name in names}
        if not names:
            return {}
        keys = (self._guest.keys.streams, *(self._guest.keys.events(name) for name in names))
        tails = self._guest.calls.script("tail", keys, names)
        return {
            name: Cursor(parse_id(tails[2 * position]), count + 1 if (count := tails[2 * position + 1]) >= 0 else None)
            for position, name in enumerate(names)
        }

    # Reading ---------------------------------------------------------------------------------------------------------

    def _fill(self, block: float) -> None:
        hungry = {stream.key: stream for stream in self._streams.values() if not stream.page}
        if not hungry:
            if not self._streams and block > 0:
                self._never.wait(block)
            return
        waits: tuple[bytes | int, ...] = (b"BLOCK", max(1, int(1000 * block))) if block > 0 else ()
        ids = [format_id(stream.cursor.at) for stream in hungry.values()]
        self._wire.send([pack(b"XREAD", b"COUNT", _COUNT, *waits, b"STREAMS", *hungry, *ids)])
        pages = dict(self._wire.check(self._wire.read()) or ())
        for key, stream in hungry.items():
            entries = pages.get(key, ())
            stream.page.extend((parse_id(entry_id), fields) for entry_id, fields in entries)
            stream.more = len(entries) == _COUNT

    def _merge(self) -> list[Sighting]:
        """What can be told in order: as long as no stream with more to come has an empty page."""
        found: list[Sighting] = []
        streams = list(self._streams.values())
        while True:
            full = [stream for stream in streams if stream.page]
            if not full or any(stream.more and not stream.page for stream in streams):
                return found
            stream = min(full, key=lambda one: (one.page[0][0][0], _PLACES.get(one.event, 0), one.event))
            at, fields = stream.page[0]
            sightings = self._see(stream, at, fields)  # may fail to fetch a payload: then the entry stays where it is
            stream.page.popleft()
            stream.cursor.at = at
            found += sightings

    def _see(self, stream: _Stream, at: EntryId, fields: list[bytes]) -> list[Sighting]:
        config, scope = self._guest.config, stream.key.decode()
        entry = format_id(at).decode()
        try:
            if len(fields) != 2 or fields[0] != b"f":
                raise DecodeError("not a frame of taskbus", reason="foreign")
            head = frame.unpack(fields[1], max_size=config.max_frame, secret=config.secret, scope=scope)
        except DecodeError as error:
            return [Sighting(stream.event, entry, at[1], at[0] / 1000, "", problem=str(error))]
        events: Sequence[Event | None] = [None] * head.count
        problems: dict[int, DecodeError] = {}
        try:
            events = self._events(head, problems)
        except DecodeError as error:
            problems = dict.fromkeys(range(head.count), error)
        self.missed += max(0, stream.cursor.pass_over(at[1], head.count))
        seen = stream.cursor.first_new(head.producer, head.first, head.count)
        first = max(seen, stream.cursor.first_wanted(at, head.count))
        size = (head.blob_size or len(fields[1])) // head.count
        return [
            Sighting(
                event=stream.event,
                entry=format_id((at[0], at[1] + index)).decode(),
                number=at[1] + index,
                at=at[0] / 1000,
                producer=head.producer,
                only_to=head.only_to,
                size=size,
                args=event[0] if event else (),
                kwargs=event[1] if event else {},
                problem=str(problems.get(index, "")),
            )
            for index, event in enumerate(events)
            if index >= first
        ]

    def _events(self, head: frame.Frame, problems: dict[int, DecodeError]) -> list[Event]:
        config = self._guest.config
        blob = None
        if head.blob is not None:
            if head.blob_size > self._largest:
                raise DecodeError(f"a payload of {head.blob_size} bytes, not fetched", reason="oversized")
            blob = self._guest.calls.call(b"GET", self._guest.keys.blob(head.blob))
            if blob is None:
                raise DecodeError(f"a payload of {head.blob_size} bytes that is gone", reason="blob gone")
        allow_pickle = config.codec == "pickle"
        return frame.events(head, blob, secret=config.secret, allow_pickle=allow_pickle, refused=problems)
