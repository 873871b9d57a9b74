"""Middleware of a task, its steps, and async mode."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.context import Context
from taskbus.task import Task, VoidMiddleware

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


class Instance:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __call__(self, ctx: Context) -> None:
        self.log.append("instance")

    def method(self, ctx: Context) -> Part:
        self.log.append("method1")
        yield
        self.log.append("method2")


def test_any_callable_of_one_argument_is_middleware(task: Task) -> None:
    log: list[str] = []

    def function(ctx: Context) -> None:
        log.append("function")

    def generator(ctx: Context) -> Part:
        log.append("generator1")
        yield
        log.append("generator2")

    def named(name: str, ctx: Context) -> None:
        log.append(name)

    task.use(function).use(generator).use(lambda ctx: log.append("lambda"))
    task.use(functools.partial(named, "partial")).use(Instance(log)).use(Instance(log).method)
    task.run(1)
    assert log == [
        "function", "generator1", "lambda", "partial", "instance", "method1",
        "method2", "generator2",
    ]  # fmt: skip


@pytest.mark.parametrize("fn", [None, 3, "name", [print]])
def test_what_cannot_be_called_is_refused_by_name(task: Task, fn: Any) -> None:
    for call in (task.use, task.use_wrapper, task.wrap, task.serial, task.parallel):
        with pytest.raises(TypeError) as raised:
            call(fn)
        assert repr(fn) in str(raised.value)


def test_void_is_left_out(task: Task) -> None:
    task.use(VoidMiddleware()).use(task.void())
    task.run()
    assert not task.finish  # there was nothing to run
    task.void()(task.ctx)


def test_a_wrapper_is_put_on_middleware_registered_before_and_after(task: Task) -> None:
    log: list[str] = []

    def logged(fn: Callable[[Context], Any]) -> Callable[[Context], Any]:
        def call(ctx: Context) -> Any:
            log.append("w")
            return fn(ctx)

        return call

    def generator(ctx: Context) -> Part:
        log.append("b1")
        yield
        log.append("b2")

    task.use(lambda ctx: log.append("a")).use_wrapper(logged).use(generator).use_wrapper(logged)
    task.run(1)
    assert log == ["w", "w", "a", "w", "w", "b1", "b2"]


def test_a_wrapper_that_returns_no_middleware_is_refused(task: Task) -> None:
    task.use_wrapper(lambda fn: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="got None"):
        task.use(print)


def test_the_one_lock_keeps_middleware_apart_in_async_mode() -> None:
    inside, most = 0, 0

    def careful(ctx: Context) -> Part:
        nonlocal inside, most
        for _ in range(2):
            inside += 1
            most = max(most, inside)
            inside -= 1
            yield

    with Task().start(async_mode=True, n_async_workers=4) as task:
        for _ in range(8):
            task.use(careful, lock=True)
        task.run(20)
    assert most == 1


def test_the_one_lock_may_be_taken_again_by_what_is_wrapped(task: Task) -> None:
    log: list[str] = []
    child = task.wrap(lambda ctx: log.append("child"), lock=True)
    task.use(lambda ctx: child(ctx), lock=True)
    task.run(1)
    assert log == ["child"]


def test_a_lock_of_the_callers_own(task: Task) -> None:
    lock = threading.Lock()
    seen: list[bool] = []

    def look(ctx: Context) -> Part:
        seen.append(lock.locked())
        yield
        seen.append(lock.locked())

    task.use(look, lock=lock).use(lambda ctx: seen.append(lock.locked()))
    task.run(1)
    assert seen == [True, False, True]


def test_a_step_goes_forward_then_backward_and_then_on(either: Task) -> None:
    log: list[Any] = []

    def part(name: str) -> Callable[[Context], Part]:
        def middleware(ctx: Context) -> Part:
            log.append((ctx.total_step, name, 1))
            yield
            log.append((ctx.total_step, name, 2))

        return middleware

    either.use(part("a")).use(part("b"))
    either.run(3)
    for step in range(3):
        forward, backward = log[4 * step : 4 * step + 2], log[4 * step + 2 : 4 * step + 4]
        assert sorted(forward) == [(step, "a", 1), (step, "b", 1)]
        assert sorted(backward) == [(step, "a", 2), (step, "b", 2)]


def test_run_ends_at_max_step_and_says_finish(either: Task) -> None:
    steps: list[int] = []
    either.use(lambda ctx: steps.append(ctx.total_step))
    either.run(max_step=5)
    assert steps == [0, 1, 2, 3, 4]
    assert either.finish
    assert either.ctx.total_step == 4  # renewed between steps, not after the last


def test_run_ends_after_the_step_in_which_finish_became_true(either: Task) -> None:
    log: list[str] = []

    def ends(ctx: Context) -> Part:
        either.finish = ctx.total_step == 2
        yield
        log.append(f"back{ctx.total_step}")

    either.use(ends)
    either.run()
    assert log == ["back0", "back1", "back2"]
    assert either.ctx.total_step == 2


def test_finish_from_another_thread_ends_the_run(either: Task) -> None:
    running = threading.Event()
    either.use(lambda ctx: running.set())
    runner = threading.Thread(target=either.run)
    runner.start()
    assert running.wait(5)
    either.finish = True
    runner.join(5)
    assert not runner.is_alive()


def test_run_without_middleware_returns(task: Task) -> None:
    task.run()
    assert not task.finish


def test_run_of_no_steps_and_of_a_finished_task(task: Task) -> None:
    steps: list[int] = []
    task.use(lambda ctx: steps.append(1))
    task.run(0)
    assert not task.finish
    task.run(2)
    task.run(2)
    assert len(steps) == 2
    task.finish = False
    task.run(1)
    assert len(steps) == 3


def test_the_context_is_renewed_between_steps() -> None:
    @dataclass
    class Counting(Context):
        count: int = 0
        best: int = 0

        def __post_init__(self) -> None:
            self.keep("best")

    seen: list[tuple[int, int]] = []

    def count(ctx: Counting) -> None:
        seen.append((ctx.count, ctx.best))
        ctx.count += 1
        ctx.best += 1

    with Task().start(ctx=Counting()) as task:
        task.use(count)
        task.run(3)
    assert seen == [(0, 0), (0, 1), (0, 2)]
    assert isinstance(task.ctx, Counting)


def test_middleware_may_register_more(task: Task) -> None:
    log: list[str] = []

    def first(ctx: Context) -> None:
        if ctx.total_step == 0:
            task.use(lambda ctx: log.append(f"late{ctx.total_step}"))

    task.use(first)
    task.run(2)
    assert log[-1] == "late1"


def test_an_error_in_middleware_reaches_the_caller_and_closes_what_was_begun(either: Task) -> None:
    log: list[str] = []
    began = threading.Event()

    def guarded(ctx: Context) -> Part:
        try:
            began.set()
            yield
        finally:
            log.append("closed")

    def fails(ctx: Context) -> None:
        assert began.wait(5)
        raise ValueError("middleware")

    either.use(guarded).use(fails)
    with pytest.raises(ValueError, match="middleware"):
        either.run(5)
    assert log == ["closed"]
    assert not either.finish


def test_forward_and_backward_by_hand(task: Task) -> None:
    log: list[str] = []

    def parts(ctx: Context) -> Part:
        log.append(f"1 of {ctx.total_step}")
        yield
        log.append("2")
        yield
        log.append("3")

    task.forward(parts)
    mine = task.forward(parts, Context(total_step=7))
    assert log == ["1 of 0", "1 of 7"]
    assert mine is not None
    task.backward([mine])
    assert log[2:] == ["2"]
    task.backward()
    assert log[3:] == ["3", "2"]
    task.backward()
    assert log[5:] == ["3"]
    task.renew()
    assert task.ctx.total_step == 1


def test_wrapped_middleware_in_a_step(either: Task) -> None:
    log: list[str] = []

    def child(ctx: Context) -> Part:
        log.append("child1")
        yield
        log.append("child2")

    wrapped, plain = either.wrap(child), either.wrap(lambda ctx: log.append("plain"))

    def mother(ctx: Context) -> Part:
        back, back_of_plain = wrapped(ctx), plain(ctx)
        wrapped(ctx)  # never unwound by hand
        yield
        back()
        back_of_plain()
        log.append("mother2")

    either.use(mother)
    either.run(1)
    assert log == ["child1", "plain", "child1", "child2", "mother2", "child2"]


def test_serial_and_parallel_in_a_step(either: Task) -> None:
    log: list[str] = []

    def part(name: str) -> Callable[[Context], Part]:
        def middleware(ctx: Context) -> Part:
            log.append(name + "1")
            yield
            log.append(name + "2")

        return middleware

    either.use(either.serial(part("a"), either.parallel(part("b"), part("c"))))
    either.run(2)
    for step in (log[:6], log[6:]):
        assert step[0] == "a1"
        assert sorted(step[1:3]) == ["b1", "c1"]
        assert step[3:] == ["c2", "b2", "a2"]


def test_parallel_within_async_mode_needs_no_free_worker() -> None:
    meeting = threading.Barrier(6)

    with Task().start(async_mode=True, n_async_workers=2) as task:
        for _ in range(2):
            task.use(task.parallel(*[lambda ctx: meeting.wait(10)] * 3))
        task.run(3)


def test_middleware_that_never_ends_is_closed_after_each_step() -> None:
    open_now: list[int] = []

    def endless(ctx: Context) -> Part:
        open_now.append(1)
        try:
            while True:
                yield
        finally:
            open_now.pop()

    with Task().start() as task:
        task.use(endless).use(lambda ctx: most.append(len(open_now)))
        most: list[int] = []
        task.run(5)
    assert most == [1] * 5
    assert not open_now
