"""Meeting points of nodes: each arrives in Redis, and the last one wakes the others through their inboxes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskbus.condition import Condition
from taskbus.errors import BusError, BusUnavailable, WaitTimeout
from taskbus.waiting import LEAST_TRY

if TYPE_CHECKING:
    from taskbus.bus.registry import Registry

__all__ = ["Barriers"]


class Barriers:
    """The barriers at which this node waits.

    An arrival has a name of its own, so that one whose answer was lost counts once. Who gives up while Redis is away
    cannot tell whether the barrier opened with him: his next arrival there takes the name along, and passes if it did.

    Args:
        registry: Where nodes arrive.
        look_again: Seconds after which a waiting node looks by itself: somebody else may have died there.
    """

    def __init__(self, registry: Registry, look_again: float) -> None:
        self._registry = registry
        self._look_again = look_again
        self._news = Condition()
        self._turn = 0
        self._unsettled: dict[str, str] = {}
        self._opened: dict[str, str] = {}

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
        arrival = self._unsettled.pop(name, None) or self._opened.pop(name, None) or secrets.token_hex(4)
        try:
            self._meet(name, count, arrival, deadline, check)
        except WaitTimeout:
            if not self._give_up(name, arrival):
                raise

    def settle(self) -> None:
        """Give up where Redis was away when that was tried first."""
        for name, arrival in list(self._unsettled.items()):
            try:
                opened = self._registry.withdraw(name, arrival, LEAST_TRY)
            except BusError:
                return
            if self._unsettled.pop(name, None) == arrival and opened:
                self._opened[name] = arrival

    def _meet(self, name: str, count: int, arrival: str, deadline: float, check: Callable[[float, str], None]) -> None:
        registry = self._registry
        ticket, epoch = "", registry.epoch
        while True:
            turn = self._turn
            if epoch != registry.epoch:
                ticket, epoch = "", registry.epoch
            try:
                patience = max(LEAST_TRY, deadline - time.monotonic())
                is_open, ticket, here = registry.arrive(name, count, ticket, arrival, patience)
            except BusUnavailable as error:
                check(deadline, str(error))
                continue  # each attempt takes its time
            if is_open:
                return
            check(deadline, f"{len(here)} of {count} nodes are at barrier {name!r}: {', '.join(here)}")
            timeout = min(deadline - time.monotonic(), self._look_again)
            with self._news:
                self._news.wait_for(lambda turn=turn: self._turn != turn, max(0.0, timeout))  # type: ignore[misc]

    def _give_up(self, name: str, arrival: str) -> bool:
        """Take the arrival back; true when the last node has come meanwhile."""
        try:
            return self._registry.withdraw(name, arrival, LEAST_TRY)
        except BusUnavailable:
            self._unsettled[name] = arrival
            return False
