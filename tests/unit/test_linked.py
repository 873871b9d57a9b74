"""Nodes that a test can hurt, in process and over a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from taskbus import BusUnavailable, Context, NotStarted, Task, WaitTimeout
from taskbus.testing import LinkedNodes, until


@pytest.fixture
def nodes(redis_url: str) -> Iterator[LinkedNodes]:
    with LinkedNodes(redis_url) as nodes:
        yield nodes


def test_after_settling_all_was_heard_and_all_answers_too(nodes: LinkedNodes) -> None:
    a, b = nodes.node(labels="learner"), nodes.node(labels="collector")
    samples: list[int] = []
    answers: list[int] = []

    def answer(number: int) -> None:
        samples.append(number)
        b.emit("answer", number)

    b.on("sample", answer)
    a.on("answer", answers.append)
    for number in range(200):
        a.emit("sample", number)
    nodes.settle()
    assert samples == answers == list(range(200))
    a.emit("sample", 200, transient=True)
    nodes.settle()
    assert samples[-1] == answers[-1] == 200


def test_settling_gives_up_and_says_who_is_busy(nodes: LinkedNodes) -> None:
    node, go_on = nodes.node(), threading.Event()
    node.on("x", lambda: go_on.wait(10) and None)
    node.emit("x")
    with pytest.raises(WaitTimeout, match="node '0' runs .*lambda"):
        nodes.settle(timeout=0.2)
    go_on.set()
    nodes.settle()


def test_settling_raises_what_a_listener_raised(nodes: LinkedNodes) -> None:
    a, b = nodes.node(node_id="a"), nodes.node(node_id="b")
    b.on("x", lambda number: 1 / number)
    a.emit("x", 0)
    with pytest.raises(ZeroDivisionError) as raised:
        nodes.settle()
    assert raised.value.__notes__ == ["in a listener of node 'b'"]
    nodes.settle()


def test_an_error_of_a_listener_that_nobody_saw_is_raised_at_the_end(redis_url: str) -> None:
    with pytest.raises(ZeroDivisionError), LinkedNodes(redis_url) as nodes:
        node = nodes.node()
        node.on("x", lambda: 1 / 0)
        node.emit("x")
        until(lambda: node.errors.kept)
    with pytest.raises(ValueError, match="the test's own"), LinkedNodes(redis_url) as nodes:
        node = nodes.node()
        node.on("x", lambda: 1 / 0)
        node.emit("x")
        until(lambda: node.errors.kept)
        raise ValueError("the test's own")


def test_an_error_of_a_listener_that_runs_only_at_the_end_is_raised_too(redis_url: str) -> None:
    for hurt in ("cut", "freeze", "kill"):
        with pytest.raises(ZeroDivisionError), LinkedNodes(redis_url) as nodes:
            a, b, c = (nodes.node() for _ in range(3))
            b.on("x", lambda: threading.Event().wait(0.2) or 1 / 0)
            getattr(c, hurt)()
            a.emit("x")


def test_a_listener_without_an_end_does_not_keep_the_end_from_coming(redis_url: str) -> None:
    began, go_on = time.monotonic(), threading.Event()
    with LinkedNodes(redis_url) as nodes:
        node = nodes.node()
        node.on("x", lambda: go_on.wait(30) and None)
        node.emit("x")
    assert time.monotonic() - began < 10
    go_on.set()


def test_an_error_of_before_a_kill_is_not_forgotten(nodes: LinkedNodes) -> None:
    node = nodes.node()
    node.on("x", lambda: 1 / 0)
    node.emit("x")
    until(lambda: node.errors.kept)
    node.kill()
    node.revive()
    with pytest.raises(ZeroDivisionError):
        nodes.settle()


def test_what_was_emitted_is_told_with_its_node(nodes: LinkedNodes) -> None:
    a, b = nodes.node(node_id="a"), nodes.node(node_id="b")
    a.emit("x", 1, k=2)
    nodes.settle()
    b.emit("y", [3])
    nodes.settle()
    assert [tuple(one) for one in nodes.emitted()] == [("x", (1,), {"k": 2}, "a"), ("y", ([3],), {}, "b")]
    assert [one.event for one in nodes.emitted("[y]")] == ["y"]
    assert {one.node for one in nodes.emitted("taskbus.node_joined")} == {"a", "b"}
    assert list(a.recorded) == [("x", ((1,), {"k": 2}))]
    assert nodes["b"] is b and len(nodes) == 2 and list(nodes) == [a, b]


def test_a_node_that_was_cut_off_catches_up(nodes: LinkedNodes) -> None:
    a, b = nodes.node(), nodes.node()
    heard: list[Any] = []
    b.on("x", heard.append)
    b.cut()
    a.emit("x", 1)
    b.emit("y", 2)
    nodes.settle()
    assert heard == [] and nodes.emitted("y") == []
    b.heal()
    nodes.settle()
    assert heard == [1] and [one.args for one in nodes.emitted("y")] == [(2,)]
    assert b.stats().reconnects > 0


def test_a_frozen_node_loses_its_lease_and_is_back_when_it_thaws(nodes: LinkedNodes) -> None:
    a, b = nodes.node(), nodes.node(node_id="b")
    heard: list[Any] = []
    left: list[Any] = []
    b.on("x", heard.append)
    a.on("taskbus.node_left", lambda **told: left.append(told["node"]))
    b.freeze()
    a.emit("x", 1)
    nodes.settle()
    assert heard == []
    until(lambda: left == ["b"], what="its lease has run out")
    assert [node.id for node in a.nodes()] == [a.node_id]
    b.thaw()
    nodes.settle()
    until(lambda: len(a.nodes()) == 2, what="b has registered again")
    assert heard == [1]


def test_what_is_asked_of_a_frozen_node_is_refused_in_time(redis_url: str) -> None:
    with LinkedNodes(redis_url, op_timeout=0.5) as nodes:
        node = nodes.node(node_id="b")
        node.freeze()
        began = time.monotonic()
        for ask in (lambda: node.on("x", print), lambda: node.on("y", print, since="start"), node.nodes):
            with pytest.raises(BusUnavailable, match=r"frozen node 'b': thaw\(\) it first"):
                ask()
        node.emit("x")
        with pytest.raises(BusUnavailable, match=r"frozen node 'b': thaw\(\) it first"):
            node.sync()
        with pytest.raises(BusUnavailable, match=r"frozen node 'b': thaw\(\) it first"):
            Task().start(router=node, labels="late")
        with Task().start(router=node) as task:
            assert task.wait_for("never", timeout=0.1) is None
            task.request_leave()
        node.stop()
        assert time.monotonic() - began < 12, "each within its half a second, and as much again for a busy machine"


def test_a_frozen_node_that_was_asked_something_goes_on_when_it_thaws(redis_url: str) -> None:
    with LinkedNodes(redis_url, op_timeout=0.5) as nodes:
        a, b = nodes.node(), nodes.node()
        heard: list[int] = []
        b.freeze()
        with pytest.raises(BusUnavailable):
            b.on("x", heard.append)
        b.thaw()
        b.on("x", heard.append)
        a.emit("x", 1)
        nodes.settle()
        assert heard == [1]


def test_what_is_asked_of_a_killed_node_is_refused_with_the_reason(nodes: LinkedNodes) -> None:
    node = nodes.node(node_id="b")
    node.kill()
    for ask in (lambda: node.emit("x"), lambda: node.on("x", print), node.sync, node.nodes):
        with pytest.raises(NotStarted, match=r"the test has killed node 'b': revive\(\) it first"):
            ask()


def test_a_killed_node_neither_leaves_nor_flushes_and_comes_back_under_its_id(nodes: LinkedNodes) -> None:
    a, b = nodes.node(), nodes.node(labels="collector")
    told: list[Any] = []
    a.on("taskbus.node_left", lambda **what: told.append(what["reason"]))
    b.freeze()
    b.emit("last_words")
    b.kill()
    assert not b.is_active
    assert told == [], "its lease still holds"
    with pytest.raises(NotStarted):
        b.kill()
    until(lambda: told == ["expired"], what="its lease has run out")
    b.revive()
    assert b.node_id == "1" and [node.id for node in a.nodes("collector")] == ["1"]
    assert nodes.emitted("last_words") == []
    a.emit("x")
    nodes.settle()


def test_a_task_runs_on_a_node(nodes: LinkedNodes) -> None:
    heard: list[int] = []
    nodes.node().on("stepped", heard.append)

    def step(ctx: Context) -> None:
        task.emit("stepped", ctx.total_step)

    task = Task()
    with task.start(router=nodes.node()):
        task.use(step)
        task.run(max_step=3)
    nodes.settle()
    assert heard == [0, 1, 2]
    assert nodes.finished is not None and nodes.finished.reason == "completed"


def test_nothing_stays_behind(redis_url: str) -> None:
    before = set(threading.enumerate())
    nodes = LinkedNodes(redis_url)
    a, b, c = (nodes.node() for _ in range(3))
    a.on("x", lambda: None)
    b.on("x", lambda: None)
    c.emit("x", transient=True)
    a.cut()
    b.freeze()
    c.kill()
    nodes.close()
    nodes.close()
    until(lambda: set(threading.enumerate()) <= before, what="all threads have ended")
    with LinkedNodes(redis_url, run_id=nodes.run_id) as again:
        assert again.emitted("*") == [] and again.finished is None
