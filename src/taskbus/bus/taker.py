"""What the reader does with the entries it has read: whose they are, who has seen them, what is missing before them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from taskbus import frame
from taskbus.bus.cursor import Gaps, parse_id
from taskbus.codec import decode
from taskbus.errors import BusDenied, BusUnavailable, DecodeError
from taskbus.types import LazyPage, Page

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.cursor import Cursor, EntryId
    from taskbus.bus.keys import Keys
    from taskbus.bus.streams import Laggard, Readers, Rest, Stream
    from taskbus.config import RouterConfig
    from taskbus.dispatch import EventLoop
    from taskbus.types import Bare, Event, Sink

__all__ = ["Admission", "LargePayload", "Taker"]

log = logging.getLogger("taskbus")

_SLOWEST = 16384
"""Bytes a second with which a large payload has to come; a silence of ``op_timeout`` ends an attempt before."""


class Admission(Protocol):
    """What the reader asks of the node it reads for."""

    producer: str
    loop: EventLoop

    def matches(self, only_to: tuple[str, ...]) -> bool: ...

    def recover(self) -> None: ...

    def on_inbox(self, fields: dict[bytes, bytes]) -> None: ...

    def fall_behind(self, sink: Sink) -> int | None: ...

    def merge(self, sink: Sink, cursor: Cursor) -> bool: ...

    def on_state_loss(self, why: str) -> None: ...

    def is_listened(self, event: str) -> bool: ...


class LargePayload(Exception):
    """What is next was not handed over, for it lies beside the stream and did not come in the time that there was."""


class Taker:
    """Hands the new events of a page to whoever wants them, and counts the rest."""

    def __init__(self, config: RouterConfig, keys: Keys, blobs: Calls, node: Admission) -> None:
        self._config = config
        self._max_frame, self._secret = config.max_frame, config.secret
        self._allow_pickle = config.codec == "pickle"
        self._keys = keys
        self._blobs = blobs
        self._node = node
        self._listening = node.loop.table
        self._warned: dict[str, float] = {}
        self._lock = threading.Lock()
        self.rejected: Counter[str] = Counter()
        self._gaps: dict[str, Gaps] = {}
        self.delivered = self.missed = self.repeated = 0
        self.gone_back: list[str] = []
        """Which streams turned out to count from an earlier number, in words."""
        self.part: Callable[[Stream, Cursor, EntryId, Sink, Rest], None] = lambda *args: None
        """Called for a sink that had no room for the events of an entry."""

    def take(self, stream: Stream, readers: Readers, entries: Sequence[Any], until: float | None = None) -> None:
        """Hand over the entries of a page; up to a ``LargePayload`` that is not there ``until`` then (monotonic).

        After another error the page is to be read again from where the cursors stand then.
        """
        cursors = readers.cursors
        for entry_id, fields in entries:
            if readers.laggards:  # what one of them has no room for is read again
                readers = readers.with_room()
                cursors = readers.cursors
            at = parse_id(entry_id)
            for cursor in cursors:
                if cursor.at < at:
                    break
            else:
                continue  # handed over before the rest of this page had to be left to another thread
            try:
                self._take_entry(stream, readers, at, fields, until)
            except DecodeError as error:
                self.reject(error, f"entry {entry_id.decode()} of event {stream.event!r}")
                for cursor in cursors:
                    if missing := cursor.pass_rejected(at[1], error.__dict__.get("events")):
                        self._note_gap(stream, at[1] - missing, at[1])
            for cursor in cursors:
                if cursor.at < at:
                    cursor.at = at

    def _take_entry(
        self, stream: Stream, readers: Readers, at: EntryId, fields: list[bytes] | None, until: float | None
    ) -> None:
        if not fields or len(fields) != 2 or fields[0] != b"f":
            raise DecodeError("not a frame", reason="foreign")
        head = frame.unpack(fields[1], max_size=self._max_frame, secret=self._secret, scope=stream.scope)
        is_own = head.producer == self._node.producer
        shared = readers.shared
        if shared is not None and shared.at >= at:
            shared = None
        sinks: Sequence[Sink] = ()
        if shared is not None and not is_own:
            sinks = self._listening.get(stream.event, ())
            if len(sinks) != 1 or not sinks[0].ready:  # mostly it is one, and ready
                sinks = [sink for sink in sinks if sink.ready]
        asks = bool(sinks) and shared is not None and shared.is_new(head.producer, head.first, head.count)
        laggards: list[tuple[Laggard, Cursor]] = []
        if readers.laggards:
            laggards = [(one, cursor) for one, cursor in readers.laggards if cursor.at < at]
            asks = asks or any(
                cursor.first_wanted(at, head.count) < head.count
                and cursor.is_new(head.producer, head.first, head.count)
                for _, cursor in laggards
            )
        # Read before any cursor notes the frame: what cannot be fetched now is read again.
        refused: dict[int, DecodeError] = {}
        page: Page | LazyPage | tuple[()] = ()
        if asks and not (is_own and head.elsewhere) and (not head.only_to or self._node.matches(head.only_to)):
            # For a single one, and no function of others called for it: all listeners have the same values, read once.
            by_pieces = head.count > frame.PIECE and not laggards and len(sinks) == 1 and sinks[0].by_pieces
            page = self._page(stream, at, head, refused, until, by_pieces)
        nbytes = max(len(fields[1]), head.blob_size) if page else 0
        if shared is not None:
            start = self._admit(stream, shared, at, head)
            if refused:
                start -= sum(index < start for index in refused)
            if sinks and start < len(page):
                self.delivered += len(page) - start
                for sink in sinks:
                    taken = sink.offer(page, start, nbytes)
                    if taken < len(page):
                        self.part(stream, shared, at, sink, (page, taken, nbytes))
        if laggards:
            late = 0
            for laggard, cursor in laggards:
                start = self._admit(stream, cursor, at, head)
                start -= sum(index < start for index in refused)
                if start < len(page):
                    laggard.offer(page, start, nbytes)
                    late = max(late, len(page) - start)
            if stream.shared is None:
                self.delivered += late

    def _page(
        self,
        stream: Stream,
        at: EntryId,
        head: frame.Frame,
        refused: dict[int, DecodeError],
        until: float | None,
        by_pieces: bool,
    ) -> Page | LazyPage:
        """The events of a frame, less those that are ``refused``."""
        try:
            if by_pieces and (pieces := frame.pieces(head, secret=self._secret)):
                read = partial(self._read_piece, pieces, head.count, _name(stream, at))
                return LazyPage(head.count, frame.PIECE, read)
            blob = self._fetch(head, until) if head.blob is not None else None
            events = frame.events(head, blob, secret=self._secret, allow_pickle=self._allow_pickle, refused=refused)
        except DecodeError as error:
            error.__dict__["events"] = head.count
            raise
        if not refused:
            return Page(events, at)
        for problem in refused.values():
            self.reject(problem, _name(stream, at))
        kept = [index for index in range(len(events)) if index not in refused]
        return Page([events[index] for index in kept], at, kept)

    def _admit(self, stream: Stream, cursor: Cursor, at: EntryId, head: frame.Frame) -> int:
        missing = cursor.pass_over(at[1], head.count)
        start = cursor.first_new(head.producer, head.first, head.count)
        if start:
            if start == head.count:
                cursor.doubted = at[1]  # a repeat, or a copy by somebody else, which has no number
            if head.producer != self._node.producer:
                self.repeated += start
        if at[0] == cursor.after[0]:
            start = max(start, cursor.first_wanted(at, head.count))
        if missing > 0:
            self._note_gap(stream, at[1] - missing, at[1])
        elif missing < 0 and start < head.count:
            self.forget_gaps(stream.event)
            self.gone_back.append(
                f"event {stream.event!r} is counted from {at[1]} again, this node had read up to {at[1] - missing - 1}"
            )
        return start

    def _note_gap(self, stream: Stream, start: int, end: int) -> None:
        """These ordinals are missing, up to before ``end``; what another cursor has found missing was counted."""
        gaps = self._gaps.setdefault(stream.event, Gaps())
        if count := gaps.tell(start, end):
            self.note_missed(stream.event, count)

    def forget_gaps(self, event: str) -> None:
        """Its events are numbered anew."""
        self._gaps.pop(event, None)

    def note_missed(self, event: str, count: int) -> None:
        """Count and log a gap."""
        self.missed += count
        log.error("event %r: %d events were trimmed before this node read them", event, count)

    def _read_piece(self, pieces: list[bytes], count: int, what: str, index: int) -> list[Event | Bare]:
        """On whatever thread hands these events over."""
        expected = min(frame.PIECE, count - index * frame.PIECE)
        try:
            events = decode(pieces[index], (), bare=True)
            if len(events) == expected:
                return events
            raise DecodeError(f"malformed frame: {len(events)} events instead of {expected}", reason="malformed")
        except DecodeError as error:
            self.reject(error, what)
            return []

    def _fetch(self, head: frame.Frame, until: float | None) -> bytes | memoryview:
        blob = head.blob or ""
        timeout = self._config.op_timeout + head.blob_size / _SLOWEST if until is None else until - time.monotonic()
        try:
            value = self._blobs.call(b"GET", self._keys.blob(blob), timeout=timeout)
        except BusUnavailable:
            if until is None:
                raise
            raise LargePayload from None
        except BusDenied as error:
            raise DecodeError(f"the large payload cannot be read: {error}", reason="blob gone") from error
        if value is None:
            raise DecodeError(f"the large payload {blob} is gone", reason="blob gone")
        return value  # type: ignore[no-any-return]

    def reject(self, error: DecodeError, what: str) -> None:
        """Count what is not ours, and log it at most once a second for each reason."""
        reason = error.__dict__.get("reason", "malformed")
        with self._lock:
            self.rejected[reason] += 1
        self.warn(reason, "%s was rejected: %s", what, error)

    def warn(self, topic: str, text: str, *args: object, every: float = 1.0) -> None:
        now = time.monotonic()
        if now - self._warned.get(topic, -every) >= every:
            self._warned[topic] = now
            log.warning(text, *args)


def _name(stream: Stream, at: EntryId) -> str:
    return f"event {stream.event!r} in entry {at[0]}-{at[1]}"
