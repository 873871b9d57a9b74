"""A task runs middleware over a context, step by step."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskbus import Context, Task, VoidMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_a_step_calls_the_middleware_in_the_order_it_was_registered() -> None:
    """Middleware is any callable of one argument, the context that the step carries from one to the next."""
    seen: list[int] = []

    def collect(ctx: Context) -> None:
        ctx.batch = [1, 2, 3]

    def learn(ctx: Context) -> None:
        seen.append(sum(ctx.batch))

    with Task().start() as task:
        task.use(collect).use(learn)
        task.run(max_step=2)
    assert seen == [6, 6]


def test_what_follows_a_yield_runs_on_the_way_back() -> None:
    """Generators have two halves: all go forward in order, then all go backward in reverse, like an onion."""
    log: list[str] = []

    def layer(name: str) -> Callable[[Context], Iterator[None]]:
        def middleware(ctx: Context) -> Iterator[None]:
            log.append(f"{name} forward")
            yield
            log.append(f"{name} backward")

        return middleware

    with Task().start() as task:
        task.use(layer("outer")).use(layer("inner"))
        task.run(1)
    assert log == ["outer forward", "inner forward", "inner backward", "outer backward"]


def test_each_step_has_a_new_context_and_only_what_was_kept_survives() -> None:
    """Fields go back to their defaults with every step; ``keep`` carries them over."""

    @dataclass
    class Training(Context):
        reward: float = 0.0
        best: float = 0.0

        def __post_init__(self) -> None:
            self.keep("best")

    rewards = iter([3.0, 5.0, 4.0])

    def play(ctx: Training) -> None:
        assert ctx.reward == 0.0
        ctx.reward = next(rewards)
        ctx.best = max(ctx.best, ctx.reward)

    with Task().start(ctx=Training()) as task:
        task.use(play)
        task.run(3)
        assert (task.ctx.total_step, task.ctx.reward, task.ctx.best) == (2, 4.0, 5.0)


def test_the_run_ends_after_the_step_that_sets_finish() -> None:
    """``finish`` may be set anywhere; the step it is set in still goes backward."""
    log: list[str] = []
    with Task().start() as task:

        def watch(ctx: Context) -> Iterator[None]:
            task.finish = ctx.total_step == 2
            yield
            log.append(f"end of step {ctx.total_step}")

        task.use(watch)
        task.run()
    assert log[-1] == "end of step 2"


def test_middleware_can_be_put_together() -> None:
    """``serial`` and ``parallel`` make one out of many; ``parallel`` runs them at the same time."""
    log: list[str] = []
    meeting = threading.Barrier(2)

    def load(ctx: Context) -> None:
        log.append("load")

    def fetch(ctx: Context) -> None:
        meeting.wait(10)  # would wait in vain, did they run one after the other
        log.append("fetch")

    with Task().start() as task:
        task.use(task.serial(load, task.parallel(fetch, fetch)))
        task.run(1)
    assert log == ["load", "fetch", "fetch"]


def test_middleware_can_call_middleware() -> None:
    """``wrap`` gives a function to call within your own; what it returns runs the backward half, when you want it."""
    log: list[str] = []

    def timed(ctx: Context) -> Iterator[None]:
        log.append("timer on")
        yield
        log.append("timer off")

    with Task().start() as task:
        timer = task.wrap(timed)

        def work(ctx: Context) -> None:
            stop_timer = timer(ctx)
            log.append("work")
            stop_timer()

        task.use(work)
        task.run(1)
    assert log == ["timer on", "work", "timer off"]


def test_void_stands_for_no_middleware() -> None:
    """A choice stays one expression: ``use`` leaves ``VoidMiddleware`` out."""
    calls: list[str] = []
    debug = False
    with Task().start() as task:
        task.use(lambda ctx: calls.append("work"))
        task.use((lambda ctx: calls.append("debug")) if debug else VoidMiddleware())
        task.run(1)
    assert calls == ["work"]


def test_a_wrapper_is_a_decorator_for_all_middleware() -> None:
    """Also for what was registered before it: timing, tracing, retries in one place."""
    calls: list[str] = []

    def traced(fn: Callable[[Context], object]) -> Callable[[Context], object]:
        def call(ctx: Context) -> object:
            calls.append("trace")
            return fn(ctx)

        return call

    with Task().start() as task:
        task.use(lambda ctx: calls.append("a")).use_wrapper(traced).use(lambda ctx: calls.append("b"))
        task.run(1)
    assert calls == ["trace", "a", "trace", "b"]


def test_async_mode_runs_the_middleware_of_a_step_side_by_side() -> None:
    """Each half of a step is awaited before the next begins, and an error reaches whoever called ``run``."""
    meeting = threading.Barrier(3)
    with Task().start(async_mode=True, n_async_workers=3) as task:
        for _ in range(3):
            task.use(lambda ctx: meeting.wait(10))
        task.run(2)


def test_a_task_can_be_started_again() -> None:
    """Nothing of an earlier life is left: no middleware, no listeners, no roles, no finish."""
    task = Task()
    with task.start():
        task.use(lambda ctx: None).run(1)
        assert task.finish
    with task.start():
        assert not task.finish
        task.run()  # returns: there is no middleware
