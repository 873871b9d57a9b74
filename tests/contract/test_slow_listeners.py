"""A listener that does not keep up delays only itself: it goes on by itself through what the run keeps."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskbus import Router, Task
from taskbus.errors import BusUnavailable
from taskbus.mailbox import Listener
from taskbus.testing import RedisServer, until
from tests.contract.conftest import Collected, Join
from tests.contract.test_subscriptions import disorder, pouring

ROOM = 10_000


def full(router: Router, listener: Collected) -> bool:
    """Whether the mailbox of that listener is full, and events wait in the run for it."""
    return router.loop.listeners("x", listener)[0].depth >= ROOM - 1000


def test_its_siblings_go_on_and_it_catches_up_with_each_event_once(join: Join) -> None:
    a, b = join(retention_events=100_000), join(retention_events=100_000)
    slow, quick, late = Collected(), Collected(), Collected()
    slow.gate.clear()
    b.on("x", slow)
    b.on("x", quick)
    for number in range(2 * ROOM + 5000):
        a.emit("x", number)
    until(lambda: len(quick) == 2 * ROOM + 5000, 20, "what a sibling has no room for keeps nobody waiting")
    b.on("x", late)
    for number in range(2 * ROOM + 5000, 3 * ROOM):
        a.emit("x", number)
    until(lambda: len(late) == 5000, 20, "who comes later is not held up either")
    assert full(b, slow)
    slow.gate.set()
    until(lambda: len(slow) >= 3 * ROOM, 20)
    a.emit("x", 3 * ROOM)
    until(lambda: len(slow) > 3 * ROOM and len(quick) > 3 * ROOM)
    assert slow == quick == list(range(3 * ROOM + 1))
    stats = b.stats()
    assert (stats.missed, stats.repeated, stats.delivered) == (0, 0, 3 * ROOM + 1)


def test_events_of_its_own_node_come_through_the_run_meanwhile_and_hold_no_emit_up(join: Join) -> None:
    a, b = join(retention_events=100_000), join(retention_events=100_000)
    slow, quick = Collected(), Collected()
    slow.gate.clear()
    b.on("x", slow)
    b.on("x", quick)
    for number in range(ROOM + 5000):
        a.emit("x", ("a", 0, number))
    until(lambda: len(quick) == ROOM + 5000, 20)
    began = time.monotonic()
    for number in range(3000):
        b.emit("x", ("b", 0, number))
    assert time.monotonic() - began < 4
    until(lambda: len(quick) == ROOM + 8000, 20)
    slow.gate.set()
    emitted = {("a", 0): ROOM + 5000, ("b", 0): 3000}
    until(lambda: len(slow) >= ROOM + 8000, 20)
    b.emit("x", ("b", 0, 3000))
    until(lambda: ("b", 0, 3000) in (slow[-1], quick[-1]) and len(slow) == len(quick))
    emitted["b", 0] += 1
    assert disorder(slow, emitted) == disorder(quick, emitted) == ""


def test_what_is_trimmed_before_they_come_for_it_is_counted_once_and_for_them_alone(join: Join) -> None:
    a, b = join(retention_events=1000), join()
    slow, as_slow, quick = Collected(), Collected(), Collected()
    slow.gate = as_slow.gate
    slow.gate.clear()
    for listener in (slow, as_slow, quick):
        b.on("x", listener)
    for number in range(3 * ROOM):
        a.emit("x", number)
        if number % 100 == 0:
            until(lambda number=number: len(quick) > number - 500)  # type: ignore[misc]  # within the retention
    until(lambda: len(quick) == 3 * ROOM, 20)
    assert b.stats().missed == 0
    slow.gate.set()
    for one in (slow, as_slow):
        until(lambda one=one: one and one[-1] == 3 * ROOM - 1, 20)  # type: ignore[misc]
        assert list(one) == sorted(set(one))
    assert b.stats().missed == 3 * ROOM - min(len(slow), len(as_slow)) > ROOM
    assert quick == list(range(3 * ROOM))


def test_a_gap_counts_once_for_listeners_that_begin_before_it(join: Join) -> None:
    a, b = join(retention_events=100), join()
    begin = f"{int(time.time() * 1000) - 1000}-1"  # of the first event, as far as its number goes
    for number in range(1000):
        a.emit("x", number)
        a.sync()
    missed = []
    for _ in range(3):
        got = Collected()
        b.on("x", got, since=begin)
        until(lambda got=got: got and got[-1] == 999)  # type: ignore[misc]
        missed.append(b.stats().missed)
    assert missed[0] > 800
    assert missed == missed[:1] * 3


def test_its_lag_is_to_be_seen_and_goes_with_it(join: Join) -> None:
    a, b = join(retention_events=50_000), join(heartbeat=0.1)
    slow = Collected()
    slow.gate.clear()
    b.on("x", slow)
    for number in range(4 * ROOM):
        a.emit("x", number)
    a.sync()
    until(lambda: b.stats().lag > 2 * ROOM, 10, "it has read as much as it has room for, and the rest of a frame")
    assert b.stats().lag <= 3 * ROOM
    b.off("x", slow)
    until(lambda: b.stats().lag == 0, 10)
    again = Collected()
    b.on("x", again)
    a.emit("x", "again")
    until(lambda: again == ["again"])
    slow.gate.set()


def test_transient_events_that_it_has_no_room_for_are_counted(join: Join) -> None:
    a, b = join(retention_events=50_000), join()
    slow, quick = Collected(), Collected()
    slow.gate.clear()
    b.on("x", slow)
    b.on("x", quick)
    for number in range(ROOM + 5000):
        a.emit("x", number)
    until(lambda: len(quick) == ROOM + 5000, 20)
    for _ in range(10):
        a.emit("x", "transient", transient=True)
    until(lambda: quick.count("transient") == 10, what="siblings have room")
    assert b.stats().dropped == 10
    slow.gate.set()
    until(lambda: len(slow) == ROOM + 5000, 20)


def test_what_stays_on_its_node_reaches_it_too(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    got.gate.clear()
    task = Task().start(router=b)
    task.on("x", got)
    for number in range(ROOM + 300):
        a.emit("x", number)
    a.sync()
    until(lambda: full(b, got) and b.life.reader.is_behind)
    with pytest.raises(BusUnavailable, match="had no room"):
        b.life.emit("x", ("no room",), {}, only_local=True, timeout=0.1)
    with ThreadPoolExecutor(2) as pool:
        waits = [
            pool.submit(task.emit, "x", "a task's", only_local=True),
            pool.submit(b.emit, "x", "a router's", only_local=True),
        ]
        got.gate.set()
        for wait in waits:
            wait.result(10)
    until(lambda: len(got) == ROOM + 302, 20)
    assert [value for value in got if isinstance(value, int)] == list(range(ROOM + 300))
    assert {value for value in got if not isinstance(value, int)} == {"a task's", "a router's"}
    task.request_leave()
    task.stop()


def test_small_mailboxes_that_run_full_all_the_time_lose_nothing_and_repeat_nothing(join: Join) -> None:
    nodes = [join(retention_events=1_000_000), join(retention_events=1_000_000)]
    listeners: list[Collected] = []
    pause = threading.Event()

    class Slow(Collected):
        def __call__(self, value: Any = None, *args: Any, **kwargs: Any) -> None:
            if len(self) % 50 == 0:
                pause.wait(0.002)
            super().__call__(value)

    for node in nodes:
        for room in (10, 100, 1000):
            listener: Collected = Slow()
            node.subscribe(Listener(node.loop, "x", listener, node.errors.add, max_events=room))
            listeners.append(listener)
    began = time.monotonic()
    with pouring(nodes, "x", threads=2) as emitted:
        until(lambda: time.monotonic() > began + 2, 10)
    total = sum(emitted.values())
    for listener in listeners:
        until(lambda listener=listener: len(listener) >= total, 30, "all have come")  # type: ignore[misc]
    assert [text for listener in listeners if (text := disorder(listener, emitted))] == []
    assert all(node.stats().missed == node.stats().repeated == 0 for node in nodes)


@pytest.mark.alone
def test_nothing_is_read_for_it_while_it_has_no_room(redis_server: RedisServer) -> None:
    with (
        redis_server.client() as client,
        Router(redis_server.url, run_id="r", retention_events=50_000) as a,
        Router(redis_server.url, run_id="r") as b,
    ):
        slow, quick = Collected(), Collected()
        slow.gate.clear()
        b.on("x", slow)
        b.on("x", quick)
        for number in range(2 * ROOM):
            a.emit("x", number)
        until(lambda: len(quick) == 2 * ROOM, 20)

        def reads() -> int:
            return int(client.info("commandstats")["cmdstat_xread"]["calls"])

        began, before = time.monotonic(), reads()
        until(lambda: time.monotonic() > began + 3, 10)
        assert reads() - before <= 4
        slow.gate.set()
        until(lambda: len(slow) == 2 * ROOM, 20)
