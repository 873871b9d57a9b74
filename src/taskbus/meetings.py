"""The part of a router that waits for other nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskbus.config import check_count, check_name, check_timeout
from taskbus.errors import BusUnavailable, RunFinished, WaitTimeout
from taskbus.waiting import LEAST_TRY, Waiter

if TYPE_CHECKING:
    from taskbus.bus.life import Life
    from taskbus.types import Labels, NodeInfo

__all__ = ["Meetings"]


def _stays() -> bool:
    return False


class Meetings:
    """Waits that end when the run is finished, and when the one who waits is asked to leave."""

    def __init__(self) -> None:
        self._wakers: set[Callable[[], None]] = set()

    @property
    def life(self) -> Life:
        raise NotImplementedError

    def nodes(self, patterns: Labels = None, timeout: float | None = None) -> list[NodeInfo]:
        raise NotImplementedError

    def wake_meetings(self) -> None:
        """Have whoever waits here look again whether he leaves; also from a signal handler."""
        for wake in tuple(self._wakers):
            wake()

    def wait_for_nodes(
        self, patterns: Labels, count: int, timeout: float, leaves: Callable[[], bool] = _stays
    ) -> list[NodeInfo]:
        """Return the nodes that match once there are ``count``; ``WaitTimeout`` says how many there were.

        ``RunFinished`` when the run is finished, or once ``leaves()`` after :meth:`wake_meetings`.
        """
        check_count("count", count, 0)
        deadline = time.monotonic() + check_timeout(timeout)
        life = self.life
        which = f" that match {patterns!r}" if patterns else ""
        while True:
            waiter = Waiter("taskbus.node_joined")
            wake = waiter.cancel
            remove = life.finish.on_finish(lambda info, wake=wake: wake())  # type: ignore[misc]
            self._wakers.add(wake)
            try:
                patience = max(LEAST_TRY, deadline - time.monotonic())
                life.subscribe(waiter, "now", patience)
                found = self.nodes(patterns, min(patience, life.config.op_timeout))
                if len(found) >= count:
                    return found
                self._check(deadline, f"{len(found)} of {count} nodes are there{which}", leaves)
                with life.reader.watching():
                    waiter.wait(min(deadline, time.monotonic() + life.config.lease))
            except BusUnavailable as error:
                self._check(deadline, str(error), leaves)  # Redis being away ends no wait
            finally:
                self._wakers.discard(wake)
                remove()
                life.unsubscribe(waiter)

    def barrier(self, name: str, count: int, timeout: float, leaves: Callable[[], bool] = _stays) -> None:
        """Return when ``count`` live nodes are at the barrier ``name``; it can be used again at once.

        ``RunFinished`` when the run is finished, or once ``leaves()`` after :meth:`wake_meetings`.
        """
        check_name("the name of a barrier", name)
        check_count("count", count, 1)
        deadline = time.monotonic() + check_timeout(timeout)
        life = self.life
        remove = life.finish.on_finish(lambda info: life.barriers.notify())
        wake = lambda: life.barriers.notify()  # noqa: E731 one object for each who waits
        self._wakers.add(wake)
        try:
            with life.reader.watching():
                life.barriers.wait(name, count, deadline, lambda deadline, what: self._check(deadline, what, leaves))
        finally:
            self._wakers.discard(wake)
            remove()

    def _check(self, deadline: float, what: str, leaves: Callable[[], bool]) -> None:
        life = self.life
        life.check_place()
        if (end := life.finish.known) is not None:
            raise RunFinished(f"the run was finished by node {end.node!r} ({end.reason}) while {what}")
        if leaves():
            raise RunFinished(f"this node was asked to leave the run while {what}")
        if time.monotonic() >= deadline:
            raise WaitTimeout(f"the time is over and {what}")
