"""What an onlooker knows of the run: how far it is, how good it is, who is there and who is gone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from taskbus.types import NodeInfo

__all__ = ["Board", "Evaluation", "Seat"]

_RATE_OVER = 5.0  # seconds


@dataclass(frozen=True)
class Evaluation:
    """The mean return with the weights that ``steps`` steps of training had made."""

    steps: int
    mean_return: float
    solved: bool


@dataclass(frozen=True)
class Seat:
    """A node that was seen; ``gone`` says why it is not there any more."""

    node: NodeInfo
    gone: str = ""


class Board:
    """Filled by listeners and by whoever watches the processes, read by the display; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = monotonic()
        self._ended: float | None = None
        self._rate: deque[tuple[float, int]] = deque([(self._started, 0)])
        self.steps = 0
        self.updates = 0
        self.training: list[tuple[int, float]] = []
        self.evaluations: list[Evaluation] = []
        self.seats: dict[str, Seat] = {}

    @property
    def seconds(self) -> float:
        """From when the board was made to the end of the run, or to now."""
        return (self._ended or monotonic()) - self._started

    def end(self) -> None:
        """The run is over: time stands still."""
        self._ended = monotonic()

    def heard_progress(self, steps: int, updates: int, training_return: float) -> None:
        """A report of the learner: steps it trained on, trajectories it took (answered by weights), its returns."""
        with self._lock:
            self.steps, self.updates = steps, updates
            self.training.append((steps, training_return))
            self._rate.append((monotonic(), updates))
            while self._rate[-1][0] - self._rate[0][0] > _RATE_OVER:
                self._rate.popleft()

    def heard_evaluation(self, steps: int, mean_return: float, solved: bool) -> None:
        """A report of the evaluator."""
        with self._lock:
            self.evaluations.append(Evaluation(steps, mean_return, solved))
            self.steps = max(self.steps, steps)

    def saw(self, nodes: Iterable[NodeInfo]) -> list[str]:
        """Take the nodes that are on the run now; returns the ids that have gone since the last look."""
        with self._lock:
            here = {node.id: node for node in nodes}
            lost = [name for name, seat in self.seats.items() if name not in here and not seat.gone]
            for name in lost:
                self.seats[name] = Seat(self.seats[name].node, "left the run")
            for name, node in here.items():
                seat = self.seats.get(name)
                if seat is None or seat.node.producer != node.producer or not seat.gone:
                    self.seats[name] = Seat(node)
            return lost

    def lost(self, name: str, why: str) -> bool:
        """Mark a node as gone before its lease has run out; false if that is known already."""
        with self._lock:
            seat = self.seats.get(name)
            if seat is not None:
                self.seats[name] = Seat(seat.node, why)
            return seat is None or not seat.gone

    @property
    def here(self) -> list[NodeInfo]:
        """The nodes that are on the run, by id."""
        with self._lock:
            return [seat.node for _, seat in sorted(self.seats.items()) if not seat.gone]

    @property
    def rate(self) -> float:
        """Events a second: a trajectory in and weights out for each update of the learner."""
        with self._lock:
            (start, first), (end, last) = self._rate[0], self._rate[-1]
        if monotonic() - end > _RATE_OVER:
            return 0.0  # the last ones that were heard of are long over
        return 2 * (last - first) / (end - start) if end > start else 0.0

    @property
    def best(self) -> float:
        """The best mean return of an evaluation."""
        return max((evaluation.mean_return for evaluation in self.evaluations), default=0.0)

    @property
    def solved(self) -> Evaluation | None:
        """The evaluation that ended the run."""
        return next((evaluation for evaluation in self.evaluations if evaluation.solved), None)
