"""The end of a run: nobody runs on, whatever happened around it."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskbus import Router, Task
from taskbus.bus.keys import Keys
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, MakeNode, scaled
from tests.faults.node import LogLines
from tests.faults.process import NodeProcess

SEEN_WITHIN = 2.0
"""Seconds after which a healthy node has seen a finish."""
HEALED_WITHIN = 3.0
"""Seconds after which a healed server is in use again."""
SLACK = 2.0
"""For a busy machine."""

PAUSE = threading.Event()


def test_p0_13_a_node_that_joins_after_finish_runs_no_step(redis_server: RedisServer, run_id: str) -> None:
    with Router(redis_server.url, run_id=run_id) as router:
        router.finish("completed")
    steps: list[int] = []
    for _ in range(scaled(15, 50)):
        router = Router(redis_server.url, run_id=run_id).start()
        assert router.finished is not None
        with Task().start(router=router) as task:
            assert task.finish
            task.use(lambda ctx: steps.append(1)).run()
        router.stop()
    assert steps == []


def test_the_finish_waits_for_what_came_before_it_however_slowly_that_is_read(
    redis_server: RedisServer, proxy: Proxy, run_id: str
) -> None:
    """It is bounded for a reader that does not get on; one that does hears of everything first."""
    with (
        Router(redis_server.url, run_id=run_id) as a,
        Router(proxy.url, run_id=run_id) as b,
        Task().start(router=b) as task,
    ):
        task.wait_for("x", timeout=0, since="last")
        proxy.throttle(150_000)
        for number in range(500):
            a.emit("x", number, "." * 1000, only_to="node.*" if number % 2 else None)  # an entry each
        began = time.monotonic()
        a.finish()
        seen = list(iter(lambda: task.wait_for("x", 30, since="last"), None))
        assert [args[0] for args, _ in seen] == list(range(500))
        assert time.monotonic() - began > SEEN_WITHIN, "it was not slow enough to show anything"
        proxy.heal()


def test_the_finish_does_not_wait_for_a_payload_that_does_not_come(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode
) -> None:
    """The thread that reads waits for it, and so reads nothing else: neither the wake-up, nor where the streams end."""
    a, b = nodes("a"), nodes("b", "numbers", url=proxy.url)
    a.emit(pad="." * 300_000)
    a.sync()
    until(lambda: len(b.heard["numbers"]) == 1)
    large = proxy.find(b":blob:")
    assert large is not None
    proxy.throttle(300_000, direction="down", connection=large)
    a.emit(pad="." * 3_000_000)
    a.sync()
    PAUSE.wait(0.5)
    began = time.monotonic()
    a.router.finish("completed")
    until(lambda: b.router.finished, 8)
    took = time.monotonic() - began
    assert len(b.heard["numbers"]) == 1, "it was not slow enough to show anything"
    assert took <= SEEN_WITHIN + BUSY, took
    until(lambda: len(b.heard["numbers"]) == 2, 15)


def test_p0_14_a_node_that_is_killed_around_finish_and_restarted_stops(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    for _ in range(scaled(4, 50)):
        run_id = uuid.uuid4().hex
        finisher = Router(redis_server.url, run_id=run_id).start()
        with NodeProcess(redis_server.url, run_id, "victim", tmp_path) as victim:
            victim.call("start")
            delay = random.uniform(-0.5, 0.5)
            if delay < 0:
                victim.kill()
            PAUSE.wait(abs(delay))
            finisher.finish("completed")
            if delay >= 0:
                PAUSE.wait(delay)
        finisher.stop()
        with NodeProcess(redis_server.url, run_id, "again", tmp_path) as again:
            again.call("start")
            assert again.call("finished")[1] == "completed"
            again.call("stop")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_p0_16_a_finish_while_redis_is_away_is_pending_and_reaches_everybody(
    how: str, redis_server: RedisServer, nodes: MakeNode, log_lines: LogLines
) -> None:
    a, b, c = (nodes(name, "numbers", op_timeout=2.0) for name in "abc")
    a.pour(20)
    until(lambda: len(b.heard["numbers"]) == len(c.heard["numbers"]) == 20)
    if how == "frozen":
        redis_server.freeze()
    else:
        redis_server.kill()
    a.emit()
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(a.router.finish, "completed")
        until(lambda: a.router.finished, 1, "sticky at once")
        assert finishing.result(6) is False
    assert any("is pending" in text for text in log_lines.texts("WARNING"))
    PAUSE.wait(scaled(1, 8))
    assert b.router.finished is None
    if how == "frozen":
        redis_server.thaw()
    else:
        redis_server.start()
    began = time.monotonic()
    for node in (b, c):
        until(lambda node=node: node.router.finished, HEALED_WITHIN + SEEN_WITHIN + SLACK)  # type: ignore[misc]
    infos = {node.router.finished for node in (a, b, c)}
    assert len(infos) == 1, f"after {time.monotonic() - began:.1f} s: {infos}"
    assert [info.reason for info in infos if info] == ["completed"]
    until(lambda: len(b.heard["numbers"]) == 21, 2, "what was emitted before the finish has come")


def test_p0_16_a_finish_that_redis_has_lost_is_written_again(
    redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    a, b = nodes("a"), nodes("b")
    a.router.finish("completed")
    until(lambda: b.router.finished)
    before = b.router.finished
    redis_server.restart(empty=True)
    key = Keys(run_id).finish
    with redis_server.client() as client:
        until(lambda: client.exists(key), HEALED_WITHIN + 2 * 1.5 + SLACK, "the finish is there again")
        assert 0 < client.pttl(key) <= 86_400_000
    with Router(redis_server.url, run_id=run_id) as late:
        assert late.finished is not None
        assert (late.finished.node, late.finished.reason) == ("a", "completed")
        assert before is not None
        assert abs(late.finished.at - before.at) < 0.001


def test_p0_14_a_finish_whose_wake_up_was_lost_is_seen(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, b = nodes("a", heartbeat=0.3), nodes("b", "numbers", heartbeat=0.3)
    with redis_server.client() as client:
        client.hset(Keys(run_id).finish, mapping={"node": "x", "reason": "completed", "at": "1"})
        client.expire(Keys(run_id).finish, 60)
    for node in (a, b):
        until(lambda node=node: node.router.finished, 0.3 * 8 + SLACK)  # type: ignore[misc]
        assert node.router.finished is not None
        assert node.router.finished.node == "x"


def test_p0_18_nodes_that_finish_together_agree_on_one_reason(redis_server: RedisServer) -> None:
    for _ in range(scaled(5, 100)):
        run_id = uuid.uuid4().hex
        routers = [Router(redis_server.url, run_id=run_id).start() for _ in range(10)]
        try:
            told: list[str] = []
            for router in routers:
                router.on_finish(lambda info, told=told: told.append(info.reason))  # type: ignore[misc]
            ready = threading.Barrier(10)

            def finish(router: Router, ready: threading.Barrier = ready) -> None:
                ready.wait(10)
                router.finish(f"reason of {router.node_id}")

            with ThreadPoolExecutor(10) as pool:
                list(pool.map(finish, routers))
            until(lambda told=told: len(told) == 10)  # type: ignore[misc]
            assert len({router.finished for router in routers}) == 1
            assert len(set(told)) == 1
        finally:
            for router in routers:
                router.stop()


def test_p0_19_a_node_that_fails_does_not_finish_the_run(redis_server: RedisServer, run_id: str) -> None:
    class Crash(Exception):
        pass

    def step(ctx: object) -> None:
        raise Crash("in a step")

    others = [Task().start(router=Router(redis_server.url, run_id=run_id)) for _ in range(2)]
    failures: list[str] = []
    others[0].on("taskbus.node_failed", lambda node, reason: failures.append(reason))
    rounds = scaled(8, 50)
    for _ in range(rounds):
        with pytest.raises(Crash), Task().start(router=Router(redis_server.url, run_id=run_id)) as failing:
            failing.use(step).run()
    until(lambda: len(failures) == rounds)
    assert set(failures) == {"Crash: in a step"}
    assert [task.finish for task in others] == [False, False]
    assert len(others[1].nodes()) == 2
    for task in others:
        task.request_leave()
        task.stop()
