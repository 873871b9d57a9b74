"""The evaluator: plays whole episodes with the newest weights, and ends the run for all when they are good enough.

Run one for each run: ``taskbus run taskbus.demo.evaluator:main --labels evaluator``.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from taskbus import task
from taskbus.demo.goal import EPISODES, SOLVED
from taskbus.demo.playing import Player
from taskbus.demo.policy import Policy
from taskbus.demo.weights import PlayerContext, fetch_weights

__all__ = ["main"]


def main() -> None:
    """Evaluate until the policy is good enough, or somebody else finishes the run."""
    policy = Policy()
    with task.start(ctx=PlayerContext()):
        task.use(fetch_weights(policy))
        task.use(evaluate(Player(policy)))
        task.run()


def evaluate(player: Player) -> Callable[[PlayerContext], None]:
    """Middleware that emits the mean return of some episodes, and finishes the run when it is good."""

    def play_and_judge(ctx: PlayerContext) -> None:
        if ctx.steps is None:
            return
        mean_return = mean(player.episode() for _ in range(EPISODES))
        solved = mean_return >= SOLVED
        task.emit("evaluation", steps=ctx.steps, mean_return=mean_return, solved=solved)
        if solved:
            task.finish = True  # for every node, also for one that comes late

    return play_and_judge
