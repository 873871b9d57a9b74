"""What comes in: which sinks of this node take which events, from the streams, from the channels and from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskbus import frame
from taskbus.errors import DecodeError
from taskbus.globs import match_globs

if TYPE_CHECKING:
    from taskbus.bus.cursor import Cursor
    from taskbus.bus.keys import Keys
    from taskbus.bus.registry import Registry
    from taskbus.bus.writer import Writer
    from taskbus.config import RouterConfig
    from taskbus.dispatch import EventLoop
    from taskbus.types import Sink

__all__ = ["Intake"]

_MATCHES_KNOWN = 1000


class Intake:
    """Answers the reader for one life of a node, and an emit that asks who takes its event here.

    A sink that begins in the past or has no room (a laggard) takes this node's own events from the stream, like
    everybody else's, and is passed over by local delivery until it has caught up. Whether it has is decided under the
    lock under which events get their numbers, so each event comes one way or the other.
    """

    def __init__(self, config: RouterConfig, keys: Keys, registry: Registry, writer: Writer, loop: EventLoop) -> None:
        self.producer = registry.producer
        self._config = config
        self._keys = keys
        self._registry = registry
        self._writer = writer
        self.loop = loop
        self._lagging: dict[str, dict[Sink, int]] = {}
        writer.look = writer.look_for_all = loop.sinks
        writer.listened = loop.table
        writer.matches, writer.deliver = self.matches, loop.deliver_to
        self._matched: dict[tuple[str, ...], bool] = {}
        self.delivered = 0
        self.dropped = 0
        self.recover: Callable[[], None] = lambda: None
        self.on_inbox: Callable[[dict[bytes, bytes]], None] = lambda fields: None
        self.on_state_loss: Callable[[str], None] = lambda why: None
        self.reject: Callable[[DecodeError, str], None] = lambda error, what: None

    # Whose events ----------------------------------------------------------------------------------------------------

    @property
    def labels(self) -> frozenset[str]:
        """What ``only_to`` is matched against."""
        return self._registry.labels | {f"node.{self._registry.node_id}"}

    def labels_changed(self) -> None:
        self._matched = {}  # a new one, for whoever matches the labels of before at this moment

    def matches(self, only_to: tuple[str, ...]) -> bool:
        """Whether one of the globs matches one of this node's labels; no globs match every node."""
        if not only_to:
            return True
        matched = self._matched
        known = matched.get(only_to)
        if known is None:
            known = match_globs(self.labels, only_to)
            if len(matched) > _MATCHES_KNOWN:
                matched.clear()
            matched[only_to] = known
        return known

    # Laggards --------------------------------------------------------------------------------------------------------

    def _ready(self, event: str) -> Sequence[Sink]:
        """Who takes an event of this node as it is emitted, while there are laggards."""
        sinks = self.loop.sinks(event)
        return [sink for sink in sinks if sink.ready] if event in self._lagging else sinks

    def lag(self, sink: Sink, timeout: float) -> None:
        """Have ``sink`` take nothing but what the reader brings it, until it has caught up."""
        sink.ready = False
        with self._writer.numbering:
            self._lagging.setdefault(sink.event, {})[sink] = 0
            self._writer.look = self._ready
        self.loop.attach(sink)
        own = self._writer.sequence.get(sink.event, 0)
        if own:
            self._writer.sync(timeout)  # a cursor behind them must find them in the stream
        with self._writer.numbering:
            if sink in self._lagging.get(sink.event, {}):
                self._lagging[sink.event][sink] = own

    def fall_behind(self, sink: Sink) -> int | None:
        """The same for one that took events directly until now; ``None`` when nobody listens with it any more.

        Returns how many of this node's own events it has had, or will have from those who emit them.
        """
        with self._writer.numbering:
            if sink not in self.loop.sinks(sink.event):
                return None
            sink.ready = False
            own = self._writer.sequence.get(sink.event, 0)
            self._lagging.setdefault(sink.event, {})[sink] = own
            self._writer.look = self._ready
            return own

    def merge(self, sink: Sink, cursor: Cursor) -> bool:
        """Let ``sink`` take events directly from now on, if it has had all of this node's own that have a number."""
        with self._writer.numbering:
            lagging = self._lagging.get(sink.event, {})
            seen = max(cursor.seen.get(self.producer, 0), lagging.get(sink, 0))
            if self._writer.sequence.get(sink.event, 0) > seen:
                return False
            sink.ready = True
            self._end_lag(sink)
            return True

    def give_up(self, sink: Sink) -> bool:
        """Forget ``sink``; true when it was still catching up."""
        with self._writer.numbering:
            return self._end_lag(sink)

    def _end_lag(self, sink: Sink) -> bool:
        lagging = self._lagging.get(sink.event)
        if lagging is None or lagging.pop(sink, None) is None:
            return False
        if not lagging:
            del self._lagging[sink.event]
            if not self._lagging:
                self._writer.look = self.loop.sinks
        return True

    # Events ----------------------------------------------------------------------------------------------------------

    def is_listened(self, event: str) -> bool:
        """Whether somebody takes events directly; a laggard does not."""
        return True in [sink.ready for sink in self.loop.table.get(event, ())]

    def take_transient(self, event: str, data: bytes) -> None:
        """One message of a channel; dropped and counted where a listener has no room."""
        try:
            scope = self._keys.channel(event).decode()
            head = frame.unpack(data, max_size=self._config.max_frame, secret=self._config.secret, scope=scope)
            if head.producer == self.producer or not self.matches(head.only_to):
                return
            sinks = self.loop.sinks(event)
            if not sinks:
                return
            events = frame.events(head, secret=self._config.secret, allow_pickle=self._config.codec == "pickle")
        except DecodeError as error:
            self.reject(error, f"a transient message of event {event!r}")
            return
        self.delivered += head.count
        self.dropped += sum(len(events) - sink.offer(events, 0, len(data)) for sink in sinks)
