"""A collector: plays with the newest weights and sends what happened to the learner.

Run as many as you like, and stop them when you like: ``taskbus run taskbus.demo.collector:main --labels collector``.
"""

from __future__ import annotations

from collections.abc import Callable

from taskbus import task
from taskbus.demo.playing import Player
from taskbus.demo.policy import Policy
from taskbus.demo.weights import PlayerContext, fetch_weights

__all__ = ["main"]

_STEPS = 256  # of one trajectory: about one at the end of training, a dozen at its begin, are whole episodes


def main() -> None:
    """Collect until somebody finishes the run."""
    policy = Policy()
    with task.start(ctx=PlayerContext()):
        task.use(fetch_weights(policy))
        task.use(collect(Player(policy)))
        task.run()


def collect(player: Player) -> Callable[[PlayerContext], None]:
    """Middleware that plays one trajectory and emits it, arrays and all, to the learner alone."""

    def play_and_emit(ctx: PlayerContext) -> None:
        if ctx.steps is not None:
            task.emit("trajectory", only_to="learner", **vars(player.play(_STEPS)))

    return play_and_emit
