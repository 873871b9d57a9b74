"""The life of a task from start to stop, its roles and labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.context import Context
from taskbus.errors import ConfigError, NotStarted
from taskbus.task import Role, Task
from taskbus.task import task as the_usual_task

if TYPE_CHECKING:
    from collections.abc import Iterator

Part = Generator[None, None, None]


@pytest.fixture
def task() -> Iterator[Task]:
    made = Task().start()
    yield made
    made.stop()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Iterator[Task]:
    """A task in each of the two modes."""
    made = Task().start(async_mode=request.param)
    yield made
    made.stop()


CALLS: list[Callable[[Task], Any]] = [
    lambda task: task.use(print),
    lambda task: task.use_wrapper(print),  # type: ignore[arg-type]
    lambda task: task.run(),
    lambda task: task.forward(print),
    lambda task: task.forward(print, async_mode=True),
    lambda task: task.backward(),
    lambda task: task.backward(async_mode=True),
    lambda task: task.wrap(print)(task.ctx),
    lambda task: task.parallel(lambda ctx: None, lambda ctx: None)(task.ctx).send(None),
    lambda task: task.renew(),
    lambda task: task.sync(),
    lambda task: task.async_executor(print),
    lambda task: task.emit("x"),
    lambda task: task.on("x", print),
    lambda task: task.once("x", print),
    lambda task: task.off("x"),
    lambda task: task.wait_for("x", 0),
    lambda task: task.add_role(Role.LEARNER),
    lambda task: task.nodes(),
    lambda task: task.wait_for_nodes(),
    lambda task: task.barrier("x", 1),
    lambda task: task.get_attch_to_len(),
    lambda task: setattr(task, "finish", True),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_calls_before_start_and_after_stop_say_so(number: int) -> None:
    task = Task()
    with pytest.raises(NotStarted, match="not started|no active router"):
        CALLS[number](task)
    task.start().stop()
    with pytest.raises(NotStarted, match="not started|no active router"):
        CALLS[number](task)


def test_running_is_between_start_and_stop() -> None:
    task = Task()
    assert not task.running
    with task.start() as started:
        assert started is task
        assert task.running
    assert not task.running


def test_stop_twice_is_harmless() -> None:
    task = Task()
    task.stop()
    task.start()
    task.stop()
    task.stop()


def test_a_second_start_is_clean() -> None:
    task = Task()
    calls: list[str] = []
    with task.start(labels={"first"}, async_mode=True):
        task.use(lambda ctx: calls.append("middleware")).add_role(Role.LEARNER)
        task.use_wrapper(lambda fn: lambda ctx: calls.append("wrapper"))
        task.on("x", lambda: calls.append("listener"))
        task.run(2)
    calls.clear()
    with task.start():
        assert not task.finish
        assert task.roles == set()
        assert task.labels == {"standalone"}
        assert task.ctx.total_step == 0
        assert not task.async_mode
        task.emit("x")
        task.run(1)
        task.use(lambda ctx: calls.append("second"))
        task.run(1)
    assert calls == ["second"]


def test_start_while_started_is_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match=r"started already: stop\(\) it first"):
        task.start()


def test_a_pool_needs_a_worker() -> None:
    with pytest.raises(ConfigError, match="n_async_workers has to be at least 1, got 0"):
        Task().start(n_async_workers=0)


def test_what_was_begun_by_hand_is_closed_at_stop() -> None:
    log: list[str] = []

    def guarded(ctx: Context) -> Part:
        try:
            yield
        finally:
            log.append("closed")

    with Task().start() as task:
        task.forward(guarded)
    assert log == ["closed"]


def test_stop_ends_a_run_in_another_thread() -> None:
    task = Task().start()
    running = threading.Event()
    task.use(lambda ctx: running.set())
    error: list[BaseException] = []

    def run() -> None:
        try:
            task.run()
        except NotStarted as raised:  # it may be inside a step
            error.append(raised)

    runner = threading.Thread(target=run)
    runner.start()
    assert running.wait(5)
    task.stop()
    runner.join(5)
    assert not runner.is_alive()


def test_the_error_of_the_with_block_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), Task().start(async_mode=True) as task:
        task.async_executor(int, "not a number")
        _ = 1 / 0


@pytest.mark.parametrize("async_mode", [False, True])
def test_two_hundred_tasks_leave_no_thread_behind(async_mode: bool) -> None:
    before = threading.active_count()
    for _ in range(200):
        with Task().start(async_mode) as task:
            got: list[int] = []
            task.on("x", got.append)
            task.use(lambda ctx: task.emit("x", 1)).use(task.parallel(lambda ctx: None, lambda ctx: None))
            task.run(1)
        assert got == [1]
    assert threading.active_count() == before


def test_many_tasks_live_side_by_side() -> None:
    with Task().start() as one, Task().start() as other:
        got: list[str] = []
        one.on("x", lambda: got.append("one"))
        other.on("x", lambda: got.append("other"))
        one.emit("x")
        one.finish = True
        assert not other.finish
    assert got == ["one"]


def test_the_usual_task_is_there_for_everybody() -> None:
    with the_usual_task.start() as task:
        assert isinstance(task, Task)


def test_a_task_without_roles_has_all(task: Task) -> None:
    assert all(task.has_role(role) for role in task.role)
    assert task.roles == set()


def test_a_task_has_the_roles_that_were_added(task: Task) -> None:
    task.add_role(task.role.LEARNER).add_role(Role.EVALUATOR)
    assert task.roles == {Role.LEARNER, Role.EVALUATOR}
    assert [task.has_role(role) for role in Role] == [True, False, True, False]
    task.roles.clear()
    assert task.roles == {Role.LEARNER, Role.EVALUATOR}


def test_other_roles_are_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match="no role 'cook', only learner, collector, evaluator, fetcher"):
        task.add_role("cook")  # type: ignore[arg-type]
    task.add_role("learner")  # type: ignore[arg-type]
    assert task.has_role(Role.LEARNER)


def test_roles_are_four() -> None:
    assert [role.name for role in Role] == ["LEARNER", "COLLECTOR", "EVALUATOR", "FETCHER"]


def test_labels_are_copied_and_completed() -> None:
    mine = {"gpu"}
    with Task().start(async_mode=True, labels=mine) as task:
        assert task.labels == {"gpu", "async", "standalone"}
        task.labels.add("other")
        assert task.labels == {"gpu", "async", "standalone"}
    assert mine == {"gpu"}
    with Task().start(labels="one") as task:
        assert task.labels == {"one", "standalone"}


def test_labels_match_globs() -> None:
    with Task().start(labels=["gpu.a100", "rack=1"]) as task:
        assert task.match_labels("gpu.*")
        assert task.match_labels(["cpu", "stand?lone"])
        assert not task.match_labels(["cpu", "GPU.*"])
        assert task.match_labels(None)


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.use(print, lock="x"),
        lambda task: task.use(print, lock=None),
        lambda task: task.wrap(print, lock="x"),
        lambda task: task.barrier("x", count="2"),
        lambda task: task.barrier("x", count=0),
        lambda task: task.wait_for_nodes(count=1.5),
        lambda task: task.wait_for_nodes(timeout=None),
        lambda task: task.wait_for("x", timeout="1"),
        lambda task: task.wait_for("x", timeout=float("nan")),
        lambda task: task.wait_for("x", timeout=-1),
        lambda task: task.barrier("x", 1, timeout=-0.1),
        lambda task: task.emit("x", only_remote=True, only_local=True),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(task: Task, call: Callable[[Task], Any]) -> None:
    with pytest.raises(ConfigError, match="must be|reach nobody"):
        call(task)
