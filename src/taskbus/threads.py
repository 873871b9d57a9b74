"""Threads that any thread may start, also one that a signal interrupts."""

from __future__ import annotations

import threading

from taskbus.stopping import left_until

__all__ = ["Thread"]


class Thread(threading.Thread):
    """A thread; what a signal handler raises while it is started comes out of :meth:`start` as it is."""

    def start(self) -> None:
        """Begin to run."""
        interrupt: BaseException | None = None
        try:
            super().start()
        except RuntimeError as error:
            # Raised in the wait for the thread to begin, and its lock, which is not held there, complains.
            interrupt = error.__context__ if str(error) == "release unlocked lock" else None
            if interrupt is None:
                raise
        if interrupt is not None:
            raise interrupt

    def join_until(self, deadline: float) -> None:
        """Wait for its end until ``deadline`` (monotonic); not on itself, nor where it was never started."""
        if self.is_alive() and self is not threading.current_thread():
            self.join(left_until(deadline))
