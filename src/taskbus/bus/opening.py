"""A connection that is being opened on another thread: no resolver or handshake keeps who waits too long."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver

from taskbus.condition import Flag
from taskbus.errors import BusUnavailable
from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.bus.connect import Target

__all__ = ["Opening"]


class Opening:
    """``connection`` is open once it is ``over``, unless there is an ``error``."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.over = Flag()
        self.connection: Any = target.connection()
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._abandoned = False

    def start(self) -> None:
        """Connect on a thread of its own."""
        Thread(target=self.run, name="taskbus-connect", daemon=True).start()

    def run(self) -> None:
        """Connect; on a thread that may be kept for long."""
        try:
            self.connection.connect()
        except Exception as error:  # noqa: BLE001 it is raised where somebody waits for this connection
            self.error = error
        with self._lock:
            if self._abandoned or self.error is not None:
                self.connection.disconnect()
            self.over.set()

    def late(self, seconds: float) -> BusUnavailable:
        """What to say when it has taken so long."""
        where = self._target.where
        hint = "" if self._target.shared_socket else "; does it speak TLS there?"
        return BusUnavailable(
            f"Redis at {where} cannot be reached: no connection in {seconds:.1f} s{hint}", where=where
        )

    def abandon(self) -> None:
        """Nobody wants it any more; wakes who still waits."""
        with self._lock:
            if not self._abandoned:
                self._abandoned = True
                self.error = self.error or driver.ConnectionError("the connection was closed")
                if self.over.is_set:
                    self.connection.disconnect()
                self.over.set()
