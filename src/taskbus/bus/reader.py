"""The thread that reads: one blocking read over all subscribed streams, from concrete cursors of this node's own.

Every subscribed stream has a shared cursor, whose events go to all ready sinks of that name. A sink that wants the past
stands on a cursor of its own until it has caught up with the shared one. While there is such a laggard the stream is
read from the lowest cursor, and every cursor takes what lies above it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from taskbus import frame
from taskbus.bus.cursor import Cursor, EntryId, format_id, parse_id
from taskbus.bus.wire import Backoff, Calls, Wire, pack
from taskbus.errors import BusDenied, BusError, BusUnavailable, DecodeError

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.config import RouterConfig
    from taskbus.types import Event, Sink

__all__ = ["Admission", "Reader"]

log = logging.getLogger("taskbus")

_COUNT = 64
_LINGER = 30.0


class Admission(Protocol):
    """What the reader asks of the node it reads for."""

    producer: str

    def matches(self, only_to: tuple[str, ...]) -> bool: ...

    def recover(self) -> None: ...

    def on_inbox(self, fields: dict[bytes, bytes]) -> None: ...

    def offer(self, event: str, events: Sequence[Event], start: int, nbytes: int) -> bool: ...

    def is_pending(self, event: str) -> bool: ...

    def merge(self, sink: Sink, cursor: Cursor) -> bool: ...

    def on_state_loss(self, why: str) -> None: ...

    def is_listened(self, event: str) -> bool: ...


class _Laggard:
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


class _Stream:
    """One subscribed event name."""

    __slots__ = ("event", "key", "laggards", "listened", "paused", "shared")

    def __init__(self, event: str, key: bytes) -> None:
        self.event = event
        self.key = key
        self.shared: Cursor | None = None
        self.laggards: list[_Laggard] = []
        self.paused = False
        self.listened = time.monotonic()

    def readers(self) -> _Readers:
        """Who has room for a page that is asked for now."""
        shared = None if self.paused else self.shared
        return _Readers(shared, [(laggard, laggard.cursor) for laggard in self.laggards if not laggard.rest])

    def rewind(self) -> None:
        if self.shared is not None:
            self.shared = self.shared.rewound()
        for laggard in self.laggards:
            laggard.cursor = laggard.cursor.rewound()


class _Readers(NamedTuple):
    """Those for whom a page was asked for; a cursor that came later may have a gap before the page."""

    shared: Cursor | None
    laggards: Sequence[tuple[_Laggard, Cursor]]

    def cursors(self) -> list[Cursor]:
        own = [cursor for _, cursor in self.laggards]
        return own if self.shared is None else [self.shared, *own]


class Reader:
    """Reads for one node; the only thread that blocks on streams."""

    def __init__(self, config: RouterConfig, target: Target, keys: Keys, calls: Calls, node: Admission) -> None:
        self._config = config
        self._keys = keys
        self._calls = calls
        self._node = node
        self._where = target.where
        self._wire = Wire(target, config.block + 1.2)
        self._blobs = Calls(target, timeout=config.op_timeout, deadline=config.op_timeout, stopping=threading.Event())
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._blocked = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskbus-reader", daemon=True)
        self._warned: dict[str, float] = {}
        self.inbox = b""
        self.inbox_at: EntryId = (0, 0)
        self.rejected: Counter[str] = Counter()
        self.delivered = self.missed = self.repeated = self.reconnects = self.lag = 0
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

    def follow(self, event: str) -> None:
        """Read ``event`` from where its stream ends now."""
        key = self._keys.events(event)
        last, count = self._calls.script("tail", (self._keys.streams, key), (event,))
        with self._lock:
            stream = self._streams.setdefault(event, _Stream(event, key))
            stream.listened = time.monotonic()
            if stream.shared is None:
                stream.shared = Cursor(parse_id(last), count + 1)
        self.wake()

    def catch_up(self, sink: Sink, cursor: Cursor) -> None:
        """Let ``sink`` take all after ``cursor``; on return it has had the first page."""
        laggard = _Laggard(sink, cursor)
        alone = _Stream(sink.event, self._keys.events(sink.event))
        alone.laggards.append(laggard)
        page = self._calls.call(b"XRANGE", alone.key, b"(" + format_id(cursor.at), b"+", b"COUNT", _COUNT)
        self._take(alone, alone.readers(), page)
        with self._lock:
            stream = self._streams.setdefault(sink.event, alone)
            if stream is not alone:
                stream.laggards.append(laggard)
        self.wake()

    def forget(self, sink: Sink) -> None:
        """Read no more for a sink that still catches up."""
        with self._lock:
            stream = self._streams.get(sink.event)
            if stream is not None:
                stream.laggards = [laggard for laggard in stream.laggards if laggard.sink is not sink]
                stream.listened = time.monotonic()

    def resume(self, event: str) -> None:
        """A sink of ``event`` has room again."""
        with self._lock:
            stream = self._streams.get(event)
            if stream is not None:
                stream.paused = False
        self.wake()

    def rewind(self) -> None:
        """Read everything again from the start, for the streams are not those that were read."""
        with self._lock:
            for stream in self._streams.values():
                stream.rewind()
            self.inbox_at = (0, 0)

    def wake(self) -> None:
        """Have the blocked read begin anew with the subscriptions as they are now."""
        with self._lock:
            blocked, self._blocked = self._blocked, False
        if not blocked or threading.current_thread() is self._thread:
            return
        wake = (b"XADD", self.inbox, b"NOMKSTREAM", b"MAXLEN", b"~", b"100", b"*", b"k", b"wake")
        try:
            woken = self._calls.call(*wake, timeout=1.0)
        except BusError:
            woken = None
        if woken is None:
            self._wire.abort()  # Redis is full or away, or has no inbox: a new connection does it as well

    def look(self) -> None:
        """Refresh ``lag``: how many events are kept for this node's subscriptions that it has not read."""
        with self._lock:
            known = [
                (stream, stream.shared.expected)
                for stream in self._streams.values()
                if stream.shared and stream.shared.expected
            ]
        if not known:
            self.lag = 0
            return
        keys = [stream.key for stream, _ in known]
        tails = self._calls.script("tail", (self._keys.streams, *keys), [stream.event for stream, _ in known])
        self.lag = sum(max(0, tails[2 * i + 1] - expected + 1) for i, (_, expected) in enumerate(known))

    @property
    def is_behind(self) -> bool:
        """Whether some stream is not read because a sink is full."""
        return any(
            stream.paused or any(laggard.rest for laggard in stream.laggards) for stream in list(self._streams.values())
        )

    @staticmethod
    def _cursors(stream: _Stream) -> list[Cursor]:
        own = [laggard.cursor for laggard in stream.laggards]
        return own if stream.shared is None else [stream.shared, *own]

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff()
        first = True
        while not self._stopping.is_set():
            try:
                if not self._wire.is_open:
                    self._wire.open()
                    if not first:
                        self.reconnects += 1
                        self._node.recover()
                        self._compare_tails()
                        log.warning("reading from Redis at %s again", self._where)
                    first = False
                self._read_once()
                backoff.reset()
            except BusError as error:
                self._wire.close()
                if self._stopping.is_set():
                    break
                if isinstance(error, BusDenied):
                    self.on_denied(error)
                self._warn("reader", "%s; the reader tries again", error)
                self._stopping.wait(backoff.next())
            except Exception:
                log.exception(
                    "reading from Redis at %s failed in an unforeseen way; the reader tries again", self._where
                )
                self._wire.close()
                self._stopping.wait(backoff.next())
        self._wire.close()

    def _read_once(self) -> None:
        with self._lock:
            self._prune()
            for stream in self._streams.values():
                for laggard in stream.laggards:
                    laggard.retry()
            wanted = {
                stream.key: (stream, readers)
                for stream in self._streams.values()
                if (readers := stream.readers()).cursors()
            }
            inbox_at = self.inbox_at
            self._blocked = True
        keys = list(wanted)
        ids = [format_id(min(cursor.at for cursor in readers.cursors())) for _, readers in wanted.values()]
        block = int(self._config.block * 1000)
        self._wire.send(
            [
                pack(
                    b"XREAD",
                    b"COUNT",
                    _COUNT,
                    b"BLOCK",
                    block,
                    b"STREAMS",
                    *keys,
                    self.inbox,
                    *ids,
                    format_id(inbox_at),
                )
            ]
        )
        reply = self._wire.check(self._wire.read())
        with self._lock:
            self._blocked = False
        self.sign_of_life = time.monotonic()
        pages = dict(reply or ())
        for key, (stream, readers) in wanted.items():
            entries = pages.get(key, ())
            self._take(stream, readers, entries)
            if readers.laggards and len(entries) < _COUNT:
                self._merge(stream, readers)
        self._take_inbox(pages.get(self.inbox, ()))  # last: what was emitted before a finish is delivered before it

    def _prune(self) -> None:
        now = time.monotonic()
        for event, stream in list(self._streams.items()):
            if stream.laggards or self._node.is_listened(event):
                stream.listened = now
            elif now - stream.listened > _LINGER:
                del self._streams[event]

    def _take_inbox(self, entries: Sequence[Any]) -> None:
        for entry_id, fields in entries:
            self.inbox_at = parse_id(entry_id)
            self._node.on_inbox(dict(zip(fields[::2], fields[1::2], strict=False)))

    def _take(self, stream: _Stream, readers: _Readers, entries: Sequence[Any]) -> None:
        cursors = readers.cursors()
        for entry_id, fields in entries:
            at = parse_id(entry_id)
            try:
                self._take_entry(stream, readers, at, fields)
            except DecodeError as error:
                self.reject(error, f"entry {entry_id.decode()} of event {stream.event!r}")
            except BusUnavailable:
                raise  # a large payload could not be fetched now; the cursor still stands before its entry
            for cursor in cursors:
                cursor.at = max(cursor.at, at)

    def _take_entry(self, stream: _Stream, readers: _Readers, at: EntryId, fields: list[bytes] | None) -> None:
        if not fields or len(fields) != 2 or fields[0] != b"f":
            raise DecodeError("not a frame", reason="foreign")
        head = frame.unpack(
            fields[1], max_size=self._config.max_payload, secret=self._config.secret, scope=stream.key.decode()
        )
        wanted = self._node.matches(head.only_to)
        own = head.producer == self._node.producer
        shared = readers.shared if readers.shared is not None and readers.shared.at < at else None
        laggards = [(laggard, cursor) for laggard, cursor in readers.laggards if cursor.at < at]
        listened = shared is not None and not own and self._node.is_listened(stream.event)
        # Fetched before any cursor notes the frame: if that fails, the entry is read again.
        blob = self._fetch(head) if head.blob and wanted and (listened or laggards) else None
        events: list[Event] | None = None
        nbytes = max(len(fields[1]), head.blob_size)
        if shared is not None:
            start = self._admit(stream, shared, at, head)
            if start < head.count and wanted and listened:
                events = self._decode(head, blob)
                self.delivered += len(events) - start
                self._offer(stream, events, start, nbytes)
        for laggard, cursor in laggards:
            start = self._admit(stream, cursor, at, head)
            if start < head.count and wanted:
                events = self._decode(head, blob) if events is None else events
                laggard.offer(events, start, nbytes)

    def _offer(self, stream: _Stream, events: Sequence[Event], start: int, nbytes: int) -> None:
        if not self._node.offer(stream.event, events, start, nbytes):
            stream.paused = True
            if not self._node.is_pending(stream.event):
                stream.paused = False  # there was room again before the pause was noted

    def _admit(self, stream: _Stream, cursor: Cursor, at: EntryId, head: frame.Frame) -> int:
        missing = cursor.pass_over(at[1], head.count)
        start = cursor.first_new(head.producer, head.first, head.count)
        if missing > 0:
            self.missed += missing
            log.error(
                "event %r: %d events were trimmed before this node read them, up to entry %d-%d",
                stream.event,
                missing,
                *at,
            )
        elif missing < 0 and start < head.count:
            self._node.on_state_loss(f"the numbering of event {stream.event!r} went back by {-missing}")
        if start:
            self.repeated += start
        return start

    def _decode(self, head: frame.Frame, blob: bytes | None) -> list[Event]:
        allow_pickle = self._config.codec == "pickle"
        return frame.events(head, blob, secret=self._config.secret, allow_pickle=allow_pickle)

    def _fetch(self, head: frame.Frame) -> bytes:
        value = self._blobs.call(b"GET", self._keys.blob(head.blob or ""))
        if value is None:
            self.missed += head.count
            raise DecodeError(f"the large payload {head.blob} is gone", reason="blob gone")
        return value  # type: ignore[no-any-return]

    def reject(self, error: DecodeError, what: str) -> None:
        """Count what is not ours, and log it at most once a second for each reason."""
        reason = error.__dict__.get("reason", "malformed")
        self.rejected[reason] += 1
        self._warn(reason, "%s was rejected: %s", what, error)

    def _warn(self, topic: str, text: str, *args: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(topic, -10.0) >= 1.0:
            self._warned[topic] = now
            log.warning(text, *args)

    def _merge(self, stream: _Stream, readers: _Readers) -> None:
        """Join laggards to the shared cursor: the page that all of them took ended with the stream."""
        took = dict(readers.laggards)
        with self._lock:
            if stream.paused or stream.shared is not readers.shared:
                return
            left = []
            for laggard in stream.laggards:
                behind = laggard.rest or took.get(laggard) is not laggard.cursor
                if behind or not self._node.merge(laggard.sink, laggard.cursor):
                    left.append(laggard)
                elif stream.shared is None:
                    stream.shared = laggard.cursor
            stream.laggards = left

    def _compare_tails(self) -> None:
        """After a reconnect: a stream that ends before its cursor, or has counted less, has lost its end."""
        with self._lock:
            streams = list(self._streams.values())
        if not streams:
            return
        tails = self._calls.script(
            "tail", (self._keys.streams, *(stream.key for stream in streams)), [stream.event for stream in streams]
        )
        lost = []
        for position, stream in enumerate(streams):
            last, count = parse_id(tails[2 * position]), tails[2 * position + 1]
            with self._lock:
                cursors = self._cursors(stream)
                read = max((cursor.expected or 1) - 1 for cursor in cursors) if cursors else 0
                if count < read or any((0, 0) != last < cursor.at for cursor in cursors):
                    lost.append(f"{stream.event!r} ends at event {count}, this node had read up to {read}")
                    stream.rewind()
        if lost:
            self._node.on_state_loss("; ".join(lost))
