"""What a thread waits for that has a socket to mind as well: a word from another thread, or something to read."""

from __future__ import annotations

import os
import select
import threading
from typing import Any

__all__ = ["Bell"]


class Bell:
    """One thread waits, any thread rings; a ring while nobody waits is not lost, one while it is closed is."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may ring while its thread does
        self._ears = self._mouth = -1
        self._poll: Any = None
        self._also = -1  # what is polled beside the bell

    def open(self) -> None:
        """Begin to be heard."""
        self._ears, self._mouth = os.pipe()
        os.set_blocking(self._ears, False)
        os.set_blocking(self._mouth, False)
        self._poll, self._also = select.poll(), -1
        self._poll.register(self._ears, select.POLLIN)

    def ring(self) -> None:
        """Wake who waits, or will."""
        with self._lock:
            if self._mouth >= 0:
                try:
                    os.write(self._mouth, b"\0")
                except BlockingIOError:
                    pass  # it rings already

    def wait(self, also: int = -1, timeout: float | None = None) -> bool:
        """Return when the bell rang, or when there is something to read on the descriptor ``also``: then true.

        Or after ``timeout`` seconds.
        """
        if also != self._also:
            if self._also >= 0:
                self._poll.unregister(self._also)
            if also >= 0:
                self._poll.register(also, select.POLLIN)
            self._also = also
        ready = self._poll.poll(None if timeout is None else timeout * 1000)
        if len(ready) == 1 and ready[0][0] == also:
            return True
        if ready:
            os.read(self._ears, 4096)
        return len(ready) == 2

    def close(self) -> None:
        """Harmless when closed."""
        with self._lock:
            if self._mouth >= 0:
                os.close(self._ears)
                os.close(self._mouth)
                self._ears = self._mouth = -1
