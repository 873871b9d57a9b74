"""The two halves of middleware, and how many of them make one."""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.context import Context
from taskbus.mailbox import function_name
from taskbus.pipeline import Stack, VoidMiddleware, check_callable, locked, parallel, serial, wrap
from taskbus.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskbus.pipeline import Middleware

CTX = Context()


class Log(list[str]):
    """Middleware that writes down its parts: ``a1 | a2 | a3``."""

    def part(self, name: str, parts: int = 2, fail_at: int = 0) -> Middleware:
        def middleware(ctx: Context) -> Generator[None, None, None]:
            try:
                for number in range(1, parts + 1):
                    if number == fail_at:
                        raise ValueError(f"{name}{number}")
                    self.append(f"{name}{number}")
                    if number < parts:
                        yield
            except GeneratorExit:
                self.append(f"{name} closed")
                raise

        return middleware

    def plain(self, name: str) -> Middleware:
        return lambda ctx: self.append(name)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def stack() -> Stack:
    return Stack()


class Quiet:
    """An alarm that nobody hears."""

    def fail(self, source: object) -> None: ...

    def recover(self, source: object) -> None: ...


@pytest.fixture
def crew() -> Iterator[Pool]:
    made = Pool("test")
    yield made
    made.close(5)


def side_by_side(crew: Pool, *fns: Middleware) -> Middleware:
    return parallel(fns, lambda: crew, Quiet)


def test_backward_halves_come_in_reverse(stack: Stack, log: Log) -> None:
    stack.begin_all([log.part("a"), log.plain("p"), log.part("b"), log.part("c", parts=1)], CTX)
    assert log == ["a1", "p", "b1", "c1"]
    stack.unwind()
    assert log[4:] == ["b2", "a2"]
    stack.unwind()
    assert not stack.open


def test_each_backward_pass_runs_one_part(stack: Stack, log: Log) -> None:
    stack.begin(log.part("a", parts=4), CTX)
    stack.begin(log.part("b", parts=3), CTX)
    for expected in (["b2", "a2"], ["b3", "a3"], ["a4"], []):
        log.clear()
        stack.unwind()
        assert log == expected
    assert not stack.open


def test_begin_returns_the_generator_only_if_more_is_to_come(stack: Stack, log: Log) -> None:
    assert stack.begin(log.plain("p"), CTX) is None
    assert stack.begin(log.part("a", parts=1), CTX) is None
    half = stack.begin(log.part("b"), CTX)
    stack.unwind_one(half)
    assert log[-1] == "b2"
    stack.unwind_one(half)
    stack.unwind_one(None)
    assert not stack.open


def test_an_error_in_a_backward_half_leaves_the_others_to_be_closed(stack: Stack, log: Log) -> None:
    stack.begin_all([log.part("a"), log.part("b", fail_at=2), log.part("c", parts=3)], CTX)
    with pytest.raises(ValueError, match="b2"):
        stack.unwind()
    stack.close()
    assert log[-3:] == ["c2", "c closed", "a closed"]


def test_closing_goes_on_after_an_error(stack: Stack, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    def bad(ctx: Context) -> Generator[None, None, None]:
        try:
            yield
        finally:
            raise ValueError("while closing")

    stack.begin_all([log.part("a"), bad], CTX)
    stack.close()
    assert log[-1] == "a closed"
    assert "bad failed while it was closed" in caplog.text


def test_wrapped_middleware_unwinds_where_it_is_told_to(stack: Stack, log: Log) -> None:
    child = wrap(lambda: stack, log.part("child"))

    def mother(ctx: Context) -> Generator[None, None, None]:
        back = child(ctx)
        yield
        log.append("mother2")
        back()
        log.append("mother3")

    stack.begin_all([log.part("a"), mother], CTX)
    stack.unwind()
    assert log == ["a1", "child1", "mother2", "child2", "mother3", "a2"]


def test_wrapped_middleware_that_is_never_unwound_is_picked_up_in_the_backward_pass(stack: Stack, log: Log) -> None:
    child = wrap(lambda: stack, log.part("child"))

    def mother(ctx: Context) -> Generator[None, None, None]:
        child(ctx)
        yield
        log.append("mother2")

    stack.begin_all([log.part("a"), mother, log.part("b")], CTX)
    stack.unwind()
    assert log == ["a1", "child1", "b1", "b2", "mother2", "child2", "a2"]


def test_unwinding_a_plain_function_or_twice_is_harmless(stack: Stack, log: Log) -> None:
    back = wrap(lambda: stack, log.plain("p"))(CTX)
    back()
    back()
    back = wrap(lambda: stack, log.part("a", parts=3))(CTX)
    for _ in range(4):
        back()
    assert log == ["p", "a1", "a2", "a3"]


def test_serial_runs_in_order_and_unwinds_in_reverse_as_part_of_itself(stack: Stack, log: Log) -> None:
    one = serial([log.part("a"), log.plain("p"), log.part("b", parts=3)])
    stack.begin_all([log.part("before"), one, log.part("after")], CTX)
    stack.unwind()
    assert log == ["before1", "a1", "p", "b1", "after1", "after2", "b2", "a2", "before2"]
    stack.unwind()
    assert log[-1] == "b3"
    assert not stack.open


def test_serial_of_plain_functions_leaves_nothing_to_unwind(stack: Stack, log: Log) -> None:
    assert stack.begin(serial([log.plain("p"), log.plain("q")]), CTX) is None
    assert log == ["p", "q"]
    assert stack.begin(serial([]), CTX) is None


def test_serial_closes_what_it_began_when_one_fails(stack: Stack, log: Log) -> None:
    with pytest.raises(ValueError, match="b1"):
        stack.begin(serial([log.part("a"), log.part("b", fail_at=1)]), CTX)
    assert log == ["a1", "a closed"]
    stack.begin(serial([log.part("a"), log.part("b", fail_at=2)]), CTX)
    with pytest.raises(ValueError, match="b2"):
        stack.unwind()
    assert log[2:] == ["a1", "b1", "a closed"]


def test_parallel_runs_at_the_same_time(stack: Stack, crew: Pool) -> None:
    meeting = threading.Barrier(8)
    for _ in range(3):
        assert stack.begin(side_by_side(crew, *[lambda ctx: meeting.wait(10)] * 8), CTX) is None
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("taskbus-test")]) == 7


def test_parallel_unwinds_once_in_reverse_and_before_what_was_registered_earlier(
    stack: Stack, crew: Pool, log: Log
) -> None:
    both = side_by_side(crew, log.part("a"), log.part("b"), log.plain("p"), log.part("c", parts=3))
    stack.begin_all([log.part("before"), both, log.part("after")], CTX)
    assert sorted(log[1:-1]) == ["a1", "b1", "c1", "p"]
    log.clear()
    stack.unwind()
    assert log == ["after2", "c2", "b2", "a2", "before2"]
    stack.unwind()
    assert log[5:] == ["c3"]
    assert not stack.open


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_in_parallel_reaches_the_caller_once_all_have_ended(
    stack: Stack, crew: Pool, log: Log, place: int
) -> None:
    fns = [log.part("a"), log.part("b")]
    fns.insert(place, log.part("bad", fail_at=1))
    with pytest.raises(ValueError, match="bad1"):
        stack.begin(side_by_side(crew, *fns), CTX)
    assert sorted(log[:2]) == ["a1", "b1"]
    assert log[2:] == ["b closed", "a closed"]
    assert not stack.open


def test_an_error_in_a_backward_half_of_parallel_reaches_the_caller(stack: Stack, crew: Pool, log: Log) -> None:
    stack.begin(side_by_side(crew, log.part("a"), log.part("b", fail_at=2)), CTX)
    with pytest.raises(ValueError, match="b2"):
        stack.unwind()
    assert log[-1] == "a closed"


def test_nests(stack: Stack, crew: Pool, log: Log) -> None:
    inner = side_by_side(crew, log.part("a"), serial([log.part("b"), log.part("c")]))
    stack.begin(serial([log.part("first"), inner, side_by_side(crew, inner, inner)]), CTX)
    stack.unwind()
    assert sorted(log) == sorted([*["a1", "a2", "b1", "b2", "c1", "c2"] * 3, "first1", "first2"])
    assert log[-1] == "first2"


class Lock(AbstractContextManager[None]):
    def __init__(self, log: Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._log.append("(")

    def __exit__(self, *error: object) -> None:
        self._log.append(")")


def test_a_lock_is_held_in_each_part_and_not_between(stack: Stack, log: Log) -> None:
    stack.begin_all([locked(log.part("a", parts=3), Lock(log)), locked(log.plain("p"), Lock(log))], CTX)
    assert "".join(log) == "(a1)(p)"
    stack.unwind()
    stack.unwind()
    assert "".join(log) == "(a1)(p)(a2)(a3)"
    assert not stack.open


def test_a_lock_is_free_again_after_an_error(stack: Stack, log: Log) -> None:
    with pytest.raises(ValueError, match="a1"):
        stack.begin(locked(log.part("a", fail_at=1), Lock(log)), CTX)
    assert log == ["(", ")"]


class Instance:
    def __call__(self, ctx: Context) -> None: ...


def two(ctx: Context, other: int) -> None: ...


def test_callables_without_a_name_are_welcome(stack: Stack, crew: Pool) -> None:
    fns: list[Any] = [Instance(), functools.partial(two, other=1), lambda ctx: None, VoidMiddleware()]
    for one in (serial(fns), side_by_side(crew, *fns), wrap(lambda: stack, fns[0]), locked(fns[1], threading.Lock())):
        one(CTX)
        assert "Instance instance" in function_name(one) or "partial(" in function_name(one)


def test_what_cannot_be_called_is_named() -> None:
    with pytest.raises(TypeError, match=r"has to be callable with the context, got \[1\]"):
        check_callable([1])
