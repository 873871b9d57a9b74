"""How collectors and the evaluator keep up with the learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskbus import Context, task
from taskbus.demo.policy import Policy
from taskbus.errors import WaitTimeout

__all__ = ["PATIENCE", "PlayerContext", "fetch_weights"]

PATIENCE = 60.0
"""Seconds without news after which a role takes the other side for dead."""


@dataclass
class PlayerContext(Context):
    """``steps``: of training, after which the weights of this step were made."""

    steps: int = 0


def fetch_weights(policy: Policy) -> Callable[[PlayerContext], None]:
    """Middleware that waits for weights this node has not seen, and gives ``policy`` the newest of them.

    When the run is over meanwhile, everything stays as it was.
    """
    since = "start"  # the first weights may be older than this node

    def fetch(ctx: PlayerContext) -> None:
        nonlocal since
        found = task.wait_for("weights", timeout=PATIENCE, since=since)
        if found is None and not task.finish:
            raise WaitTimeout(f"no weights for {PATIENCE:g} s: is a learner on the run?")
        since = "last"  # from here on: each once, none missed
        while found is not None:
            (policy.params,), ctx.steps = found[0], found[1]["steps"]
            found = task.wait_for("weights", timeout=0, since=since)

    return fetch
