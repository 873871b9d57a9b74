"""The same promises between processes, on a real server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskbus.testing import until
from tests.contract.conftest import Collected
from tests.faults.node import Node
from tests.faults.oracle import judge
from tests.faults.process import NodeProcess


@pytest.fixture
def run_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
def other(real_redis_url: str, run_id: str, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(real_redis_url, run_id, "other", tmp_path) as process:
        process.call("start", "numbers")
        yield process


@pytest.fixture
def node(real_redis_url: str, run_id: str) -> Iterator[Node]:
    node = Node(real_redis_url, run_id, "node").start()
    yield node
    node.stop()


def test_3000_events_from_one_process_to_another_arrive_in_order_and_once_at_three_listeners(
    node: Node, other: NodeProcess
) -> None:
    got = [Collected(), Collected(), Collected()]
    for listener in got:
        node.router.on("numbers", lambda producer, number, body, listener=listener: listener((producer, number, body)))
    other.call("pour", 3000)
    ledger = other.ledger()
    assert len(ledger.acked) == 3000
    for listener in got:
        until(lambda listener=listener: len(listener) >= 3000, 20)  # type: ignore[misc]
        verdict = judge([ledger], listener)
        assert verdict.clean, str(verdict)


def test_both_directions_at_once(node: Node, other: NodeProcess) -> None:
    node.listen("numbers")
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(other.call, "pour", 1000)
        node.pour(1000)
        there.result(30)
    ledgers = [node.ledger, other.ledger()]
    until(lambda: len(node.heard["numbers"]) >= 2000, 20)
    until(lambda: len(other.heard()) >= 2000, 20)
    for heard in (node.heard["numbers"], other.heard()):
        verdict = judge(ledgers, heard)
        assert verdict.clean, str(verdict)


def test_processes_meet_and_one_finishes_for_all(node: Node, other: NodeProcess) -> None:
    meeting = other.send("barrier", "start", 2, 20.0)
    node.router.barrier("start", 2, 20)
    meeting.result(10)
    assert [info.id for info in node.router.wait_for_nodes(None, 2, 10)] == ["node", "other"]
    other.call("finish", "completed")
    until(lambda: node.router.finished)
    assert node.router.finished is not None
    assert node.router.finished.node == "other"
