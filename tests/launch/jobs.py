"""Programs that the tests start as workers; the module is run as a script for what needs a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from taskbus import Parallel, task
from taskbus.router import active_router
from taskbus.testing import until


def _note(directory: str, text: str) -> None:
    node = Parallel().node_id
    with Path(directory, f"{node}.log").open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def meet(directory: str, count: int) -> None:
    """Note who is here, once all are."""
    Parallel().wait_for_nodes(None, count, 20.0)
    Parallel().barrier("all", count, 20.0)
    _note(directory, ",".join(sorted(Parallel().labels)))


def value(x: int) -> tuple[int, bool, str]:
    """What one worker returns to its caller."""
    router = active_router()
    return x + 1, router is not None and router.is_active, str(Parallel().node_id)


def crash_one(directory: str) -> None:
    """Worker ``0`` fails, the other would wait for ever."""
    meet(directory, 2)
    if Parallel().node_id == "0":
        raise ValueError("the reason why")
    threading.Event().wait()


def exit_without_a_word(directory: str) -> None:
    """Worker ``0`` ends as a library in C may end it."""
    meet(directory, 2)
    if Parallel().node_id == "0":
        os._exit(7)
    threading.Event().wait()


def crash_at_length(directory: str) -> None:
    """Both workers fail, with more to say than fits into a pipe."""
    meet(directory, 2)
    raise ValueError("long " * 40_000 + "the end of it")


def kill_one(directory: str) -> None:
    """Worker ``0`` is killed, the other would wait for ever."""
    meet(directory, 2)
    if Parallel().node_id == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def crash_twice(directory: str) -> None:
    """Fails two times in each worker, then is content."""
    _note(directory, "start")
    if len(Path(directory, f"{Parallel().node_id}.log").read_text(encoding="utf-8").split()) < 3:
        raise ValueError("not yet")


def step_for_ever(directory: str) -> None:
    """A task with steps of 0.2 s and no end; notes how it left."""

    def step(ctx: object) -> None:
        task.emit("stepped")
        threading.Event().wait(0.2)

    with task.start():
        _note(directory, f"pid {os.getpid()}")
        task.use(step)
        task.run()
        _note(directory, "left")


def wait_for_ever(directory: str) -> None:
    """A task that waits for an event that never comes."""
    with task.start():
        _note(directory, f"pid {os.getpid()}")
        task.wait_for("never")
        _note(directory, "left")


def meet_for_ever(directory: str) -> None:
    """A task at a barrier to which nobody else comes."""
    with task.start():
        _note(directory, f"pid {os.getpid()}")
        try:
            task.barrier("nobody", 9)
        finally:
            _note(directory, "left")


def lose_the_place() -> None:
    life = Parallel().life
    life.calls.call(b"HSET", life.keys.node("7"), b"token", b"another's")  # as the claim of another life does
    life.calls.call(b"DEL", life.keys.producer(life.producer))
    with task.start():
        task.emit("refused")
        task.use(lambda ctx: until(lambda: life.writer.fatal)).run()


if __name__ == "__main__":
    Parallel.runner(int(sys.argv[2]), node_ids=0)(globals()[sys.argv[1]], *sys.argv[3:])
