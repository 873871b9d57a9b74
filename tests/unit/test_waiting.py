"""Sinks without a function: a waiter takes one event, a trail keeps those between two waits."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskbus.testing import until
from taskbus.types import Event, Page
from taskbus.waiting import Trail, Waiter

FIRST: Event = ((1,), {"a": 1})
SECOND: Event = ((2,), {})


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_a_waiter_takes_its_first_event_and_no_other() -> None:
    waiter = Waiter("x")
    waiter.put(*FIRST, timeout=0)
    waiter.put(*SECOND, timeout=0)
    assert waiter.offer([SECOND], 0, 10) == 1
    assert waiter.wait(soon()) == FIRST
    assert not waiter.resolve(SECOND)


def test_a_waiter_takes_the_first_of_a_frame_from_where_it_begins() -> None:
    waiter = Waiter("x")
    assert waiter.offer([FIRST, SECOND], 1, 10) == 2
    assert waiter.wait(soon()) == SECOND


@pytest.mark.parametrize("seconds", [5.0, math.inf])
@pytest.mark.parametrize("at", ["setdefault", "release"])
def test_a_waiter_has_what_an_interrupted_thread_brought(at: str, seconds: float) -> None:
    """A signal handler raises on the thread that resolves it, right after a step of that was made."""

    class Interrupt(Exception):
        pass

    class Step:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                getattr(self.real, name)(*args)
                raise Interrupt

            return call if name in armed else getattr(self.real, name)

        def __getitem__(self, key: str) -> Any:
            return self.real[key]

        def __len__(self) -> int:
            return len(self.real)

    armed: list[str] = []
    waiter: Any = Waiter("x")
    waiter._result = Step(waiter._result)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiter.wait, time.monotonic() + seconds)
        until(lambda: waiter._wake is not None)
        waiter._wake = Step(waiter._wake)
        armed.append(at)
        with pytest.raises(Interrupt):
            waiter.resolve(FIRST)
        assert waiting.result(10) == FIRST
    assert waiter.taken == FIRST
    assert not waiter.timed_out


@pytest.mark.parametrize("seconds", [0, 0.01, 0.1])
def test_a_waiter_gives_up_on_time(seconds: float) -> None:
    waiter = Waiter("x")
    began = time.monotonic()
    assert waiter.wait(began + seconds) is None
    assert waiter.timed_out
    assert seconds <= time.monotonic() - began + 0.001 < seconds + 0.5


def test_a_deadline_further_away_than_the_lock_can_wait_is_no_error() -> None:
    waiter = Waiter("x")
    waiter.put(*FIRST, timeout=0)
    assert waiter.wait(1e300) == FIRST


def test_a_waiter_is_cancelled_with_or_without_an_error() -> None:
    quiet, loud = Waiter("x"), Waiter("x")
    quiet.cancel()
    loud.cancel(ValueError("why"))
    loud.put(*FIRST, timeout=0)
    assert quiet.wait() is None
    assert not quiet.timed_out
    with pytest.raises(ValueError, match="why"):
        loud.wait()


def test_an_event_at_the_very_deadline_is_taken_or_left_and_never_half() -> None:
    for _ in range(300):
        waiter = Waiter("x")
        emitter = threading.Thread(target=waiter.put, args=((), {}, 0))
        emitter.start()
        found = waiter.wait(time.monotonic() + 0.0001)
        assert waiter.timed_out == (found is None)
        emitter.join()


def test_a_trail_keeps_events_between_waits_and_gives_each_once() -> None:
    trail = Trail("x")
    trail.put(*FIRST, timeout=0)
    assert trail.offer([FIRST, SECOND, SECOND], 1, 30) == 3
    assert [trail.wait(0) for _ in range(4)] == [FIRST, SECOND, SECOND, None]


def test_a_trail_wakes_one_waiter_for_each_event() -> None:
    trail = Trail("x")
    with ThreadPoolExecutor(10) as pool:
        waits = [pool.submit(trail.wait, soon()) for _ in range(10)]
        until(lambda: len(trail._waiters) == 10)
        trail.offer([((number,), {}) for number in range(10)], 0, 0)
        found = [wait.result(5) for wait in waits]
    assert sorted(event[0][0] for event in found if event) == list(range(10))
    assert trail.wait(0) is None


def test_a_wait_on_a_trail_that_timed_out_takes_nothing_later() -> None:
    trail = Trail("x")
    assert trail.wait(time.monotonic() + 0.01) is None
    trail.put(*FIRST, timeout=0)
    assert trail.wait(0) == FIRST


def test_a_trail_that_nobody_comes_for_takes_no_more_than_it_has_room_for() -> None:
    trail = Trail("x", max_events=3)
    assert trail.offer([((number,), {}) for number in range(5)], 0, 0) == 3
    assert not trail.join_from_now(Waiter("x"))
    assert [trail.wait(0) for _ in range(4)] == [((0,), {}), ((1,), {}), ((2,), {}), None]


def test_a_trail_that_is_full_of_what_was_emitted_here_asks_to_be_passed_over_and_takes_what_is_on_its_way() -> None:
    asked: list[Trail] = []
    missed: list[int] = []
    trail = Trail("x", max_events=3, on_full=asked.append, on_missed=missed.append)
    for number in range(7):
        trail.put((number,), {}, timeout=0)
        trail.ready = not asked
    assert asked == [trail]
    assert [trail.wait(0) for _ in range(7)] == [*[((number,), {}) for number in range(6)], None]
    assert missed == [1]


def test_a_trail_is_bounded_in_bytes_but_keeps_one_event_of_any_size() -> None:
    trail = Trail("x", max_bytes=100)
    assert trail.offer([FIRST], 0, 1000) == 1
    assert trail.wait(0) == FIRST
    assert trail.offer([FIRST], 0, 60) == 1
    assert trail.offer([SECOND], 0, 60) == 1
    assert trail.offer([FIRST], 0, 60) == 0


def test_an_event_of_a_trail_says_where_it_stands() -> None:
    trail = Trail("x")
    trail.offer(Page([FIRST, SECOND], (5, 10), [0, 2]), 0, 0)  # the one between them could not be read
    places = []
    for _ in range(2):
        waiter = Waiter("x")
        trail.join(waiter)
        places.append(waiter.place)
    assert places == [(5, 10), (5, 12)]


def test_a_trail_that_was_full_asks_for_more_when_there_is_room_whether_or_not_it_refused_some() -> None:
    asked: list[str] = []
    trail = Trail("x", max_bytes=100, on_room=asked.append)
    assert trail.offer([FIRST], 0, 60) == 1
    assert trail.offer([SECOND], 0, 60) == 1
    assert [trail.wait(0), trail.wait(0)] == [FIRST, SECOND]
    assert asked == ["x"]


def test_a_trail_forgets_through_the_very_event_and_not_an_equal_one() -> None:
    trail = Trail("x")
    events: list[Event] = [((), {}) for _ in range(3)]
    trail.offer(events, 0, 0)
    trail.forget_through(((), {}), None)
    trail.forget_through(events[1], None)
    assert [trail.wait(0), trail.wait(0)] == [((), {}), None]


def test_who_joins_a_trail_from_now_takes_the_next_event_and_with_it_all_before_is_forgotten() -> None:
    trail = Trail("x")
    trail.put(*FIRST, timeout=0)
    late, next_one = Waiter("x"), Waiter("x")
    assert trail.join_from_now(late)
    late.cancel()
    trail.put(*SECOND, timeout=0)
    assert trail.wait(0) == FIRST
    assert trail.join_from_now(next_one)
    trail.put(*FIRST, timeout=0)
    assert next_one.wait(0) == FIRST
    assert trail.wait(0) is None


def test_nobody_can_join_from_now_a_trail_that_still_catches_up() -> None:
    trail = Trail("x")
    trail.ready = False
    assert not trail.join_from_now(Waiter("x"))


def test_a_trail_that_gives_way_takes_everybody_along() -> None:
    trail, other = Trail("x"), Trail("x")
    waiter, newcomer = Waiter("x"), Waiter("x")
    trail.join(waiter)
    trail.join_from_now(newcomer)
    trail.give_way(other)
    assert not trail.join(Waiter("x"))
    assert not trail.join_from_now(Waiter("x"))
    trail.put(*FIRST, timeout=0)
    assert not waiter.is_resolved()
    other.put(*SECOND, timeout=0)
    assert waiter.wait(0) == newcomer.wait(0) == SECOND


def test_a_cancelled_trail_gives_what_it_has_and_then_the_error() -> None:
    trail = Trail("x")
    trail.put(*FIRST, timeout=0)
    trail.cancel(ValueError("over"))
    assert trail.wait() == FIRST
    with pytest.raises(ValueError, match="over"):
        trail.wait()


def test_a_closed_trail_wakes_everybody() -> None:
    trail = Trail("x")
    with ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(trail.wait) for _ in range(5)]
        until(lambda: len(trail._waiters) == 5)
        trail.close()
        assert [wait.result(5) for wait in waits] == [None] * 5


def test_a_trail_that_catches_up_takes_what_it_has_room_for_and_says_when_there_is_more() -> None:
    room: list[str] = []
    trail = Trail("x", max_events=4, on_room=room.append)
    trail.ready = False
    events: list[Event] = [((number,), {}) for number in range(6)]
    assert trail.offer(events, 0, 0) == 4
    assert [trail.wait(0), room] == [((0,), {}), []]
    assert [trail.wait(0), room] == [((1,), {}), ["x"]]
    assert trail.offer(events, 4, 0) == 6
