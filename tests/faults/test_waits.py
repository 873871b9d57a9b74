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
from taskbus.bus.keys import Keys
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
    b.wait_for("x", timeout=0.01)  # has all its connections, too, of which the last ones come with a beat
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


def test_a_wait_that_begins_again_repeats_nothing(
    start_task: StartTask, redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    """The attempt before had read a page when its subscription failed."""
    task = start_task(proxy.url, op_timeout=1.0)
    task.on("other", print)
    with Router(redis_server.url, run_id=run_id) as other:
        for number in range(3):
            other.emit("x", number)
        other.sync()
        proxy.refuse()
        proxy.reset(proxy.find(b"SUBSCRIBE"))
        heal = threading.Timer(2.5, proxy.heal)
        heal.start()
        first = task.wait_for("x", timeout=12, since="last")
        heal.join()
        seen = [first, *iter(lambda: task.wait_for("x", timeout=1, since="last"), None)]
    assert [found[0][0] for found in seen if found is not None] == [0, 1, 2]


@pytest.mark.parametrize("since", ["start", "id"])
def test_a_wait_that_goes_back_while_the_network_is_slow_leaves_nobody_deaf(
    since: str, start_task: StartTask, redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    """Its first page ends with a payload that comes too slowly; the waits after it go on behind what it returned."""
    task = start_task(proxy.url)
    with Router(redis_server.url, run_id=run_id) as other:
        other.emit("x", 0)
        other.emit("x", 1, bytes(1_000_000))
        other.sync()
        assert [task.wait_for("x", 5, since="last")[0][0] for _ in range(2)] == [0, 1]  # type: ignore[index]
        proxy.throttle(100_000)
        with redis_server.client() as client:
            ms, _, _ = client.xrange(Keys(run_id).events("x"), count=1)[0][0].decode().partition("-")
        found = task.wait_for("x", 1, since="start" if since == "start" else f"{int(ms) - 1}-0")
        assert found == ((0,), {})
        proxy.heal()
        for number in range(2, 5):
            other.emit("x", number)
        assert [task.wait_for("x", 5, since="last")[0][0] for _ in range(4)] == [1, 2, 3, 4]  # type: ignore[index]


def test_a_wait_in_the_past_is_over_in_time_whatever_the_payloads_there_take(
    start_task: StartTask, redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    task = start_task(proxy.url)
    with Router(redis_server.url, run_id=run_id) as other:
        for number in range(8):
            other.emit("x", number, bytes(1_000_000))
        other.sync()
        proxy.throttle(500_000)
        began = time.monotonic()
        assert task.wait_for("x", timeout=0.3, since="start") is None
        task.on("x", print, since="start")
        assert time.monotonic() - began < 0.3 + 5 + BUSY  # op_timeout for the second
        proxy.heal()


def test_a_payload_that_takes_longer_than_any_call_arrives_and_its_reader_is_well_meanwhile(
    redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    with (
        Router(proxy.url, run_id=run_id, op_timeout=1.0, block=0.5) as reader,
        Router(redis_server.url, run_id=run_id) as other,
    ):
        heard: list[int] = []
        reader.on("x", lambda value: heard.append(len(value)))
        proxy.throttle(1_000_000)
        other.emit("x", bytes(5_000_000))
        other.sync()
        healthy = [True]
        until(lambda: healthy.append(reader.stats().healthy) or heard, 20)  # type: ignore[func-returns-value]
        assert heard == [5_000_000]
        assert all(healthy)
        assert reader.stats().reconnects == 0
        proxy.heal()


def test_what_others_are_told_is_nothing_that_a_wait_has_missed(
    start_task: StartTask, redis_server: RedisServer, run_id: str
) -> None:
    task = start_task()
    node = f"node.{task._link.node_id}"
    with Router(redis_server.url, run_id=run_id) as other:
        emit = threading.Timer(0.2, other.emit, ("x", 0), {"only_to": node})
        emit.start()
        assert task.wait_for("x", 5) == ((0,), {})
        emit.join()
        for number in range(1, 8):
            other.emit("x", number, only_to="node.of-others")
        other.emit("x", 8, only_to=node)
        assert task.wait_for("x", 5, since="last") == ((8,), {})
    assert task._link.stats().missed == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["on", "wait_for"])
def test_what_was_trimmed_behind_the_id_that_one_begins_at_is_counted(
    how: str, start_task: StartTask, redis_server: RedisServer, run_id: str
) -> None:
    task = start_task()
    with Router(redis_server.url, run_id=run_id, retention_events=100) as other:
        other.emit("x", 0)
        other.sync()
        with redis_server.client() as client:
            last = client.xrevrange(Keys(run_id).events("x"), count=1)[0][0].decode()
        for number in range(1, 1001):
            other.emit("x", number)
            if not number % 10:
                other.sync()
        heard: list[int] = []
        if how == "on":
            task.on("x", heard.append, since=last)
            until(lambda: heard and heard[-1] == 1000)
        else:
            found = task.wait_for("x", 5, since=last)
            assert found is not None
            heard.append(found[0][0])
    assert heard[0] > 1
    assert task._link.stats().missed == heard[0] - 1  # type: ignore[attr-defined]


def test_a_gap_is_told_what_was_trimmed_between_the_join_and_the_first_wait(
    start_task: StartTask, redis_server: RedisServer, run_id: str
) -> None:
    """Exactly that: neither what was trimmed before, nor anything of a name that began later and was kept whole."""
    with Router(redis_server.url, run_id=run_id, retention_events=100) as other:

        def pour(event: str, first: int, last: int) -> None:
            for number in range(first, last + 1):
                other.emit(event, number)
                if not number % 10:
                    other.sync()
            other.sync()

        pour("x", 1, 700)
        pour("calm", 1, 5)
        task = start_task()
        pour("x", 701, 1000)
        pour("calm", 6, 6)
        pour("young", 1, 50)
        pour("fast", 1, 400)
        missed = 0
        for event, last, before in (("x", 1000, 700), ("calm", 6, 5), ("young", 50, 0), ("fast", 400, 0)):
            found = [args[0] for args, _ in iter(lambda event=event: task.wait_for(event, 0.5, since="last"), None)]  # type: ignore[misc]
            assert found == list(range(last - len(found) + 1, last + 1))
            missed += last - before - len(found)
            assert task._link.stats().missed == missed, event  # type: ignore[attr-defined]
        assert missed > 300


def test_who_waits_is_not_forgotten_by_the_one_who_waited_too_and_read(
    start_task: StartTask, redis_server: RedisServer, run_id: str
) -> None:
    task = start_task()
    late: list[float] = []
    with Router(redis_server.url, run_id=run_id) as other, ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            first, second = (pool.submit(task.wait_for, event, 5, since="last") for event in ("first", "second"))
            until(lambda: joined(task, "first") == joined(task, "second") == 1)
            other.emit("first")
            assert first.result() is not None
            other.emit("second")
            other.sync()
            began = time.monotonic()
            assert second.result() is not None
            late.append(time.monotonic() - began)
    assert sorted(late)[10] < 0.01
