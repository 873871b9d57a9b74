"""The waits of a task, and all that ends them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.errors import ConfigError, NotStarted, RunFinished, WaitTimeout
from taskbus.task import Task
from taskbus.testing import until
from taskbus.waiting import Trail, Waiter
from tests.unit.bus_double import Bus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def waiting(task: Task, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Begin a wait in a thread and come back when it waits; the result of what is returned is its outcome."""
    outcome: list[Any] = []

    def wait() -> None:
        try:
            outcome.append(task.wait_for(*args, **kwargs))
        except (WaitTimeout, NotStarted) as error:
            outcome.append(error)

    before = len(task._waits._open)
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: outcome or len(task._waits._open) > before)
    until(lambda: outcome or task._link.loop.listened(args[0]))

    def result() -> Any:
        thread.join(5)
        assert not thread.is_alive()
        return outcome[0]

    return result


def test_a_wait_returns_the_arguments(task: Task) -> None:
    result = waiting(task, "x")
    task.emit("x", 1, a=2)
    assert result() == ((1,), {"a": 2})


def test_zero_looks_and_returns(task: Task) -> None:
    began = time.monotonic()
    for _ in range(1000):
        assert task.wait_for("x", 0) is None
    assert time.monotonic() - began < 1
    with pytest.raises(WaitTimeout, match="no event 'x' within 0 s"):
        task.wait_for("x", 0, ignore_timeout_exception=False)


@pytest.mark.parametrize("timeout", [0.01, 0.3])
def test_both_outcomes_come_on_time_and_leave_no_listener_behind(task: Task, timeout: float) -> None:
    for ignore in (True, False):
        began = time.monotonic()
        try:
            assert task.wait_for("x", timeout, ignore) is None
            assert ignore
        except TimeoutError as error:
            assert not ignore
            assert (error.event, error.timeout) == ("x", timeout)  # type: ignore[attr-defined]
        assert timeout <= time.monotonic() - began + 0.001 < timeout + 0.5
        assert not task._link.loop.listened("x")
        assert not task._waits._open


def test_no_wake_up_is_lost(task: Task) -> None:
    emitted = threading.Barrier(2)

    def answer() -> None:
        for number in range(500):
            emitted.wait(10)
            until(lambda: task._link.loop.listened("x"))
            task.emit("x", number)

    thread = threading.Thread(target=answer)
    thread.start()
    for number in range(500):
        emitted.wait(10)
        assert task.wait_for("x", 10) == ((number,), {})
    thread.join()


@pytest.mark.parametrize("since", ["start", "last", "1718000000000-42"])
def test_a_standalone_task_keeps_no_events_and_says_so(task: Task, since: str) -> None:
    with pytest.raises(
        ConfigError, match=r"keeps no events, so since can only be 'now' .*Router\('memory://NAME'\).*`taskbus run`"
    ):
        task.wait_for("x", 1, since=since)
    assert not task._waits._open
    if since != "last":
        with pytest.raises(ConfigError, match="keeps no events"):
            task.on("x", print, since=since)
        assert not task._link.loop.listened("x")


def test_last_is_for_waits(task: Task) -> None:
    with pytest.raises(ConfigError, match="since='last' is for wait_for"):
        task.on("x", print, since="last")


def test_waits_since_last_share_one_subscription_and_miss_nothing(node: Task, bus: Bus) -> None:
    assert node.wait_for("x", 0, since="last") is None
    for number in range(5):
        node.emit("x", number)
    assert [node.wait_for("x", 0, since="last") for _ in range(6)] == [((n,), {}) for n in range(5)] + [None]
    assert bus.calls.count("subscribe joined") == 1


def test_a_wait_for_now_moves_last_along(node: Task) -> None:
    node.wait_for("x", 0, since="last")
    node.emit("x", 1)
    result = waiting(node, "x")
    until(lambda: node._waits._trails["x"]._newcomers)
    node.emit("x", 2)
    assert result() == ((2,), {})
    node.emit("x", 3)
    assert node.wait_for("x", 0, since="last") == ((3,), {})


def test_a_wait_for_now_keeps_what_comes_before_the_next_wait_begins(node: Task, bus: Bus) -> None:
    for turn in range(2):
        result = waiting(node, "x")
        for number in range(3):
            node.emit("x", number)
        assert result() == ((0,), {})
        assert [node.wait_for("x", 0, since="last") for _ in range(3)] == [((1,), {}), ((2,), {}), None], turn
    assert [call for call in bus.calls if "subscribe" in call] == ["subscribe now"]


def test_waits_for_now_side_by_side_move_last_on_and_never_back(node: Task) -> None:
    results = [waiting(node, "x") for _ in range(5)]
    for number in range(3):
        node.emit("x", number)
    assert [result() for result in results] == [((0,), {})] * 5
    assert [node.wait_for("x", 0, since="last") for _ in range(3)] == [((1,), {}), ((2,), {}), None]


def test_two_hundred_waits_end_when_another_node_finishes(node: Task, bus: Bus) -> None:
    with ThreadPoolExecutor(200) as pool:
        quiet = [pool.submit(node.wait_for, "x", since=since) for since in ("now", "last") for _ in range(50)]
        loud = [pool.submit(node.wait_for, "x", 60, False, since=since) for since in ("now", "last") for _ in range(50)]
        until(lambda: len(node._waits._open) == 200)
        bus.end("other")
        assert [wait.result(5) for wait in quiet] == [None] * 100
        for wait in loud:
            with pytest.raises(RunFinished, match="finished by node 'other'"):
                wait.result(5)
    assert node.finish
    assert node.wait_for("x") is None
    with pytest.raises(RunFinished):
        node.wait_for("y", 60, False)


def test_an_event_before_the_finish_still_counts(node: Task, bus: Bus) -> None:
    node.wait_for("x", 0, since="last")
    node.emit("x", 1)
    bus.end("other")
    assert node.wait_for("x", since="last") == ((1,), {})
    assert node.wait_for("x", since="last") is None


@pytest.mark.parametrize("since", ["last", "start"])
def test_an_event_that_is_there_counts_though_the_finish_comes_as_the_wait_begins(
    since: str, node: Task, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.wait_for("x", 0, since="last")
    node.emit("x", 1)
    join, subscribe = Trail.join, bus.subscribe

    def join_late(trail: Trail, waiter: Waiter) -> bool:
        bus.end("other")
        return join(trail, waiter)

    def subscribe_and_give(sink: Any, *args: Any) -> None:
        subscribe(sink, *args)
        sink.offer([((1,), {})], 0, 0)

    monkeypatch.setattr(Trail, "join", join_late)
    monkeypatch.setattr(bus, "subscribe", subscribe_and_give)
    assert node.wait_for("x", since=since) == ((1,), {})
    assert bus.finished
    assert node.wait_for("x", since="last") is None


def test_who_finishes_the_run_may_still_wait_for_the_others(node: Task) -> None:
    before = waiting(node, "x")
    node.finish = True
    assert before() is None
    after = waiting(node, "bye")
    node.emit("bye")
    assert after() == ((), {})


def test_waits_end_when_the_task_is_stopped(node: Task) -> None:
    results = [waiting(node, "x", since=since) for since in ("now", "last")]
    node.stop()
    for result in results:
        assert isinstance(result(), NotStarted)


def test_waits_end_when_async_middleware_fails_and_begin_anew_after_the_error_was_raised() -> None:
    outcome: list[Any] = []
    with Task().start(async_mode=True) as task:

        def fail(ctx: Context) -> None:
            until(lambda: task._link.loop.listened("x"))
            raise ValueError("async")

        task.use(lambda ctx: outcome.append(task.wait_for("x", ignore_timeout_exception=False)))
        task.use(fail)
        with pytest.raises(ValueError, match="async"):
            task.run()
        assert outcome == [None]
        result = waiting(task, "y")
        task.emit("y")
        assert result() == ((), {})


def test_waits_in_parallel_end_when_another_of_them_fails(task: Task) -> None:
    def fail(ctx: Context) -> None:
        until(lambda: task._link.loop.listened("x"))
        raise ValueError("side by side")

    task.use(task.parallel(lambda ctx: task.wait_for("x"), fail, lambda ctx: task.wait_for("y")))
    with pytest.raises(ValueError, match="side by side"):
        task.run()
