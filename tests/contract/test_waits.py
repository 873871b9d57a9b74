"""Tasks that wait for one another over the bus."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskbus.errors import Fenced, NotStarted, RunFinished, WaitTimeout
from taskbus.task import Task
from taskbus.testing import until
from taskbus.waiting import Trail, Waiter
from tests.contract.conftest import Join, StartTask


def test_no_answer_is_missed_and_none_is_seen_twice(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    answered: list[int] = []

    def answer(number: int) -> None:
        b.emit("answer", number)
        answered.append(number)

    b.on("ask", answer)
    for number in range(300):
        a.emit("ask", number)
        if number % 3 == 0:  # the answer is on its way, or there, before the wait begins
            until(lambda: len(answered) > number)  # noqa: B023
        assert a.wait_for("answer", timeout=10, since="last") == ((number,), {})
    assert a.wait_for("answer", timeout=0, since="last") is None


def test_a_wait_takes_the_first_that_is_kept(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    a.emit("ready", 1)
    a.emit("ready", 2)
    a.sync()
    assert b.wait_for("ready", timeout=5, since="start") == ((1,), {})
    assert b.wait_for("ready", timeout=0.05) is None
    assert a.wait_for("ready", timeout=5, since="start") == ((1,), {})


def test_a_wait_that_has_begun_misses_nothing(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    with ThreadPoolExecutor(1) as pool:
        for number in range(200):
            waiting = pool.submit(b.wait_for, "x", 10, since="last")
            a.emit("x", number)
            assert waiting.result(15) == ((number,), {})


def test_two_hundred_waiters_end_with_the_finish_and_cost_no_connection(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    with ThreadPoolExecutor(200) as pool:
        a.wait_for("warm", timeout=0)
        threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("taskbus-")}
        waits = [pool.submit(a.wait_for, "x", ignore_timeout_exception=False) for _ in range(100)]
        waits += [pool.submit(a.wait_for, "x", ignore_timeout_exception=False, since="last") for _ in range(100)]
        until(lambda: len(a._waits._open) == 200)
        b.finish = True
        began = time.monotonic()
        for wait in waits:
            with pytest.raises(RunFinished, match=rf"by node '{b._link.node_id}' \(completed\)"):
                wait.result(5)
        assert time.monotonic() - began < 4
        assert {t.name for t in threading.enumerate() if t.name.startswith("taskbus-")} <= threads
    assert a.finish
    assert a.wait_for("y") is None


def test_waiters_end_with_a_stop(start_task: StartTask) -> None:
    a = start_task()
    with ThreadPoolExecutor(20) as pool:
        waits = [pool.submit(a.wait_for, "x", since=since) for since in ("now", "last") for _ in range(10)]
        until(lambda: len(a._waits._open) == 20)
        a.request_leave()
        assert [wait.result(5) for wait in waits] == [None] * 20
    a.stop()
    with pytest.raises(NotStarted):
        a.wait_for("x")


def test_waiters_end_when_another_process_has_this_nodes_id(start_task: StartTask, join: Join) -> None:
    a = start_task(node_id="a", heartbeat=2.0)
    with ThreadPoolExecutor(20) as pool:
        waits = [pool.submit(a.wait_for, "x", since=since) for since in ("now", "last") for _ in range(10)]
        until(lambda: joined(a, "x") == 20)
        life = a._link.life  # type: ignore[attr-defined]
        life.calls.call(b"DEL", life.keys.node("a"))
        join(node_id="a")
        for wait in waits:
            with pytest.raises(Fenced, match="node id 'a' belongs to process"):
                wait.result(5)
    with pytest.raises(Fenced):
        a.emit("x")
    a.use(lambda ctx: None).run()  # runs no step


def test_waiters_end_too_when_it_is_a_write_that_shows_that(start_task: StartTask) -> None:
    a = start_task(node_id="a", heartbeat=4.0)
    left: list[str] = []
    a._link.on_leave(lambda: left.append("asked to leave"))
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(a.wait_for, "x")
        until(lambda: joined(a, "x") == 1)
        life = a._link.life  # type: ignore[attr-defined]
        a.sync()  # nothing of before is a write, too
        life.calls.call(b"HSET", life.keys.node("a"), b"token", b"another")  # as the claim of another life does
        life.calls.call(b"DEL", life.keys.producer(life.producer))
        a.emit("y")
        with pytest.raises(Fenced, match="node id 'a'"):
            wait.result(2)
    until(lambda: left == ["asked to leave"])


def joined(task: Task, event: str) -> int:
    """How many wait on trails."""
    trails = [sink for sink in task._link.loop.sinks(event) if isinstance(sink, Trail)]
    return sum(len(trail._waiters) + len(trail._newcomers) for trail in trails)


def test_a_timeout_is_on_time_and_leaves_nothing_behind(start_task: StartTask) -> None:
    a = start_task()
    for since in ("now", "last", "start"):
        for timeout in (0, 0.01, 0.1):
            began = time.monotonic()
            with pytest.raises(WaitTimeout, match=f"no event 'x' within {timeout:g} s"):
                a.wait_for("x", timeout, False, since=since)
            assert timeout <= time.monotonic() - began + 0.001 < timeout + 1
    assert not a._waits._open
    assert [sink for sink in a._link.loop.sinks("x") if type(sink).__name__ != "Trail"] == []


def test_a_task_that_starts_after_the_finish_runs_no_step(start_task: StartTask) -> None:
    a = start_task()
    a.finish = True
    b = start_task()
    assert b.finish
    steps: list[int] = []
    b.use(lambda ctx: steps.append(1)).run()
    assert steps == []
    assert b.wait_for("x") is None


def test_last_begins_behind_what_a_wait_of_another_kind_returned(start_task: StartTask, join: Join) -> None:
    """Seen once: neither again what ``since="start"`` or ``"now"`` gave, nor anything before it."""
    other = join()
    for number in range(5):
        other.emit("x", number)
    other.sync()
    a = start_task()
    assert a.wait_for("x", 5, since="start") == ((0,), {})
    assert [a.wait_for("x", 5, since="last") for _ in range(4)] == [((number,), {}) for number in range(1, 5)]
    a.wait_for("y", timeout=0)  # from here on the subscription holds
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(a.wait_for, "y", 10)
        until(lambda: len(a._link.loop.sinks("y")) == 1, what="the wait is there")
        for number in range(3):
            other.emit("y", number)
        assert wait.result(10) == ((0,), {})
    assert [a.wait_for("y", 5, since="last") for _ in range(2)] == [((number,), {}) for number in (1, 2)]
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(a.wait_for, "z", 10)
        until(lambda: len(a._link.loop.sinks("z")) == 1, what="the wait is there")
        a.emit("z", "own")
        assert wait.result(10) == (("own",), {})
    other.emit("z", "next")
    assert a.wait_for("z", 5, since="last") == (("next",), {})


def test_last_misses_nothing_that_came_while_a_wait_returned_an_event_of_this_very_node(
    start_task: StartTask, join: Join
) -> None:
    """Such an event has no place in the stream to come back to, and more follow before the one who waits wakes up."""
    a, other = start_task(), join()
    with ThreadPoolExecutor(1) as pool:
        for shot in range(30):
            event = f"x.{shot}"
            a.wait_for(event, timeout=0)  # from here on the subscription holds
            wait = pool.submit(a.wait_for, event, 10)
            until(lambda event=event: a._link.loop.sinks(event), what="the wait is there")  # type: ignore[misc]
            for number in range(20):
                (other if number % 5 == 1 else a).emit(event, number)
            found = [wait.result(10)]
            while found[-1] is not None:
                found.append(a.wait_for(event, 1 if len(found) < 20 else 0, since="last"))
            assert sorted(args[0] for args, _ in found[:-1]) == list(range(20))  # type: ignore[misc]


def test_a_wait_for_now_that_found_nothing_moves_last_nowhere(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    b.emit("x", 1)
    assert a.wait_for("x", 5, since="last") == ((1,), {})
    b.emit("x", 2)
    b.sync()
    a.emit("x", 3)
    assert a.wait_for("x", 0) is None
    found = [a.wait_for("x", 5, since="last") for _ in range(2)]
    assert sorted(args[0] for args, _ in found) == [2, 3]  # type: ignore[misc]


def test_last_goes_back_with_a_wait_that_begins_in_the_past(start_task: StartTask) -> None:
    a, b = start_task(), start_task()
    for number in range(3):
        b.emit("x", number)
    b.sync()
    for _ in range(2):
        assert a.wait_for("x", 5, since="start") == ((0,), {})
        assert [a.wait_for("x", 5, since="last") for _ in range(2)] == [((1,), {}), ((2,), {})]
        assert a.wait_for("x", 0.05, since="last") is None


def test_last_misses_nothing_however_long_nobody_waits(start_task: StartTask, join: Join) -> None:
    """More than a node keeps in memory is read again from the run; what is trimmed there is counted."""
    other = join(retention_events=50_000)
    a = start_task(retention_events=50_000)
    other.emit("x", 0)
    assert a.wait_for("x", 5, since="last") == ((0,), {})
    for number in range(1, 12_000):
        other.emit("x", number)
    other.sync()
    until(lambda: len(a._waits._trails["x"]._kept) > 9_000, 10.0, "more came than is kept here")
    assert [a.wait_for("x", 5, since="last") for _ in range(11_999)] == [((n,), {}) for n in range(1, 12_000)]
    assert a._link.stats().missed == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("emitters", ["both", "this node", "others"])
def test_last_goes_on_behind_an_own_event_however_many_came_since(
    emitters: str, start_task: StartTask, join: Join
) -> None:
    """None is missed and none comes twice, also where the last one has no place in the stream to come back to."""
    a, other = start_task(retention_events=100_000, heartbeat=0.2), join(retention_events=100_000)
    assert a.wait_for("x", 0, since="last") is None
    other.emit("x", "before")
    assert a.wait_for("x", 5, since="last") == (("before",), {})
    for number in range(3):
        a.emit("x", "own", number)
        assert a.wait_for("x", 5, since="last") == (("own", number), {})
    count = 12_000
    for number in range(count):
        if emitters != "others":
            a.emit("x", "a", number)
        if emitters != "this node":
            other.emit("x", "other", number)
    a.sync()
    other.sync()
    until(lambda: not a._waits._trails["x"].ready, 10, "more came than is kept here")
    kept = len(a._waits._trails["x"]._kept)
    for number in range(count, count + 100):
        a.emit("x", "a", number)
    a.sync()
    assert len(a._waits._trails["x"]._kept) == kept
    assert a._link.stats().lag == 0  # type: ignore[attr-defined]  # it is nobody's who waits
    found: dict[str, list[int]] = {"a": [], "other": []}
    while (event := a.wait_for("x", 1, since="last")) is not None:
        found[event[0][0]].append(event[0][1])
        if event[0][1] == count + 99:
            a.emit("x", "a", count + 100)
            other.emit("x", "other", count + 100)
    own, others = (count if emitters == "others" else 0), (0 if emitters == "this node" else count)
    assert [len(numbers) for numbers in found.values()] == [count + 101 - own, others + 1]
    assert found["a"] == list(range(own, count + 101))
    assert found["other"] == [*range(others), count + 100]
    assert a._link.stats().missed == 0  # type: ignore[attr-defined]


def test_what_is_only_for_others_does_not_come_back_from_the_stream(join: Join, start_task: StartTask) -> None:
    a, b = start_task(), join()
    heard: list[str] = []
    for who, task in (("a", a), ("b", b)):
        for _ in range(3):
            task.emit("state", who, only_remote=True)
        task.sync()
    assert [a.wait_for("state", 5, since="last") for _ in range(3)] == [(("b",), {})] * 3
    assert a.wait_for("state", 0.1, since="last") is None
    a.on("state", heard.append, since="start")
    until(lambda: len(heard) >= 3)
    b.emit("state", "end")
    until(lambda: heard[-1] == "end")
    assert heard == ["b", "b", "b", "end"]


@pytest.mark.parametrize("since", ["last", "start", "now"])
def test_what_a_wait_had_taken_when_it_was_interrupted_is_for_the_next_one(
    since: str, join: Join, start_task: StartTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(BaseException):
        """As a signal handler raises."""

    a, b = start_task(), join()
    a.wait_for("x", timeout=0, since="last")
    link: Any = a._link
    attend = link.attend

    def interrupted(waiter: Waiter, deadline: float) -> None:
        assert attend(waiter, deadline) == ((0,), {})
        monkeypatch.undo()
        raise Interrupt

    monkeypatch.setattr(link, "attend", interrupted)

    def emit() -> None:
        for number in range(3):
            b.emit("x", number)

    emits = threading.Timer(0.2 if since == "now" else 0, emit)
    emits.start()
    with pytest.raises(Interrupt):
        a.wait_for("x", 5, since=since)
    emits.join()
    assert [a.wait_for("x", 5, since="last") for _ in range(3)] == [((number,), {}) for number in range(3)]
    assert a.wait_for("x", 0.1, since="last") is None
