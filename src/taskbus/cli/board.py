"""What ``taskbus top`` shows: samples of a run, the rates between them, and the lines of the screen."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskbus.cli.common import ago, clean, table

if TYPE_CHECKING:
    from taskbus.bus.guest import Guest, StreamState
    from taskbus.types import FinishInfo, NodeInfo

__all__ = ["SORTS", "Board", "Sample"]

_WINDOW = 10.0
_SAME_BEAT = 0.05  # seconds by which two looks at one heartbeat may differ

SORTS = {
    "i": ("id", "ID"),
    "s": ("step", "STEP"),
    "r": ("steps per second", "STEP/S"),
    "l": ("lag", "LAG"),
    "m": ("missed", "MISSED"),
    "a": ("last seen", "SEEN"),
    "h": ("host", "HOST"),
}
"""Keys that sort the nodes: what by, and the column."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A run at one moment; ``at`` is monotonic."""

    at: float
    nodes: list[NodeInfo]
    streams: dict[str, StreamState]
    finish: FinishInfo | None

    @classmethod
    def take(cls, guest: Guest) -> Sample:
        nodes = guest.nodes()
        return cls(time.monotonic(), nodes, guest.streams(), guest.finished())


@dataclass
class Board:
    """The samples of the last ten seconds, and how they are to be shown."""

    run: str
    where: str
    sort: str = "i"
    reverse: bool = False
    problem: str = ""
    samples: deque[Sample] = field(default_factory=deque)

    def add(self, sample: Sample) -> None:
        """Take the newest sample, and forget those that are too old."""
        self.problem = ""
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.at - self.samples[1].at >= _WINDOW:
            self.samples.popleft()

    def press(self, key: str) -> None:
        """Sort by the column of a key; the same key again, or ``R``, turns the order round."""
        if key == "R" or (key in SORTS and key == self.sort):
            self.reverse = not self.reverse
        elif key in SORTS:
            self.sort, self.reverse = key, key in "srlma"  # numbers: the largest on top

    # Rates -----------------------------------------------------------------------------------------------------------

    def steps_per_second(self, node: NodeInfo) -> float | None:
        """Between the first and the last heartbeat of this life of the node; ``None`` while only one is known."""
        beats = [
            (sample.at - one.seen, one.step)
            for sample in self.samples
            for one in sample.nodes
            if one.producer == node.producer
        ]
        took = beats[-1][0] - beats[0][0] if beats else 0.0
        if took < _SAME_BEAT:
            return None
        return max(0.0, (beats[-1][1] - beats[0][1]) / took)

    def events_per_second(self, event: str) -> float | None:
        """Over all samples; a name that was not there before began at zero."""
        first, last = self.samples[0], self.samples[-1]
        if last.at == first.at:
            return None
        before = first.streams[event].events if event in first.streams else 0
        return max(0.0, (last.streams[event].events - before) / (last.at - first.at))

    # Lines -----------------------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """Everything, as plain text."""
        last = self.samples[-1] if self.samples else None
        title = f"run {self.run} on {self.where}"
        if self.problem:
            title += f"   {self.problem}"
        if last is None:
            return [title]
        if last.finish is not None:
            when = ago(max(0.0, time.time() - last.finish.at))
            title += f"   FINISHED {when} ago by node {last.finish.node}: {last.finish.reason}"
        healthy = sum(node.healthy for node in last.nodes)
        title += f"   {len(last.nodes)} nodes, {healthy} healthy"
        return [clean(title), "", *self._node_lines(last), "", *self._event_lines(last)]

    def _node_lines(self, last: Sample) -> list[str]:
        nodes = sorted(last.nodes, key=self._key, reverse=self.reverse)
        rows = [
            (
                node.id + ("" if node.healthy else " DEAF"),
                ",".join(sorted(node.labels)) or "-",
                node.host,
                node.role or "-",
                node.step,
                _rate(self.steps_per_second(node)),
                node.lag,
                node.missed,
                node.rejected,
                node.reconnects,
                ago(node.seen),
            )
            for node in nodes
        ]
        head = ("ID", "LABELS", "HOST", "ROLE", "STEP", "STEP/S", "LAG", "MISSED", "REJECTED", "RECONN", "SEEN")
        return table(head, rows, right="STEP STEP/S LAG MISSED REJECTED RECONN SEEN")

    def _key(self, node: NodeInfo) -> tuple[float | str, int, str]:
        name = (len(node.id), node.id)
        by: dict[str, float | str] = {
            "i": 0,
            "s": node.step,
            "r": self.steps_per_second(node) or 0.0,
            "l": node.lag,
            "m": node.missed,
            "a": node.seen,
            "h": node.host,
        }
        return (by[self.sort], *name)

    def _event_lines(self, last: Sample) -> list[str]:
        now = max((state.last for state in last.streams.values()), default=0.0)
        names = sorted(last.streams, key=lambda name: -(self.events_per_second(name) or 0.0))
        rows = [
            (
                name,
                last.streams[name].events,
                _rate(self.events_per_second(name)),
                _bytes(last.streams[name].bytes / max(1, last.streams[name].events)),
                ago(max(0.0, max(now, time.time()) - last.streams[name].last)),
            )
            for name in names
        ]
        return table(("EVENT", "TOTAL", "PER S", "SIZE", "LAST"), rows, right="TOTAL PER S SIZE LAST")


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _bytes(value: float) -> str:
    for unit in ("B", "K", "M"):
        if value < 1000:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}G"
