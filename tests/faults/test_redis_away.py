"""Redis goes away: not there, killed, frozen, cut off, silent, full, or refusing to write."""

from __future__ import annotations

import itertools
import random
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.errors import BusUnavailable, WaitTimeout
from taskbus.proxy import Direction, Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, FAST, FULL, MakeNode, nobody_is_deaf, scaled
from tests.faults.node import LogLines, Node, Steps, kept_in
from tests.faults.oracle import judge

PAUSE = threading.Event()  # never set: PAUSE.wait(s) is a plain pause


@pytest.fixture
def lasting_server() -> Iterator[RedisServer]:
    """A server that has every write on disk before it answers."""
    with RedisServer("--appendfsync", "always", appendonly=True) as server:
        yield server


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def check_all(server: RedisServer, run_id: str, senders: list[Node], hearers: list[Node]) -> None:
    """Everything is acknowledged; each event is once in the stream and came once, in order, to everybody else."""
    for sender in senders:
        assert sender.sync(10), sender.errors[-1]
    books = [sender.ledger for sender in senders]
    count = sum(len(book.acked) for book in books)
    for hearer in hearers:
        own = hearer.ledger.acked if hearer.ledger in books else set()
        until(lambda hearer=hearer: len(hearer.heard["numbers"]) >= count, 5, f"{hearer.name} hears {count}")  # type: ignore[misc]
        verdict = judge(books, hearer.heard["numbers"])
        assert verdict.clean, f"{hearer.name} ({len(own)} own): {verdict}"
    with server.client() as client:
        verdict = judge(books, kept_in(client, run_id))
    assert verdict.clean, f"in the stream: {verdict}"


@pytest.mark.parametrize("way", ["nobody listens", "refused", "silent"])
def test_p0_01_redis_not_reachable_at_start(way: str, redis_server: RedisServer, proxy: Proxy, run_id: str) -> None:
    """``start`` fails within its deadline with one sentence that names the address, and leaves nothing behind."""
    if way == "silent":
        proxy.stall()
    elif way == "refused":
        proxy.refuse()
    else:
        redis_server.kill()
    url, port = (redis_server.url, redis_server.port) if way == "nobody listens" else (proxy.url, proxy.port)
    for _ in range(scaled(2, 5)):
        router = Router(url, run_id=run_id, op_timeout=1.0, connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match=f"127.0.0.1:{port}"):
            router.start()
        assert time.monotonic() - began <= 2.0
        assert not router.is_active
        router.stop()
    redis_server.start()


def test_p0_01_nobody_answers_the_first_packet(run_id: str) -> None:
    """As with an address that a firewall swallows: the whole attempt is bounded, not only each part of it."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())  # the queue is full now, and the kernel drops who comes next
        router = Router(f"redis://127.0.0.1:{full.getsockname()[1]}/0", run_id=run_id, op_timeout=1.0)
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match="127.0.0.1"):
            router.start()
        assert time.monotonic() - began <= 2.0


def test_p0_01_start_waits_for_redis_when_asked_to(redis_server: RedisServer, proxy: Proxy, run_id: str) -> None:
    proxy.refuse()
    router = Router(proxy.url, run_id=run_id, op_timeout=0.5, connect_timeout=0.5, start_timeout=30.0)
    waiting = in_background(router.start)
    PAUSE.wait(1.5)
    assert not router.is_active
    proxy.heal()
    until(lambda: router.is_active, 3, "the router runs once Redis is there")
    waiting.join()
    router.stop()


def test_p0_02_redis_killed_with_every_write_on_disk(lasting_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """SIGKILL at random points while two nodes emit: nothing acknowledged is lost, nothing comes twice."""
    url = lasting_server.url
    a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
    rounds = scaled(3, 10)
    pouring = [in_background(lambda node=node: node.pour(120 * rounds, pause=0.02, each=5)) for node in (a, b)]  # type: ignore[misc]
    dice = random.Random(2)
    for _ in range(rounds):
        PAUSE.wait(dice.uniform(0.1, 0.5))
        lasting_server.kill()
        PAUSE.wait(0.3)
        lasting_server.start()
    for thread in pouring:
        thread.join()
    check_all(lasting_server, run_id, [a, b], [a, b])
    nobody_is_deaf([a, b])
    assert not a.ledger.unknown
    assert not b.ledger.unknown
    assert a.state_losses == b.state_losses == []
    assert max(a.ledger.longest, b.ledger.longest) <= 4.0
    assert a.router.stats().lost == 0


@pytest.mark.timeout(90)
@pytest.mark.parametrize("length", [1.0, 5.0, *([12.0, 30.0] if FULL else [])])
def test_p0_06_redis_frozen(redis_server: RedisServer, nodes: MakeNode, run_id: str, length: float) -> None:
    """A short freeze delays; a long one raises within the deadline; afterwards every emit is there once."""
    a, b = nodes("a", "numbers", op_timeout=3.0), nodes("b", "numbers", op_timeout=3.0)
    a.pour(50)
    redis_server.freeze()
    frozen = time.monotonic()
    thaw = threading.Timer(length, redis_server.thaw)
    thaw.start()
    for _ in range(20):
        a.emit()
    acknowledged = a.sync()
    took = time.monotonic() - frozen
    assert acknowledged == (length < 3)
    assert took <= 4.0
    thaw.join()
    thawed = time.monotonic()
    until(lambda: a.router.stats().heartbeat_age < time.monotonic() - thawed, 3, "the heart beats again")
    a.pour(50)
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])
    assert a.ledger.longest <= 4.0


def test_a_node_is_healthy_again_as_soon_as_redis_answers_it(
    lasting_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    """In the registry too, which the health check of a container asks: not only at the next beat."""
    beat = 4.0
    a = nodes("a", "numbers", url=lasting_server.url, heartbeat=beat, lease=20.0, block=1.0)
    lasting_server.kill()
    until(lambda: not a.router.stats().healthy, 10, "a says that it is not well")
    PAUSE.wait(beat)
    lasting_server.restart()
    until(lambda: a.router.stats().healthy, 3, "a says that it is well")
    with lasting_server.client() as client:
        key = Keys(run_id).node("a")
        until(lambda: client.hget(key, "healthy") == b"1", beat / 2, "so does the registry")
        PAUSE.wait(beat / 4)
        assert client.hget(key, "healthy") == b"1"


def test_p0_07_connections_killed(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Durable events are all there; every cut of the pub/sub connection is counted, no more and no less."""
    a, b = nodes("a", "numbers"), nodes("b", "numbers")
    rounds = scaled(8, 20)
    pouring = in_background(lambda: a.pour(100 * rounds, pause=0.01, each=10))
    cuts = 0
    with redis_server.client() as client:
        for number in range(rounds):
            until(lambda: len(client.client_list(_type="pubsub")) == 2, 5, "both subscribers are connected")
            kind = ("normal", "pubsub")[number % 2]
            if kind == "pubsub":
                cuts += 1
            client.client_kill_filter(_type=kind, skipme=True)
            PAUSE.wait(0.1)
        pouring.join()
        until(lambda: len(client.client_list(_type="pubsub")) == 2, 5, "both subscribers are connected")
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])
    for node in (a, b):
        until(lambda node=node: node.router.stats().gaps >= cuts, 5)  # type: ignore[misc]
        assert node.router.stats().gaps == cuts
        assert not node.state_losses


def test_p0_08_a_lost_reply_writes_one_entry(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """The request arrived, the reply did not: the retry is recognized, and the emit succeeds."""
    a, b = nodes("a", url=proxy.url), nodes("b", "numbers")
    shots = scaled(60, 200)
    for _ in range(shots):
        proxy.drop_reply(b"events:numbers")
        a.emit()
        assert a.sync()
    assert proxy.dropped_replies == shots
    check_all(redis_server, run_id, [a], [b])
    with redis_server.client() as client:
        assert client.xlen(Keys(run_id).events("numbers")) == shots
    assert a.router.stats().suppressed == shots


@pytest.mark.parametrize(
    ("whom", "life"),
    [
        *itertools.product(["reader", "channels", "heart", "all"], ["idle", "at work"]),
        *itertools.product(["channels"], ["watches others", "has a short lease", "was just told of a change"]),
    ],
)
def test_p0_09_a_peer_that_is_silently_gone(
    whom: str, life: str, redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """No FIN, no RST, no traffic from outside: each connection's silence is noticed, and replaced."""
    settings = {"lease": 4.0} if life == "has a short lease" else {}  # so that each heartbeat renews it
    a, b = nodes("a", "numbers", url=proxy.url, **settings), nodes("b", "numbers")
    if life == "watches others":
        a.router.on("taskbus.node_left", lambda node, reason: None)
    if life == "was just told of a change":
        until(lambda: proxy.find(b"TRACKING") is not None)
        with redis_server.client() as client:
            client.expire(Keys(run_id).nodes, 86_400)
        PAUSE.wait(0.1)  # until its next probe has the keys read again
    with Steps(a) if life == "at work" else nullcontext():
        silently_gone(whom, a, b, redis_server, proxy, run_id)


def silently_gone(whom: str, a: Node, b: Node, redis_server: RedisServer, proxy: Proxy, run_id: str) -> None:
    mark = {"reader": b"XREAD", "channels": b"SUBSCRIBE", "heart": b"PUBLISH", "all": b""}[whom]
    until(lambda: proxy.find(mark) is not None)
    index = proxy.find(mark)
    assert index is not None
    before = proxy.accepted
    proxy.blackhole(connection=None if whom == "all" else index)
    began = time.monotonic()
    if whom == "all":
        until(lambda: not a.router.stats().healthy, 10, "a says that it is not well")
    else:
        until(lambda: proxy.accepted > before, 10, "a new connection takes the place of the silent one")
    assert time.monotonic() - began <= 6.5
    if whom == "all":
        PAUSE.wait(3)
    proxy.heal()
    nobody_is_deaf([a, b])
    until(lambda: a.router.stats().healthy, 3)
    b.pour(50)
    check_all(redis_server, run_id, [b], [a])
    assert not a.state_losses


@pytest.mark.parametrize("way", ["stall", "blackhole", "refuse"])
def test_p0_10_retry_budget(
    way: str, redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, log_lines: LogLines
) -> None:
    """No call exceeds its deadline, and an outage costs few attempts, little time and few words."""
    a = nodes("a", "numbers", url=proxy.url, op_timeout=2.0)
    a.pour(5)
    before = proxy.accepted
    getattr(proxy, way)()
    proxy.reset()
    log_lines.lines.clear()
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    assert a.emit()
    assert seconds(a.sync) <= 3.0
    assert a.ledger.unknown
    for call in (a.router.nodes, lambda: a.router.on("new", print), lambda: a.router.barrier("b", 2, 1.0)):
        began_call = time.monotonic()
        with pytest.raises((BusUnavailable, WaitTimeout)):
            call()
        assert time.monotonic() - began_call <= 3.0
    PAUSE.wait(scaled(3, 50))
    outage = time.monotonic() - began
    now = resource.getrusage(resource.RUSAGE_SELF)
    assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime <= 1 + outage * 0.05
    assert proxy.accepted - before <= 4 * 2 * (outage + 1)
    assert len(log_lines.lines) <= 2 + outage, log_lines.lines
    proxy.heal()
    until(lambda: a.router.stats().healthy and a.sync(1), 3)


def test_p0_11_memory_full(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """``emit`` says at once that Redis is full; the node stays alive, finish works, and it heals by itself."""
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(50)
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.set("junk", b"x" * 3_000_000)
        client.config_set("maxmemory", 2_000_000)
        began = time.monotonic()
        while a.emit():
            assert time.monotonic() - began <= 1.0 + BUSY
            PAUSE.wait(0.01)
        assert "maxmemory" in a.errors[-1]
        assert a.errors[-1].startswith("BusUnavailable")
        filled = time.monotonic()
        ids = set()
        while time.monotonic() - filled < 3 * 2.0:
            ids |= {node.id for node in b.router.nodes()}
            assert {node.id for node in b.router.nodes()} == {"a", "b"}
            assert client.exists(Keys(run_id).node("a"), Keys(run_id).node("b")) == 2
            PAUSE.wait(0.2)
        assert a.router.stats().healthy
        b.listen("late")  # a new subscription works while Redis is full
        b.router.finish("full")
        until(lambda: a.router.finished is not None, 3)
        client.delete("junk")
        client.config_set("maxmemory", 0)
    freed = time.monotonic()
    until(lambda: a.emit() and a.sync(1), 3, "a emits again")
    assert time.monotonic() - freed <= 3
    check_all(redis_server, run_id, [a], [b])


@pytest.mark.parametrize("reason", ["NOREPLICAS", "MISCONF"])
def test_p0_12_writes_refused_for_a_while(reason: str, redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """A server that takes no writes now is away, not broken: everything waits, and goes on by itself."""
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(50)
    threads = {thread.name for thread in threading.enumerate()}
    with redis_server.client() as client:
        if reason == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
        else:
            blocked = Path(client.config_get("dir")["dir"]) / "dump.rdb"
            (blocked / "full").mkdir(parents=True)  # a snapshot cannot be renamed to a directory
            client.config_set("save", "3600 1000000")
            client.bgsave()
            until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 5)
        began = time.monotonic()
        for _ in range(20):
            a.emit()
        assert not a.sync(1.0)
        assert reason in a.errors[-1]
        PAUSE.wait(max(0.0, scaled(4, 10) - (time.monotonic() - began)))
        if reason == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 0)
        else:
            shutil.rmtree(blocked)
            client.bgsave()
    healed = time.monotonic()
    until(lambda: a.sync(1), 3, "a writes again")
    assert time.monotonic() - healed <= 3
    assert threads <= {thread.name for thread in threading.enumerate()}
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])


@pytest.mark.parametrize("direction", ["up", "down"])
def test_p1_19_half_open(
    direction: Direction, redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """Only one way is silent, and no end of a connection comes through: it is noticed like both."""
    a, b = nodes("a", "numbers", url=proxy.url, **FAST), nodes("b", "numbers", **FAST)
    a.pour(20)
    proxy.blackhole(direction=direction)
    began = time.monotonic()
    until(lambda: not a.router.stats().healthy, 6, "a says that it is not well")
    assert time.monotonic() - began <= FAST["block"] + 2.5 + BUSY
    a.emit()
    assert not a.sync(1)
    proxy.heal()
    until(lambda: a.sync(1), 3)
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])


def test_p1_16_a_slow_link(redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str) -> None:
    """200 ms more or less each way: slower, with the same guarantees, and nobody is taken for dead."""
    a, b = nodes("a", "numbers", url=proxy.url), nodes("b", "numbers", url=proxy.url)
    gone: list[str] = []
    b.router.on("taskbus.node_left", lambda node, reason: gone.append(node))
    proxy.delay(0.2, 0.1)
    a.pour(60, each=20)
    b.pour(60, each=20)
    PAUSE.wait(scaled(3, 300))
    check_all(redis_server, run_id, [a, b], [a, b])
    assert not gone
    assert a.router.stats().healthy
    assert a.router.stats().reconnects == b.router.stats().reconnects == 0
    assert {node.id for node in a.router.nodes()} == {"a", "b"}
    proxy.heal()
