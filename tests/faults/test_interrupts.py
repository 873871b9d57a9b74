"""Signal handlers that raise, at any moment: what they interrupt is over, and the node goes on."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from taskbus import Router, Task
from taskbus.testing import RedisServer
from tests.faults.conftest import scaled


class Interrupt(Exception):
    """As a handler of SIGALRM raises that bounds some work."""


@contextmanager
def interrupting(after: Callable[[], float]) -> Iterator[Callable[[Callable[[], object]], None]]:
    """What is given to the function runs until a signal handler raises, ``after()`` seconds later."""
    main = threading.get_ident()
    armed = False

    def handler(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    def interrupt(work: Callable[[], object]) -> None:
        nonlocal armed
        with suppress(Interrupt):
            armed = True
            timer = threading.Timer(after(), signal.pthread_kill, (main, signal.SIGUSR1))
            timer.start()
            while armed:
                work()
        timer.join()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def task(redis_server: RedisServer, run_id: str) -> Iterator[Task]:
    task = Task().start(router=Router(redis_server.url, run_id=run_id))
    yield task
    task.request_leave()
    task.stop()


def test_what_a_signal_handler_raises_ends_the_wait_that_it_interrupts(task: Task) -> None:
    task.wait_for("answer", timeout=0.05, since="last")
    with interrupting(lambda: 0.2) as interrupt:
        begin = time.monotonic()
        interrupt(lambda: task.wait_for("answer", timeout=3, since="last"))
        assert time.monotonic() - begin < 1


def test_a_wait_that_is_interrupted_anywhere_leaves_no_deaf_node(
    task: Task, redis_server: RedisServer, run_id: str
) -> None:
    dice = random.Random(7)
    stopping = threading.Event()
    with Router(redis_server.url, run_id=run_id) as other:

        def talk() -> None:
            while not stopping.wait(0.0005):
                other.emit("answer")

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            with interrupting(lambda: dice.uniform(0.0002, 0.003)) as interrupt:
                for _ in range(scaled(100, 3000)):
                    interrupt(lambda: task.wait_for("answer", timeout=3, since="last"))
                    assert task.wait_for("answer", timeout=3) is not None
        finally:
            stopping.set()
            talker.join()
