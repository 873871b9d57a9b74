"""One life of a node on the bus: from its claim of an id to its leaving, with all its threads and connections."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from taskbus import codec, frame
from taskbus.bus.channels import Channels
from taskbus.bus.connect import Target
from taskbus.bus.cursor import Cursor
from taskbus.bus.heart import Heart
from taskbus.bus.keys import Keys
from taskbus.bus.reader import Reader
from taskbus.bus.registry import Registry, finish_from
from taskbus.bus.wire import Calls, check_version
from taskbus.bus.writer import Writer
from taskbus.errors import BusDenied, BusError, BusUnavailable, DecodeError, Fenced, NotStarted
from taskbus.types import FinishInfo, RouterStats

if TYPE_CHECKING:
    from taskbus.config import RouterConfig
    from taskbus.dispatch import EventLoop
    from taskbus.types import Event, Sink

__all__ = ["Life"]

log = logging.getLogger("taskbus")

_SLOW_LISTENER = 5.0


class Life:
    """What runs between ``start`` and ``stop`` of a router; never started twice."""

    def __init__(self, config: RouterConfig, loop: EventLoop) -> None:
        self.config = config
        self.loop = loop
        self.pid = os.getpid()
        self._encode = codec.encode_pickle if config.codec == "pickle" else codec.encode
        self.producer = secrets.token_hex(8)
        self.target = Target(config.url, config.connect_timeout)
        self.keys = Keys(config.run_id)
        self._stopping = threading.Event()
        self.calls = Calls(
            self.target, timeout=min(2.5, config.op_timeout), deadline=config.op_timeout, stopping=self._stopping
        )
        self.registry = Registry(config, self.keys, self.calls, self.producer)
        self.writer = Writer(config, self.target, self.keys, self.producer, self.recover)
        self.reader = Reader(config, self.target, self.keys, self.calls, self)
        self.channels = Channels(self.target, self.keys, self.calls, self._take_transient)
        self.heart = Heart(config, self.registry)
        self.finished: FinishInfo | None = None
        self.barrier_news = threading.Condition()
        self._barrier_turn = 0
        self._lock = threading.Lock()
        self._recovering = threading.Lock()
        self._merging = threading.Lock()
        self._lagging: dict[str, dict[Sink, int]] = {}
        self._finish_pending = ""
        self._finish_callbacks: list[Callable[[FinishInfo], None]] = []
        self._matched: dict[tuple[str, ...], bool] = {}
        self._warned_slow: set[tuple[str, str]] = set()
        self._state_losses = 0
        self.failed = False
        self._dropped = 0

    # Being there -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the run; nothing is left open when that fails."""
        try:
            self._claim()
        except BaseException:
            self._stopping.set()
            self.calls.close()
            raise
        inbox = self.keys.inbox(self.registry.node_id)
        ms, _, seq = self.registry.inbox_at.partition(b"-")
        self.writer.node_id = self.registry.node_id
        self.reader.inbox, self.reader.inbox_at = inbox, (int(ms), int(seq))
        self.reader.on_denied = self._denied
        self.channels.probe_channel = inbox
        self.loop.on_room = self.reader.resume
        self.heart.is_healthy = self.is_healthy
        self.heart.counts = self._counts
        self.heart.recover = self.recover
        self.heart.on_fenced = self._fenced
        self.heart.on_gone = self._report_gone
        self.heart.on_finish = self._finish_known
        self.heart.probe = self.channels.probe
        self.heart.each_beat += [self.channels.watch, self._retry_finish, self._warn_slow, self._look]
        if self.registry.finish is not None:
            self.finished = self.registry.finish
        for part in (self.writer, self.reader, self.heart):
            part.start()
        atexit.register(self._stop_at_exit)
        self.announce("taskbus.node_joined", labels=sorted(self.registry.labels))

    def _claim(self) -> None:
        timeout = self.config.op_timeout if self.config.start_timeout is None else self.config.start_timeout
        deadline = time.monotonic() + timeout
        while True:
            try:
                check_version(self.calls, self.target.where)
                self.registry.claim()
                return
            except BusUnavailable:
                if time.monotonic() >= deadline or timeout <= self.config.op_timeout:
                    raise

    def stop(self, reason: str = "left") -> int:
        """Flush, leave the registry, end every thread; harmless when repeated.

        Returns how many events were not acknowledged.
        """
        with self._lock:
            if self._stopping.is_set() or self.pid != os.getpid():
                return 0
            atexit.unregister(self._stop_at_exit)
        deadline = time.monotonic() + self.config.stop_timeout
        self.announce("taskbus.node_left", reason="failed" if self.failed else reason)
        self._retry_finish(max(0.1, self.config.stop_timeout / 2))
        left = self.writer.stop(deadline - 0.25 * self.config.stop_timeout)
        self.reader.stop(deadline)
        if not isinstance(self.writer.fatal, Fenced):
            try:
                self.registry.leave(max(0.1, min(0.25 * self.config.stop_timeout, deadline - time.monotonic())))
            except BusError as error:
                log.warning("left without telling Redis: %s", error)
        self._stopping.set()
        self.heart.stop(deadline)
        self.channels.stop(deadline)
        self.calls.close()
        self._cancel_barriers()
        if left:
            log.error("stopped with %d events not acknowledged by Redis at %s", left, self.target.where)
        if self._finish_pending:
            log.error("stopped before the finish of run %r could be written", self.config.run_id)
        return left

    def _stop_at_exit(self) -> None:
        if self.pid == os.getpid():
            self.stop("exited")

    @property
    def labels(self) -> frozenset[str]:
        """What ``only_to`` is matched against."""
        return self.registry.labels | {f"node.{self.registry.node_id}"}

    def add_labels(self, labels: frozenset[str]) -> None:
        """Carry more labels from now on."""
        if not labels <= self.registry.labels:
            self.registry.labels |= labels
            self._matched.clear()
            self.recover()

    def recover(self) -> None:
        """Register again after a new connection, or after Redis has forgotten this node."""
        with self._recovering:
            try:
                forgotten = self.registry.claim()
            except Fenced as error:
                self._fenced(error)
                raise
            if forgotten:
                self.reader.rewind()
                self.on_state_loss("the run's epoch is another one: Redis came back without the run")
                if self.finished is not None and not self.registry.finish_in_redis:
                    self._finish_pending = self.finished.reason
                self.reader.wake()
        if self.registry.finish is not None:
            self._finish_known()
        with self.barrier_news:
            self._barrier_turn += 1
            self.barrier_news.notify_all()

    def _fenced(self, error: BusError) -> None:
        if self.writer.fatal is None:
            log.error("%s", error)
        self.writer.fail(error)

    def _denied(self, error: BusDenied) -> None:
        self.writer.denied = error

    def is_healthy(self) -> bool:
        """Whether the reader and the heartbeat both gave a sign of life within their bounds."""
        now = time.monotonic()
        return (
            now - self.reader.sign_of_life < self.config.block + 2.5
            and now - self.heart.sign_of_life < self.config.lease
            and self.writer.fatal is None
        )

    # Events out ------------------------------------------------------------------------------------------------------

    def emit(
        self,
        event: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        only_remote: bool,
        only_local: bool,
        only_to: tuple[str, ...],
        transient: bool,
    ) -> None:
        """Encode, queue for the run, and deliver to the listeners here; see ``Task.emit``."""
        here = not only_remote and (not only_to or self.matches(only_to))
        sinks: Sequence[Sink] = self.loop.sinks(event) if here else ()
        if only_local:
            if self.writer.fatal is not None:
                raise type(self.writer.fatal)(str(self.writer.fatal), **self.writer.fatal.__dict__)
        elif event in self._lagging and not transient:
            encoded = self._encode(args, kwargs)
            with self._merging:
                sinks = [sink for sink in self.loop.sinks(event) if sink.ready] if here else ()
                self.writer.append(event, encoded, only_to)
        else:
            self.writer.append(event, self._encode(args, kwargs), only_to, transient)
        if sinks:
            self.loop.deliver_to(sinks, args, kwargs, self.config.op_timeout)

    def announce(self, event: str, **kwargs: Any) -> None:
        """Emit one of our own events about this node, if that can be done at once."""
        try:
            self.emit(
                event,
                (),
                {"node": self.registry.node_id, **kwargs},
                only_remote=False,
                only_local=False,
                only_to=(),
                transient=False,
            )
        except BusError as error:
            log.warning("%s was not emitted: %s", event, error)

    def matches(self, only_to: tuple[str, ...]) -> bool:
        """Whether one of the globs matches one of this node's labels; no globs match every node."""
        if not only_to:
            return True
        known = self._matched.get(only_to)
        if known is None:
            labels = self.labels
            known = any(fnmatchcase(label, glob) for glob in only_to for label in labels)
            if len(self._matched) > 1000:
                self._matched.clear()
            self._matched[only_to] = known
        return known

    # Events in -------------------------------------------------------------------------------------------------------

    def subscribe(self, sink: Sink, since: str) -> None:
        """Attach ``sink``; on return the subscription holds."""
        event = sink.event
        try:
            if since == "now":
                self.loop.attach(sink)
                if not self.reader.is_subscribed(event):
                    self.reader.follow(event)
            else:
                self._subscribe_past(sink, Cursor.since(since, self.registry.joined))
            self.channels.subscribe(event, self.config.op_timeout)
        except BaseException:
            self.unsubscribe(sink)
            raise
        if event in ("taskbus.node_left", "taskbus.node_failed"):
            self.heart.watching += 1

    def _subscribe_past(self, sink: Sink, cursor: Cursor) -> None:
        sink.ready = False
        with self._merging:
            self._lagging.setdefault(sink.event, {})[sink] = 0
        self.loop.attach(sink)
        own = self.writer.sequence.get(sink.event, 0)
        if own:
            self.writer.sync(self.config.op_timeout)
        with self._merging:
            self._lagging[sink.event][sink] = own
        self.reader.catch_up(sink, cursor)

    def unsubscribe(self, sink: Sink) -> None:
        """Detach ``sink``; its event is read on for a while, so that the next subscription costs nothing."""
        self.loop.detach(sink)
        with self._merging:
            lagging = self._lagging.get(sink.event)
            was_lagging = lagging is not None and lagging.pop(sink, None) is not None
            if lagging is not None and not lagging:
                del self._lagging[sink.event]
        if was_lagging:
            self.reader.forget(sink)
        if sink.event in ("taskbus.node_left", "taskbus.node_failed"):
            self.heart.watching = max(0, self.heart.watching - 1)

    def merge(self, sink: Sink, cursor: Cursor) -> bool:
        with self._merging:
            lagging = self._lagging.get(sink.event, {})
            seen = max(cursor.seen.get(self.producer, 0), lagging.get(sink, 0))
            if self.writer.sequence.get(sink.event, 0) > seen:
                return False
            sink.ready = True
            lagging.pop(sink, None)
            if not lagging:
                self._lagging.pop(sink.event, None)
            return True

    def offer(self, event: str, events: Sequence[Event], start: int, nbytes: int) -> bool:
        return self.loop.offer(event, events, start, nbytes)

    def is_pending(self, event: str) -> bool:
        return self.loop.pending(event)

    def is_listened(self, event: str) -> bool:
        return self.loop.listened(event)

    def _take_transient(self, event: str, data: bytes) -> None:
        try:
            scope = self.keys.channel(event).decode()
            head = frame.unpack(data, max_size=self.config.max_payload, secret=self.config.secret, scope=scope)
            if head.producer == self.producer or not self.matches(head.only_to):
                return
            sinks = self.loop.sinks(event)
            if not sinks:
                return
            events = frame.events(head, secret=self.config.secret, allow_pickle=self.config.codec == "pickle")
        except DecodeError as error:
            self.reader.reject(error, f"a transient message of event {event!r}")
            return
        if self.loop.pending(event):
            self._dropped += head.count
            return
        self.reader.delivered += head.count
        self.loop.offer(event, events, 0, len(data))
        for sink in sinks:
            if not sink.ready:
                sink.offer(events, 0, len(data))

    def on_inbox(self, fields: dict[bytes, bytes]) -> None:
        kind = fields.get(b"k")
        if kind == b"claim" and fields.get(b"token", b"").decode(errors="replace") != self.producer:
            self.recover()  # raises Fenced unless that life is over already
        elif kind == b"finish":
            flat = [part for pair in fields.items() for part in pair]
            self.registry.finish = finish_from(flat) or self.registry.finish
            self._finish_known()
        elif kind == b"barrier":
            with self.barrier_news:
                self._barrier_turn += 1
                self.barrier_news.notify_all()

    def on_state_loss(self, why: str) -> None:
        self._state_losses += 1
        log.error("Redis at %s has lost state of run %r: %s", self.target.where, self.config.run_id, why)
        self.loop.offer("taskbus.state_lost", [((), {"node": self.registry.node_id, "why": why})], 0, 0)

    # Finish ----------------------------------------------------------------------------------------------------------

    def finish(self, reason: str) -> bool:
        """End the run for all; false while Redis cannot be reached, then it is written as soon as it can."""
        with self._lock:
            if self.finished is not None:
                return not self._finish_pending
            self.finished = FinishInfo(self.registry.node_id, reason, time.time())
            self._finish_pending = reason
        try:
            self.writer.sync(self.config.op_timeout / 2)
        except BusError as error:
            log.warning("finishing before all events are acknowledged: %s", error)
        self._retry_finish(self.config.op_timeout / 2)
        if self._finish_pending:
            log.warning(
                "the finish of run %r is pending: Redis at %s cannot be reached", self.config.run_id, self.target.where
            )
        self._call_back(self.finished)
        return not self._finish_pending

    def _retry_finish(self, timeout: float = 1.0) -> None:
        if not self._finish_pending:
            return
        try:
            self.finished = self.registry.write_finish(self._finish_pending, timeout)
        except BusError as error:
            log.info("the finish of run %r is still pending: %s", self.config.run_id, error)
        else:
            self._finish_pending = ""

    def _finish_known(self) -> None:
        info = self.registry.finish
        if info is None:
            return
        with self._lock:
            first = self.finished is None
            self.finished = info
        if first:
            self._call_back(info)

    def _call_back(self, info: FinishInfo) -> None:
        with self._lock:
            callbacks, self._finish_callbacks = self._finish_callbacks, []
        for callback in callbacks:
            callback(info)
        self._cancel_barriers()

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        """Call back once when the run is finished; at once when it is already."""
        with self._lock:
            known = self.finished
            if known is None:
                self._finish_callbacks.append(callback)
        if known is not None:
            callback(known)

        def remove() -> None:
            with self._lock:
                if callback in self._finish_callbacks:
                    self._finish_callbacks.remove(callback)

        return remove

    # Looking after ---------------------------------------------------------------------------------------------------

    def wait_for_barrier_news(self, turn: int, timeout: float) -> int:
        """Wait until something happened to a barrier since ``turn``, or the router stops; returns the new turn."""
        with self.barrier_news:
            self.barrier_news.wait_for(lambda: self._barrier_turn != turn or self._stopping.is_set(), max(0.0, timeout))
            return self._barrier_turn

    @property
    def barrier_turn(self) -> int:
        return self._barrier_turn

    def _cancel_barriers(self) -> None:
        with self.barrier_news:
            self._barrier_turn += 1
            self.barrier_news.notify_all()

    @property
    def is_stopped(self) -> bool:
        return self._stopping.is_set()

    def check_alive(self) -> None:
        """Raise what keeps this life from being used."""
        if self.pid != os.getpid():
            raise NotStarted("this process was forked from one with a started router; start a router of its own here")
        if self._stopping.is_set():
            raise NotStarted("the router was stopped")

    def _report_gone(self, ids: list[str]) -> None:
        for node_id in ids:
            log.warning("node %r is gone: its lease ran out", node_id)
            self.announce_for("taskbus.node_left", node_id, reason="expired")

    def announce_for(self, event: str, node_id: str, **kwargs: Any) -> None:
        """Emit one of our own events about another node."""
        try:
            self.emit(
                event, (), {"node": node_id, **kwargs}, only_remote=False, only_local=False, only_to=(), transient=False
            )
        except BusError as error:
            log.warning("%s was not emitted: %s", event, error)

    def _warn_slow(self) -> None:
        for event, name, seconds in self.loop.slow(_SLOW_LISTENER):
            if (event, name) not in self._warned_slow:
                self._warned_slow.add((event, name))
                log.warning(
                    "listener %s of event %r has run for %.0f s; only its own mailbox waits", name, event, seconds
                )

    def _look(self) -> None:
        self.channels.keep(self.loop.listened)
        if self.reader.is_behind or self.reader.lag:
            try:
                self.reader.look()
            except BusError:
                pass  # the lag stays as it was last seen

    def _counts(self) -> tuple[int, int, int, int]:
        reader = self.reader
        reconnects = self.writer.reconnects + reader.reconnects + self.channels.gaps
        return reader.lag, reader.missed, sum(reader.rejected.values()), reconnects

    def stats(self) -> RouterStats:
        """What this life has done so far."""
        now, writer, reader = time.monotonic(), self.writer, self.reader
        return RouterStats(
            emitted=writer.emitted,
            acknowledged=writer.acknowledged,
            delivered=reader.delivered,
            missed=reader.missed,
            repeated=reader.repeated,
            lost=writer.lost,
            rejected=dict(reader.rejected),
            reconnects=writer.reconnects + reader.reconnects + self.channels.gaps,
            gaps=self.channels.gaps,
            dropped=self._dropped,
            state_losses=self._state_losses,
            outbox_events=writer.waiting,
            outbox_bytes=writer.bytes_waiting,
            lag=reader.lag,
            reader_age=now - reader.sign_of_life,
            heartbeat_age=now - self.heart.sign_of_life,
            healthy=self.is_healthy(),
        )
