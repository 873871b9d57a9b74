"""Signals of a node's process: end the current step, flush, leave; the second signal, or a full budget, ends at once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType, TracebackType
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
    main thread. Without a router (the parent of workers) the first signal does so. Does nothing outside the main thread.
    A worker whose parent dies is asked to leave too.
    """

    def __init__(self, router: Router | None) -> None:
        self._router = router
        self._before: dict[int, Any] = {}
        self._number = 0
        self._done = threading.Event()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
            parent = multiprocessing.parent_process()
            if parent is not None and self._router is not None:
                threading.Thread(
                    target=self._watch, args=(parent.sentinel,), name="taskbus-parent", daemon=True
                ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        for number, before in self._before.items():
            signal.signal(number, before)

    def raise_signal(self) -> None:
        """Raise ``Terminated`` if a signal has come."""
        if self._number:
            raise Terminated(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._number = not self._number, self._number or number
        if not first or self._router is None:
            raise Terminated(number)
        # Not here: the main thread may hold a lock that asking takes.
        threading.Thread(target=self._drain, name="taskbus-draining", daemon=True).start()

    def _drain(self) -> None:
        assert self._router is not None
        asked = self._router.request_leave()
        budget = INT_BUDGET if self._number == signal.SIGINT else TERM_BUDGET
        if not self._done.wait(budget if asked else 0.0):
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.Signals(self._number))

    def _watch(self, sentinel: int) -> None:
        wait([sentinel])
        if not self._done.is_set():
            signal.raise_signal(signal.SIGTERM)
