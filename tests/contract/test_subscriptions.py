"""When `on` returns the subscription holds; and what `since` adds comes once and in order, whoever emits meanwhile."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskbus.errors import ConfigError
from taskbus.router import Router
from taskbus.testing import until
from tests.contract.conftest import Collected, Join, plain_client


def test_when_on_returns_the_subscription_holds(join: Join) -> None:
    a, b = join(), join()
    got: list[Collected] = []
    for number in range(100):
        listener = Collected()
        b.on(f"x.{number}", listener)
        a.emit(f"x.{number}", number, transient=number % 2 == 1)
        got.append(listener)
    for number, listener in enumerate(got):
        until(lambda listener=listener: listener)  # type: ignore[misc]
        assert listener == [number]


def test_it_also_holds_where_the_event_was_heard_before(join: Join) -> None:
    a, b = join(), join()
    for number in range(200):
        listener = Collected()
        b.on("x", listener)
        a.emit("x", number)
        until(lambda: listener)  # noqa: B023
        assert listener == [number]
        b.off("x")


def test_since_start_gives_all_that_is_kept_and_then_what_comes(join: Join) -> None:
    a, b = join(), join()
    for number in range(500):
        (a if number % 2 else b).emit("x", number)
    a.sync()
    b.sync()
    got, mine = Collected(), Collected()
    b.on("x", got, since="start")
    a.on("x", mine, since="start")
    for number in range(500, 700):
        (a if number % 2 else b).emit("x", number)
    for listener in (got, mine):
        until(lambda listener=listener: len(listener) >= 700)  # type: ignore[misc]
        assert [value for value in listener if value % 2] == list(range(1, 700, 2))
        assert [value for value in listener if not value % 2] == list(range(0, 700, 2))


def test_since_an_entry_gives_what_came_after_it(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(), join()
    for number in range(10):
        a.emit("x", number)
        a.sync()
    with plain_client(redis_url) as client:
        entries = [entry.decode() for entry, _ in client.xrange(f"taskbus:{{{run_id}}}:events:x")]
    assert len(entries) == 10
    for node in (a, b):
        got = Collected()
        node.on("x", got, since=entries[6])
        until(lambda: len(got) >= 3)  # noqa: B023
        assert got == [7, 8, 9]
    for since in ("yesterday", "", "-", "1-2-3", None, 5):
        with pytest.raises(ConfigError, match="since must be"):
            a.on("x", print, since=since)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'last' .in the wait_for of a task."):
        a.on("x", print, since="last")


def test_once_with_since_takes_the_first_that_is_kept(join: Join) -> None:
    a, b = join(), join()
    for number in range(5):
        a.emit("x", number)
    a.sync()
    got = Collected()
    b.once("x", got, since="start")
    until(lambda: got)
    a.emit("x", 5)
    end = Collected()
    b.on("x", end, since="start")
    until(lambda: len(end) == 6)
    assert got == [0]


@contextmanager
def pouring(nodes: list[Router], event: str, threads: int) -> Iterator[dict[tuple[str, int], int]]:
    """Threads that emit ``(node, thread, number)`` while the block runs; how many each, by node and thread."""
    emitted: dict[tuple[str, int], int] = {}
    enough = threading.Event()

    def pour(node: Router, thread: int) -> None:
        name = str(node.node_id)
        number = 0
        while not enough.is_set():
            for _ in range(7):
                node.emit(event, (name, thread, number))
                number += 1
            emitted[name, thread] = number
            node.sync()

    running = [threading.Thread(target=pour, args=(node, thread)) for node in nodes for thread in range(threads)]
    for one in running:
        one.start()
    try:
        until(lambda: len(emitted) == len(running))
        yield emitted
    finally:
        enough.set()
        for one in running:
            one.join()


def disorder(got: Collected, emitted: dict[tuple[str, int], int]) -> str:
    """What is wrong with what a listener got; empty when each number of each thread came once, in order."""
    numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for node, thread, number in got:
        numbers[node, thread].append(number)
    wrong = []
    for key, count in emitted.items():
        found = numbers[key]
        if found != list(range(count)):
            missing = sorted(set(range(count)) - set(found))
            wrong.append(f"{key}: {len(found)} of {count}, missing {missing[:5]}, {len(found) - len(set(found))} twice")
    return "; ".join(wrong)


def test_listeners_that_begin_at_the_start_while_threads_emit_miss_nothing_and_see_nothing_twice(join: Join) -> None:
    nodes = [join(retention_events=1_000_000), join(retention_events=1_000_000)]
    listeners: list[Collected] = []
    with pouring(nodes, "x", threads=2) as emitted:
        for _ in range(12):
            for node in nodes:
                listener = Collected()
                node.on("x", listener, since="start")
                listeners.append(listener)
    total = sum(emitted.values())
    for listener in listeners:
        until(lambda listener=listener: len(listener) >= total, 20, "all have come")  # type: ignore[misc]
    assert [text for listener in listeners if (text := disorder(listener, emitted))] == []


def test_listeners_from_now_beside_listeners_from_the_start_share_one_stream(join: Join) -> None:
    a, b = join(retention_events=1_000_000), join()
    now, past = Collected(), [Collected() for _ in range(10)]
    with pouring([a], "x", threads=2) as emitted:
        b.on("x", now)
        for listener in past:
            b.on("x", listener, since="start")
        seen = len(now)
        until(lambda: len(now) > seen)
    for listener in past:
        until(lambda listener=listener: len(listener) >= sum(emitted.values()), 20)  # type: ignore[misc]
        assert disorder(listener, emitted) == ""
    for (node, thread), count in emitted.items():
        until(lambda node=node, thread=thread, count=count: (node, thread, count - 1) in now)  # type: ignore[misc]
        numbers = [number for _, of, number in now if of == thread]
        assert numbers == list(range(numbers[0], count))
    assert b.stats().missed == 0


def test_a_full_listener_in_the_past_catches_up_when_it_has_room(join: Join) -> None:
    a, b = join(retention_events=50_000), join()
    for number in range(12_000):  # more than a mailbox holds
        a.emit("x", number)
    a.sync()
    slow, quick = Collected(), Collected()
    slow.gate.clear()
    b.on("x", slow, since="start")
    b.on("x", quick, since="start")
    until(lambda: len(quick) == 12_000, 20)
    for number in range(12_000, 12_100):
        a.emit("x", number)
    until(lambda: len(quick) == 12_100, 20)
    slow.gate.set()
    until(lambda: len(slow) >= 12_100, 20)
    assert slow == quick == list(range(12_100))
