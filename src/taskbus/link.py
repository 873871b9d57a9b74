"""The bus of a task that has none: events stay in this process, and the run is this task alone."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from taskbus.config import check_reach
from taskbus.dispatch import LOCAL_TIMEOUT, EventLoop
from taskbus.errors import ConfigError, NotStarted
from taskbus.globs import match_globs, parse_globs
from taskbus.types import NodeInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskbus.types import Event, FinishInfo, Labels, Link, Since, Sink
    from taskbus.waiting import Waiter

__all__ = ["NOT_STARTED", "UNSTARTED", "Standalone", "match_labels"]

UNSTARTED: Final = "the task is not started: call start() first, or use it in a with statement"


def match_labels(labels: frozenset[str], patterns: Labels) -> bool:
    """Whether one of the shell-style globs matches one of the labels; ``None`` matches always."""
    return match_globs(labels, parse_globs(patterns))


class Standalone:
    """Stands in for a router: the same calls, on a run of one node that ends with the task."""

    is_active = False
    node_id = None

    def __init__(self) -> None:
        self.loop = EventLoop("standalone")
        self.labels = frozenset({"standalone"})
        self.finished: FinishInfo | None = None
        self._started = time.time()
        self._step = 0
        self._role = ""

    def start(self) -> None:
        """Nothing to join."""

    def stop(self, timeout: float | None = None) -> None:
        """End the delivery threads; those inside a call end by themselves."""
        self.loop.close(timeout or 0.0)

    def add_labels(self, labels: frozenset[str]) -> Callable[[], None]:
        self.labels |= labels
        return lambda: None  # they end with the task

    def emit_event(
        self,
        event: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        only_remote: bool = False,
        only_local: bool = False,
        only_to: Labels = None,
        transient: bool = False,
    ) -> None:
        check_reach(only_remote, only_local)
        if not only_remote and match_labels(self.labels, only_to):
            self.loop.deliver(event, args, kwargs, LOCAL_TIMEOUT)

    def subscribe(self, sink: Sink, since: Since = "now", timeout: float | None = None) -> None:
        if since != "now":
            raise ConfigError(
                f"a standalone task keeps no events, so since can only be 'now' for event {sink.event!r}; "
                "for more start it with router=Router('memory://NAME'), or by `taskbus run`"
            )
        self.loop.attach(sink)

    def unsubscribe(self, sink: Sink) -> None:
        self.loop.remove(sink)

    def attend(self, waiter: Waiter, deadline: float) -> Event | None:
        return waiter.wait(deadline)

    def fall_behind(self, sink: Sink) -> None:
        """Nothing is kept, so nobody can come back to it."""

    def note_missed(self, event: str, count: int) -> None:
        """Nothing is kept, so nothing is trimmed."""

    def sync(self, timeout: float | None = None) -> None:
        """Nothing has to be acknowledged."""

    def finish(self, reason: str, timeout: float | None = None) -> None:
        """Nobody else has to know."""

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        return lambda: None  # the task that finishes itself is the only one who could

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None  # nobody asks

    def fail(self, error: BaseException) -> None:
        """Nobody else has to know."""

    def progress(self, step: int, role: str) -> None:
        self._step, self._role = step, role

    def nodes(self, patterns: Labels = None) -> list[NodeInfo]:
        if not match_labels(self.labels, patterns):
            return []
        host, pid = socket.gethostname(), os.getpid()
        return [NodeInfo("standalone", self.labels, host, pid, self._role, self._step, self._started, seen=0.0)]

    def wake_meetings(self) -> None:
        """Nobody waits."""

    def wait_for_nodes(
        self, patterns: Labels, count: int, timeout: float, leaves: Callable[[], bool]
    ) -> list[NodeInfo]:
        found = self.nodes(patterns)
        if len(found) < count:
            raise ConfigError(
                f"a standalone task is alone: {len(found)} of {count} nodes are there, and none will come"
            )
        return found

    def barrier(self, name: str, count: int, timeout: float, leaves: Callable[[], bool]) -> None:
        if count > 1:
            raise ConfigError(
                f"a standalone task is alone at barrier {name!r}: it can wait for 1 node, not for {count}"
            )


class _NotStarted:
    """Stands in for all that a task has only between its start and its stop: every use says so."""

    is_active = False
    node_id = None
    labels = frozenset[str]()
    finished = None

    def __getattr__(self, name: str) -> NoReturn:
        raise NotStarted(UNSTARTED)


NOT_STARTED = cast("Link", _NotStarted())
