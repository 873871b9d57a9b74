"""The thread that waits reads what comes by itself where it can; everybody else is served all the same."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import pytest

from taskbus.router import Router
from taskbus.task import Task
from taskbus.testing import until
from tests.contract.conftest import Join, StartTask


def ping_pong(start_task: StartTask, rounds: int, *, listens: bool) -> None:
    a, b = start_task(), start_task()
    if listens:
        for task in (a, b):
            task.on("other", lambda *args: None)
    play(a, b, rounds)


def play(a: Task, b: Task, rounds: int) -> None:
    def answer() -> None:
        for number in range(rounds):
            assert b.wait_for("ping", 10, since="last") == ((number,), {})
            b.emit("pong", number)

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        for number in range(rounds):
            a.emit("ping", number)
            assert a.wait_for("pong", 10, since="last") == ((number,), {})
        answering.result(15)


def test_a_question_and_its_answer_again_and_again(start_task: StartTask) -> None:
    ping_pong(start_task, 300, listens=False)


def test_the_same_where_somebody_listens_too(start_task: StartTask) -> None:
    ping_pong(start_task, 300, listens=True)


def test_what_is_emitted_one_by_one_is_acknowledged_without_another_emit(start_task: StartTask) -> None:
    a = start_task()
    router: Any = a._link
    for number in range(20):
        a.emit("x", number)
        until(lambda: router.stats().outbox_events == 0, what="the last one is acknowledged")
    assert router.stats().acknowledged == router.stats().emitted


def test_listeners_are_served_while_a_thread_waits_and_after(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    heard: list[int] = []
    a.on("x", heard.append)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(a.wait_for, "go", 10)
        for number in range(50):
            b.emit("x", number)
        until(lambda: len(heard) == 50, what="what came during the wait is heard")
        b.emit("go")
        assert waiting.result(10) == ((), {})
        for number in range(50, 100):
            b.emit("x", number)
        until(lambda: heard == list(range(100)), what="what came after it is heard, too")


def test_the_others_wait_on_when_the_one_who_reads_has_what_it_wanted(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            waits = {event: pool.submit(a.wait_for, event, 10, since="last") for event in ("p", "q", "r", "s")}
            for event in ("q", "p", "s", "r"):
                b.emit(event, turn)
                assert waits[event].result(10) == ((turn,), {})


def test_an_event_of_this_very_process_ends_the_wait_of_who_reads(start_task: StartTask) -> None:
    a = start_task()
    with ThreadPoolExecutor(1) as pool:
        for number in range(20):
            waiting = pool.submit(a.wait_for, "x", 10, since="last")
            a.emit("x", number)
            assert waiting.result(10) == ((number,), {})


def test_a_finish_and_a_leave_end_the_wait_of_who_reads(start_task: StartTask) -> None:
    a, b, c = start_task(), start_task(), start_task()
    with ThreadPoolExecutor(2) as pool:
        leaving, finishing = pool.submit(a.wait_for, "x"), pool.submit(b.wait_for, "x")
        threading.Event().wait(0.05)
        a.request_leave()
        assert leaving.result(5) is None
        c.finish = True
        assert finishing.result(5) is None


def test_a_large_payload_reaches_who_reads_by_himself(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    array = np.arange(200_000, dtype=np.float32)
    with ThreadPoolExecutor(1) as pool:
        for number in range(5):
            waiting = pool.submit(b.wait_for, "weights", 10, since="last")
            a.emit("small", number)
            a.emit("weights", array + number)
            found = waiting.result(10)
            assert found is not None
            np.testing.assert_array_equal(found[0][0], array + number)


def test_many_short_waits_leave_nobody_deaf(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert a.wait_for("nothing", 0.001) is None
    heard: list[int] = []
    a.on("x", heard.append)
    b.emit("x", 1)
    until(lambda: heard == [1])
    b.emit("y", 2)
    assert a.wait_for("y", 10, since="start") == ((2,), {})


@pytest.mark.alone
def test_a_barrier_opens_as_soon_after_many_waits_as_without_any(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    router: Any = a._link

    def lag(name: str) -> float:
        """From the arrival of the last one to the return of the first, in seconds."""

        def arrive() -> float:
            a.barrier(name, 2, 20)
            return time.monotonic()

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(arrive)
            until(lambda: router.life.calls.call(b"EXISTS", router.life.keys.barrier(name)))
            b.barrier(name, 2, 20)
            opened = time.monotonic()
            return max(0.0, first.result(20) - opened)

    without, after = [], []
    for turn in range(7):
        without.append(lag(f"without.{turn}"))
    for turn in range(7):
        play(a, b, 100)
        after.append(lag(f"after.{turn}"))
    assert sum(after) < 10 * max(sum(without), 7 * 0.001)


@pytest.mark.alone
def test_a_finish_is_known_as_soon_after_many_waits_as_without_any(redis_url: str, run_id: str) -> None:
    def lag(name: str, rounds: int) -> float:
        """From the end of the call that finishes the run to the moment at which the other node knows, in seconds."""
        with (
            Router(redis_url, run_id=f"{run_id}.{name}") as one,
            Router(redis_url, run_id=f"{run_id}.{name}") as other,
            Task().start(router=one) as a,
            Task().start(router=other) as b,
        ):
            play(a, b, rounds)
            b.finish = True
            finished = time.monotonic()
            until(lambda: a.finish)
            return time.monotonic() - finished

    lags = [(lag(f"without.{turn}", 0), lag(f"after.{turn}", 60)) for turn in range(9)]
    without, after = (median(column) for column in zip(*lags, strict=True))
    assert after < 5 * max(without, 0.002)


@pytest.mark.alone
def test_a_node_that_joins_is_known_as_soon_after_many_waits_as_without_any(start_task: StartTask, join: Join) -> None:
    a, b = start_task(), start_task()

    def lag(rounds: int) -> float:
        """From the end of the call that has a node join to the return of who waits for it, in seconds."""

        def wait() -> float:
            a.wait_for_nodes("late", 1, 20)
            return time.monotonic()

        with ThreadPoolExecutor(1) as pool:
            play(a, b, rounds)
            waiting = pool.submit(wait)
            late = join(labels="late")
            joined = time.monotonic()
            known = waiting.result(20)
            late.stop()
            return max(0.0, known - joined)

    lag(0)  # subscribes to what the others are then told by
    without = median([lag(0) for _ in range(9)])
    after = median([lag(60) for _ in range(9)])
    assert after < 5 * max(without, 0.002)
