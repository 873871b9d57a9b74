"""Signals of a node's process: end the current step, flush, leave; a second signal ends it at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from taskbus.router import Router

__all__ = ["Draining", "Terminated"]

TERM_BUDGET: Final = 10.0
"""Seconds that a step may still take after SIGTERM; containers are usually given 10 to 30 s."""

INT_BUDGET: Final = 1.0
"""Seconds that a step may still take after Ctrl-C."""


class Terminated(BaseException):
    """The process was asked to end by a signal; ``exit_code`` is 0 after SIGTERM and 130 after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 0
        self.grace = INT_BUDGET + 0.5 if number == signal.SIGINT else TERM_BUDGET + 3.0


class Draining:
    """While entered, SIGTERM and SIGINT ask the tasks of ``router`` to leave; nothing is raised into their work.

    Only a process without a task to ask, a second signal, and a budget that runs out raise :class:`Terminated` in the
    main thread; without a router (the parent of workers) the first signal does. Does nothing outside the main thread.
    A worker whose parent dies is asked to leave too.

    The signals are taken from a pipe by a thread: the main thread may be blocked when the system hands a signal to
    another one, and it may hold a lock that asking takes.
    """

    def __init__(self, router: Router | None) -> None:
        self._router = router
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
            self._thread = threading.Thread(target=self._run, name="taskbus-signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is not None:
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
            raise Terminated(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raise:
            self._raise = False
            raise Terminated(self._number)

    def _run(self) -> None:
        parent = multiprocessing.parent_process()
        watched = [self._read, parent.sentinel] if parent is not None and self._router is not None else [self._read]
        budget: float | None = None
        while True:
            ready = wait(watched, budget)
            if not ready:
                budget = None
                self._interrupt()
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
            return INT_BUDGET
        elif self._number:
            if self._raised and number == signal.SIGINT:
                os._exit(130)  # the third time: whoever types it wants no more flushing
            self._interrupt()
        else:
            self._number = number
            if self._router is not None and self._router.request_leave():
                return INT_BUDGET if number == signal.SIGINT else TERM_BUDGET
            self._interrupt()
        return None

    def _interrupt(self) -> None:
        if not self._raised:
            self._raised, self._raise, self._own = 1, True, self._own + 1
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.Signals(self._number))
