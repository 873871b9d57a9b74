"""The thread that reads: one blocking read over all subscribed streams, from concrete cursors of this node's own.

Every subscribed stream has a shared cursor, whose events go to all ready sinks of that name. A sink that wants the past
or has no room stands on a cursor of its own until it has caught up with the shared one. While such a laggard has room
the stream is read from the lowest cursor, and every cursor takes what lies above it; every other time it is read for
the shared cursor alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskbus.bus.cursor import Cursor, EntryId, format_id, parse_id
from taskbus.bus.diagnose import wrong_keys
from taskbus.bus.goals import Goals
from taskbus.bus.streams import Laggard, Readers, Stream
from taskbus.bus.taker import Taker
from taskbus.bus.wire import Backoff, Calls, Wire, pack
from taskbus.errors import BusDenied, BusError, Fenced

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.bus.streams import Rest
    from taskbus.bus.taker import Admission
    from taskbus.config import RouterConfig
    from taskbus.types import Sink

__all__ = ["Reader"]

log = logging.getLogger("taskbus")

_COUNT = 64
_LINGER = 30.0
_NO_STREAM = -2
_PAUSE_WHEN_DENIED = 5.0


class Reader:
    """Reads for one node; the only thread that blocks on streams."""

    def __init__(self, config: RouterConfig, target: Target, keys: Keys, calls: Calls, node: Admission) -> None:
        self._config = config
        self._keys = keys
        self._calls = calls
        self._node = node
        self._where = target.where
        self._wire = Wire(target, config.block + 1.2)
        self._stopping = threading.Event()
        self._blobs = Calls(target, timeout=config.op_timeout, deadline=config.op_timeout, stopping=self._stopping)
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._blocked = False
        self._rewinds = 0
        self._inbox_wrong = False
        self._any_wrong = False
        self._full: set[Sink] = set()
        self._without_laggards = False  # this time, so that nobody waits longer for the sake of one who is behind
        self._next_prune = 0.0
        self._thread = threading.Thread(target=self._run, name="taskbus-reader", daemon=True)
        self.inbox = b""
        self.inbox_at: EntryId = (0, 0)
        self._goals = Goals(keys)
        self.taker = Taker(config, keys, self._blobs, node)
        self.taker.part = self._part
        self.reconnects = self.lag = 0
        self.sign_of_life = time.monotonic()
        self.on_denied: Callable[[BusDenied], None] = lambda error: None

    def start(self) -> None:
        """Begin to read; ``inbox`` and ``inbox_at`` must be known."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """End the thread; it is waited for until ``deadline`` (monotonic)."""
        self._stopping.set()
        self._wire.abort()
        if self._wire.target.in_process:
            self.wake()  # there is no socket to cut
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(max(0.05, deadline - time.monotonic()))
        self._blobs.close()

    # Subscriptions ---------------------------------------------------------------------------------------------------

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
        """Let ``sink`` take all after ``cursor``; on return it has had the first page."""
        laggard = Laggard(sink, cursor)
        alone = Stream(sink.event, self._keys.events(sink.event))
        alone.laggards.append(laggard)
        begin = b"(" + format_id(cursor.at)
        page = self._calls.call(b"XRANGE", alone.key, begin, b"+", b"COUNT", _COUNT, timeout=timeout)
        self.taker.take(alone, alone.readers(), page)
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

    def fall_behind(self, sink: Sink) -> None:
        """Have ``sink`` go on by itself before the next read, from where its stream has been read."""
        with self._lock:
            self._full.add(sink)

    def _part(self, stream: Stream, shared: Cursor, at: EntryId, sink: Sink, rest: Rest | None) -> None:
        with self._lock:
            stream.part(self._node, shared, at, sink, rest)

    def _part_full(self) -> None:
        with self._lock:
            full, self._full = self._full, set()
            for sink in full:
                stream = self._streams.get(sink.event)
                if stream is not None and stream.shared is not None and sink.ready:
                    stream.part(self._node, stream.shared, stream.shared.at, sink, None)

    def rewind(self) -> None:
        """Read everything again from the start, for the streams are not those that were read."""
        with self._lock:
            for stream in self._streams.values():
                stream.rewind()
            self.inbox_at = (0, 0)
            self._rewinds += 1

    def wake(self, timeout: float = 1.0) -> None:
        """Have the blocked read begin anew with the subscriptions as they are now."""
        with self._lock:
            blocked, self._blocked = self._blocked, False
        if not blocked or threading.current_thread() is self._thread:
            return
        try:
            woken = self._calls.script("wake", (self.inbox,), (), timeout=min(1.0, timeout))
        except BusError:
            woken = 0
        if not woken:
            self._wire.abort()  # Redis is away, or has no inbox: a new connection does it as well

    def call_when_read(self, callback: Callable[[], None]) -> None:
        """Call back, on some thread of the bus, when all is handed over that the subscribed streams hold now."""
        self._goals.add(callback)
        self.wake()

    def check_goals(self) -> None:
        """Make the calls that have waited for long enough."""
        self._goals.check()

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
        laggards = [laggard for stream in list(self._streams.values()) for laggard in stream.laggards]
        return any(not laggard.has_room and not laggard.is_parked for laggard in laggards)

    def has_read(self, counts: Mapping[str, int]) -> bool:
        """Whether it waits for news, and has handed over all events up to these numbers of each name; for tests."""
        with self._lock:
            return self._blocked and all(
                all(laggard.is_parked for laggard in stream.laggards)
                and (stream.shared is None or stream.shared.has_passed(counts.get(stream.event, 0)))
                for stream in self._streams.values()
            )

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff()
        first = True
        while not self._stopping.is_set():
            pause = backoff.next()
            try:
                if not self._wire.is_open:
                    self._wire.open()
                    if not first:
                        self._come_back()
                    first = False
                self._read_once()
                backoff.reset()
                continue
            except Fenced:
                break  # whoever has the place of this node reads for it now
            except BusDenied as error:
                pause = _PAUSE_WHEN_DENIED
                if not self._stopping.is_set():
                    self.on_denied(error)
                    self.taker.warn("reader", "%s; the reader tries again", error, every=10.0)
            except BusError as error:
                if not self._stopping.is_set():
                    self.taker.warn("reader", "%s; the reader tries again", error, every=10.0)
            except Exception:
                log.exception(
                    "reading from Redis at %s failed in an unforeseen way; the reader tries again", self._where
                )
            self._wire.close()
            self._part_full()
            self._stopping.wait(pause)
        self._wire.close()

    def _come_back(self) -> None:
        self.reconnects += 1
        rewinds = self._rewinds
        self._node.recover()
        if self._rewinds == rewinds:
            self._compare_tails()
        log.warning("reading from Redis at %s again", self._where)

    def _read_once(self) -> None:
        if self._any_wrong:
            self._look_for_wrong()
        self._part_full()
        self._goals.look(self._wire, list(self._streams.values()))
        self._goals.check()
        wanted: dict[bytes, tuple[Stream, Readers]] = {}
        places: dict[bytes, bytes] = {}
        self._without_laggards, hurry = not self._without_laggards, False
        with self._lock:
            if time.monotonic() >= self._next_prune:
                self._prune()
            for stream in self._streams.values():
                for laggard in stream.laggards:
                    laggard.retry()
                readers = stream.readers()
                if self._without_laggards and readers.laggards and readers.shared is not None:
                    readers, hurry = Readers(readers.shared, ()), True
                cursors = readers.cursors()
                if cursors and not stream.wrong:
                    wanted[stream.key] = stream, readers
                    first = cursors[0].at if len(cursors) == 1 else min(cursor.at for cursor in cursors)
                    places[stream.key] = format_id(first)
            if not self._inbox_wrong:
                places[self.inbox] = format_id(self.inbox_at)
            rewinds = self._rewinds
            if self._stopping.is_set():
                return  # whoever stops it may have found nothing yet to cut or to wake
            self._blocked = True
        pages = self._ask(places, hurry)
        with self._lock:
            self._blocked = False
        self.sign_of_life = time.monotonic()
        if pages is None:
            return
        for key, (stream, readers) in wanted.items():
            entries = pages.get(key, ())
            self.taker.take(stream, readers, entries)
            if readers.laggards and len(entries) < _COUNT:
                with self._lock:
                    stream.merge(self._node, readers)
        if self.taker.gone_back:
            self._explain_going_back(rewinds)
        self._goals.check()
        self._take_inbox(pages.get(self.inbox, ()))

    def _ask(self, places: dict[bytes, bytes], hurry: bool) -> dict[bytes, Any] | None:
        """What came after those places; ``None`` when one of the keys turned out to hold no stream.

        It is waited for, unless there is a ``hurry``.
        """
        if not places:
            self._stopping.wait(1.0)  # every key is wrong
            return None
        block = () if hurry else (b"BLOCK", int(self._config.block * 1000))
        self._wire.send([pack(b"XREAD", b"COUNT", _COUNT, *block, b"STREAMS", *places, *places.values())])
        reply = self._wire.read()
        if not isinstance(reply, Exception):
            return dict(reply or ())
        try:
            self._wire.check(reply, b" ".join((b"XREAD", *places)).decode())
        except BusDenied as error:
            if not error.__dict__.get("wrong"):
                raise
        self._look_for_wrong(places)
        return None

    def _look_for_wrong(self, places: Iterable[bytes] = ()) -> None:
        """Leave out the keys that hold no stream, and take in again those that were left out and hold one now."""
        out = {stream.key for stream in list(self._streams.values()) if stream.wrong}
        suspects = {*places, *out, *([self.inbox] if self._inbox_wrong else ())}
        if not suspects:
            return
        wrong = wrong_keys(self._wire, dict.fromkeys(suspects, b"stream"))
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

    def _prune(self) -> None:
        now = time.monotonic()
        self._next_prune = now + 1.0
        for event, stream in list(self._streams.items()):
            if stream.laggards or self._node.is_listened(event):
                stream.listened = now
            elif now - stream.listened > _LINGER:
                del self._streams[event]

    def _take_inbox(self, entries: Sequence[Any]) -> None:
        for entry_id, fields in entries:
            self.inbox_at = parse_id(entry_id)
            self._node.on_inbox(dict(zip(fields[::2], fields[1::2], strict=False)))

    def _explain_going_back(self, rewinds: int) -> None:
        """A stream counts from an earlier number: Redis has lost its end, or all of it."""
        self._node.recover()
        if self._rewinds == rewinds:  # it is the same run still, and nobody has reported this yet
            self._compare_tails(self.taker.gone_back)
        self.taker.gone_back = []

    def _compare_tails(self, known: Sequence[str] = ()) -> None:
        """A stream that ends before its cursor, or has counted less, has lost its end: it is read again."""
        with self._lock:
            streams = list(self._streams.values())
        if not streams:
            return
        tails = self._calls.script(
            "tail", (self._keys.streams, *(stream.key for stream in streams)), [stream.event for stream in streams]
        )
        lost = list(known)
        for position, stream in enumerate(streams):
            last, count = parse_id(tails[2 * position]), tails[2 * position + 1]
            with self._lock:
                cursors = stream.cursors()
                read = max((cursor.expected or 1) - 1 for cursor in cursors) if cursors else 0
                if 0 <= count < read or any((0, 0) != last < cursor.at for cursor in cursors):
                    lost.append(f"event {stream.event!r} ends at {count}, this node had read up to {read}")
                    stream.rewind(last)
        if lost:
            self._node.on_state_loss("; ".join(lost))
