"""What the tests of ``taskbus run`` run."""

from __future__ import annotations

import threading

from taskbus import Context, Parallel, task
from taskbus.errors import WaitTimeout


def say(*arguments: str) -> None:
    """Print the arguments and the node."""
    router = Parallel()
    print(" ".join(("heard", *arguments, "on", str(router.node_id), *sorted(router.labels))) + "\n", end="", flush=True)


def steps() -> None:
    """Step until somebody says stop."""

    def step(ctx: Context) -> None:
        task.emit("stepped", ctx.total_step)
        task.wait_for("go_on", timeout=0.1)

    with task.start():
        task.use(step)
        task.run()
    print("left in order\n", end="", flush=True)  # in one piece: several processes write


def leave_at_once() -> None:
    """The first worker is through before the second one begins."""
    with task.start():
        print("left", flush=True)


def long_step() -> None:
    """Come to step 1, which takes far longer than anybody waits."""

    def step(ctx: Context) -> None:
        if ctx.total_step:
            task.emit("in_the_long_step")
            threading.Event().wait(60)

    with task.start():
        task.use(step)
        task.run()


def late() -> None:
    """Wait for somebody who will not come."""
    with task.start():
        task.wait_for_nodes("nobody")


async def wait_nowhere() -> None:
    """Nobody would await it."""


def crash() -> None:
    """Fail in the user's own code."""
    raise ValueError("no such luck")


def impatient() -> None:
    """Fail with an error of taskbus, raised in the user's own code."""
    raise WaitTimeout("the answer did not come")
