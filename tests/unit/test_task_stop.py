"""How a task leaves its run."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.errors import ConfigError, NotStarted
from taskbus.task import Task
from taskbus.types import FinishInfo
from tests.unit.bus_double import Bus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskbus.context import Context


@pytest.fixture
def task() -> Iterator[Task]:
    made = Task().start()
    yield made
    made.stop()


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def node(bus: Bus) -> Iterator[Task]:
    made = Task(bus).start()
    yield made
    made.stop()


def test_a_router_that_is_given_is_started_and_stopped_with_the_task(bus: Bus) -> None:
    with Task().start(router=bus, labels={"mine"}) as task:
        assert bus.calls == ["start"]
        assert task.labels == {"mine", "router", "distributed", "node.7"}
        assert bus.labels == {"mine", "router"}
        assert task.get_attch_to_len() == 0
    assert bus.calls == ["start", "sync", "finish stopped", "forget finish", "forget leave", "stop"]
    assert task.finish


def test_a_router_that_was_active_is_left_as_it_was(bus: Bus) -> None:
    bus.start()
    with Task(bus).start() as task:
        task.on("x", print)
        task.wait_for("y", 0, since="last")
    assert bus.is_active
    assert not bus.loop.listened("x")
    assert not bus.loop.listened("y")
    bus.stop()


def test_a_start_that_fails_leaves_the_task_as_it_was(bus: Bus) -> None:
    task = Task(bus)
    bus.fails_at = "start"
    with pytest.raises(RuntimeError, match="start failed"):
        task.start()
    with pytest.raises(NotStarted):
        task.emit("x")
    bus.fails_at = ""
    task.start().stop()


def test_a_run_that_reached_its_last_step_is_completed(bus: Bus) -> None:
    with Task(bus).start() as task:
        task.use(lambda ctx: None).add_role(task.role.LEARNER).add_role(task.role.COLLECTOR)
        task.run(2)
    assert [call for call in bus.calls if isinstance(call, tuple)] == [
        (0, "learner"),
        (0, "collector,learner"),
        (1, "collector,learner"),
        (2, "collector,learner"),
    ]
    assert bus.calls.count("finish completed") == 1
    assert "finish stopped" not in bus.calls


def test_an_exception_is_a_failure_and_no_finish(bus: Bus) -> None:
    with pytest.raises(ZeroDivisionError), Task(bus).start():
        _ = 1 / 0
    assert bus.calls == ["start", "sync", "fail division by zero", "forget finish", "forget leave", "stop"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_being_interrupted_is_neither(bus: Bus, kind: type[BaseException]) -> None:
    with pytest.raises(kind), Task(bus).start():
        raise kind
    assert bus.calls == ["start", "sync", "forget finish", "forget leave", "stop"]


def test_asked_to_leave_a_task_ends_its_step_and_finishes_nothing(bus: Bus) -> None:
    steps: list[str] = []
    with Task(bus).start() as task:

        def middleware(ctx: Context) -> Any:
            for leave in bus.leavers:
                leave()
            steps.append("forward")
            assert task.wait_for("x") is None
            yield
            steps.append("backward")

        task.use(middleware)
        task.run()
        task.run()
    assert steps == ["forward", "backward"]
    assert not [call for call in bus.calls if str(call).startswith("finish")]


@pytest.mark.parametrize("part", ["sync", "finish", "fail", "stop"])
def test_whatever_fails_while_stopping_the_rest_is_done_and_the_users_error_stays(
    bus: Bus, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus.fails_at = part
    if part == "fail":
        with pytest.raises(ZeroDivisionError), Task(bus).start():
            _ = 1 / 0
    else:
        Task(bus).start().stop()
    assert bus.calls[-1] == "stop"
    assert f"{part} failed" in caplog.text
    bus.fails_at = ""
    bus.stop()


def test_a_run_that_is_finished_already_makes_no_step(bus: Bus) -> None:
    bus.finished = FinishInfo("other", "completed", 0.0)
    with Task(bus).start() as task:
        task.use(lambda ctx: pytest.fail("a step"))
        task.run()
        assert task.finish


def test_a_finish_by_another_node_ends_the_run_after_the_step(node: Task, bus: Bus) -> None:
    steps: list[int] = []

    def middleware(ctx: Context) -> None:
        steps.append(ctx.total_step)
        if ctx.total_step == 2:
            bus.end("other")

    node.use(middleware)
    node.run()
    assert steps == [0, 1, 2]


def test_events_before_stop_reach_the_listeners_and_what_they_emit_too() -> None:
    got: list[int] = []
    task = Task().start()

    def pass_on(number: int) -> None:
        task.emit("y", number)

    task.on("x", pass_on)
    task.on("y", got.append)
    for number in range(1000):
        task.emit("x", number)
    task.stop()
    assert got == list(range(1000))


def test_stop_is_bounded_and_says_what_still_runs(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    task = Task().start()

    def never_returns() -> None:
        release.wait(60)

    task.on("x", never_returns)
    task.emit("x")
    task.async_executor(release.wait, 60)
    began = time.monotonic()
    task.stop()
    assert time.monotonic() - began < 4, "two seconds, and as much again for a busy machine"
    began = time.monotonic()
    task.stop()
    assert time.monotonic() - began < 0.5
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 call(s) in async mode still run" in messages[0]
    assert "never_returns" in messages[1]
    assert "more events" not in messages[1]
    release.set()


@pytest.mark.parametrize("chunks", [False, True])
def test_a_stop_tells_how_many_events_its_listeners_had_left(caplog: pytest.LogCaptureFixture, chunks: bool) -> None:
    task, begun, release = Task().start(), threading.Event(), threading.Event()

    def slow(number: int) -> None:
        if number == 2:
            begun.set()
            release.wait(30)

    task.on("x", slow)
    if chunks:
        for sink in task._link.loop.sinks("x"):
            sink.offer([((number,), {}) for number in range(10)], 0, 100)
    else:
        for number in range(10):
            task.emit("x", number)
    begun.wait(10)
    task.stop()
    assert "slow (with 7 more events)" in caplog.text
    release.set()


def test_a_listener_may_stop_its_task() -> None:
    task = Task().start()
    stopped = threading.Event()

    def stop() -> None:
        task.stop()
        stopped.set()

    task.on("x", stop)
    task.emit("x")
    assert stopped.wait(5)
    assert not task.running


def test_a_standalone_task_is_alone() -> None:
    with Task().start(labels={"gpu"}) as task:
        task.add_role(task.role.FETCHER).use(lambda ctx: None).run(3)
        (me,) = task.nodes()
        assert (me.id, set(me.labels), me.role, me.step) == ("standalone", {"gpu", "standalone"}, "fetcher", 3)
        assert task.nodes("cpu") == []
        assert task.wait_for_nodes("gpu") == [me]
        task.barrier("b", 1)
        with pytest.raises(ConfigError, match="1 of 2 nodes are there, and none will come"):
            task.wait_for_nodes(count=2)
        with pytest.raises(ConfigError, match="alone at barrier 'b'"):
            task.barrier("b", 2)
        with pytest.raises(RuntimeError, match="no active router"):
            task.get_attch_to_len()
