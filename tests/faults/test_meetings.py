"""Nodes that wait for others go on waiting while Redis is away."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskbus.errors import WaitTimeout
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, FAST, MakeNode
from tests.faults.node import Node


def arrived(node: Node, name: str) -> bool:
    return bool(node.router.life.calls.call(b"EXISTS", node.router.life.keys.barrier(name)))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_barrier_and_a_wait_for_nodes_outlast_redis_being_away(
    how: str, redis_server: RedisServer, nodes: MakeNode
) -> None:
    a, b = nodes("a", **FAST), nodes("b", **FAST)
    with ThreadPoolExecutor(2) as pool:
        meeting = pool.submit(a.router.barrier, "x", 2, 60)
        company = pool.submit(a.router.wait_for_nodes, "c", 1, 60)
        until(lambda: arrived(a, "x"))
        if how == "killed":
            redis_server.kill()
        else:
            redis_server.freeze()
        with pytest.raises(WaitTimeout, match="the time is over and Redis"):
            b.router.barrier("x", 2, 0.5)
        redis_server.start() if how == "killed" else redis_server.thaw()
        b.router.barrier("x", 2, 20)  # also where a had to believe that b was there already
        meeting.result(10)
        nodes("c", labels={"c"}, **FAST)
        assert [node.id for node in company.result(10)] == ["c"]


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_a_meeting_is_over_in_time_while_redis_is_away(fault: str, redis_server: RedisServer, nodes: MakeNode) -> None:
    a = nodes("a")
    redis_server.kill() if fault == "killed" else redis_server.freeze()
    for meet in (lambda: a.router.wait_for_nodes(None, 2, 0.5), lambda: a.router.barrier("x", 2, 0.5)):
        began = time.monotonic()
        with pytest.raises(WaitTimeout):
            meet()
        assert time.monotonic() - began < 1.2 + BUSY, "as long as one call may take at the most, 5 s, is too long"
    redis_server.start() if fault == "killed" else redis_server.thaw()


def test_a_lost_answer_at_a_barrier_is_no_second_arrival(redis_server: RedisServer, nodes: MakeNode) -> None:
    a, b = nodes("a"), nodes("b")
    registry = b.router.life.registry
    arrive = registry.arrive
    lost: list[object] = []

    def loses_the_first_answer(name: str, count: int, ticket: str, arrival: str, timeout: float) -> object:
        answer = arrive(name, count, ticket, arrival, timeout)
        if not lost:
            lost.append(answer)
            answer = arrive(name, count, ticket, arrival, timeout)  # what a repeated attempt does
        return answer

    registry.arrive = loses_the_first_answer  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(a.router.barrier, "x", 2, 20)
        until(lambda: arrived(a, "x"))
        began = time.monotonic()
        b.router.barrier("x", 2, 20)
        waiting.result(10)
        assert time.monotonic() - began < 5
        with pytest.raises(WaitTimeout, match="1 of 2 nodes are at barrier 'x': a"):
            a.router.barrier("x", 2, 0.1)
    assert len(lost) == 1
