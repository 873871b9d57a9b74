"""Parts of a program tell one another what happened, and wait for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskbus import ConfigError, EventLoop, NotStarted, Task, WaitTimeout
from taskbus.testing import until


def test_listeners_hear_what_is_emitted() -> None:
    """Arguments arrive as given; events of one emitter arrive in order; ``stop`` delivers what is on its way."""
    got: list[tuple[str, int]] = []
    with Task().start() as task:
        task.on("score", lambda player, points: got.append((player, points)))
        task.emit("score", "a", points=1)
        task.emit("score", "b", points=2)
    assert got == [("a", 1), ("b", 2)]


def test_a_slow_listener_delays_only_itself() -> None:
    """Each listener has a mailbox of its own, and is called with one event at a time."""
    door = threading.Event()
    quick: list[int] = []
    with Task().start() as task:
        task.on("x", lambda number: door.wait(10))
        task.on("x", quick.append)
        for number in range(100):
            task.emit("x", number)
        until(lambda: quick == list(range(100)))
        door.set()


def test_once_is_once() -> None:
    """However many threads emit at the same time."""
    calls: list[int] = []
    with Task().start() as task:
        task.once("go", calls.append)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: task.emit("go", number), range(100)))
    assert len(calls) == 1


def test_off_takes_a_name_or_a_glob() -> None:
    """With a function it removes that one, and leaves the others."""
    calls: list[str] = []

    def keep(number: int) -> None:
        calls.append("kept")

    def drop(number: int) -> None:
        calls.append("dropped")

    with Task().start() as task:
        task.on("weights.policy", keep).on("weights.policy", drop).on("weights.value", drop)
        task.off("weights.*", drop)
        task.emit("weights.policy", 1)
        task.emit("weights.value", 1)
    assert calls == ["kept"]


def test_an_error_in_a_listener_is_not_lost() -> None:
    """It is logged where it happens, and raised at the task's next ``emit`` or ``sync``."""
    with Task().start() as task:
        heard = threading.Event()

        def fail() -> None:
            heard.set()
            raise ValueError("in a listener")

        task.on("x", fail)
        task.emit("x")
        assert heard.wait(5)

        def sync_raises() -> bool:
            try:
                task.sync()
            except ValueError:
                return True
            return False

        until(sync_raises)


def test_wait_for_blocks_until_the_event_comes() -> None:
    """And returns its arguments; another thread, or another node, emits it."""
    with Task().start() as task, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(task.wait_for, "answer", timeout=10)

        def emit_until_heard() -> bool:
            task.emit("answer", 42, unit="apples")
            return answer.done()

        until(emit_until_heard)
        assert answer.result() == ((42,), {"unit": "apples"})


def test_wait_for_gives_up_in_one_of_two_ways() -> None:
    """``None``, or an error that says what did not come; a timeout of 0 looks and returns."""
    with Task().start() as task:
        assert task.wait_for("nothing", timeout=0) is None
        with pytest.raises(WaitTimeout, match="no event 'nothing' within 0.01 s"):
            task.wait_for("nothing", timeout=0.01, ignore_timeout_exception=False)


def test_a_standalone_task_has_no_past() -> None:
    """Events are kept by the bus; without one a wait can only begin now, and says so."""
    with Task().start() as task, pytest.raises(ConfigError, match="standalone task keeps no events"):
        task.wait_for("x", since="last")


def test_a_task_that_is_not_started_says_so() -> None:
    """Before ``start`` and after ``stop``; stopping twice is harmless."""
    task = Task()
    with pytest.raises(NotStarted, match=r"call start\(\) first"):
        task.emit("x")
    task.start()
    task.stop()
    task.stop()
    with pytest.raises(NotStarted):
        task.emit("x")


def test_an_event_loop_is_events_without_a_task() -> None:
    """Named, and the same one for everybody in the process until it is stopped."""
    got: list[int] = []
    EventLoop.get_event_loop("sensors").on("reading", got.append)
    EventLoop.get_event_loop("sensors").emit("reading", 7)
    EventLoop.get_event_loop("sensors").stop()
    assert got == [7]
