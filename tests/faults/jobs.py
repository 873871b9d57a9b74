"""What the processes of ``test_process_life`` run: each prints one JSON object a line, for the test to read."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from taskbus import Router, Task, task
from taskbus.errors import NotStarted


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def in_a_step() -> None:
    """Steps of 0.5 s that emit a hundred events each."""
    with task.start():
        pause = threading.Event()

        def step(ctx: Any) -> None:
            say(step=ctx.total_step)
            for number in range(100):
                task.emit("numbers", ctx.total_step * 100 + number)
            pause.wait(0.5)
            say(done=ctx.total_step)

        task.use(step).run()
    say(left=True)


def in_emit() -> None:
    """Emits as fast as it can."""
    with task.start():
        count = 0

        def step(ctx: Any) -> None:
            nonlocal count
            for _ in range(100):
                task.emit("numbers", count)
                count += 1
            if ctx.total_step == 5:
                say(step=5)

        task.use(step).run()
        say(emitted=count)
    say(left=True)


def in_a_wait() -> None:
    """Waits for what nobody emits."""
    with task.start():

        def step(ctx: Any) -> None:
            task.emit("numbers", 0)
            say(step=0)
            say(answer=task.wait_for("answer"))

        task.use(step).run()
    say(left=True)


def exits(url: str, run_id: str, how: str) -> None:
    """Ends without a stop, with events that are not written yet."""
    router = Router(url, run_id=run_id).start()
    for number in range(1000):
        router.emit("numbers", number)
    say(ready=True)
    if how == "frozen":
        sys.stdin.readline()
        router.emit("numbers", 1000)
    if how == "error":
        raise ValueError("as it is")
    sys.exit(3)


def forks(url: str, run_id: str, rounds: str) -> None:
    """Forks while the reader is blocked and events flow; each child tries to use the bus, and exits in its own way."""
    with Router(url, run_id=run_id, node_id="parent") as router, Task().start(router=router) as task:
        heard: list[int] = []
        router.on("back", heard.append)
        task.wait_for("never", timeout=0, since="last")
        refused = 0
        for number in range(int(rounds)):
            router.emit("numbers", number)
            pid = os.fork()
            if not pid:
                child(router, task, number)
            refused += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            router.emit("back", number)
        router.sync()
        deadline = time.monotonic() + 10
        while len(heard) < int(rounds) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        task.request_leave()
        say(refused=refused, heard=heard, nodes=[node.id for node in router.nodes()], stats=router.stats().emitted)


def child(router: Router, task: Task, number: int) -> None:
    """Never returns; ends with 7 when every use of the parent's router says that it is the parent's."""
    right = True
    wait = lambda: task.wait_for("never", timeout=1, since="last")  # noqa: E731
    for use in (lambda: router.emit("numbers", -1), lambda: router.on("x", print), router.sync, router.nodes, wait):
        try:
            use()
            right = False
        except NotStarted as error:
            right = right and "forked" in str(error)
    right = right and not router.is_active and router.stop() == 0
    if number % 10 == 0:  # a fresh start is allowed
        config = router.config
        with Router(config.url, run_id=config.run_id, node_id="child") as own, Task().start(router=own) as other:
            own.emit("fresh", number)
            other.request_leave()  # or it would finish the run
    if number % 2:
        os._exit(7 if right else 1)
    sys.exit(7 if right else 1)  # with everything that runs at an exit


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
