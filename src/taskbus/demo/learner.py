"""The learner: takes trajectories from whoever sends some, and answers each with new weights for all.

Run one for each run: ``taskbus run taskbus.demo.learner:main --labels learner -- SEED``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np

from taskbus import Context, task
from taskbus.demo.learning import Adam, improve
from taskbus.demo.playing import Trajectory
from taskbus.demo.policy import Policy
from taskbus.demo.weights import PATIENCE
from taskbus.errors import RunFinished

__all__ = ["main"]

_RATE = 3e-4
_REPORT_EVERY = 0.25  # seconds


@dataclass
class LearnerContext(Context):
    """``trajectory`` is of this step only; ``steps`` counts what the policy was trained on since the start."""

    steps: int = 0
    trajectory: Trajectory | None = None

    def __post_init__(self) -> None:
        self.keep("steps")


def main(seed: str = "0") -> None:
    """Learn until somebody finishes the run; ``seed`` is of the first weights."""
    policy = Policy(int(seed))
    with task.start(ctx=LearnerContext()):
        task.emit("weights", policy.params, steps=0)
        task.use(receive)
        task.use(learn(policy))
        task.use(report())
        task.run()


def receive(ctx: LearnerContext) -> None:
    """Wait for the next trajectory; those that came while we were learning are waiting already."""
    try:
        found = task.wait_for("trajectory", PATIENCE, ignore_timeout_exception=False, since="last")
    except RunFinished:
        return
    if found is not None:
        ctx.trajectory = Trajectory(**found[1])


def learn(policy: Policy) -> Callable[[LearnerContext], None]:
    """Middleware that improves ``policy`` with the trajectory of the step, and emits its new weights."""
    adam = Adam(policy.params, _RATE)

    def improve_and_emit(ctx: LearnerContext) -> None:
        if ctx.trajectory is not None:
            improve(policy, adam, ctx.trajectory)
            ctx.steps += len(ctx.trajectory.rewards)
            task.emit("weights", policy.params, steps=ctx.steps)

    return improve_and_emit


def report() -> Callable[[LearnerContext], None]:
    """Middleware that tells whoever looks on, now and then, how far we are."""
    returns: deque[float] = deque([0.0], maxlen=50)
    reported = 0.0

    def tell(ctx: LearnerContext) -> None:
        nonlocal reported
        if ctx.trajectory is not None:
            returns.extend(ctx.trajectory.returns)
        if monotonic() - reported >= _REPORT_EVERY:
            reported = monotonic()
            mean = float(np.mean(returns))
            task.emit("progress", steps=ctx.steps, updates=ctx.total_step, training_return=mean, transient=True)

    return tell
