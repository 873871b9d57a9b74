"""Signals of a node's process: end the current step, flush, leave; a second signal ends it at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self

from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.router import Router

__all__ = ["GRACE", "Draining", "Terminated", "patience"]

log = logging.getLogger("taskbus")

GRACE: Final = 10.0
"""Seconds that a step may still take after SIGTERM; containers are usually given 10 to 30 s."""

_INT_GRACE: Final = 1.0
"""Seconds that it may still take after Ctrl-C, where somebody waits for it."""

_AGAIN: Final = 0.2  # seconds after which the main thread is interrupted once more, if it has not noticed


def patience(number: int, grace: float) -> float:
    """Seconds that a step may still take after this signal."""
    return min(_INT_GRACE, grace) if number == signal.SIGINT else grace


class Terminated(BaseException):
    """The process was asked to end by a signal.

    ``exit_code`` is 0 after SIGTERM and 130 after Ctrl-C, and 1 after either when a step was cut.
    """

    def __init__(self, number: int, was_cut: bool = False) -> None:
        super().__init__(number)
        self.number = number
        self.was_cut = was_cut
        self.exit_code = 1 if was_cut else 130 if number == signal.SIGINT else 0


class Draining:
    """While entered, SIGTERM and SIGINT ask the tasks of ``router`` to leave; nothing is raised into their work.

    Only a process without a task to ask, a second signal, and ``grace`` seconds that are over raise
    :class:`Terminated` in the main thread; without a router (the parent of workers) the first signal does. Does
    nothing outside the main thread. A worker whose parent dies is asked to leave too.

    The signals are taken from a pipe by a thread: the main thread may be blocked when the system hands a signal to
    another one, and it may hold a lock that asking takes.
    """

    def __init__(self, router: Router | None, grace: float = GRACE) -> None:
        self._router = router
        self._grace = grace
        self.was_cut = False
        """A task was asked to leave, and it was not let come to the end of its step."""
        self._before: dict[int, Any] = {}
        self._number = 0
        self._raise = False
        self._raised = 0
        self._own = 0
        self._read = self._write = self._wakeup = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
            self._thread = Thread(target=self._run, name="taskbus-signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is not None:
            self._raise = False
            signal.set_wakeup_fd(self._wakeup)
            for number, before in self._before.items():
                signal.signal(number, before)
            os.write(self._write, b"\0")
            self._thread.join()
            os.close(self._read)
            os.close(self._write)

    def raise_signal(self) -> None:
        """Raise ``Terminated`` if a signal has come."""
        if self._number:
            raise Terminated(self._number, self.was_cut)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raise:
            self._raise = False
            raise Terminated(self._number, self.was_cut)

    def _run(self) -> None:
        parent = multiprocessing.parent_process()
        watched = [self._read, parent.sentinel] if parent is not None and self._router is not None else [self._read]
        budget: float | None = None
        while True:
            ready = wait(watched, _AGAIN if self._raise else budget)
            if not ready and self._raise:
                self._kill()  # the one before came just as the main thread began to block, and nobody saw it
            elif not ready:
                within = patience(self._number, self._grace)
                self._cut(f"did not end within {within:g} s of {signal.Signals(self._number).name} and was cut")
                budget = None
            elif self._read in ready:
                for byte in os.read(self._read, 64):
                    if not byte:
                        return
                    if byte in (signal.SIGTERM, signal.SIGINT):
                        budget = self._arrived(byte, budget)
            else:
                watched = [self._read]
                budget = self._arrived(signal.SIGTERM, budget)

    def _arrived(self, number: int, budget: float | None) -> float | None:
        """Take one signal; returns how long the tasks may still work, ``None`` when nothing is waited for."""
        if self._own:
            self._own -= 1
        elif self._number and number == signal.SIGTERM and multiprocessing.parent_process() is not None:
            return budget  # the parent of workers passes on what the whole group may have got already
        elif self._number == signal.SIGTERM and not self._raised and multiprocessing.parent_process() is not None:
            self._number = number  # and what it passes on may come first
            return patience(number, self._grace)
        elif self._number:
            if self._raised and number == signal.SIGINT:
                os._exit(130)  # the third time: whoever types it wants no more flushing
            self._cut("was cut by a second signal")
        else:
            self._number = number
            if self._router is not None and self._router.request_leave():
                return patience(number, self._grace)
            self._interrupt()
        return None

    def _cut(self, how: str) -> None:
        """Interrupt the work of a task, and say so; a process whose tasks have left is interrupted without a word."""
        if self._router is not None and not self._raised and self._router.has_tasks:
            self.was_cut = True
            log.error("step %d %s", self._router.life.registry.step, how)
        self._interrupt()

    def _interrupt(self) -> None:
        if not self._raised:
            self._raised, self._raise = 1, True
            self._kill()

    def _kill(self) -> None:
        self._own += 1
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.Signals(self._number))
