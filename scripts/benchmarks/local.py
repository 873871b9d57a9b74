"""Events within a process: to a listener, and to a thread that waits."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import least
from stage import Row, Stage, in_turn, now, progress, quantile

from taskbus import Task


class _Count:
    def __init__(self, count: int) -> None:
        self._left = count
        self.done = threading.Event()

    def __call__(self, number: int) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()


def _emit(count: int) -> float:
    with Task().start() as task:
        handler = _Count(count)
        task.on("event", handler)
        start = now()
        for number in range(count):
            task.emit("event", number, only_local=True)
        handler.done.wait()
        return count / (now() - start)


def _queue(count: int) -> float:
    queue: SimpleQueue[Any] = SimpleQueue()
    handler = _Count(count)

    def work() -> None:
        while (number := queue.get()) is not None:
            handler(number)

    thread = threading.Thread(target=work)
    thread.start()
    start = now()
    for number in range(count):
        queue.put(number)
    handler.done.wait()
    took = now() - start
    queue.put(None)
    thread.join()
    return count / took


def _wake(count: int, place: Any) -> float:
    """The median time from the emit to the return of the wait, in microseconds."""
    took: list[float] = []
    with place as task:
        sent = [0.0]
        waiting = threading.Lock()
        waiting.acquire()

        def wait() -> None:
            for _ in range(count):
                waiting.release()
                task.wait_for("event")
                took.append(now() - sent[0])

        thread = threading.Thread(target=wait)
        thread.start()
        pause = threading.Event()
        for number in range(count):
            while not waiting.acquire(timeout=1.0):
                task.emit("event", number, only_local=True)  # the last one came before it waited
            pause.wait(0.0005)  # until it blocks
            sent[0] = now()
            task.emit("event", number, only_local=True)
        thread.join()
    return quantile(took, 0.5) * 1e6


def _task(count: int) -> float:
    return _wake(count, Task().start())


def _least_wake(count: int) -> float:
    return _wake(count, nullcontext(least.Waits()))


def _least(count: int) -> float:
    return least.deliver(count, _Count(count))


def _lock(count: int) -> float:
    took: list[float] = []
    sent = [0.0]
    waiting, wake = threading.Lock(), threading.Lock()
    waiting.acquire()
    wake.acquire()

    def wait() -> None:
        for _ in range(count):
            waiting.release()
            wake.acquire()
            took.append(now() - sent[0])

    thread = threading.Thread(target=wait)
    thread.start()
    pause = threading.Event()
    for _ in range(count):
        waiting.acquire()
        pause.wait(0.0005)
        sent[0] = now()
        wake.release()
    thread.join()
    return quantile(took, 0.5) * 1e6


def run(stage: Stage) -> list[Row]:
    emits = Row("local events to a listener", "events/s", reach=0.7, more_is_better=True)
    wakes = Row("local wake-up, p50", "us", reach=1.2)
    for turn in range(stage.rounds):
        progress(f"local events, round {turn + 1}")
        count = stage.size(200_000, 5_000)
        for side, rate in in_turn(turn, (emits.ours, _emit), (emits.raw, _queue), (emits.least, _least)):
            side.append(rate(count))
        count = stage.size(1_000, 50)
        for side, wake in in_turn(turn, (wakes.ours, _task), (wakes.raw, _lock), (wakes.least, _least_wake)):
            side.append(wake(count))
    return [emits, wakes]
