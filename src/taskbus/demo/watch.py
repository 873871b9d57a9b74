"""Looking on: the node that hears how the job goes, and knows when it is over."""

from __future__ import annotations

import threading
from time import monotonic

from taskbus import Router
from taskbus.demo.board import Board
from taskbus.demo.crew import Member
from taskbus.demo.display import Display
from taskbus.errors import BusError
from taskbus.types import FinishInfo

__all__ = ["Watch"]

_GRACE = 5.0  # seconds within which the news of the finish follows the end of the processes
_LOOK_EVERY = 1.0  # seconds between two looks at the registry


class Watch:
    """Listens on ``router``, keeps ``board`` up to date and shows it until the run is over.

    Args:
        router: This node, started.
        board: What is known of the run.
        display: Where it is shown.
        collectors: How many are started here; when all are gone and nobody else brings one, the job cannot go on.

    Attributes:
        failure: One sentence on why the job cannot come to its end; empty if it can.
    """

    def __init__(self, router: Router, board: Board, display: Display, collectors: int) -> None:
        self.board = board
        self.display = display
        self.failure = ""
        self._router = router
        self._collectors = collectors
        self._gone: set[str] = set()
        self._finish: FinishInfo | None = None
        self._over = threading.Event()
        self._solved = threading.Event()
        self._next_look = 0.0
        router.on("progress", self.board.heard_progress)
        router.on("evaluation", self._heard_evaluation)
        router.on_finish(self._heard_finish)

    def until_over(self, timeout: float) -> None:
        """Show the board until the run is finished or has failed; after ``timeout`` seconds that is a failure too."""
        deadline = monotonic() + timeout
        while not self._over.wait(min(self.display.every, max(0.0, deadline - monotonic()))):
            self._look()
            self.display.show(self.board)
            if monotonic() >= deadline:
                self._fail(f"not solved within {timeout:g} s: the best mean return was {self.board.best:.1f}")
        self.board.end()
        if self._finish is not None and not self._solved.wait(_GRACE):
            self.failure = f"the run was finished by node {self._finish.node!r} ({self._finish.reason})"
        self.display.show(self.board)

    def ended(self, member: Member) -> None:
        """A process of ours has ended; a collector may do so, and the others go on without it."""
        if (member.is_well and self._over.wait(_GRACE)) or self._over.is_set():
            return
        if member.role != "collector":
            words = member.last_words()
            self._fail(f"{member.name} {member.how}" + (f": {words} (more in {member.log})" if words else ""))
            return
        self._gone.add(member.name)
        if self.board.lost(member.name, member.how):
            self.display.say(f"{member.name} (pid {member.pid}) is gone, {member.how}: the training goes on")

    def _look(self) -> None:
        if monotonic() < self._next_look:
            return
        self._next_look = monotonic() + _LOOK_EVERY
        try:
            gone = self.board.saw(self._router.nodes())
        except BusError as error:
            self.display.say(f"nobody knows who is on the run: {error}")
            return
        for name in gone:
            self.display.say(f"{name} has left the run")
        if len(self._gone) >= self._collectors and not any("collector" in node.labels for node in self.board.here):
            self._fail("no collector is left")

    def _heard_evaluation(self, steps: int, mean_return: float, solved: bool) -> None:
        self.board.heard_evaluation(steps, mean_return, solved)
        if solved:
            self._solved.set()

    def _heard_finish(self, finish: FinishInfo) -> None:
        self._finish = finish
        self._over.set()

    def _fail(self, why: str) -> None:
        if not self._over.is_set():
            self.failure = why
            self._over.set()
