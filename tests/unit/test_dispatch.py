"""The table of listeners and waiters, and the threads that call listeners."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from taskbus.dispatch import EventLoop, Listener, Waiter, check_event
from taskbus.errors import BusUnavailable, ConfigError, NotStarted
from taskbus.testing import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop("test")
    yield made
    made.stop()


def ignore(error: BaseException) -> None:
    """A report that nobody reads."""


def offer(loop: EventLoop, event: str, events: list[Any], start: int = 0) -> list[int]:
    """Give the events to each who takes them, as the reader does; how far each got."""
    return [sink.offer(events, start, 0) for sink in loop.sinks(event)]


def test_events_of_one_thread_come_in_order_and_keep_their_arguments(loop: EventLoop) -> None:
    got: list[Any] = []
    loop.on("x", lambda *args, **kwargs: got.append((args, kwargs)))
    for number in range(1000):
        loop.emit("x", number, square=number**2)
    assert loop.drain(5) == []
    assert got == [((number,), {"square": number**2}) for number in range(1000)]


def test_listeners_run_on_threads_of_the_loop_and_never_on_the_emitting_one(loop: EventLoop) -> None:
    names: list[str] = []
    loop.on("x", lambda: names.append(threading.current_thread().name))
    loop.emit("x")
    loop.drain(5)
    assert names == ["taskbus-test-0"]


def test_one_thread_serves_listeners_that_never_overlap(loop: EventLoop) -> None:
    for _ in range(50):
        loop.on("x", lambda: None)
    for _ in range(3):
        loop.emit("x")
        loop.drain(5)
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("taskbus-test")]) <= 50
    loop.off("x")
    got: list[str] = []
    loop.on("y", lambda: got.append(threading.current_thread().name))
    for _ in range(100):
        loop.emit("y")
        loop.drain(5)
    assert len(set(got)) == 1


def test_a_listener_is_called_by_one_thread_at_a_time_however_many_emit(loop: EventLoop) -> None:
    inside, overlaps, calls = 0, 0, 0

    def listener(number: int) -> None:
        nonlocal inside, overlaps, calls
        inside += 1
        overlaps += inside > 1
        calls += 1
        inside -= 1

    loop.on("x", listener)
    emit_from_threads(loop, 4, 2500)
    assert loop.drain(10) == []
    assert (calls, overlaps) == (10_000, 0)


def emit_from_threads(loop: EventLoop, threads: int, events: int) -> None:
    start = threading.Barrier(threads)

    def emit() -> None:
        start.wait()
        for number in range(events):
            loop.emit("x", number)

    emitters = [threading.Thread(target=emit) for _ in range(threads)]
    for thread in emitters:
        thread.start()
    for thread in emitters:
        thread.join()


@pytest.mark.parametrize("repeat", range(20))
def test_once_fires_once_although_four_threads_emit_at_the_same_time(loop: EventLoop, repeat: int) -> None:
    calls: list[int] = []
    loop.once("x", calls.append)
    emit_from_threads(loop, 4, 10)
    loop.drain(5)
    assert len(calls) == 1
    assert not loop.listened("x")


def test_off_removes_one_function_and_leaves_the_others(loop: EventLoop) -> None:
    got: list[str] = []

    def first() -> None:
        got.append("first")

    def second() -> None:
        got.append("second")

    loop.on("x", first)
    loop.on("x", second)
    loop.off("x", first)
    loop.emit("x")
    loop.drain(5)
    assert got == ["second"]


def test_off_knows_bound_methods_and_takes_globs(loop: EventLoop) -> None:
    got: list[int] = []
    loop.on("weights.a", got.append)
    loop.on("weights.b", got.append)
    loop.on("other", got.append)
    loop.off("weights.*", got.append)
    assert [loop.listened(name) for name in ("weights.a", "weights.b", "other")] == [False, False, True]
    loop.off("*")
    assert not loop.listened("other")


def test_off_inside_the_listener_stops_it_and_no_other(loop: EventLoop) -> None:
    got: list[str] = []

    def once_only(number: int) -> None:
        got.append(f"a{number}")
        loop.off("x", once_only)

    loop.on("x", once_only)
    loop.on("x", lambda number: got.append(f"b{number}"))
    offer(loop, "x", [((number,), {}) for number in range(3)])
    loop.drain(5)
    assert sorted(got) == ["a0", "b0", "b1", "b2"]


def test_listeners_come_and_go_while_events_flow(loop: EventLoop) -> None:
    sibling: list[int] = []
    singles: list[list[int]] = [[] for _ in range(200)]
    done = threading.Event()
    loop.on("x", sibling.append)

    def come_and_go(mine: list[list[int]]) -> None:
        for calls in mine:
            loop.once("x", calls.append)
            loop.on("x", ignored := lambda number: None)
            loop.off("x", ignored)

    threads = [threading.Thread(target=come_and_go, args=(singles[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5000):
        loop.emit("x", number)
    for thread in threads:
        thread.join()
    done.set()
    loop.drain(10)
    assert sibling == list(range(5000))
    assert all(len(calls) <= 1 for calls in singles)


def test_a_listener_that_blocks_delays_nobody_else(loop: EventLoop) -> None:
    release = threading.Event()
    got: list[int] = []
    for _ in range(16):
        loop.on("x", lambda number: release.wait(30))
    loop.on("x", got.append)
    for number in range(100):
        loop.emit("x", number)
    until(lambda: len(got) == 100)
    assert len(loop.drain(0)) == 16
    release.set()


def test_a_listener_may_emit_and_wait(loop: EventLoop) -> None:
    answers: list[object] = []

    def ask(number: int) -> None:
        answer = Waiter("answer")
        loop.attach(answer)
        loop.emit("question", number)
        answers.append(answer.wait(time.monotonic() + 5))
        loop.remove(answer)

    loop.on("ask", ask)
    loop.on("question", lambda number: loop.emit("answer", number + 1))
    loop.emit("ask", 1)
    loop.emit("ask", 2)
    loop.drain(5)
    assert answers == [((2,), {}), ((3,), {})]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, Unprintable])
def test_an_error_is_logged_kept_and_raised_at_the_next_emit(
    loop: EventLoop, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    good: list[int] = []

    def bad(number: int) -> None:
        if number % 10 == 0:
            raise kind(number)

    loop.on("x", bad)
    loop.on("x", good.append)
    offer(loop, "x", [((number,), {}) for number in range(1000)])
    loop.drain(5)
    assert good == list(range(1000))
    assert len(caplog.records) == 100
    assert all("test_dispatch" in record.getMessage() and "bad" in record.getMessage() for record in caplog.records)
    with pytest.raises(kind) as raised:
        loop.emit("x", 1)
    assert raised.value.args == (0,)
    assert raised.value.__notes__ == ["and 99 more error(s), see the log"]
    loop.emit("x", 1)


def test_an_error_is_raised_to_who_emits_and_not_into_other_listeners(loop: EventLoop) -> None:
    got: list[int] = []

    def pass_on(number: int) -> None:
        loop.emit("y", number)

    def fail(number: int) -> None:
        raise ValueError(number)

    loop.on("x", fail)
    loop.on("x", pass_on)
    loop.on("y", got.append)
    offer(loop, "x", [((number,), {}) for number in range(100)])
    loop.drain(5)
    assert got == list(range(100))
    with pytest.raises(ValueError, match="0"):
        loop.emit("z")


def test_a_full_listener_says_what_it_has_not_taken_and_when_there_is_room(loop: EventLoop) -> None:
    gate = threading.Semaphore(0)
    slow: list[int] = []
    fast: list[int] = []
    room: list[str] = []
    loop.on_room = room.append

    def wait_at_the_gate(number: int) -> None:
        gate.acquire()
        slow.append(number)

    full = Listener(loop, "x", wait_at_the_gate, ignore, max_events=10)
    loop.attach(full)
    loop.attach(Listener(loop, "x", fast.append, ignore))
    events: list[Any] = [((number,), {}) for number in range(30)]
    assert offer(loop, "x", events[:5]) == [5, 5]
    taken, of_the_fast_one = offer(loop, "x", events, 5)
    assert of_the_fast_one == 30
    assert 10 <= taken <= 11  # one of a frame may be under way
    until(lambda: len(fast) == 30)
    assert full.offer(events, taken, 0) == taken
    assert room == []
    gate.release(taken)
    until(lambda: room == ["x"])
    gate.release(30)
    while taken < 30:
        taken = full.offer(events, taken, 0)
    until(lambda: len(slow) == 30)
    assert slow == list(range(30))


def test_room_is_told_of_although_something_small_has_found_it_first(loop: EventLoop) -> None:
    gate = threading.Semaphore(0)
    room: list[str] = []
    loop.on_room = room.append
    full = Listener(loop, "x", lambda number: gate.acquire(), ignore, max_events=10)
    loop.attach(full)
    events: list[Any] = [((number,), {}) for number in range(2)]
    while full.offer(events, 0, 0) == 2:
        pass
    gate.release(4)
    until(lambda: full.depth <= 8)
    assert full.offer(events[:1], 0, 0) == 1
    gate.release(20)
    until(lambda: room)


def test_bytes_bound_a_mailbox_and_one_frame_of_any_size_fits(loop: EventLoop) -> None:
    gate = threading.Semaphore(0)
    got: list[int] = []
    room: list[str] = []
    loop.on_room = room.append

    def wait_at_the_gate(number: int) -> None:
        gate.acquire()
        got.append(number)

    listener = Listener(loop, "x", wait_at_the_gate, ignore, max_bytes=1000)
    loop.attach(listener)
    assert listener.offer([((0,), {}), ((1,), {})], 0, 5000) == 2
    assert listener.offer([((2,), {})], 0, 10) == 0
    gate.release(3)
    until(lambda: room)
    assert listener.offer([((2,), {})], 0, 10) == 1
    until(lambda: got == [0, 1, 2])


def test_a_local_emit_waits_for_room_up_to_its_timeout(loop: EventLoop) -> None:
    gate = threading.Semaphore(0)
    got: list[int] = []
    siblings: list[int] = []

    def wait_at_the_gate(number: int) -> None:
        gate.acquire()
        got.append(number)

    loop.attach(Listener(loop, "x", wait_at_the_gate, ignore, max_events=2))
    loop.attach(Listener(loop, "x", siblings.append, ignore))
    loop.deliver("x", (0,), {}, 0)
    until(lambda: not loop.sinks("x")[0].depth)  # type: ignore[attr-defined]
    for number in (1, 2):
        loop.deliver("x", (number,), {}, 0)
    with pytest.raises(BusUnavailable, match="2 events behind and had no room within 0.01 s"):
        loop.deliver("x", (3,), {}, 0.01)
    until(lambda: siblings == [0, 1, 2, 3])  # the others have it all the same
    emitter = threading.Thread(target=loop.deliver, args=("x", (4,), {}, 30))
    emitter.start()
    gate.release(5)
    emitter.join(5)
    until(lambda: got == [0, 1, 2, 4])


def test_an_emit_that_waits_for_room_ends_when_the_listener_is_removed(loop: EventLoop) -> None:
    release = threading.Event()
    listener = Listener(loop, "x", lambda: release.wait(30), ignore, max_events=1)
    loop.attach(listener)
    loop.deliver("x", (), {}, 0)
    until(lambda: not listener.depth)
    loop.deliver("x", (), {}, 0)
    emitter = threading.Thread(target=loop.deliver, args=("x", (), {}, 30))
    emitter.start()
    until(lambda: listener._room._condition._waiters)  # type: ignore[attr-defined]
    loop.remove(listener)
    listener.close()
    emitter.join(5)
    assert not emitter.is_alive()
    release.set()


def test_a_sink_that_catches_up_takes_what_stays_in_the_process(loop: EventLoop) -> None:
    waiter = Waiter("x")
    waiter.ready = False
    loop.attach(waiter)
    loop.emit("x", 3)
    assert waiter.wait(time.monotonic()) == ((3,), {})


def test_slow_names_the_function_that_has_run_too_long(loop: EventLoop) -> None:
    release = threading.Event()

    def sleeper(number: int) -> None:
        release.wait(30)

    loop.on("x", sleeper)
    loop.emit("x", 1)
    until(lambda: loop.slow(0.02))
    ((event, name, seconds),) = loop.slow(0)
    assert (event, name.endswith("sleeper")) == ("x", True)
    assert seconds >= 0.02
    release.set()
    loop.drain(5)
    assert loop.slow(0) == []


def test_drain_says_who_is_still_busy_and_counts_what_listeners_emit(loop: EventLoop) -> None:
    release = threading.Event()
    got: list[int] = []

    def chain(number: int) -> None:
        got.append(number)
        if number:
            loop.emit("x", number - 1)

    def blocked() -> None:
        release.wait(30)

    loop.on("x", chain)
    loop.emit("x", 50)
    assert loop.drain(5) == []
    assert got == list(range(50, -1, -1))
    loop.on("y", blocked)
    loop.emit("y")
    assert [name.rpartition(".")[2] for name in loop.drain(0.01)] == ["blocked"]
    release.set()


def test_stop_delivers_what_was_emitted_and_ends_the_threads() -> None:
    loop = EventLoop("test")
    got: list[int] = []
    loop.on("x", got.append)
    for number in range(5000):
        loop.emit("x", number)
    loop.stop()
    loop.stop()
    assert got == list(range(5000))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("taskbus-test")]
    with pytest.raises(NotStarted, match="was stopped"):
        loop.emit("x", 1)
    with pytest.raises(NotStarted, match="was stopped"):
        loop.on("x", got.append)


def test_a_listener_may_stop_its_own_loop() -> None:
    loop = EventLoop("test")
    stopped = threading.Event()

    def stop() -> None:
        loop.stop()
        stopped.set()

    loop.on("x", stop)
    loop.emit("x")
    assert stopped.wait(5)


def test_close_does_not_wait_for_a_call_that_never_returns(caplog: pytest.LogCaptureFixture) -> None:
    loop = EventLoop("test")
    release = threading.Event()
    got: list[int] = []

    def block(number: int) -> None:
        got.append(number)
        release.wait(30)

    loop.on("x", block)
    loop.emit("x", 1)
    loop.emit("x", 2)
    until(lambda: got)
    began = time.monotonic()
    loop.close(0.05)
    assert time.monotonic() - began < 1
    release.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("taskbus-test")])
    assert got == [1]


def test_a_closed_loop_wakes_waiters_and_takes_no_more() -> None:
    loop = EventLoop("test")
    waiter = Waiter("x")
    loop.attach(waiter)
    loop.close()
    assert waiter.wait() is None
    late = Waiter("x")
    loop.attach(late)
    assert late.wait() is None


def test_a_loop_is_the_same_for_everybody_until_it_is_stopped() -> None:
    loop = EventLoop.get_event_loop("shared")
    assert EventLoop.get_event_loop("shared") is loop
    assert EventLoop.get_event_loop("another") is not loop
    loop.stop()
    other = EventLoop.get_event_loop("shared")
    assert other is not loop
    loop.stop()
    assert EventLoop.get_event_loop("shared") is other
    for name in ("shared", "another"):
        EventLoop.get_event_loop(name).stop()


def test_a_listener_has_to_be_callable(loop: EventLoop) -> None:
    with pytest.raises(TypeError, match="has to be callable, got 'fn'"):
        loop.on("x", "fn")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a", "a.b:c-d_e", "A" * 128])
def test_good_names(name: str) -> None:
    check_event(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "A" * 129, "a\n", None, 3])
def test_bad_names_are_quoted(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_event(name)
    assert repr(name)[:60] in str(raised.value)


def test_errors_beyond_the_bound_are_counted(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    def fail(number: int) -> None:
        raise ValueError(number)

    loop.on("x", fail)
    offer(loop, "x", [((number,), {}) for number in range(250)])
    loop.drain(5)
    with pytest.raises(ValueError, match="^0") as raised:
        loop.emit("x", 1)
    assert raised.value.__notes__ == ["and 249 more error(s), see the log"]
