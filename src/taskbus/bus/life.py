"""One life of a node on the bus: from its claim of an id to its leaving, with all its threads and connections."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from taskbus.bus.backlog import STOPPED
from taskbus.bus.barriers import Barriers
from taskbus.bus.calls import Calls
from taskbus.bus.channels import Channels
from taskbus.bus.connect import Target
from taskbus.bus.cursor import Cursor, parse_id
from taskbus.bus.diagnose import Diagnosis
from taskbus.bus.finish import Finish
from taskbus.bus.heart import Heart, SlowListeners
from taskbus.bus.intake import Intake
from taskbus.bus.keys import Keys
from taskbus.bus.policy import ASK_FOR_EVICTION, check_version, warn_of_eviction
from taskbus.bus.reader import Reader
from taskbus.bus.registry import Registry
from taskbus.bus.scripts import load
from taskbus.bus.tally import counts, tally
from taskbus.bus.writer import Writer
from taskbus.condition import Flag
from taskbus.errors import BusError, BusUnavailable, Fenced, NotStarted, TaskbusError
from taskbus.stopping import left_until
from taskbus.types import NodeInfo, RouterStats

if TYPE_CHECKING:
    from taskbus.config import RouterConfig
    from taskbus.dispatch import EventLoop
    from taskbus.types import Sink

__all__ = ["Life"]

log = logging.getLogger("taskbus")

_FORKED = "this process was forked from one with a started router; start a router of its own here"
_FAREWELL = 0.5
"""Seconds for leaving after a start that was interrupted."""
_LEFT, _FAILED = "taskbus.node_left", "taskbus.node_failed"

_lives: WeakSet[Life] = WeakSet()


def _end_after_fork() -> None:
    # A look at the pid in every emit would be a fifth of what an emit costs.
    for life in _lives:
        life.is_stopped, life.writer.over = True, _FORKED


os.register_at_fork(after_in_child=_end_after_fork)


class Life:
    """What runs between ``start`` and ``stop`` of a router; never started twice."""

    def __init__(self, config: RouterConfig, loop: EventLoop, target: Target | None = None) -> None:
        self.config = config
        self.loop = loop
        self.pid = os.getpid()
        self.producer = secrets.token_hex(8)
        self.target = target or Target(config.url, config.connect_timeout)
        self.keys = Keys(config.run_id)
        self._ended = Flag()
        self.calls = Calls(
            self.target, timeout=min(2.5, config.op_timeout), deadline=config.op_timeout, stopping=self._ended
        )
        self.registry = Registry(config, self.keys, self.calls, self.producer)
        self.writer = Writer(config, self.target, self.keys, self.producer, self.recover)
        self.emit, self.check_place = self.writer.emit, self.writer.check_place
        self.calls.diagnose = self.writer.diagnose = Diagnosis(self.keys, self.registry, self.writer)
        self.finish = Finish(config.run_id, self.registry, self.writer)
        self.barriers = Barriers(self.registry, config.lease)
        self.intake = Intake(config, self.keys, self.registry, self.writer, loop)
        self.reader = Reader(config, self.target, self.keys, self.calls, self.intake)
        deliver, questions = self.intake.take_transient, self.registry.questions
        self.channels = Channels(self.target, self.keys, self.calls, deliver, questions)
        self.heart = Heart(config, self.registry)
        self.failed = self.was_cut = False
        self.on_fenced: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._recovering = threading.Lock()
        self._leaving = self._is_fenced = False
        self.is_stopped = False
        """Stopped, or the life of the process from which this one was forked."""
        _lives.add(self)
        self.state_losses = 0

    # Start -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the run; nothing is left open when that fails."""
        try:
            self._claim()
            self._begin()
        except BaseException:
            try:
                if self.registry.epoch:
                    self.stop(timeout=_FAREWELL)
            finally:
                self.reader.end()
                self._end_parts(0.0)
            raise

    def _begin(self) -> None:
        inbox = self.keys.inbox(self.registry.node_id)
        self.channels.probe_channel = inbox
        self._connect_parts()
        if self.registry.finish is not None:
            self.finish.learn()
        self.writer.begin(self.calls)
        self._tell("taskbus.node_joined", labels=sorted(self.registry.labels))
        self.reader.begin(inbox, parse_id(self.registry.inbox_at))
        atexit.register(self.stop, "exited")
        self.writer.mind()
        self.heart.begin()

    def _claim(self) -> None:
        timeout = self.config.op_timeout if self.config.start_timeout is None else self.config.start_timeout
        deadline = time.monotonic() + timeout
        also = [self.registry.claiming(load("claim", self.target.in_process))]
        if not self.target.in_process:
            also.append(ASK_FOR_EVICTION)
        # On the heart's thread, for one of its own would cost as much as a connection; and one after the other, for two
        # threads that connect side by side take the interpreter from each other with every call of the system.
        opening: list[Callable[[], None]] = []
        self.calls.begin_to_open(opening.append)
        self.reader.begin_to_open(opening.append)
        self.heart.start(opening)
        while True:
            try:
                answers = check_version(self.calls, self.target.where, also, self.reader.start)
                self.registry.claim(*answers[:1])
                warn_of_eviction(answers[1:], self.target.where)
                return
            except BusUnavailable:
                if time.monotonic() >= deadline or timeout <= self.config.op_timeout:
                    raise

    def _connect_parts(self) -> None:
        intake, reader, heart, finish = self.intake, self.reader, self.heart, self.finish
        intake.recover, heart.recover = self._come_back, self.recover
        intake.on_inbox = self._take_inbox
        intake.on_state_loss = self._state_lost
        intake.reject = reader.taker.reject
        self.writer.epoch = partial(getattr, self.registry, "epoch")  # in C: it is asked for with every emit
        self.loop.on_room = lambda event: reader.wake()
        heart.is_healthy = self.is_healthy
        heart.counts = lambda: counts(self)
        heart.on_fenced = self.writer.on_fenced = self._fenced
        heart.on_denied = reader.on_denied = self.writer.deny
        heart.on_silence, heart.probe = self.channels.suspect, self.channels.probe
        heart.on_gone = self._report_gone
        heart.on_finish = finish.hear
        heart.watches = lambda: _LEFT in self.loop.table or _FAILED in self.loop.table
        finish.defer, finish.on_forgotten = reader.call_when_read, self.recover
        heart.due = lambda: min(finish.due, reader.goals.due)
        reader.goals.on_added, finish.on_expected = heart.nudge, self._expect_finish
        heart.is_wrong, self.channels.on_finish = self.channels.take_wrong, finish.expect
        heart.each_beat += [self.channels.watch, finish.retry, finish.look, self.barriers.settle, reader.goals.check]
        heart.each_beat += [SlowListeners(self.loop).warn, self._look, self.registry.take_labels_off]

    def _expect_finish(self) -> None:
        self.heart.nudge()
        self.reader.recall()

    # Stop ------------------------------------------------------------------------------------------------------------

    def stop(self, reason: str = "left", timeout: float | None = None) -> int:
        """Deliver, flush, leave the registry and end every thread, within ``timeout`` seconds (``stop_timeout``).

        Harmless when repeated, and in a forked process. Returns how many events were not acknowledged.
        """
        if self.pid != os.getpid():
            return 0
        with self._lock:
            if self._leaving:
                return 0
            self._leaving = True
        atexit.unregister(self.stop)
        budget = self.config.stop_timeout if timeout is None else timeout
        deadline = time.monotonic() + budget
        self._tell("taskbus.node_left", reason="failed" if self.failed else "cut" if self.was_cut else reason)
        self.finish.retry(0.25 * budget)
        busy = self.loop.drain(min(0.4 * budget, deadline - time.monotonic()))
        if busy:
            log.warning("stopping while listeners still run: %s", ", ".join(busy))
        self.reader.end()  # while the last events are written
        left = self.writer.stop(deadline - 0.25 * budget, self.calls)
        self.is_stopped, self.writer.over = True, STOPPED
        self._leave(deadline)
        self._end_parts(deadline)
        if left:
            log.error("stopped with %d events not acknowledged by Redis at %s", left, self.target.where)
        if self.finish.is_pending:
            log.error("stopped before the finish of run %r could be written", self.config.run_id)
        return left

    def _leave(self, deadline: float) -> None:
        self.reader.join(min(deadline, time.monotonic() + 0.2))
        if self.writer.fatal is not None:
            return  # the id is another node's now
        self.heart.end()
        try:
            self.registry.leave(left_until(deadline))
        except BusError as error:
            log.warning("left without telling Redis: %s", error)

    def _end_parts(self, deadline: float) -> None:
        """All are told first and waited for last, so that none waits for a call of another one."""
        self._ended.set()
        self.heart.end()
        self.channels.stop(deadline)
        self.calls.close()
        self.heart.stop(deadline)
        self.reader.join(deadline)
        self.writer.join(deadline)
        self.barriers.notify()

    def check_alive(self) -> None:
        """Raise what keeps this life from being used."""
        if self.pid != os.getpid():
            raise NotStarted(_FORKED)
        if self.is_stopped:
            raise NotStarted(STOPPED)

    # Staying there ---------------------------------------------------------------------------------------------------

    def add_labels(self, labels: frozenset[str]) -> None:
        """Carry more labels from now on; none of them where that fails."""
        before = self.registry.labels
        if not labels <= before:
            try:
                self._carry(before | labels)
                self.recover()
            except BaseException:
                self._carry(before)
                raise

    def remove_labels(self, labels: frozenset[str]) -> None:
        """Carry these no more."""
        self._carry(self.registry.labels - labels)
        self.registry.stale_labels |= labels
        self.registry.take_labels_off()

    def _carry(self, labels: frozenset[str]) -> None:
        self.registry.labels = labels
        self.intake.labels_changed()
        self.channels.ask_again()

    def recover(self) -> None:
        """Register again after a new connection, or after Redis has forgotten this node."""
        with self._recovering:
            self.check_place()
            if self.is_stopped:
                raise BusUnavailable("the router was stopped")
            try:
                forgotten = self.registry.claim()
            except Fenced as error:
                self._fenced(error)
                raise
            if forgotten != "nothing":
                self.reader.note_loss(forgotten)
                self.reader.wake()
        if self.registry.finish_in_redis:
            self.finish.hear()
        else:
            self.finish.assert_again()
        if self.finish.is_pending:
            self.heart.hurry()
        if self.registry.was_away:
            self.announce("taskbus.node_joined", labels=sorted(self.registry.labels))
        self.barriers.notify()

    def _come_back(self) -> None:
        self.recover()
        self.heart.hurry()  # for the registry to say that this node is healthy again

    def _fenced(self, error: BusError) -> None:
        with self._lock:
            if self._is_fenced:
                return
            self._is_fenced = True
        self.writer.fail(error)
        log.error("%s", error)
        self.loop.cancel(error.anew)
        self.barriers.notify()
        self.on_fenced()

    def _state_lost(self, why: str) -> None:
        self.state_losses += 1
        log.error("Redis at %s has lost state of run %r: %s", self.target.where, self.config.run_id, why)
        event = "taskbus.state_lost"
        try:
            self.loop.deliver_to(self.loop.sinks(event), (), {"node": self.registry.node_id, "why": why}, 0.0)
        except BusUnavailable as error:
            log.warning("%s", error)

    def _take_inbox(self, fields: dict[bytes, bytes]) -> None:
        kind = fields.get(b"k")
        if kind == b"claim" and fields.get(b"token", b"").decode(errors="replace") != self.producer:
            self.recover()  # raises Fenced unless that life is over already
        elif kind == b"finish":
            self.registry.note_finish([part for pair in fields.items() for part in pair])
            self.finish.hear()
        elif kind == b"barrier":
            self.barriers.notify()

    def is_healthy(self) -> bool:
        """Whether the reader and the heartbeat both gave a sign of life within their bounds."""
        now = time.monotonic()
        return (
            now - self.reader.heard < self.config.block + 1.9
            and now - self.heart.sign_of_life < self.config.lease
            and self.writer.fatal is None
        )

    # Events ----------------------------------------------------------------------------------------------------------

    def announce(self, event: str, node: str | None = None, **kwargs: Any) -> None:
        """Emit one of our own events about this node, or about ``node``, if that can be done at once.

        Never raises an error of ours: nothing that a node does fails because nobody can be told of it.
        """
        self._tell(event, node, **kwargs)
        self.writer.mind()

    def _tell(self, event: str, node: str | None = None, **kwargs: Any) -> None:
        self.writer.prepare()
        try:
            self.emit(event, (), {"node": node or self.registry.node_id, **kwargs}, timeout=0.0)
        except TaskbusError as error:
            log.warning("%s was not emitted: %s", event, error)

    def subscribe(self, sink: Sink, since: str, timeout: float | None = None) -> None:
        """Attach ``sink``; on return the subscription holds. Gives up after ``timeout`` s (``op_timeout``)."""
        self.check_place()
        limit = self.config.op_timeout if timeout is None else min(timeout, self.config.op_timeout)
        deadline = time.monotonic() + limit
        event = sink.event
        try:
            if since == "now":
                self.loop.attach(sink)
                if not self.reader.is_subscribed(event):
                    self.reader.follow(event, limit)
            else:
                cursor = Cursor.since(since, self.registry.joined(event))
                self.intake.lag(sink, limit)
                self.reader.catch_up(sink, cursor, left_until(deadline))
            self.channels.subscribe(event, left_until(deadline))
        except BaseException:
            self.unsubscribe(sink)
            raise

    def unsubscribe(self, sink: Sink) -> None:
        """Detach ``sink``; its event is read on for a while, so that the next subscription costs nothing."""
        self.loop.remove(sink)
        if self.intake.give_up(sink):
            self.reader.forget(sink)

    # The run ---------------------------------------------------------------------------------------------------------

    def finish_run(self, reason: str, timeout: float | None = None) -> bool:
        """End the run for all; false while Redis cannot be reached, then it is written as soon as it can."""
        self.check_place()
        return self.finish.declare(reason, self.config.op_timeout if timeout is None else timeout)

    def nodes(self, timeout: float | None = None) -> list[NodeInfo]:
        """Every live node; those found dead are removed, and the others told."""
        found, dead = self.registry.census(timeout)
        if dead and self.writer.fatal is None:
            self._report_gone(self.registry.sweep())
        return found

    def _report_gone(self, ids: list[str]) -> None:
        for node_id in ids:
            log.warning("node %r is gone: its lease ran out", node_id)
            self.announce("taskbus.node_left", node_id, reason="expired")

    def _look(self) -> None:
        self.channels.keep(self.loop.table)
        if self.reader.is_behind or self.reader.lag:
            try:
                self.reader.look()
            except BusError:
                pass  # the lag stays as it was last seen

    def stats(self) -> RouterStats:
        """What this life has done so far."""
        return tally(self)
