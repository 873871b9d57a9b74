"""Meeting points of nodes: each arrives in Redis, and the last one wakes the others through their inboxes."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskbus.errors import BusUnavailable, WaitTimeout

if TYPE_CHECKING:
    from taskbus.bus.registry import Registry

__all__ = ["Barriers"]


class Barriers:
    """The barriers at which this node waits.

    Args:
        registry: Where nodes arrive.
        look_again: Seconds after which a waiting node looks by itself: somebody else may have died there.
    """

    def __init__(self, registry: Registry, look_again: float) -> None:
        self._registry = registry
        self._look_again = look_again
        self._news = threading.Condition()
        self._turn = 0

    def notify(self) -> None:
        """Have whoever waits look again."""
        with self._news:
            self._turn += 1
            self._news.notify_all()

    def wait(self, name: str, count: int, deadline: float, check: Callable[[float, str], None]) -> None:
        """Return when ``count`` live nodes have arrived.

        ``check(deadline, what)`` raises what ends the wait early, ``WaitTimeout`` at the deadline among it; Redis being
        away does not.
        """
        registry = self._registry
        arrival = secrets.token_hex(4)
        ticket, epoch = "", registry.epoch
        while True:
            turn = self._turn
            if epoch != registry.epoch:
                ticket, epoch = "", registry.epoch
            try:
                patience = max(1.0, deadline - time.monotonic())
                is_open, ticket, here = registry.arrive(name, count, ticket, arrival, patience)
            except BusUnavailable as error:
                check(deadline, str(error))
                continue  # each attempt takes its time
            if is_open:
                return
            try:
                check(deadline, f"{len(here)} of {count} nodes are at barrier {name!r}: {', '.join(here)}")
            except WaitTimeout:
                if self._is_open_after_all(name, ticket):
                    return
                raise
            timeout = min(deadline - time.monotonic(), self._look_again)
            with self._news:
                self._news.wait_for(lambda turn=turn: self._turn != turn, max(0.0, timeout))  # type: ignore[misc]

    def _is_open_after_all(self, name: str, ticket: str) -> bool:
        """Give up, unless the last node has arrived meanwhile."""
        try:
            return self._registry.withdraw(name, ticket)
        except BusUnavailable:
            return False
