"""What a step is made of: the middleware of a task, their two halves, and the threads for async mode."""

from __future__ import annotations

import functools
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from taskbus.context import Context
from taskbus.dispatch import on_delivery_thread
from taskbus.errors import ConfigError
from taskbus.link import NOT_STARTED
from taskbus.mailbox import ErrorBox
from taskbus.pipeline import Stack, VoidMiddleware, check_callable, check_lock, locked, parallel, serial, wrap
from taskbus.pool import Latch, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from taskbus.pipeline import Half, Middleware
    from taskbus.pool import Alarm

    Wrapper = Callable[[Middleware], Middleware]
    AnyLock = bool | AbstractContextManager[Any]

__all__ = ["Steps", "enable_async"]

log = logging.getLogger(__name__)

F = TypeVar("F", bound="Callable[..., Any]")


def enable_async(method: F) -> F:
    """Give a method of a task subclass the ``async_mode`` argument of ``forward`` and ``backward``.

    Without it the task's own mode holds. In async mode the method runs in the task's pool, returns ``None`` and is
    awaited by ``sync()``; keyword arguments other than ``async_mode`` are refused. Declare the argument for the sake of
    type checkers; the method itself never receives it.
    """

    @functools.wraps(method)
    def call(self: Steps, *args: Any, async_mode: bool | None = None, **kwargs: Any) -> Any:
        if not (self.async_mode if async_mode is None else async_mode):
            return method(self, *args, **kwargs)
        if kwargs:
            names = ", ".join(kwargs)
            raise ConfigError(
                f"{method.__name__} takes no keyword arguments in async mode, got {names}; pass them by position"
            )
        self.async_executor(method, self, *args)
        return None

    return cast("F", call)


class Steps:
    """The part of a task that knows middleware, and nothing of events."""

    def __init__(self) -> None:
        self.ctx: Any = Context()
        self.async_mode = False
        self._plan: list[tuple[Middleware, AnyLock]] = []
        self._wrappers: list[Wrapper] = []
        self._middleware: list[Middleware] = []
        self._errors = ErrorBox()
        self._own_lock = threading.RLock()  # for `lock=True`
        self._alarm = cast("Alarm", NOT_STARTED)
        self._stack = cast("Stack", NOT_STARTED)
        self._latch = cast("Latch", NOT_STARTED)
        self._pool = self._crew = cast("Pool", NOT_STARTED)

    def _open_steps(self, ctx: Context, async_mode: bool, n_async_workers: int, alarm: Alarm) -> None:
        self.ctx = ctx
        self.async_mode = async_mode
        self._errors = ErrorBox()
        self._alarm = alarm
        self._stack = Stack()
        self._latch = Latch(alarm)
        self._pool = Pool("async", n_async_workers)
        self._crew = Pool("parallel")  # without a limit: those that run side by side may wait for one another

    def _end_steps(self, deadline: float) -> None:
        if not self._is_inside() and not self._latch.rest(max(0.0, deadline - monotonic())):
            log.warning("stopping while %d call(s) in async mode still run", self._latch.open)
        self._stack.close()

    def _close_steps(self, timeout: float) -> None:
        deadline = monotonic() + timeout
        pools, self._pool = (self._pool, self._crew), cast("Pool", NOT_STARTED)
        self._crew = self._pool
        self._stack = cast("Stack", NOT_STARTED)
        self._plan, self._wrappers, self._middleware = [], [], []
        for pool in pools:
            pool.close(max(0.0, deadline - monotonic()))

    def _check_started(self) -> None:
        raise NotImplementedError

    # Middleware ------------------------------------------------------------------------------------------------------

    def use(self, fn: Middleware, lock: AnyLock = False) -> Self:
        """Register middleware: any callable of one argument, the context.

        Args:
            fn: Function, generator function, lambda, partial, instance ...; ``VoidMiddleware`` is left out.
            lock: ``True`` runs each half under the task's one lock; or a lock of your own.
        """
        self._check_started()
        check_callable(fn)
        check_lock(lock)
        if not isinstance(fn, VoidMiddleware):
            self._plan.append((fn, lock))
            self._middleware.append(self._compose(fn, lock))
        return self

    def use_wrapper(self, fn: Wrapper) -> Self:
        """Put the decorator ``fn`` on every middleware, on those registered before and on those to come."""
        self._check_started()
        check_callable(fn)
        self._wrappers.append(fn)
        self._middleware = [self._compose(*planned) for planned in self._plan]
        return self

    def _compose(self, fn: Middleware, lock: AnyLock) -> Middleware:
        for wrapper in self._wrappers:
            fn = wrapper(fn)
            check_callable(fn)
        return self._under(lock, fn)

    def _under(self, lock: AnyLock, fn: Middleware) -> Middleware:
        if lock is False:
            return fn
        return locked(fn, self._own_lock if lock is True else lock)

    def wrap(self, fn: Middleware, lock: AnyLock = False) -> Callable[[Any], Callable[[], None]]:
        """Middleware to call inside other middleware: ``backward = task.wrap(fn)(ctx)``.

        ``backward()`` runs the next part of its backward half, if there is one. Left alone, that happens in the
        backward pass of the step.
        """
        check_callable(fn)
        check_lock(lock)
        return wrap(lambda: self._stack, self._under(lock, fn))

    def serial(self, *fns: Middleware) -> Middleware:
        """One middleware that runs ``fns`` one after another, and unwinds them in reverse."""
        for fn in fns:
            check_callable(fn)
        return serial(fns)

    def parallel(self, *fns: Middleware) -> Middleware:
        """One middleware that runs ``fns`` at the same time, and unwinds them, once, in reverse, as part of itself.

        The first error of them reaches its caller, once all have ended; waits of the others end early with ``None``.
        """
        for fn in fns:
            check_callable(fn)
        return parallel(fns, lambda: self._crew, lambda: self._alarm)

    @staticmethod
    def void() -> VoidMiddleware:
        """Middleware that does nothing, and that ``use`` leaves out."""
        return VoidMiddleware()

    @enable_async
    def forward(self, fn: Middleware, ctx: Context | None = None, *, async_mode: bool | None = None) -> Half | None:
        """Run the forward half of ``fn`` over ``ctx``, default this step's; returns the generator if more is to come.

        In async mode it runs in the pool, is awaited by ``sync``, and nothing is returned.
        """
        return self._stack.begin(fn, self.ctx if ctx is None else ctx)

    @enable_async
    def backward(self, stack: Iterable[Half] | None = None, *, async_mode: bool | None = None) -> None:
        """One backward pass: one part of each open generator, the last one first.

        Args:
            stack: These generators only, in the order of their forward halves; default all that are open.
        """
        if stack is None:
            self._stack.unwind()
        else:
            for half in reversed(list(stack)):
                self._stack.unwind_one(half)

    def _run_step(self) -> None:
        for fn in self._middleware:
            self.forward(fn)
        self._await()
        if self._stack.open:
            self.backward()
            self._await()

    def _await(self) -> None:
        """The part of ``sync`` that every step does: steps go on while Redis is away."""
        latch = self._latch
        if (latch.open or latch.errors.kept) and not self._is_inside():
            latch.wait()
        if self._errors.kept and not on_delivery_thread():
            self._errors.raise_first()

    def _is_inside(self) -> bool:
        return self._pool.owns_this_thread() or self._crew.owns_this_thread()

    def async_executor(self, fn: Callable[..., Any], *args: Any) -> None:
        """Run ``fn(*args)`` in the pool; ``sync`` waits for it and raises its error."""
        self._check_started()
        self._pool.submit(self._latch, fn, *args)
