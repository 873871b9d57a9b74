"""The waits of one task: who waits now, what they wait on, and what ends all of them early."""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from taskbus.errors import BusUnavailable, NotStarted, RunFinished, WaitTimeout
from taskbus.waiting import LEAST_TRY, Trail, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskbus.types import Event, Link, Place, Since

__all__ = ["Waits"]

S = TypeVar("S", Waiter, Trail)


class Waits:
    """Every ``wait_for`` of a task between its start and its stop.

    Whatever ends the waits is noted first, then the waiters that are there are cancelled; a wait registers first, takes
    what is kept (of the run: a page), and then looks whether it was ended. So none is overlooked, none ends before it
    has looked, and without a lock a signal handler may end waits, too.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: set[Waiter] = set()
        self._trails: dict[str, Trail] = {}
        self._places: dict[str, Place] = {}  # of the last event that was returned, where there is no trail
        self._trails_lock = threading.Lock()
        self._closed = False
        self._over: Callable[[], BaseException | None] | None = None
        self._failing: set[object] = set()

    # What ends waits

    def finished_here(self) -> None:
        """The waits of now end with ``RunFinished``; later ones may still collect what the others have to say."""
        self._cancel(lambda: RunFinished("the run was finished", node=self._link.node_id))

    def finished_by_another(self, node: str) -> None:
        """All waits end with ``RunFinished``, from now on."""
        finish = self._link.finished
        why = f" ({finish.reason})" if finish is not None else ""
        self._end(lambda: RunFinished(f"the run was finished by node {node!r}{why}", node=node))

    def leave(self) -> None:
        """All waits end with ``None``, from now on."""
        self._end(lambda: None)

    def close(self) -> None:
        """All waits end with ``NotStarted``, from now on, and nothing is kept for later ones."""
        self._end(lambda: NotStarted("the task was stopped while it waited"))
        with self._trails_lock:
            self._closed = True
            trails, self._trails = self._trails, {}
        for trail in trails.values():
            self._link.unsubscribe(trail)

    def fail(self, source: object) -> None:
        """All waits end with ``None`` until ``source`` is said to have recovered."""
        self._failing.add(source)
        self._cancel(lambda: None)

    def recover(self, source: object) -> None:
        self._failing.discard(source)

    def _end(self, reason: Callable[[], BaseException | None]) -> None:
        self._over = reason
        self._cancel(reason)

    def _cancel(self, reason: Callable[[], BaseException | None]) -> None:
        for waiter in tuple(self._open):
            waiter.end = reason
            if waiter.has_looked:
                waiter.cancel(reason())

    # Waiting

    def wait(self, event: str, timeout: float, since: Since) -> Event | None:
        """As ``Task.wait_for``; raises ``WaitTimeout`` at the timeout, ``None`` is an early end."""
        deadline = math.inf if timeout == math.inf else monotonic() + timeout
        waiter = Waiter(event)
        self._open.add(waiter)
        try:
            if since == "last":
                found = self._wait_on_trail(waiter, deadline)
            elif self._link.is_active:
                found = self._wait_beside_trail(waiter, deadline, since)
            else:
                found = self._wait_on_link(waiter, deadline, since)
        finally:
            self._open.discard(waiter)
        if found is None and waiter.timed_out:
            raise WaitTimeout(f"no event {event!r} within {timeout:g} s", event=event, timeout=timeout)
        return found

    def _wait_on_link(self, waiter: Waiter, deadline: float, since: Since) -> Event | None:
        try:
            self._subscribe(lambda: waiter, waiter, since, deadline)
            self._end_if_over(waiter)
            return self._link.attend(waiter, deadline)
        finally:
            self._link.unsubscribe(waiter)

    def _wait_beside_trail(self, waiter: Waiter, deadline: float, since: Since) -> Event | None:
        """A wait that moves the trail: the next one since the last begins behind the event that is returned here."""
        known = self._trails.get(waiter.event)
        if since == "now" and known is not None and known.join_from_now(waiter):
            return self._wait_joined(known, waiter, deadline)
        over: Trail | None = None

        def make() -> Trail:
            nonlocal over
            over = self._make_trail(waiter.event)
            return over

        try:
            trail = self._subscribe(make, waiter, since, deadline)
            if trail is None:
                return waiter.wait(deadline)
            trail.join(waiter)
            found = self._wait_joined(trail, waiter, deadline)
            if found is not None:
                over = self._follow(trail, known, found, waiter, since)
            return found
        finally:
            if over is not None:
                self._link.unsubscribe(over)

    def _follow(self, trail: Trail, known: Trail | None, found: Event, waiter: Waiter, since: Since) -> Trail | None:
        """Go on with ``trail``, which gave ``found``, in place of the ``known`` one; returns what is needed no more."""
        event, place = waiter.event, waiter.place
        with self._trails_lock:
            before = self._trails.get(event)
            if self._closed:
                return trail
            if before is not known and before is not None:
                before.forget_through(found, place)  # other waits have moved it meanwhile
                return trail
            if before is None and place is not None:  # enough to come back to, and it costs nothing meanwhile
                self._places[event] = max(place, self._places.get(event, place)) if since == "now" else place
                return trail
            self._trails[event] = trail
        if before is not None:
            before.give_way(trail)
        return before

    def _wait_joined(self, trail: Trail, waiter: Waiter, deadline: float) -> Event | None:
        try:
            self._end_if_over(waiter)  # after the look at what is kept: an event before the finish still counts
            return self._link.attend(waiter, deadline)
        except BaseException:
            if waiter.taken is not None:
                trail.take_back(waiter.taken, waiter.place)  # a signal handler has raised
            raise
        finally:
            if waiter.taken is None:  # who was given an event is forgotten already
                trail.leave(waiter)

    def _subscribe(self, make: Callable[[], S], waiter: Waiter, since: Since, deadline: float) -> S | None:
        """What ``make`` made, subscribed; ``None`` if that cannot be in time, or ``waiter`` was ended.

        Redis being away ends no wait. Each attempt has a sink of its own, for one that failed may have had some events.
        """
        while True:
            sink = make()
            try:
                self._link.subscribe(sink, since, max(LEAST_TRY, deadline - monotonic()))
                return sink
            except BusUnavailable:
                self._end_if_over(waiter)
                if waiter.is_resolved() or monotonic() >= deadline:
                    return None

    def _wait_on_trail(self, waiter: Waiter, deadline: float) -> Event | None:
        while True:
            trail = self._trails.get(waiter.event)
            if trail is not None and trail.join(waiter):
                return self._wait_joined(trail, waiter, deadline)
            if not self._begin_trail(trail, waiter, deadline):
                self._end_if_over(waiter)
                return waiter.wait(deadline)

    def _begin_trail(self, left: Trail | None, waiter: Waiter, deadline: float) -> bool:
        """Begin a trail behind the last event that was returned, else at the join; unless another has, meanwhile."""
        event = waiter.event
        after, since = self._places.get(event), "joined"
        if after is not None:
            since = "{}-{}".format(*after)
        trail = self._subscribe(lambda: self._make_trail(event), waiter, since, deadline)
        if trail is None:
            return False
        with self._trails_lock:
            is_new = not self._closed and self._trails.get(event) is left
            if is_new:
                self._trails[event] = trail
        if not is_new:
            self._link.unsubscribe(trail)
        return not self._closed

    def _make_trail(self, event: str) -> Trail:
        return Trail(
            event,
            on_missed=lambda count: self._link.note_missed(event, count),
            on_room=self._link.loop.refill,
            on_full=self._link.fall_behind,
        )

    def _end_if_over(self, waiter: Waiter) -> None:
        waiter.has_looked = True  # first, for whoever ends the waits looks at it last
        if (reason := self._over or waiter.end) is not None:
            waiter.cancel(reason())
        elif self._failing:
            waiter.cancel()
