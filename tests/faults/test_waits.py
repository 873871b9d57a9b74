"""Waits: none is missed, none is late, none lasts for ever."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskbus import Router, Task
from taskbus.errors import Fenced, NotStarted, RunFinished, WaitTimeout
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from taskbus.waiting import Trail
from tests.faults.conftest import BUSY, FULL, scaled

PAUSE = threading.Event()
StartTask = Callable[..., Task]


@pytest.fixture
def start_task(redis_server: RedisServer, run_id: str) -> Iterator[StartTask]:
    """Makes started tasks, each a node of one run; they leave at the end without a finish."""
    made: list[Task] = []

    def make(url: str | None = None, **settings: Any) -> Task:
        task = Task().start(router=Router(url or redis_server.url, run_id=run_id, **settings))
        made.append(task)
        return task

    yield make
    for task in made:
        task.request_leave()
        task.stop()


def joined(task: Task, event: str) -> int:
    """How many wait on trails."""
    trails = [sink for sink in task._link.loop.sinks(event) if isinstance(sink, Trail)]
    return sum(len(trail._waiters) + len(trail._newcomers) for trail in trails)


def sinks(task: Task, event: str) -> list[str]:
    return [type(sink).__name__ for sink in task._link.loop.sinks(event)]


@pytest.mark.timeout(scaled(60, 300))
@pytest.mark.parametrize("since", ["last", "start"])
def test_p0_20_no_wake_up_is_lost_around_the_begin_of_a_wait(since: str, start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    missed: list[int] = []
    jitter = 0.05 if FULL else 0.004
    with ThreadPoolExecutor(1) as pool:
        for shot in range(scaled(300, 2000)):
            event = "x" if since == "last" else f"x.{shot}"
            ahead, behind = random.uniform(0, jitter), random.uniform(0, jitter)

            def emit(shot: int = shot, event: str = event, pause: float = ahead) -> None:
                PAUSE.wait(pause)
                a.emit(event, shot)

            emitting = pool.submit(emit)
            PAUSE.wait(behind)
            if b.wait_for(event, timeout=5, since=since) != ((shot,), {}):
                missed.append(shot)
            emitting.result()
    assert missed == []


def test_p0_20_whatever_is_emitted_after_the_registration_arrives(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    with ThreadPoolExecutor(1) as pool:
        for shot in range(scaled(200, 2000)):
            waiting = pool.submit(b.wait_for, "x", 10)
            until(lambda: joined(b, "x") == 1)
            if shot < 5:
                PAUSE.wait(0.05)  # the first subscription has still to be made
            a.emit("x", shot)
            assert waiting.result(15) == ((shot,), {})


class Stalls:
    """How late plain waits of a thread are meanwhile: what a busy machine adds to every wait."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            if self._over.wait(0.01):
                return
            self.longest = max(self.longest, time.monotonic() - began - 0.01)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


TIMEOUTS = (0, 0.01, 0.3, 5.0)


@pytest.mark.timeout(scaled(60, 300))
@pytest.mark.parametrize("fault", ["none", "frozen", "black hole", "killed"])
def test_p0_21_a_timeout_comes_on_time(
    fault: str, start_task: StartTask, redis_server: RedisServer, proxy: Proxy
) -> None:
    """On an event that is read already and on one that is new, in both outcomes; and it leaves nothing behind."""
    # The proxy is only there where it has to be: it shares this process, and its threads with the waits.
    a = start_task(proxy.url if fault == "black hole" else redis_server.url, node_id="a")
    assert a.wait_for("warm", timeout=0.01, since="last") is None
    if fault == "frozen":
        redis_server.freeze()
    elif fault == "black hole":
        proxy.blackhole()
    elif fault == "killed":
        redis_server.kill()

    def too_late(event: str, since: Any, timeout: float, as_error: bool) -> float:
        began = time.monotonic()
        if as_error:
            with pytest.raises(WaitTimeout):
                a.wait_for(event, timeout, False, since=since)
        else:
            assert a.wait_for(event, timeout, since=since) is None
        return time.monotonic() - began - timeout

    calls = list(itertools.product(("warm", "cold"), ("now", "last", "start"), TIMEOUTS, (False, True)))
    calls *= scaled(1, 21)  # 1008
    random.shuffle(calls)
    with ThreadPoolExecutor(4) as short, ThreadPoolExecutor(20) as long, Stalls() as stalls:
        waits = [(long if call[2] > 1 else short).submit(too_late, *call) for call in calls]
        errors = sorted(wait.result() for wait in waits)
    assert errors[0] > -0.001
    slack = (0.06 if fault == "none" else 0.3) + stalls.longest
    assert errors[-1] <= slack + BUSY, errors[-5:]
    assert errors[len(errors) // 2] <= slack, errors[-5:]
    assert [name for event in ("warm", "cold") for name in sinks(a, event) if name != "Trail"] == []
    assert not a._waits._open
    proxy.heal()
    if fault == "killed":
        redis_server.start()
    redis_server.thaw()
    b = start_task(node_id="b")
    b.emit("cold", 1)
    assert a.wait_for("cold", timeout=10, since="last") == ((1,), {})


@pytest.mark.parametrize("end", ["finish", "stop", "fence"])
def test_p0_22_two_hundred_waiters_end_and_cost_no_connection(
    end: str, start_task: StartTask, redis_server: RedisServer, run_id: str
) -> None:
    a, b = start_task(node_id="a", heartbeat=0.5), start_task(node_id="b")
    a.wait_for("x", timeout=0.01, since="last")
    with redis_server.client() as client, ThreadPoolExecutor(200) as pool:
        clients = len(client.client_list())
        waits = [pool.submit(a.wait_for, "x", ignore_timeout_exception=False) for _ in range(100)]
        waits += [pool.submit(a.wait_for, "x", ignore_timeout_exception=False, since="last") for _ in range(100)]
        until(lambda: joined(a, "x") == 200)
        assert len(client.client_list()) <= clients
        expected: type[Exception] = {"finish": RunFinished, "stop": NotStarted, "fence": Fenced}[end]
        if end == "finish":
            b.finish = True
        elif end == "stop":
            a.request_leave = lambda: None  # type: ignore[method-assign]  # for the fixture
            threading.Thread(target=a.stop).start()
        else:
            client.delete(f"taskbus:{{{run_id}}}:node:a")
            Router(redis_server.url, run_id=run_id, node_id="a").start().stop()
            a._link.life.heart.hurry()  # type: ignore[attr-defined]
        began = time.monotonic()
        for wait in waits:
            with pytest.raises(expected):
                wait.result(8)
        assert time.monotonic() - began < 4
    until(lambda: not a._waits._open)


def test_a_timeout_comes_on_time_while_what_was_read_comes_slowly(
    start_task: StartTask, redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    task = start_task(proxy.url)
    for event in ("large", "answer"):
        task.wait_for(event, timeout=0.01, since="last")
    proxy.throttle(100_000)
    with Router(redis_server.url, run_id=run_id) as other:
        other.emit("large", bytes(200_000))
        other.sync()
        began = time.monotonic()
        assert task.wait_for("answer", timeout=0.6, since="last") is None
        assert time.monotonic() - began < 0.9 + BUSY
        proxy.heal()
        assert task.wait_for("large", timeout=5, since="last") is not None
    assert task._link.stats().reconnects == 0  # type: ignore[attr-defined]


def test_a_large_payload_that_takes_longer_than_a_wait_costs_no_connection(
    start_task: StartTask, redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    task = start_task(proxy.url)
    task.wait_for("large", timeout=0.01, since="last")
    proxy.throttle(4_000_000)
    with Router(redis_server.url, run_id=run_id) as other:
        emit = threading.Timer(0.2, other.emit, ("large", bytes(1_000_000)))
        emit.start()
        until(lambda: task.wait_for("large", timeout=0.1, since="last") is not None, timeout=10)
        emit.join()
    assert task._link.stats().reconnects == 0  # type: ignore[attr-defined]
