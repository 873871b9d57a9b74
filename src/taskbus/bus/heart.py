"""The heartbeat of a node, and what is looked after with it."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from taskbus.errors import BusDenied, BusError, Fenced
from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.bus.registry import Registry
    from taskbus.config import RouterConfig
    from taskbus.dispatch import EventLoop

__all__ = ["Heart", "SlowListeners"]

log = logging.getLogger("taskbus")

_SWEEP_EVERY = 120.0
_SLOW_LISTENER = 5.0
_FIELDS = ("role", "step", "healthy", "lag", "missed", "rejected", "reconnects")


class SlowListeners:
    """Says once for each listener that one call of it has run for long."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._warned: set[tuple[str, str]] = set()

    def warn(self) -> None:
        for event, name, seconds in self._loop.slow(_SLOW_LISTENER):
            if (event, name) not in self._warned:
                self._warned.add((event, name))
                log.warning(
                    "listener %s of event %r has run for %.0f s; only its own mailbox waits", name, event, seconds
                )


class Heart:
    """The thread that keeps a node registered, and looks after it.

    An idle node sends one plain command with each heartbeat: by turns the renewal of its lease and the check of one of
    the things that Redis should know of it, so that a node that was forgotten, wholly or in part, registers again. A
    node that does something looks after them with each heartbeat, beside what it has to tell. When Redis says that one
    of them is wrong, it looks after all of them.
    """

    def __init__(self, config: RouterConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        # A bare lock, which whoever rings gives back: to wait for a condition is 13 calls, and a beat in all 100.
        self._rung = threading.Lock()
        self._rung.acquire()
        self._early = False
        self._stopped = self._has_begun = False
        self._starting = threading.Lock()
        self._thread: Any = None
        self._turn = 0
        self._looks = 0
        self._looked = 0.0
        self._is_doubtful = False  # and could not be looked after yet
        self._written: tuple[str | int, ...] = ("", 0, 1, 0, 0, 0, 0)
        self._renewed = time.monotonic()
        self._ttl_renewed = time.monotonic()
        self._next_sweep = time.monotonic() + random.uniform(0.5, 1.0) * _SWEEP_EVERY
        self.sign_of_life = time.monotonic()
        self.watches: Callable[[], bool] = lambda: False
        """Whether somebody here wants to hear of dead nodes."""
        self.is_healthy: Callable[[], bool] = lambda: True
        self.counts: Callable[[], tuple[int, int, int, int]] = lambda: (0, 0, 0, 0)
        """Its lag, and how many events it has missed, how many it has rejected, how often it has reconnected."""
        self.recover: Callable[[], None] = lambda: None
        self.on_fenced: Callable[[BusError], None] = lambda error: None
        self.on_denied: Callable[[BusDenied], None] = lambda error: None
        self.on_silence: Callable[[], None] = lambda: None
        self.on_gone: Callable[[list[str]], None] = lambda ids: None
        self.on_finish: Callable[[], None] = lambda: None
        self.each_beat: list[Callable[[], None]] = []
        self.probe: Callable[[], bool] = lambda: False
        self.is_wrong: Callable[[], bool] = lambda: False
        """Whether Redis has said, since this was asked last, that what it knows of this node is not right."""
        self.due: Callable[[], float] = lambda: math.inf
        """When (monotonic) to beat if that is sooner than the next beat; asked again after a :meth:`nudge`."""

    def start(self, first: Sequence[Callable[[], None]]) -> None:
        """Do what comes ``first`` on the thread, which beats from :meth:`begin` on."""
        Thread(target=self._run, args=(first,), name="taskbus-heart", daemon=True).start()

    def begin(self) -> None:
        """There is something to keep registered."""
        self._has_begun = True
        if self._thread is None:  # what came first takes long, as the lookup of a name may
            Thread(target=self._run, args=((),), name="taskbus-heart", daemon=True).start()

    def end(self) -> None:
        """Have the thread end after what it is at."""
        self._stopped = True
        self.nudge()

    def stop(self, deadline: float) -> None:
        """End the thread; it is waited for until ``deadline`` (monotonic)."""
        self.end()
        if self._thread is not None:
            self._thread.join_until(deadline)

    def hurry(self) -> None:
        """Beat now."""
        self._early = True
        self.nudge()

    def nudge(self) -> None:
        """It may be that something is due sooner than it was."""
        with suppress(RuntimeError):  # rung already
            self._rung.release()

    def _run(self, first: Sequence[Callable[[], None]]) -> None:
        for work in first:
            work()
        with self._starting:
            if self._thread is not None:
                return
            self._thread = threading.current_thread()
        warned = 0.0
        refused: type[BusError] | None = None
        while self._pause():
            if not self._has_begun:
                continue
            try:
                self._beat()
                self.sign_of_life, refused = time.monotonic(), None
            except Fenced as error:
                self.on_fenced(error)
                return
            except BusError as error:
                if self._stopped:
                    return
                if type(error) is not refused or time.monotonic() - warned > 10.0:
                    refused, warned = type(error), time.monotonic()
                    log.warning("no heartbeat: %s", error)
                if isinstance(error, BusDenied):
                    self.on_denied(error)
                elif not isinstance(error.__cause__, ResponseError):
                    self.on_silence()
            except Exception:
                log.exception("a heartbeat failed in an unforeseen way; the next one comes")
            for look in self.each_beat:
                try:
                    look()
                except Exception:
                    log.exception("a look of the heartbeat failed in an unforeseen way; the next one comes")

    def _pause(self) -> bool:
        at = time.monotonic() + self._config.heartbeat
        while not self._early and not self._stopped:
            left = min(at, self.due()) - time.monotonic()
            if left <= 0 or not self._rung.acquire(timeout=left):
                break
        self._early = False
        return not self._stopped

    def _beat(self) -> None:
        now = time.monotonic()
        registry = self._registry
        state: tuple[str | int, ...] = (registry.role, registry.step, int(self.is_healthy()), *self.counts())
        finished = registry.finish
        looks = self.watches() and now - self._looked > 1.5 * self._config.heartbeat
        if state != self._written:
            fields: list[str | int] = []
            for name, value in zip(_FIELDS, state, strict=True):
                fields += (name, value)
            word = registry.beat(fields)
            if word == "OK":
                self._written, self._renewed = state, now
                self._check(2)  # which costs little beside what makes the state change
                self.probe()
            else:
                self.recover()
        else:
            beat, limit = self._config.heartbeat, self._config.lease / 2.5
            is_due = now - self._renewed + beat > limit
            if is_due and registry.prolong():
                self._renewed = now
            elif is_due:
                self.recover()
            if (not is_due or 2 * beat > limit) and not self.probe():  # with a short lease every beat renews it
                self._check(1)
        self._is_doubtful |= self.is_wrong()
        if self._is_doubtful:
            if not registry.check_all():
                self.recover()
            self._is_doubtful = False
        if registry.finish is not None and finished is None:
            self.on_finish()
        if now - self._ttl_renewed > self._config.run_ttl / 4:
            registry.renew()
            self._ttl_renewed = now
        if looks:
            self._look_at_others(now)
        elif now > self._next_sweep:
            self._sweep(now)

    def _check(self, turns: int) -> None:
        for _ in range(turns):
            self._turn += 1
            if not self._registry.check(self._turn):
                self.recover()

    def _look_at_others(self, now: float) -> None:
        """Every second beat: a command, and a sweep only where one is gone.

        A node is dead a lease after its last beat at the earliest, so that new ones need not be known sooner.
        """
        self._looked = now
        self._looks += 1
        keeps, all_there = self._registry.look_at_others(afresh=self._looks % 4 == 0)
        if not keeps:
            self.recover()
        if not all_there:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._next_sweep = now + random.uniform(0.5, 1.0) * _SWEEP_EVERY
        if gone := self._registry.sweep(0.9 * self._config.heartbeat):
            self.on_gone(gone)
