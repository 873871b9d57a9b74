"""A task in async mode."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.context import Context
from taskbus.errors import ConfigError
from taskbus.task import Task, enable_async

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


def test_async_mode_runs_middleware_side_by_side() -> None:
    meeting = threading.Barrier(3)
    with Task().start(async_mode=True, n_async_workers=3) as task:
        for _ in range(3):
            task.use(lambda ctx: meeting.wait(10))
        task.run(5)


def test_async_calls_end_with_sync_which_raises_their_error(task: Task) -> None:
    gate = threading.Event()
    done: list[int] = []

    def slow(ctx: Context) -> None:
        gate.wait(10)
        done.append(1)

    assert task.forward(slow, async_mode=True) is None
    assert done == []
    gate.set()
    task.sync()
    assert done == [1]

    def fail(value: int) -> None:
        raise ValueError(value)

    task.async_executor(fail, 3)
    with pytest.raises(ValueError, match="3"):
        task.sync()
    task.sync()


def test_keyword_arguments_are_refused_in_async_mode(task: Task) -> None:
    with pytest.raises(ConfigError, match="forward takes no keyword arguments in async mode, got ctx"):
        task.forward(print, ctx=Context(), async_mode=True)
    task.forward(lambda ctx: None, ctx=Context(), async_mode=False)
    with pytest.raises(ConfigError, match="backward takes no keyword"):
        task.backward(stack=[], async_mode=True)


def test_a_task_in_async_mode_does_one_thing_at_once_if_asked_to() -> None:
    with Task().start(async_mode=True) as task:
        seen: list[str] = []
        task.forward(lambda ctx: seen.append(threading.current_thread().name), async_mode=False)
        assert seen == [threading.current_thread().name]
        task.forward(lambda ctx: seen.append(threading.current_thread().name))
        task.sync()
        assert seen[1].startswith("taskbus-async")


class Recording(Task):
    """Has a method in both modes, and steps of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[tuple[int, str]] = []
        self.forwarded = 0

    @enable_async
    def save(self, number: int, *, async_mode: bool | None = None) -> int | None:
        """Save."""
        self.saved.append((number, threading.current_thread().name))
        return number

    def forward(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self.forwarded += 1
        return super().forward(fn, *args, **kwargs)


def test_enable_async_gives_a_method_both_modes() -> None:
    with Recording().start() as task:
        assert task.save(1) == 1
        assert task.save(2, async_mode=True) is None
        task.sync()
        with pytest.raises(ConfigError, match="save takes no keyword arguments in async mode, got number"):
            task.save(number=3, async_mode=True)
        assert task.save(number=3) == 3
    assert [number for number, _ in task.saved] == [1, 2, 3]
    assert [name.startswith("taskbus-async") for _, name in task.saved] == [False, True, False]
    with task.start(async_mode=True):
        assert task.save(4) is None
        task.sync()
    assert task.saved[-1][0] == 4
    assert Recording.save.__doc__ == "Save."


def test_a_subclass_may_have_a_forward_of_its_own() -> None:
    for async_mode in (False, True):
        with Recording().start(async_mode) as task:
            task.use(lambda ctx: None).use(lambda ctx: None)
            task.run(3)
            assert task.forwarded == 6


def test_sync_inside_async_middleware_does_not_wait_for_itself() -> None:
    with Task().start(async_mode=True) as task:
        task.use(lambda ctx: task.sync()).use(task.parallel(lambda ctx: task.sync(), lambda ctx: task.sync()))
        task.run(2)
        assert task.finish
