"""What a task emits, and who hears it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.errors import ConfigError
from taskbus.link import Standalone
from taskbus.task import Task
from taskbus.testing import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def task() -> Iterator[Task]:
    made = Task().start()
    yield made
    made.stop()


def test_arguments_arrive_as_they_were_emitted(task: Task) -> None:
    got: list[Any] = []
    task.on("x", lambda *args, **kwargs: got.append((args, kwargs)))
    task.emit("x", 1, [2], a=3)
    task.emit("x")
    task.emit("x", event="a keyword of the user's own", self=1)
    task._link.loop.drain(5)
    assert got == [((1, [2]), {"a": 3}), ((), {}), ((), {"event": "a keyword of the user's own", "self": 1})]


def test_where_an_event_goes() -> None:
    with Task().start(labels={"gpu"}) as task:
        got: list[int] = []
        task.on("x", got.append)
        task.emit("x", 1, only_local=True)
        task.emit("x", 2, only_remote=True)
        task.emit("x", 3, only_to="gp?")
        task.emit("x", 4, only_to=["cpu"])
        task.emit("x", 5, only_to=["cpu"], only_local=True)
        task.emit("x", 6, transient=True)
    assert got == [1, 3, 6]


def test_listeners_of_one_event_are_each_called_once(task: Task) -> None:
    calls: list[str] = []
    for name in "abc":
        task.on("x", lambda name=name: calls.append(name))
    task.once("x", lambda: calls.append("once"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(task.wait_for, "x", 5)
        until(lambda: len(task._waits._open) == 1)
        until(lambda: len(task._link.loop.sinks("x")) == 5)
        task.emit("x")
        task.emit("x")
        assert waiting.result(5) == ((), {})
    task._link.loop.drain(5)
    assert sorted(calls) == ["a", "a", "b", "b", "c", "c", "once"]


def test_off_takes_a_glob_and_leaves_the_listeners_of_other_tasks(task: Task) -> None:
    link = Standalone()
    link.is_active = True
    calls: list[str] = []
    with Task().start(router=link) as one, Task().start(router=link) as other:
        for each, name in ((one, "one"), (other, "other")):
            each.on("weights.a", lambda name=name: calls.append(name))
        one.on("weights.b", print)
        one.off("weights.*")
        other.emit("weights.a")
        link.loop.drain(5)
        assert calls == ["other"]
        assert not link.loop.listened("weights.b")
    link.stop()


def test_off_with_a_function_leaves_the_others(task: Task) -> None:
    calls: list[int] = []
    more: list[int] = []
    task.on("x", calls.append).on("x", more.append)
    task.off("x", calls.append)
    task.emit("x", 1)
    task._link.loop.drain(5)
    assert (calls, more) == ([], [1])


@pytest.mark.parametrize("name", ["", "a b", "a/b", "A" * 129, 3])
def test_names_are_checked(task: Task, name: Any) -> None:
    for call in (task.emit, lambda name: task.on(name, print), task.wait_for):
        with pytest.raises(ConfigError, match="1 to 128 characters"):
            call(name)


def test_our_own_names_can_be_heard_and_not_emitted(task: Task) -> None:
    task.on("taskbus.node_left", print)
    with pytest.raises(ConfigError, match=r"reserved, 'taskbus.node_left' was given"):
        task.emit("taskbus.node_left")


def test_a_listener_has_to_be_callable(task: Task) -> None:
    with pytest.raises(TypeError, match="has to be callable, got 3"):
        task.on("x", 3)  # type: ignore[arg-type]


def test_an_error_in_a_listener_is_raised_at_the_next_emit_or_sync(task: Task) -> None:
    def fail(kind: type[BaseException]) -> None:
        raise kind("in a listener")

    task.on("x", fail)
    calls: list[Callable[[], Any]] = [task.sync, lambda: task.emit("y"), lambda: task.use(lambda ctx: None).run(1)]
    for call in calls:
        task.emit("x", ValueError)
        task._link.loop.drain(5)
        with pytest.raises(ValueError, match="in a listener"):
            call()
    task.sync()


def test_errors_of_one_task_are_not_raised_in_another() -> None:
    link = Standalone()
    link.is_active = True
    with Task().start(router=link) as one, Task().start(router=link) as other:
        one.on("x", lambda: 1 / 0)
        other.emit("x")
        link.loop.drain(5)
        other.sync()
        with pytest.raises(ZeroDivisionError):
            one.sync()
    link.stop()


def test_a_listener_may_emit_and_wait(task: Task) -> None:
    answers: list[Any] = []

    def ask() -> None:
        threading.Thread(target=answer_when_asked).start()
        answers.append(task.wait_for("answer", 5))

    def answer_when_asked() -> None:
        until(lambda: task._link.loop.listened("answer"))
        task.emit("answer", 42)

    task.on("ask", ask)
    task.emit("ask")
    until(lambda: answers == [((42,), {})])
