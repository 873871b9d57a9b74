"""The durable end of a run as one node knows it: sticky here at once, in Redis as soon as that can be reached."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from taskbus.config import encodable
from taskbus.errors import BusError, BusUnavailable, Fenced
from taskbus.stopping import left_until
from taskbus.types import FinishInfo

if TYPE_CHECKING:
    from taskbus.bus.registry import Registry
    from taskbus.bus.writer import Writer

__all__ = ["Finish"]

log = logging.getLogger("taskbus")

_GRACE = 0.25
"""Seconds from the writing of a finish to a look at it, if its wake-up has not come meanwhile."""


class Finish:
    """The finish of one run for one life of a node; what is declared while Redis is away stays pending."""

    def __init__(self, run_id: str, registry: Registry, writer: Writer) -> None:
        self._run_id = run_id
        self._registry = registry
        self._writer = writer
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._callbacks: list[Callable[[FinishInfo], None]] = []
        self._unwritten: FinishInfo | None = None
        self.known: FinishInfo | None = None
        self.due = math.inf
        """When (monotonic) to :meth:`look` at what is in Redis."""
        self.on_expected: Callable[[], None] = lambda: None
        self.on_forgotten: Callable[[], None] = lambda: None
        self.defer: Callable[[Callable[[], None]], None] = lambda call: call()

    @property
    def is_pending(self) -> bool:
        """Declared here, and not in Redis yet."""
        return self._unwritten is not None

    def declare(self, reason: str, timeout: float) -> bool:
        """Finish the run; false when Redis did not take it within ``timeout`` seconds."""
        with self._lock:
            if self.known is not None:
                return not self.is_pending
            self.known = self._unwritten = FinishInfo(self._registry.node_id, encodable(reason), time.time())
        self._try(timeout)
        if self.is_pending:
            log.warning("the finish of run %r is pending until Redis can be reached", self._run_id)
        self._call_back()
        return not self.is_pending

    def retry(self, timeout: float = 1.0) -> None:
        """Write a pending finish, if Redis can be reached, and this node still has its place."""
        if self.is_pending:
            with suppress(Fenced):  # which was told where it was found out
                self._try(timeout)

    def _try(self, timeout: float) -> None:
        """Write it, one thread at a time: the heartbeat comes here too.

        First what was emitted before, so that nobody hears of the end and misses what led to it; but a finish does not
        wait for ever for events that Redis does not take.
        """
        deadline = time.monotonic() + timeout
        if self.is_pending and self._writing.acquire(timeout=timeout):
            try:
                self._write(deadline, timeout)
            finally:
                self._writing.release()

    def _write(self, deadline: float, timeout: float) -> None:
        unwritten = self._unwritten
        if unwritten is None:
            return  # another thread has written it meanwhile
        self._flush(deadline - 0.2 * timeout, 0.4 * timeout)
        left = left_until(deadline)
        try:
            while not self._registry.write_finish(unwritten.reason, left, node=unwritten.node, at=unwritten.at):
                self.on_forgotten()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise BusUnavailable("Redis has forgotten this node again and again")
        except Fenced:
            self.known = self._unwritten = None  # it is not this node's to say
            raise
        except BusError as error:
            log.info("the finish of run %r is still pending: %s", self._run_id, error)
        else:
            self._unwritten = None
            self.learn()

    def _flush(self, deadline: float, patience: float) -> None:
        """Have all events acknowledged, if that goes on: nothing for ``patience`` seconds is too little."""
        while self._writer.waiting:
            before = self._writer.acknowledged
            try:
                self._writer.sync(max(0.0, min(patience, deadline - time.monotonic())))
                return  # what others emit meanwhile may come after it
            except BusError as error:
                if self._writer.acknowledged == before or time.monotonic() >= deadline:
                    log.info("finishing before all events are acknowledged: %s", error)
                    return

    def expect(self) -> None:
        """Somebody has written it, or taken it away."""
        if self._registry.finish is None:
            self.due = time.monotonic() + _GRACE
            self.on_expected()

    def look(self) -> None:
        """Hear of a finish whose wake-up waits behind something that is slow to be read, or is lost."""
        if time.monotonic() >= self.due:
            self.due = math.inf
            with suppress(BusError):  # the heartbeat has said so
                if self._registry.finish is None and self._registry.look_for_finish():
                    self.hear()

    def hear(self) -> None:
        """Take over what the registry knows, when what was emitted before the finish is delivered."""
        self.due = math.inf
        if self.known is None:
            self.defer(self.learn)
        else:
            self.learn()

    def learn(self) -> None:
        """Take over what the registry knows: the first finish that Redis took is that of everybody."""
        info = self._registry.finish
        if info is None:
            return
        with self._lock:
            self.known = info
        self._call_back()

    def assert_again(self) -> None:
        """Redis has lost the finish: it is pending once more, as it was."""
        with self._lock:
            if self.known is None or self.is_pending:
                return
            self._unwritten = self.known
        log.warning("Redis has lost the finish of run %r; it is written again", self._run_id)

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        """Call back once when the run is finished; at once when it is already. Returns what removes the callback."""
        with self._lock:
            known = self.known
            if known is None:
                self._callbacks.append(callback)
        if known is not None:
            callback(known)

        def remove() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return remove

    def _call_back(self) -> None:
        with self._lock:
            info, callbacks, self._callbacks = self.known, self._callbacks, []
        assert info is not None
        for callback in callbacks:
            try:
                callback(info)
            except Exception:
                log.exception("a callback of the finish of run %r failed", self._run_id)
