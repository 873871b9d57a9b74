"""Threads for middleware that runs side by side, and the latch that waits for it."""

from __future__ import annotations

import logging
import math
import threading
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from taskbus.condition import Condition
from taskbus.errors import NotStarted
from taskbus.mailbox import ErrorBox, function_name
from taskbus.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Latch", "Pool"]

log = logging.getLogger(__name__)


class Alarm(Protocol):
    """Hears, on the thread of a job, that the job failed, and later that the error has reached its caller."""

    def fail(self, source: object) -> None: ...

    def recover(self, source: object) -> None: ...


class Latch:
    """Counts the jobs under way; :meth:`wait` returns when none is left, and raises the first of their errors.

    Args:
        alarm: Told of every error at once, so that jobs that wait for the failed one stop waiting.
    """

    def __init__(self, alarm: Alarm) -> None:
        self.open = 0
        self.errors = ErrorBox()
        self._alarm = alarm
        self._none_left = Condition()

    def add(self) -> None:
        with self._none_left:
            self.open += 1

    def done(self) -> None:
        with self._none_left:
            self.open -= 1
            if not self.open:
                self._none_left.notify_all()

    def failed(self, fn: Callable[..., Any], error: BaseException) -> None:
        if self.errors.kept:  # the first one reaches the caller
            log.error("%s failed as well", function_name(fn), exc_info=error)
        self.errors.add(error)
        self._alarm.fail(self)

    def rest(self, timeout: float) -> bool:
        """Wait for the jobs under way; false at the timeout."""
        with self._none_left:
            return self._none_left.wait_for(lambda: not self.open, None if timeout == math.inf else timeout)

    def wait(self) -> None:
        if self.open:
            self.rest(math.inf)
        if self.errors.kept:
            self._alarm.recover(self)
            self.errors.raise_first()


class Pool:
    """Daemon threads that start when there is work for them, up to ``limit``, and end at :meth:`close`."""

    def __init__(self, name: str, limit: float = math.inf) -> None:
        self._name = name
        self._limit = limit
        self._jobs: SimpleQueue[tuple[Latch, Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._spare = 0  # threads without a job, less the jobs without a thread
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, latch: Latch, fn: Callable[..., Any], *args: Any) -> None:
        """Run ``fn(*args)`` on a thread as soon as one is free; ``latch`` knows of it."""
        thread = None
        with self._lock:
            if self._closed:
                raise NotStarted(f"{function_name(fn)} cannot run: its task was stopped")
            latch.add()
            self._spare -= 1
            if self._spare < 0 and len(self._threads) < self._limit:
                self._spare += 1
                name = f"taskbus-{self._name}-{len(self._threads)}"
                thread = Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
        self._jobs.put((latch, fn, args))
        if thread is not None:
            thread.start()

    def owns_this_thread(self) -> bool:
        return threading.current_thread() in self._threads

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            latch, fn, args = job
            try:
                if not self._closed:
                    fn(*args)
            except BaseException as error:  # noqa: BLE001 it is raised where the latch is waited for
                latch.failed(fn, error)
            with self._lock:
                self._spare += 1
            latch.done()
            del job, latch, fn, args  # nothing is kept alive by a thread that waits for work

    def close(self, timeout: float) -> None:
        """End the threads and drop the jobs that wait; running ones get ``timeout`` seconds, then end by themselves."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        deadline = monotonic() + timeout
        for thread in threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
