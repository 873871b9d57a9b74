"""Waits: none is missed, none is late, none lasts for ever."""

from __future__ import annotations

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
from tests.faults.conftest import scaled

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


@pytest.mark.parametrize("since", ["last", "start"])
def test_p0_20_no_wake_up_is_lost_around_the_begin_of_a_wait(since: str, start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    missed: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        for shot in range(scaled(300, 2000)):
            event = "x" if since == "last" else f"x.{shot}"
            ahead, behind = random.uniform(0, 0.004), random.uniform(0, 0.004)

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


@pytest.mark.parametrize("fault", ["none", "frozen", "black hole", "killed"])
def test_p0_21_a_timeout_comes_on_time(
    fault: str, start_task: StartTask, redis_server: RedisServer, proxy: Proxy
) -> None:
    a = start_task(proxy.url, node_id="a")
    assert a.wait_for("warm", timeout=0.01, since="last") is None
    if fault == "frozen":
        redis_server.freeze()
    elif fault == "black hole":
        proxy.blackhole()
    elif fault == "killed":
        redis_server.kill()
    slack = 0.06 if fault == "none" else 0.3
    late: list[str] = []
    for event in ("warm", "cold"):
        for since in ("now", "last", "start"):
            for timeout in (0, 0.01, 0.3):
                for as_error in (False, True):
                    began = time.monotonic()
                    if as_error:
                        with pytest.raises(WaitTimeout):
                            a.wait_for(event, timeout, False, since=since)
                    else:
                        assert a.wait_for(event, timeout, since=since) is None
                    took = time.monotonic() - began
                    assert took > timeout - 0.001
                    if took > timeout + slack:
                        late.append(f"{event} {since} {timeout}: {took:.3f} s")
    assert len(late) <= 2, late  # a busy machine may be late now and then
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
