"""The two halves of middleware, and how many of them make one; knows contexts and a thread pool, nothing of events.

Middleware is a callable of one argument, the context. When it is a generator, what comes before its first ``yield`` is
its forward half. The rest is its backward half: one part, up to the next ``yield``, for each backward pass.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from types import GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

from taskbus.errors import ConfigError
from taskbus.mailbox import function_name
from taskbus.pool import Latch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from taskbus.context import Context
    from taskbus.pool import Alarm, Pool

    Middleware = Callable[[Any], Any]
    Half = Generator[Any, Any, Any]
    Lock = AbstractContextManager[Any]

__all__ = ["Stack", "VoidMiddleware", "check_callable", "check_lock", "locked", "parallel", "serial", "wrap"]

log = logging.getLogger(__name__)

F = TypeVar("F", bound="Callable[..., Any]")


class VoidMiddleware:
    """Middleware that does nothing; ``use`` leaves it out, which makes conditional middleware an expression."""

    def __call__(self, ctx: Context) -> None:
        """Nothing."""


class Stack:
    """The generators whose backward half is still to come, in the order of their forward halves."""

    def __init__(self) -> None:
        self.open: list[Half] = []

    def begin(self, fn: Middleware, ctx: Context) -> Half | None:
        """Run the forward half of ``fn``; the generator, when there is more to come."""
        half = fn(ctx)
        if type(half) is GeneratorType and advance(half):
            self.open.append(half)
            return half
        return None

    def begin_all(self, fns: Iterable[Middleware], ctx: Context) -> None:
        """The forward half of each; written out, for this loop and that of ``unwind`` are what a step costs.

        In both a loop that is left at once takes one part of a generator: by ``next``, which is a call, and with what
        tells the end from another part, a step of ten costs 0.5 us more.
        """
        generator, opened = GeneratorType, self.open
        for fn in fns:
            half = fn(ctx)
            if half is not None and type(half) is generator:
                for _ in half:
                    opened.append(half)
                    break

    def take(self, other: Stack) -> None:
        """Move what is in ``other`` here, after what is here already."""
        self.open += other.open
        other.open.clear()

    def unwind(self) -> None:
        """One backward pass: one part of each generator, the last first; what is not exhausted stays for the next."""
        opened, left = self.open, []
        try:
            while opened:
                half = opened.pop()
                for _ in half:
                    left.append(half)
                    break
        finally:
            if left:
                opened += reversed(left)

    def unwind_one(self, half: Half | None) -> None:
        """One part of ``half``, wherever it is; nothing when it is not here."""
        if half is not None and half in self.open:
            self.open.remove(half)
            if advance(half):
                self.open.append(half)

    def close(self) -> None:
        """Close the generators, the last one first, as the end of a ``with`` block would."""
        while self.open:
            half = self.open.pop()
            try:
                half.close()
            except Exception:
                log.exception("middleware %s failed while it was closed", getattr(half, "__qualname__", half))


def advance(half: Half) -> bool:
    """Run ``half`` to its next ``yield``; false when it came to its end."""
    for _ in half:
        return True
    return False


def check_callable(fn: object) -> None:
    """Refuse what cannot be middleware."""
    if not callable(fn):
        raise TypeError(f"middleware has to be callable with the context, got {fn!r}")


def check_lock(lock: object) -> None:
    """Refuse what is neither true or false nor a lock."""
    if not isinstance(lock, bool | AbstractContextManager):
        raise ConfigError(f"lock must be True, False or a lock of your own, not {lock!r}")


def locked(fn: Middleware, lock: Lock) -> Middleware:
    """``fn`` with every part of it under ``lock``, but not what happens between its parts."""

    def under_lock(ctx: Context) -> Half:
        stack = Stack()
        try:
            with lock:
                stack.begin(fn, ctx)
            while stack.open:
                yield
                with lock:
                    stack.unwind()
        finally:
            stack.close()

    return _named(under_lock, "locked", [fn])


def wrap(stack_of_now: Callable[[], Stack], fn: Middleware) -> Callable[[Context], Callable[[], None]]:
    """``fn`` as a function to call inside other middleware; it returns a function that runs the backward half."""

    def forward(ctx: Context) -> Callable[[], None]:
        stack = stack_of_now()
        half = stack.begin(fn, ctx)

        def backward() -> None:
            stack.unwind_one(half)

        return backward

    return _named(forward, "wrap", [fn])


def serial(fns: Iterable[Middleware]) -> Middleware:
    """One middleware that runs ``fns`` one after another, and unwinds them in reverse."""
    fns = list(fns)

    def one_after_another(ctx: Context) -> Half:
        stack = Stack()
        try:
            stack.begin_all(fns, ctx)
            while stack.open:
                yield
                stack.unwind()
        finally:
            stack.close()

    return _named(one_after_another, "serial", fns)


def parallel(fns: Iterable[Middleware], pool: Callable[[], Pool], alarm: Callable[[], Alarm]) -> Middleware:
    """One middleware that runs the forward halves of ``fns`` at the same time, each on its own thread.

    It unwinds them in reverse order, as part of itself. The first error reaches its caller, once all have ended.
    """
    fns = list(fns)

    def side_by_side(ctx: Context) -> Half:
        stack = Stack()
        try:
            _begin_all(fns, ctx, stack, pool(), Latch(alarm()))
            while stack.open:
                yield
                stack.unwind()
        finally:
            stack.close()

    return _named(side_by_side, "parallel", fns)


def _begin_all(fns: list[Middleware], ctx: Context, stack: Stack, pool: Pool, latch: Latch) -> None:
    stacks = [Stack() for _ in fns]
    try:
        for fn, own in zip(fns[1:], stacks[1:], strict=True):
            pool.submit(latch, own.begin, fn, ctx)
        if fns:
            _run_here(latch, stacks[0].begin, fns[0], ctx)
    finally:
        latch.rest(math.inf)
        for own in stacks:
            stack.take(own)
    latch.wait()


def _run_here(latch: Latch, fn: Callable[..., Any], *args: Any) -> None:
    try:
        fn(*args)
    except BaseException as error:  # noqa: BLE001 the latch raises it, when the others have ended
        latch.failed(fn, error)


def _named(fn: F, kind: str, parts: list[Middleware]) -> F:
    fn.__name__ = fn.__qualname__ = f"{kind}({', '.join(map(function_name, parts))})"
    return fn
