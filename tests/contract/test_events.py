"""Events between nodes: in order, each once, to whom they are meant for."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import pytest

from taskbus.errors import ConfigError, EncodeError
from taskbus.router import Router
from taskbus.task import Task
from taskbus.testing import until
from tests.contract.conftest import Collected, Join, plain_client


def test_events_of_one_node_arrive_in_order_and_each_once_with_three_listeners(join: Join) -> None:
    a, b = join(), join()
    got = [Collected(), Collected(), Collected()]
    for listener in got:
        b.on("number", listener)
    for number in range(3000):
        a.emit("number", number)
    a.sync()
    for listener in got:
        until(lambda listener=listener: len(listener) >= 3000, 20)  # type: ignore[misc]
        assert listener == list(range(3000))


def test_every_node_hears_every_other_and_itself(join: Join) -> None:
    nodes = [join() for _ in range(4)]
    got = [Collected() for _ in nodes]
    for node, listener in zip(nodes, got, strict=True):
        node.on("hello", listener)
    for node in nodes:
        for number in range(50):
            node.emit("hello", (node.node_id, number))
    for listener in got:
        until(lambda listener=listener: len(listener) >= 200)  # type: ignore[misc]
        for node in nodes:
            assert [number for sender, number in listener if sender == node.node_id] == list(range(50))


def test_threads_that_emit_at_once_each_keep_their_order(join: Join) -> None:
    a, b = join(), join()
    here, there = Collected(), Collected()
    a.on("number", here)
    b.on("number", there)

    def pour(thread: int) -> None:
        for number in range(500):
            a.emit("number", (thread, number))

    threads = [threading.Thread(target=pour, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for listener in (here, there):
        until(lambda listener=listener: len(listener) >= 2000, 20)  # type: ignore[misc]
        by_thread: dict[int, list[int]] = defaultdict(list)
        for sender, number in listener:
            by_thread[sender].append(number)
        assert by_thread == {thread: list(range(500)) for thread in range(4)}


@pytest.mark.parametrize("seed", range(4))
def test_events_of_every_kind_in_any_mix_arrive_in_order_and_each_once(join: Join, seed: int) -> None:
    rare = (2, 10, 50, 200)[seed]  # one of so many is not plain
    b = join(labels="b")
    c = join(labels="c")
    a = join(outbox_events=300, outbox_bytes=20_000, blob_threshold=500, retention_events=100_000)
    events = [f"{name}{number}" for name in ("x", "y") for number in range(2)]
    got = {(node, event): Collected() for node in (a, b, c) for event in events}
    for (node, event), listener in got.items():
        node.on(event, listener)
    meant: dict[tuple[Router, str], list[list[int]]] = {key: [[], []] for key in got}

    kinds: list[tuple[dict[str, Any], bytes, tuple[Router, ...]]] = [
        ({"only_remote": True}, b"", (b, c)),
        ({"only_to": "b"}, b"", (b,)),
        ({"only_to": ["node.*"]}, b"", (a, b, c)),
        ({"only_local": True}, b"", (a,)),
        *(({}, b"x" * size, (a, b, c)) for size in (10, 400, 600, 5000)),
    ]

    def emit(thread: int) -> None:
        chance = random.Random(10 * seed + thread)
        event = events[thread]
        for number in range(1500):
            kind: tuple[dict[str, Any], bytes, tuple[Router, ...]] = {}, b"", (a, b, c)
            if not chance.randrange(rare):
                event = events[chance.randrange(4)]
                kind = chance.choice(kinds)
            options, filler, nodes = kind
            args = ((thread, number), filler) if filler else ((thread, number),)
            for node in nodes:
                meant[node, event][thread].append(number)
            a.emit(event, *args, **options)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(emit, range(2)))
    a.sync()
    for key, listener in got.items():
        until(lambda key=key, listener=listener: len(listener) >= sum(map(len, meant[key])), 30)  # type: ignore[misc]
        for thread in range(2):
            assert [number for one, number in listener if one == thread] == meant[key][thread]


@pytest.mark.parametrize("listeners", [1, 2, 5])
@pytest.mark.parametrize("local", [True, False])
def test_each_listener_is_called_once_for_each_event(join: Join, listeners: int, local: bool) -> None:
    a, b = join(), join()
    hearer = a if local else b
    got = [Collected() for _ in range(listeners)]
    only = Collected()
    for listener in got:
        hearer.on("x", listener)
    hearer.once("x", only)
    for number in range(100):
        a.emit("x", number)
    a.emit("end")
    ended = Collected()
    hearer.on("end", ended, since="start")
    until(lambda: ended and only and all(len(listener) >= 100 for listener in got))
    assert all(listener == list(range(100)) for listener in got)
    assert only == [0]


def test_keyword_arguments_cross_the_bus(join: Join) -> None:
    a, b = join(), join()
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    b.on("x", lambda *args, **kwargs: calls.append((args, kwargs)))
    a.emit("x", 1, (2, 3), name="a", data={"k": [b"\x00", None, 1.5]}, transient_value=True)
    until(lambda: calls)
    assert calls == [((1, (2, 3)), {"name": "a", "data": {"k": [b"\x00", None, 1.5]}, "transient_value": True})]


def test_what_is_changed_after_the_emit_has_been_emitted_unchanged(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    b.on("x", got)
    value = [1, {"k": bytearray(b"abc")}]
    with pytest.raises(EncodeError):
        a.emit("x", {"deep": [object()]})
    value[1] = {"k": b"abc"}
    a.emit("x", value)
    value.append(2)
    until(lambda: got)
    assert got == [[1, {"k": b"abc"}]]


def test_only_to_reaches_the_nodes_whose_labels_match(join: Join) -> None:
    nodes = {label: join(labels=label) for label in ("learner", "collector-1", "collector-2")}
    got = {label: Collected() for label in nodes}
    for label, node in nodes.items():
        node.on("x", got[label])
    for number, globs in enumerate([None, "collector-*", ["learner", "collector-2"], "node.*", "nobody", "learner"]):
        nodes["learner"].emit("x", number, only_to=globs)
    nodes["collector-1"].emit("x", "mine", only_to="collector-1")
    nodes["learner"].emit("x", "end")
    for listener in got.values():
        until(lambda listener=listener: "end" in listener)  # type: ignore[misc]
    until(lambda: "mine" in got["collector-1"])
    assert got["learner"] == [0, 2, 3, 5, "end"]
    assert [value for value in got["collector-1"] if value != "mine"] == [0, 1, 3, "end"]
    assert got["collector-2"] == [0, 1, 2, 3, "end"]


@pytest.mark.parametrize("secret", [None, "key"])
@pytest.mark.parametrize(
    ("value", "how", "heard"),
    [
        (1, {}, "ab"),
        (1, {"only_to": "right"}, "b"),
        (1, {"only_to": "left"}, "a"),
        (1, {"only_remote": True}, "b"),
        (1, {"only_local": True}, "a"),
        (1, {"transient": True}, "ab"),
        (1, {"transient": True, "only_to": "right"}, "b"),
        (b"bytes", {}, "ab"),
        ("x" * 3000, {}, "ab"),
        ("x" * 10_000, {"only_to": "right"}, "b"),
    ],
)
def test_an_event_that_leaves_alone_goes_where_it_is_sent(
    value: object, how: dict[str, Any], heard: str, secret: str | None, join: Join, redis_url: str, run_id: str
) -> None:
    a, b = (join(labels=label, secret=secret, blob_threshold=2000) for label in ("left", "right"))
    got = {"a": Collected(), "b": Collected()}
    a.on("x", got["a"])
    b.on("x", got["b"])
    for each, places in (("first", {}), (value, how), ("last", {})):
        a.emit("x", each, **places)
        a.sync()
        until(lambda: a.stats().outbox_events == 0)
    for name, listener in got.items():
        until(lambda listener=listener: "last" in listener, 10)  # type: ignore[misc]
        until(lambda listener=listener, name=name: len(listener) == 2 + (name in heard))  # type: ignore[misc]
        kept = [each for each in listener if each in ("first", "last")]
        assert kept == ["first", "last"]
        assert [each for each in listener if each not in kept] == [value] * (name in heard)
    with plain_client(redis_url) as client:
        is_kept = not (how.get("transient") or how.get("only_local"))
        assert client.xlen(f"taskbus:{{{run_id}}}:events:x") == 2 + is_kept


def test_only_local_and_only_remote(join: Join) -> None:
    a, b = join(), join()
    here, there = Collected(), Collected()
    a.on("x", here)
    b.on("x", there)
    a.emit("x", "local", only_local=True)
    a.emit("x", "remote", only_remote=True)
    a.emit("x", "both")
    until(lambda: "both" in here and "both" in there)
    assert here == ["local", "both"]
    assert there == ["remote", "both"]


def test_transient_events_arrive_at_whoever_listens_and_are_not_kept(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(), join(labels="b")
    here, there, late = Collected(), Collected(), Collected()
    a.on("x", here)
    b.on("x", there)
    for number in range(200):
        a.emit("x", number, transient=True)
    a.emit("x", "b", transient=True, only_to="b")
    until(lambda: "b" in there and 199 in here)
    assert there == [*range(200), "b"]
    assert here == list(range(200))
    b.on("x", late, since="start")
    a.emit("x", "durable")
    until(lambda: late)
    assert late == ["durable"]
    with plain_client(redis_url) as client:
        assert client.xlen(f"taskbus:{{{run_id}}}:events:x") == 1


def test_our_names_are_reserved_and_senseless_ones_are_refused(join: Join) -> None:
    a = join()
    with pytest.raises(ConfigError, match=r"taskbus\.' are reserved, 'taskbus\.node_left'"):
        a.emit("taskbus.node_left", node="1")
    task = Task().start(router=a)
    calls: list[Callable[..., object]] = [a.emit, partial(a.on, fn=print), task.emit, partial(task.on, fn=print)]
    names: list[Any] = ["", "a b", "x" * 129, "new\nline", "glob*", "\u00e9", None, 1, ["x"], {}]
    for name in names:
        for call in [*calls, task.wait_for]:
            with pytest.raises(ConfigError, match="the name of an event"):
                call(name)
    task.request_leave()
    task.stop()


def test_large_payloads_travel_beside_the_stream_and_only_to_who_listens(
    join: Join, redis_url: str, run_id: str
) -> None:
    a, b, c = join(blob_threshold=1000), join(), join()
    got, small = Collected(), Collected()
    b.on("big", got)
    b.on("small", small)
    c.on("small", Collected())
    sizes = [100, 900, 1100, 300_000, 3_000_000]
    for size in sizes:
        a.emit("big", b"x" * size)
        a.emit("small", size)
    until(lambda: len(got) == len(small) == len(sizes), 15)
    assert [len(value) for value in got] == sizes
    with plain_client(redis_url) as client:
        blobs = list(client.scan_iter(f"taskbus:{{{run_id}}}:blob:*"))
        assert len(blobs) == 3
        assert all(0 < client.pttl(blob) <= 3_600_000 for blob in blobs)
        entries = client.xrange(f"taskbus:{{{run_id}}}:events:big")
        assert max(len(fields[b"f"]) for _, fields in entries) < 3000


def test_off_ends_one_listener_or_all_that_match(join: Join) -> None:
    a, b = join(), join()
    first, second, other = Collected(), Collected(), Collected()
    b.on("x.1", first.append)
    b.on("x.1", second.append)
    b.on("y", other)
    numbers = count()
    a.emit("x.1", next(numbers))
    until(lambda: first and second)
    b.off("x.1", first.append)
    a.emit("x.1", next(numbers))
    until(lambda: len(second) == 2)
    b.off("x.*")
    a.emit("x.1", next(numbers))
    a.emit("y", "end")
    until(lambda: other)
    assert (first, second) == ([0], [0, 1])


def test_a_slow_listener_holds_back_its_own_event_only_and_loses_nothing(join: Join) -> None:
    a, b = join(retention_events=50_000), join()
    slow, quick = Collected(), Collected()
    slow.gate.clear()
    b.on("slow", slow)
    b.on("quick", quick)
    for number in range(12_000):  # more than a mailbox holds
        a.emit("slow", number)
    for number in range(100):
        a.emit("quick", number)
    until(lambda: len(quick) == 100, 20)
    assert not slow
    slow.gate.set()
    until(lambda: len(slow) >= 12_000, 30)
    assert slow == list(range(12_000))
