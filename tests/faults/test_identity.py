"""Who a node is: one owner for each id, the dead are gone, the paused are fenced, the forgotten come back."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.errors import Fenced, NodeIdTaken
from taskbus.frame import unpack
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import MakeNode, MakeProcess, scaled
from tests.faults.node import Node, kept_in
from tests.faults.process import RemoteError

PAUSE = threading.Event()
QUICK = {"heartbeat": 0.5, "lease": 2.0}
SLACK = 2.0
"""Seconds for a busy machine."""


def entries_of(server: RedisServer, run_id: str, producer: str, event: str = "numbers") -> int:
    with server.client() as client:
        found = client.xrange(Keys(run_id).events(event)) or []
        return sum(unpack(fields[b"f"], max_size=1 << 30).producer == producer for _, fields in found)


def test_p0_29_of_two_nodes_that_claim_one_id_one_runs(redis_server: RedisServer) -> None:
    for _ in range(scaled(20, 100)):
        run_id = uuid.uuid4().hex
        routers = [Router(redis_server.url, run_id=run_id, node_id="x") for _ in range(2)]
        ready = threading.Barrier(2)

        def start(router: Router, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            router.start()

        with ThreadPoolExecutor(2) as pool:
            starting = [pool.submit(start, router) for router in routers]
        refused = [error for one in starting if (error := one.exception()) is not None]
        assert [type(error) for error in refused] == [NodeIdTaken]
        assert "node id 'x' of run" in str(refused[0])
        for router in routers:
            router.stop()


def test_p0_29_a_second_start_is_refused_and_names_the_holder(
    redis_server: RedisServer, processes: MakeProcess, run_id: str
) -> None:
    holder = processes("x")
    began = time.monotonic()
    with pytest.raises(
        NodeIdTaken,
        match=rf"is held by process {holder.pid} on .*; its lease runs out in \d+\.\d s unless it is renewed$",
    ) as caught:
        Router(redis_server.url, run_id=run_id, node_id="x").start()
    assert time.monotonic() - began < 5
    assert caught.value.holder.endswith(f":{holder.pid}")
    assert caught.value.node == "x"


@pytest.mark.parametrize("rival", ["stays", "has left"])
def test_p0_30_a_paused_owner_that_was_replaced_is_fenced(
    rival: str, redis_server: RedisServer, processes: MakeProcess, nodes: MakeNode, run_id: str
) -> None:
    old = processes("x", **QUICK)
    old.send("pour", 1_000_000, pause=0.01)
    until(lambda: len(old.ledger().acked) > 100, 10)
    producer = old.call("tests.faults.test_identity:producer_of")
    old.freeze()
    PAUSE.wait(QUICK["lease"] + 0.5)
    replacement = Node(redis_server.url, run_id, "x", **QUICK)
    until(lambda: starts(replacement), 5, "the lease has run out")
    before = entries_of(redis_server, run_id, producer)
    assert before > 0
    if rival == "has left":
        replacement.stop()
    old.thaw()
    until(lambda: any("Fenced" in text for text in old.call("errors")), 2 * QUICK["heartbeat"] + SLACK)
    if rival == "stays":
        assert [node.id for node in replacement.router.nodes()] == ["x"]
    assert entries_of(redis_server, run_id, producer) == before
    assert not old.call("stats")["healthy"]
    with pytest.raises(RemoteError, match="Fenced"):
        old.call("finish", "completed")
    with Router(redis_server.url, run_id=run_id) as late:
        assert late.finished is None
    old.call("stop")
    if rival == "stays":
        assert [node.id for node in replacement.router.nodes()] == ["x"], "the fenced one does not take it along"
    replacement.stop()


def test_p0_30_a_node_whose_place_was_taken_finishes_nothing_although_nobody_has_told_it(
    redis_server: RedisServer, run_id: str
) -> None:
    """As after a pause: its finish is the first thing that it says."""
    old = Router(redis_server.url, run_id=run_id, node_id="x", heartbeat=60.0, lease=200.0).start()
    with redis_server.client() as client:
        client.delete(Keys(run_id).node("x"))
        new = Router(redis_server.url, run_id=run_id, node_id="x")
        old.life.reader.end()  # which the claim would tell
        with new, pytest.raises(Fenced, match="belongs to process"):
            old.finish("too late")
        assert not client.exists(Keys(run_id).finish)
    assert old.finished is None
    old.stop()


def starts(node: Node) -> bool:
    try:
        node.start()
    except NodeIdTaken:
        return False
    return True


def producer_of(node: Node) -> str:
    return node.router.life.producer


def test_p0_31_a_killed_node_is_gone_with_its_labels_and_its_id_is_free(
    redis_server: RedisServer, processes: MakeProcess, nodes: MakeNode, run_id: str
) -> None:
    watcher = nodes("watcher", **QUICK)
    keys = Keys(run_id)
    left: list[str] = []
    watcher.router.on("taskbus.node_left", lambda node, reason: left.append(f"{node}: {reason}"))
    rounds = scaled(2, 30)
    for number in range(rounds):
        victim = processes("victim", labels=["mortal"], **QUICK)
        assert [node.id for node in watcher.router.nodes("mortal")] == ["victim"]
        victim.kill()
        killed = time.monotonic()
        until(lambda: not watcher.router.nodes("mortal"), QUICK["lease"] + QUICK["heartbeat"] + SLACK)
        assert time.monotonic() - killed > QUICK["lease"] - QUICK["heartbeat"] - 0.5
        until(lambda number=number: len(left) > number)  # type: ignore[misc]
        with redis_server.client() as client:
            assert not client.exists(keys.label("mortal"), keys.node("victim"), keys.inbox("victim"))
            assert client.smembers(keys.nodes) == {b"watcher"}
    assert left == ["victim: expired"] * rounds


def test_p0_31_the_answer_to_a_sweep_is_lost(
    redis_server: RedisServer, proxy: Proxy, processes: MakeProcess, nodes: MakeNode, run_id: str
) -> None:
    """Redis knows nothing of the dead any more then, and who asks again is told of them all the same."""
    sweeper = nodes("sweeper", url=proxy.url, **QUICK).router.life.registry
    victim = processes("victim", **QUICK)
    assert not sweeper.sweep()  # Redis knows the script now: the next one is run at the first attempt
    victim.kill()
    with redis_server.client() as client:
        until(lambda: not client.exists(Keys(run_id).node("victim")), QUICK["lease"] + SLACK)
    proxy.drop_reply(b":swept")
    assert sweeper.sweep() == ["victim"]
    assert proxy.dropped_replies == 1


def test_p0_32_a_live_node_that_was_deleted_registers_again(
    redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    a, b = nodes("a", "numbers", labels={"one", "two"}), nodes("b")
    keys = Keys(run_id)
    for gone in ([keys.node("a")], [keys.node("a"), keys.label("one"), keys.nodes], [keys.inbox("a"), keys.node("a")]):
        with redis_server.client() as client:
            client.delete(*gone)
        until(lambda: b.router.nodes(["one"]) and b.router.nodes("two"), 2 * 1.5 + SLACK)
        with redis_server.client() as client:
            until(
                lambda client=client: all(client.sismember(keys.label(label), "a") for label in ("one", "two")),  # type: ignore[misc]
                5,
            )
    b.emit()
    until(lambda: a.heard["numbers"])
    assert a.emit()
    assert a.sync()


def test_p0_32_a_node_that_was_frozen_goes_on(
    redis_server: RedisServer, processes: MakeProcess, nodes: MakeNode, run_id: str
) -> None:
    settings = {"heartbeat": 0.5, "lease": 3.0}
    watcher = nodes("watcher", **settings)
    joined: list[str] = []
    watcher.router.on("taskbus.node_joined", lambda node, labels: joined.append(node))
    frozen = processes("frozen", "numbers", labels=["one", "two"], **settings)
    for seconds, away in ((1.0, False), (4.0, True)):
        frozen.freeze()
        PAUSE.wait(seconds)
        assert bool(watcher.router.nodes("one")) is not away
        frozen.thaw()
        until(lambda: watcher.router.nodes("one"), 2 * settings["heartbeat"] + SLACK)
        info = watcher.router.nodes("two")[0]
        assert info.labels == {"one", "two"}
        frozen.call("emit")
        assert frozen.call("sync")
    until(lambda: joined == ["frozen", "frozen"])
    watcher.emit()
    assert watcher.sync()
    until(lambda: len(frozen.heard()) == 3)
    assert frozen.call("errors") == []
    with redis_server.client() as client:
        assert len(kept_in(client, run_id)) == 3
    frozen.signal(signal.SIGKILL)
