"""Redis forgets: restarted with less than it had, empty, flushed, or with single keys gone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from taskbus.bus.keys import Keys
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import FAST, MakeNode, MakeProcess, nobody_is_deaf, scaled
from tests.faults.node import LogLines, Node, kept_in
from tests.faults.oracle import judge
from tests.faults.test_redis_away import PAUSE, check_all, in_background


@pytest.fixture
def lazy_server() -> Iterator[RedisServer]:
    """A server that has writes on disk a second later."""
    with RedisServer("--appendfsync", "everysec", appendonly=True) as server:
        yield server


def is_whole(node: Node, client: redis.Redis) -> bool:
    """Whether the registry has all of a node."""
    keys, name = Keys(node.router.config.run_id), node.name
    labels = node.router.config.labels
    return (
        client.hget(keys.node(name), "token") is not None
        and bool(client.sismember(str(keys.nodes, "ascii"), name))
        and all(client.sismember(str(keys.label(label), "ascii"), name) for label in labels)
        and client.type(keys.inbox(name)) == b"stream"
        and client.exists(keys.epoch) == 1
    )


def cut_tail(server: RedisServer, entries: int) -> None:
    """Have the append-only file end within the last ``entries`` appends, as a crash may leave it."""
    directory = Path(server._directory or "") / "appendonlydir"
    files = list(directory.glob("*.incr.aof")) or list(Path(server._directory or "").glob("appendonly.aof"))
    path = max(files, key=lambda file: file.stat().st_size)
    data = path.read_bytes()
    at = len(data)
    for _ in range(entries):
        at = data.rindex(b"XADD\r\n", 0, at)
    path.write_bytes(data[: at + 20])


def test_p0_03_a_loss_of_acknowledged_events_is_reported(
    lazy_server: RedisServer, nodes: MakeNode, run_id: str, log_lines: LogLines
) -> None:
    """Redis comes back without the end of what it had acknowledged: both sides say how much, and go on."""
    url = lazy_server.url
    a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
    dice = random.Random(3)
    for round_ in range(1, 1 + scaled(3, 10)):
        a.pour(40, each=1)
        until(lambda: len(b.heard["numbers"]) == len(a.ledger.acked), 5)
        losses, lost = len(b.state_losses), a.router.stats().lost
        lazy_server.kill()
        gone = dice.randrange(1, 15)
        cut_tail(lazy_server, gone)
        lazy_server.start()
        a.pour(10, each=1)
        with lazy_server.client() as client:
            kept = {number for _, number, _ in kept_in(client, run_id)}
        truly = a.ledger.acked - kept
        assert truly, "the tail was cut in vain"
        assert a.router.stats().lost == len(truly)
        until(lambda losses=losses: len(b.state_losses) > losses, 5, "the reader reports the loss")  # type: ignore[misc]
        assert len(b.state_losses) == losses + 1
        assert "read up to" in b.state_losses[-1]
        newest = [text for text in log_lines.texts("ERROR") if "acknowledged events of this node" in text][-1]
        numbers = sorted(truly)[-(a.router.stats().lost - lost) :]
        assert f"'numbers' {numbers[0]} to {numbers[-1]}" in newest, (round_, newest)
    until(lambda: len(b.heard["numbers"]) == len(a.ledger.acked), 5)
    assert judge([a.ledger], b.heard["numbers"]).clean  # it had read all before it was lost
    nobody_is_deaf([a, b])


def test_p0_03_redis_killed_with_the_disk_a_second_behind(
    lazy_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    """SIGKILL during traffic: what is lost (a killed process loses nothing of the page cache) is what is reported."""
    url = lazy_server.url
    a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
    pouring = in_background(lambda: a.pour(400, pause=0.02, each=5))
    for _ in range(scaled(2, 10)):
        PAUSE.wait(0.4)
        lazy_server.kill()
        lazy_server.start()
    pouring.join()
    assert a.sync(10)
    with lazy_server.client() as client:
        lost = judge([a.ledger], kept_in(client, run_id)).lost
    assert a.router.stats().lost == len(lost)
    nobody_is_deaf([a, b])


@pytest.mark.parametrize("how", ["restarted empty", "FLUSHALL", "FLUSHDB"])
def test_p0_04_redis_comes_back_empty(how: str, redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Each node says so once, registers again with its labels, writes the finish again, and hears all that is new."""
    labels = {"red", "round"}
    made = [nodes(name, "numbers", labels=labels, **FAST) for name in ("a", "b", "c")]
    a, b, c = made
    for node in made:
        node.pour(60)
    for node in made:
        until(lambda node=node: len(node.heard["numbers"]) == 180, 5)  # type: ignore[misc]
    if how == "restarted empty":
        redis_server.restart(empty=True)
    else:
        with redis_server.client() as client:
            client.execute_command(how)
    client = redis_server.client()
    for node in made:
        until(lambda node=node: is_whole(node, client), 8, f"{node.name} is registered again")  # type: ignore[misc]
        until(lambda node=node: node.state_losses, 5, f"{node.name} says what was lost")  # type: ignore[misc]
    for node in made:
        node.pour(20)
    nobody_is_deaf(made)
    for node in made:
        until(lambda node=node: len(node.heard["numbers"]) == 240, 5)  # type: ignore[misc]
        verdict = judge([n.ledger for n in made], node.heard["numbers"])
        assert verdict.clean, str(verdict)
    PAUSE.wait(3 * FAST["heartbeat"])
    assert [len(node.state_losses) for node in made] == [1, 1, 1], [node.state_losses for node in made]
    assert [node.router.stats().state_losses for node in made] == [1, 1, 1]
    assert a.router.stats().lost == 61  # all of its own that were acknowledged before, and that it joined
    client.close()


def test_p0_04_a_known_finish_is_written_again(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, b = nodes("a", **FAST), nodes("b", **FAST)
    a.router.finish("completed")
    until(lambda: b.router.finished is not None, 3)
    redis_server.restart(empty=True)
    with redis_server.client() as client:
        until(lambda: client.hget(Keys(run_id).finish, "reason") == b"completed", 5, "the finish is there again")
        assert client.hget(Keys(run_id).finish, "node") == b"a"


KEYS = {
    "nodes": lambda keys: keys.nodes,
    "labels": lambda keys: keys.labels,
    "label": lambda keys: keys.label("red"),
    "epoch": lambda keys: keys.epoch,
    "streams": lambda keys: keys.streams,
    "events": lambda keys: keys.events("numbers"),
    "node": lambda keys: keys.node("a"),
    "owner": lambda keys: keys.owner("a"),
    "inbox": lambda keys: keys.inbox("a"),
    "finish": lambda keys: keys.finish,
    "producer": None,
}


@pytest.mark.parametrize("which", KEYS)
def test_p0_05_one_key_deleted(
    which: str, redis_server: RedisServer, nodes: MakeNode, run_id: str, log_lines: LogLines
) -> None:
    """Whatever key is deleted in mid-run: it comes back or is not missed, nothing crashes, nobody is deaf."""
    quick = {**FAST, "heartbeat": 0.1}  # an idle node looks at one thing at a time
    a, b = nodes("a", "numbers", labels={"red"}, **quick), nodes("b", "numbers", labels={"red"}, **quick)
    a.pour(30)
    until(lambda: len(b.heard["numbers"]) == 30, 5)
    if which == "finish":
        a.router.finish("completed")
        until(lambda: b.router.finished is not None, 3)
    late = nodes("late", "numbers", **quick)
    keys, choose = Keys(run_id), KEYS[which]
    with redis_server.client() as client:
        key = choose(keys) if choose else keys.producer(a.router.life.producer)
        assert client.delete(key) == 1
        a.pour(10)
        b.pour(10)
        until(lambda: client.exists(key), 8, f"{key.decode()} is there again")
        until(lambda: is_whole(a, client) and is_whole(b, client), 15, "both are registered as they were")
        if which == "epoch":
            until(lambda: all(node.state_losses for node in (a, b, late)), 6, "all see that it is another one")
        a.pour(10)
        for node in (a, b):
            until(lambda node=node: len(node.heard["numbers"]) == 60, 5)  # type: ignore[misc]
            verdict = judge([a.ledger, b.ledger], node.heard["numbers"])
            assert verdict.clean, str(verdict)
        since = a.heard["numbers"][30:]
        until(lambda: len(late.heard["numbers"]) == len(since) == 30, 5)
        for name in ("a", "b"):  # each hears its own events at once, so that only those of one node come in one order
            one, other = ([event for event in heard if event[0] == name] for heard in (late.heard["numbers"], since))
            assert one == other, "what was before it came is not for it"
    nobody_is_deaf([a, b, late])
    assert not [text for text in log_lines.texts() if "unforeseen" in text]
    for node in (a, b):
        assert len(node.state_losses) == (which == "epoch"), node.state_losses
        assert node.router.stats().lost == node.router.stats().missed == 0


def test_p0_05_a_claim_sent_twice_does_not_take_a_lost_epoch_for_a_lost_run(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """The answer to the first one is lost; what was there before the listener came is still not for it."""
    a = nodes("a")
    a.pour(30)
    b = nodes("b", "numbers", url=proxy.url, **FAST)
    proxy.drop_reply(b.router.life.registry.epoch)  # which nothing says but a claim of who was there before
    with redis_server.client() as client:
        client.delete(Keys(run_id).epoch)
    until(lambda: b.state_losses, 10)
    a.pour(5)
    until(lambda: len(b.heard["numbers"]) >= 5, 5)
    assert [number for _, number, _ in b.heard["numbers"]] == list(range(31, 36))
    assert len(b.state_losses) == proxy.dropped_replies == 1


def test_p1_34_the_tail_of_the_log_is_cut_off(
    lazy_server: RedisServer, nodes: MakeNode, run_id: str, log_lines: LogLines
) -> None:
    """The last bytes of the file are missing after a crash: reported loss is true loss."""
    url = lazy_server.url
    a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
    dice = random.Random(34)
    for _ in range(scaled(2, 10)):
        a.pour(30, each=1)
        lazy_server.kill()
        cut_tail(lazy_server, 1 + dice.randrange(4))
        lazy_server.start()
    a.pour(30, each=1)
    with lazy_server.client() as client:
        lost = judge([a.ledger], kept_in(client, run_id)).lost
    assert lost
    assert a.router.stats().lost == len(lost)
    nobody_is_deaf([a, b])


@pytest.mark.parametrize(("events", "each"), [(2000, 10), (200, 1)], ids=["batches", "one by one"])
def test_p1_15_scripts_forgotten(
    redis_server: RedisServer, nodes: MakeNode, run_id: str, events: int, each: int
) -> None:
    """``SCRIPT FLUSH`` all the time: nobody notices."""
    a, b = nodes("a", "numbers"), nodes("b", "numbers")
    over = threading.Event()

    def forget() -> None:
        with redis_server.client() as client:
            while not over.wait(0.02):
                client.script_flush()

    forgetting = in_background(forget)
    a.pour(events, each=each)
    over.set()
    forgetting.join()
    assert not a.errors
    check_all(redis_server, run_id, [a], [b])


def test_state_loss_is_seen_from_other_processes(lazy_server: RedisServer, processes: MakeProcess, run_id: str) -> None:
    """The same with nodes in processes of their own."""
    a = processes("a", "numbers", url=lazy_server.url, **FAST)
    b = processes("b", "numbers", url=lazy_server.url, **FAST)
    a.call("pour", 50, each=1)
    until(lambda: len(b.heard()) == 50, 5)
    lazy_server.restart(empty=True)
    until(lambda: b.call("state_losses") and a.call("state_losses"), 8)
    a.call("pour", 50)
    until(lambda: len(b.heard()) == 100, 5)
    assert judge([a.ledger()], b.heard()).clean
    assert len(b.call("state_losses")) == len(a.call("state_losses")) == 1
