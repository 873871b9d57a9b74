"""What a reader reads: the subscribed streams, who stands where in each of them, and the command that asks for more.

Every subscribed stream has a shared cursor, whose events go to all ready sinks of that name. A sink that wants the past
or has no room stands on a cursor of its own until it has caught up with the shared one. While such a laggard has room
the stream is read from the lowest cursor, and every cursor takes what lies above it; every other time it is read for
the shared cursor alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from taskbus.bus.cursor import Cursor, EntryId, format_id, parse_id
from taskbus.bus.diagnose import wrong_keys
from taskbus.bus.packing import bulk, pack
from taskbus.bus.streams import Laggard, Readers, Stream
from taskbus.bus.taker import LargePayload, Taker
from taskbus.errors import BusDenied

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.keys import Keys
    from taskbus.bus.registry import Forgotten
    from taskbus.bus.streams import Rest
    from taskbus.bus.taker import Admission
    from taskbus.bus.wire import Wire
    from taskbus.config import RouterConfig
    from taskbus.types import Sink

__all__ = ["COUNT", "Plan", "Subscriptions", "Wanted"]

COUNT = 64
"""Entries of one stream that are read at once."""

_LINGER = 30.0
_NO_STREAM = -2

Wanted = dict[bytes, tuple[Stream, Readers]]


class Plan(NamedTuple):
    """A read as it is asked for again and again: all of the command but the ids of events, and where to find them."""

    head: bytes
    cursors: tuple[Cursor, ...]
    tail: bytes
    wanted: Wanted
    has_laggards: bool


class Subscriptions:
    """The callers' side of the reader: takes subscriptions from any thread, and has them read."""

    def __init__(
        self, config: RouterConfig, keys: Keys, calls: Calls, blobs: Calls, node: Admission, where: str
    ) -> None:
        self._config = config
        self._keys = keys
        self._calls = calls
        self._blobs = blobs
        self._sources: list[Calls | Wire] = [blobs]
        self._node = node
        self._where = where
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._plan: Plan | None = None  # None: to be made anew
        self._blocked = False  # a read waits for news
        self._rewinds = 0
        self._full: set[Sink] = set()
        self._inbox_cursor = Cursor((0, 0))
        self._any_wrong = self._inbox_wrong = False
        self._without_laggards = False  # this time, so that nobody waits longer for the sake of one who is behind
        self._next_prune = 0.0
        self.sign_of_life = time.monotonic()
        self.inbox = b""
        self.taker = Taker(config, keys, blobs, node)
        self.taker.part = self._part
        self.on_denied: Callable[[BusDenied], None] = lambda error: None
        self.lag = 0

    @property
    def heard(self) -> float:
        """When Redis was last heard of here (monotonic), be it with a part of an answer."""
        return max(self.sign_of_life, *[source.heard for source in self._sources])

    def wake(self, timeout: float = 1.0) -> None:
        """Have the streams read as they are subscribed now."""
        raise NotImplementedError

    def is_subscribed(self, event: str) -> bool:
        """Whether the shared cursor of ``event`` is there, and stays: a subscription from now on costs nothing then."""
        with self._lock:
            stream = self._streams.get(event)
            if stream is None or stream.shared is None:
                return False
            stream.listened = time.monotonic()
            return True

    def follow(self, event: str, timeout: float) -> None:
        """Read ``event`` from where its stream ends now."""
        key = self._keys.events(event)
        last, count = self._calls.script("tail", (self._keys.streams, key), (event,), timeout=timeout)
        if count == _NO_STREAM:
            raise BusDenied(f"key {key.decode()} holds something else than a stream in Redis at {self._where}")
        with self._lock:
            stream = self._streams.setdefault(event, Stream(event, key))
            stream.listened = time.monotonic()
            if stream.shared is None:
                stream.shared = Cursor(parse_id(last), count + 1 if count >= 0 else None)
        self.wake(timeout)

    def catch_up(self, sink: Sink, cursor: Cursor, timeout: float) -> None:
        """Let ``sink`` take all after ``cursor``; on return it has had the first page, less what comes too slowly."""
        deadline = time.monotonic() + timeout
        laggard = Laggard(sink, cursor)
        alone = Stream(sink.event, self._keys.events(sink.event))
        alone.laggards.append(laggard)
        begin = b"(" + format_id(cursor.at)
        page = self._calls.call(b"XRANGE", alone.key, begin, b"+", b"COUNT", COUNT, timeout=timeout)
        with suppress(LargePayload):  # the reader's thread goes on there
            self.taker.take(alone, alone.readers(), page, deadline)
        with self._lock:
            stream = self._streams.setdefault(sink.event, alone)
            if stream is not alone:
                stream.laggards.append(laggard)
        self.wake(timeout)

    def forget(self, sink: Sink) -> None:
        """Read no more for a sink that still catches up."""
        with self._lock:
            stream = self._streams.get(sink.event)
            if stream is not None:
                stream.laggards = [laggard for laggard in stream.laggards if laggard.sink is not sink]
                stream.listened = time.monotonic()
                self._plan = None

    def fall_behind(self, sink: Sink) -> None:
        """Have ``sink`` go on by itself before the next read, from where its stream has been read."""
        with self._lock:
            self._full.add(sink)

    def _part(self, stream: Stream, shared: Cursor, at: EntryId, sink: Sink, rest: Rest | None) -> None:
        with self._lock:
            self._plan = None
            stream.part(self._node, shared, at, sink, rest)

    def rewind(self) -> None:
        """Read everything again from the start, for the streams are not those that were read."""
        with self._lock:
            for stream in self._streams.values():
                stream.rewind()
                self.taker.forget_gaps(stream.event)
            self._inbox_cursor.at = (0, 0)
            self._rewinds += 1
            self._plan = None

    def note_loss(self, forgotten: Forgotten) -> None:
        """Redis has another epoch; read again, and report, what it has lost with the one that it had."""
        why = "the run's epoch is another one"
        if forgotten == "epoch":
            self.taker.gone_back.append(why)  # the reader's thread compares, and reports it
        else:
            self.rewind()
            self._node.on_state_loss(f"{why}: Redis came back without the run")

    def look(self) -> None:
        """Refresh ``lag``: how many events are kept for this node's subscriptions that it has not read."""
        with self._lock:
            known = [
                (stream, min(expected))
                for stream in self._streams.values()
                if (expected := [cursor.expected for cursor in stream.awaited() if cursor.expected])
            ]
        if not known:
            self.lag = 0
            return
        keys = [stream.key for stream, _ in known]
        tails = self._calls.script("tail", (self._keys.streams, *keys), [stream.event for stream, _ in known])
        self.lag = sum(max(0, tails[2 * i + 1] - expected + 1) for i, (_, expected) in enumerate(known))

    @property
    def is_behind(self) -> bool:
        """Whether some sink is full, so that there is more to read than is read."""
        for stream in list(self._streams.values()):
            for laggard in stream.laggards:
                if not laggard.has_room and not laggard.is_parked:
                    return True
        return False

    def has_read(self, counts: Mapping[str, int]) -> bool:
        """Whether it waits for news, and has handed over all events up to these numbers of each name; for tests."""
        with self._lock:
            return self._blocked and all(
                all(laggard.is_parked for laggard in stream.laggards)
                and (stream.shared is None or stream.shared.has_passed(counts.get(stream.event, 0)))
                for stream in self._streams.values()
            )

    # For the one who reads -------------------------------------------------------------------------------------------

    def _part_full(self) -> None:
        full, self._full = self._full, set()
        for sink in full:
            stream = self._streams.get(sink.event)
            if stream is not None and stream.shared is not None and sink.ready:
                self._plan = None
                stream.part(self._node, stream.shared, stream.shared.at, sink, None)

    def _make_plan(self) -> Plan:
        wanted: Wanted = {}
        keys: list[bytes] = []
        cursors: list[Cursor] = []
        has_laggards = hurry = False
        self._without_laggards = not self._without_laggards
        for stream in self._streams.values():
            for laggard in stream.laggards:
                laggard.retry()
                has_laggards = True
            readers = stream.readers()
            if self._without_laggards and readers.laggards and readers.shared is not None:
                readers, hurry = Readers.of(readers.shared, ()), True
            own = readers.cursors
            if own and not stream.wrong:
                wanted[stream.key] = stream, readers
                keys.append(stream.key)
                cursors.append(own[0] if len(own) == 1 else min(own, key=lambda cursor: cursor.at))
        if not has_laggards:
            self._without_laggards = True  # so that the next one, with mostly nothing to catch up with, joins at once
        tail = b""
        if not self._inbox_wrong:
            keys.append(self.inbox)
            tail = bulk(format_id(self._inbox_cursor.at))  # which seldom moves, and then this is made anew
        block = () if hurry else (b"BLOCK", int(self._config.block * 1000))
        whole = pack(b"XREAD", b"COUNT", COUNT, *block, b"STREAMS", *keys, *[b"" for _ in keys])
        head = whole[: len(whole) - len(keys) * len(b"$0\r\n\r\n")]
        return Plan(head, tuple(cursors), tail, wanted, has_laggards)

    def _prune(self) -> None:
        now = time.monotonic()
        self._next_prune = now + _LINGER / 3
        for event, stream in list(self._streams.items()):
            if stream.laggards or self._node.is_listened(event):
                stream.listened = now
            elif now - stream.listened > _LINGER:
                del self._streams[event]
                self._plan = None

    def _look_for_wrong(self, wire: Wire, places: Iterable[bytes] = ()) -> None:
        """Leave out the keys that hold no stream, and take in again those that were left out and hold one now."""
        out = {stream.key for stream in list(self._streams.values()) if stream.wrong}
        suspects = {*places, *out, *([self.inbox] if self._inbox_wrong else ())}
        if not suspects:
            return
        wrong = wrong_keys(wire, dict.fromkeys(suspects, b"stream"))
        self._plan = None
        self._any_wrong = bool(wrong)
        self._inbox_wrong = self.inbox in wrong
        for stream in list(self._streams.values()):
            if stream.key in suspects:
                stream.wrong = stream.key in wrong
        for key, kind in wrong.items():
            if key not in out:
                error = BusDenied(
                    f"key {key.decode()} holds a {kind.decode()} instead of a stream in Redis at {self._where}; "
                    "it is left out until that is gone",
                    where=self._where,
                    key=key.decode(),
                )
                self.taker.warn(key.decode(), "%s", error, every=10.0)
                self.on_denied(error)

    def _compare_tails(self, known: Sequence[str] = ()) -> None:
        """A stream that ends before its cursor, or has counted less, has lost its end: it is read again."""
        with self._lock:
            streams = list(self._streams.values())
            cursors = [stream.cursors() for stream in streams]
        # Where they stood before Redis is asked, for whoever reads goes on.
        stood = [(max([(one.expected or 1) - 1 for one in own], default=0), [one.at for one in own]) for own in cursors]
        keys = [stream.key for stream in streams]
        tails = self._calls.script("tail", (self._keys.streams, *keys), [stream.event for stream in streams])
        lost = list(known)
        for position, stream in enumerate(streams):
            last, count = parse_id(tails[2 * position]), tails[2 * position + 1]
            read, places = stood[position]
            with self._lock:
                if 0 <= count < read or any((0, 0) != last < at for at in places):
                    lost.append(f"event {stream.event!r} ends at {count}, this node had read up to {read}")
                    stream.rewind(last)
                    self.taker.forget_gaps(stream.event)
                    self._plan = None
        if lost:
            self._node.on_state_loss("; ".join(lost))
