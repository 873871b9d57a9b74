"""How collectors and the evaluator keep up with the learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskbus import Context, task
from taskbus.demo.policy import Policy
from taskbus.errors import RunFinished

__all__ = ["PATIENCE", "PlayerContext", "fetch_weights"]

PATIENCE = 60.0
"""Seconds without news after which a role gives up, with an error that says what did not come."""


@dataclass
class PlayerContext(Context):
    """``steps`` of training had made the weights of this step; ``None``: there are no new ones."""

    steps: int | None = None


def fetch_weights(policy: Policy) -> Callable[[PlayerContext], None]:
    """Middleware that waits for weights this node has not seen, and gives ``policy`` the newest of them.

    Without news (the run is over, or this node is asked to leave) everything stays as it was.
    """
    since = "start"  # the first weights may be older than this node

    def fetch(ctx: PlayerContext) -> None:
        nonlocal since
        try:
            found = task.wait_for("weights", PATIENCE, ignore_timeout_exception=False, since=since)
        except RunFinished:
            return
        since = "last"  # from here on: each once, none missed
        while found is not None:
            (policy.params,), ctx.steps = found[0], found[1]["steps"]
            found = task.wait_for("weights", timeout=0, since=since)

    return fetch
