"""Servers that are there and not quite right: loading, read-only, paused, busy, crowded, behind TLS, with replicas."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.errors import BusDenied, BusError, BusUnavailable, ConfigError, NotAcknowledged
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import FAST, MakeNode, nobody_is_deaf, scaled
from tests.faults.node import LogLines, Node, kept_in
from tests.faults.oracle import judge
from tests.faults.test_redis_away import PAUSE, check_all, in_background
from tests.faults.tls import Certificates, TlsFront


def replica_of(server: RedisServer) -> RedisServer:
    replica = RedisServer("--repl-diskless-sync-delay", "0").start()
    with server.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with replica.client() as client, server.client() as primary:
        client.replicaof("127.0.0.1", server.port)
        until(lambda: primary.info("replication")["connected_slaves"] == 1, 10)
        until(lambda: client.info("replication")["master_link_status"] == "up", 10)
    return replica


def test_p1_02_acknowledged_only_when_a_replica_has_it(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """With ``ack="replicas:1"`` nothing that was acknowledged is lost with the primary."""
    with replica_of(redis_server) as replica:
        a = nodes("a", url=proxy.url, ack="replicas:1", **FAST)
        b = nodes("b", "numbers", url=proxy.url, **FAST)
        a.pour(100, each=10)
        assert not a.errors
        replica.freeze()
        for _ in range(20):
            a.emit()
        with pytest.raises(NotAcknowledged, match="0 of 1 replicas"):
            a.router.sync()
        replica.thaw()
        assert a.sync(10)
        assert len(a.ledger.acked) == 120
        with redis_server.client() as client:
            assert client.xlen(Keys(run_id).events("numbers")) <= 120
        replica.freeze()
        for _ in range(20):
            a.emit()
        assert not a.sync(1)
        redis_server.kill()
        replica.thaw()
        with replica.client() as client:
            client.replicaof("NO", "ONE")
            client.execute_command("CONFIG", "SET", "save", "")
        proxy.move(("127.0.0.1", replica.port))
        proxy.reset()
        until(lambda: not a.sync(1) and "replicas" in a.errors[-1], 10, "the new primary has no replica")
        nobody_is_deaf([b])
        with replica.client() as client:
            assert not judge([a.ledger], kept_in(client, run_id)).lost
        assert b.router.stats().lost == 0
        a.stop()
        b.stop()
    redis_server.start()


def test_p1_02_a_new_connection_makes_no_replica_have_it(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode
) -> None:
    with replica_of(redis_server) as replica:
        a = nodes("a", url=proxy.url, ack="replicas:1", **FAST)
        a.router.sync()
        replica.freeze()
        a.router.emit("numbers", "a", 1, 1)
        with pytest.raises(NotAcknowledged):
            a.router.sync(2)
        proxy.reset()
        until(lambda: a.router.stats().suppressed >= 2, 10)
        with pytest.raises(NotAcknowledged):
            a.router.sync(2)
        replica.thaw()
        a.router.sync(10)


def test_p1_11_redis_is_loading(nodes: MakeNode, run_id: str) -> None:
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    with RedisServer("--appendfsync", "always", *slow, appendonly=True) as server:
        a, b = nodes("a", "numbers", url=server.url, **FAST), nodes("b", "numbers", url=server.url, **FAST)
        with server.client() as client:
            pipe = client.pipeline()
            for number in range(2500):
                pipe.set(f"junk{number}", "x", ex=60)
            pipe.execute()
        a.pour(20)
        server.kill()
        loading = in_background(lambda: server.start(timeout=30))
        seen = False
        while loading.is_alive():
            a.emit()
            a.sync(0.3)
            seen = seen or "LOADING" in a.errors[-1]
        loading.join()
        assert seen, "it was loaded before anybody asked"
        loaded = time.monotonic()
        until(lambda: a.sync(1), 3)
        assert time.monotonic() - loaded <= 3
        check_all(server, run_id, [a], [b])
        nobody_is_deaf([a, b])


def test_p1_12_a_replica_is_no_place_to_write(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """At start it is refused by name; a primary that becomes a replica is away until it is one again."""
    with replica_of(redis_server) as replica:
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match="read-only replica"):
            Router(replica.url, run_id=run_id).start()
        assert time.monotonic() - began <= 2
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(20)
    with redis_server.client() as client, RedisServer() as other:
        client.replicaof("127.0.0.1", other.port)
        a.emit()
        assert not a.sync(1)
        assert "READONLY" in a.errors[-1]
        client.replicaof("NO", "ONE")
        until(lambda: a.sync(1), 3)
    a.pour(20)
    assert judge([a.ledger], b.heard["numbers"]).repeated == []
    nobody_is_deaf([a, b])


PAUSES: dict[str, Callable[[Any], object]] = {
    "CLIENT PAUSE ALL": lambda client: client.client_pause(2500, all=True),
    "CLIENT PAUSE WRITE": lambda client: client.client_pause(2500, all=False),
    "DEBUG SLEEP": lambda client: client.execute_command("DEBUG", "SLEEP", "2.5"),
}


@pytest.mark.parametrize("how", PAUSES)
def test_p1_13_paused(how: str, redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(20)
    with redis_server.client() as client:
        pausing = in_background(lambda: PAUSES[how](client))
        until(lambda: a.emit() and not a.sync(0.3), 2, "it does not answer any more")
        for _ in range(4):
            a.emit()
        pausing.join()
    until(lambda: a.sync(1), 6)
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])


def is_busy(client: redis.Redis) -> bool:
    try:
        return not client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")


def test_p1_14_busy_with_a_script_that_never_ends(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(20)

    def hang() -> None:
        with redis_server.client() as client, pytest.raises(redis.ResponseError):
            client.eval("while true do end", 0)

    with redis_server.client() as client:
        client.config_set("lua-time-limit", 100)
        hanging = in_background(hang)
        until(lambda: is_busy(client), 5)
        a.emit()
        assert not a.sync(2)
        assert a.ledger.longest <= 4
        client.script_kill()
        hanging.join()
    until(lambda: a.sync(1), 3)
    check_all(redis_server, run_id, [a], [b])
    nobody_is_deaf([a, b])


def test_p1_21_maxclients_reached(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a = nodes("a", "numbers", **FAST)
    a.pour(20)
    with redis_server.client() as client:
        client.config_set("maxclients", 12)
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub", skipme=True)
        crowd = [socket.create_connection(("127.0.0.1", redis_server.port)) for _ in range(14)]
        before = int(client.info("stats")["total_connections_received"])
        began = time.monotonic()
        a.emit()
        a.sync(2)
        PAUSE.wait(1)
        attempts = int(client.info("stats")["total_connections_received"]) - before
        assert attempts <= 4 * 3 * (time.monotonic() - began + 1)
        for one in crowd:
            one.close()
    until(lambda: a.sync(1), 3)
    nobody_is_deaf([a])


@pytest.mark.parametrize(
    "case",
    ["good", "expired", "wrong host", "unknown ca", "plain to tls", "tls to plain", "client cert", "client cert given"],
)
def test_p1_27_tls(case: str, redis_server: RedisServer, run_id: str, tmp_path: Path, log_lines: LogLines) -> None:
    """The good case works; each bad one is refused fast, with the cause and without a second try."""
    ca, other = Certificates(tmp_path), Certificates(tmp_path, "other")
    cert, key = ca.sign("server", "elsewhere" if case == "wrong host" else "127.0.0.1", expired=case == "expired")
    client_cert, client_key = ca.sign("client", "node")
    with TlsFront(redis_server.port, cert, key, ca.ca if case.startswith("client") else None) as front:
        port = redis_server.port if case == "tls to plain" else front.port
        trusted = other.ca if case == "unknown ca" else ca.ca
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}"
        if case == "plain to tls":
            url = f"redis://127.0.0.1:{port}/0"
        if case == "client cert given":
            url += f"&ssl_certfile={client_cert}&ssl_keyfile={client_key}"
        if case in ("good", "client cert given"):
            a, b = Node(url, run_id, "a", **FAST).start(), Node(url, run_id, "b", **FAST).start("numbers")
            a.pour(100)
            until(lambda: len(b.heard["numbers"]) == 100)
            nobody_is_deaf([a, b])
            a.stop()
            b.stop()
            return
        began = time.monotonic()
        unclear = case in ("plain to tls", "tls to plain")  # one side hangs up, or waits for more: said as a question
        hurried = case == "client cert"  # the alert races with the end of the connection
        with pytest.raises(BusError if hurried else BusUnavailable if unclear else BusDenied) as caught:
            Router(url, run_id=run_id, op_timeout=2.0).start()
        assert time.monotonic() - began <= 3
        causes = {
            "expired": "certificate has expired",
            "wrong host": "not valid for '127.0.0.1'",
            "unknown ca": "certificate",
            "client cert": "CERTIFICATE_REQUIRED" if isinstance(caught.value, BusDenied) else "",
            "plain to tls": "rediss://",
            "tls to plain": "does it speak TLS there?",
        }
        assert causes[case] in str(caught.value), str(caught.value)
        assert unclear or hurried or front.accepted <= 2


NAMES = [
    *("", " ", "a b", "x" * 129, "x" * 65_536, "new\nline", "nul\0", "\u2600", "a*", "?", "[ab]", "{tag}", "a,b"),
    *("a/b", "ä"),
]
FAIR = ["a", "A.b-c_d:e", "0", "x" * 128, "events:", "node:a:inbox", "..", "-"]


def test_p1_29_names(nodes: MakeNode) -> None:
    """Every name is carried exactly or refused; none is taken for another."""
    a, b = nodes("a", **FAST), nodes("b", **FAST)
    for name in (*NAMES, "taskbus.state_lost", "taskbus.node_left"):
        with pytest.raises(ConfigError):
            a.router.emit(name)
        if not name.startswith("taskbus."):
            with pytest.raises(ConfigError):
                a.router.on(name, print)
    for name in FAIR:
        b.listen(name)
    for number, name in enumerate(FAIR):
        a.router.emit(name, name, number, number)
    for number, name in enumerate(FAIR):
        until(lambda name=name: b.heard[name], 3)  # type: ignore[misc]
        assert b.heard[name] == [(name, number, number)]
    for label in ("new\nline", "a,*", "a b", "x" * 129, "[ab]", "\0"):
        with pytest.raises(ConfigError):
            Router("memory://names", labels=[label])


@pytest.mark.parametrize("fault", ["killed", "frozen", "connections killed"])
def test_p1_36_unix_socket(fault: str, nodes: MakeNode, run_id: str) -> None:
    with RedisServer("--appendfsync", "always", unix=True, appendonly=True) as server:
        a, b = nodes("a", "numbers", url=server.url, **FAST), nodes("b", "numbers", url=server.url, **FAST)
        pouring = in_background(lambda: a.pour(200, pause=0.02, each=5))
        for _ in range(scaled(2, 10)):
            PAUSE.wait(0.2)
            if fault == "killed":
                server.kill()
                server.start()
            elif fault == "frozen":
                server.freeze()
                PAUSE.wait(1)
                server.thaw()
            else:
                with server.client() as client:
                    client.client_kill_filter(_type="normal", skipme=True)
        pouring.join()
        check_all(server, run_id, [a], [b])
        nobody_is_deaf([a, b])
        a.stop()
        b.stop()


def test_p1_37_an_eviction_policy_that_loses_events(
    redis_server: RedisServer, nodes: MakeNode, log_lines: LogLines
) -> None:
    """Warned of at start; what is lost under pressure is handled as any lost key."""
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
        assert len([text for text in log_lines.texts("WARNING") if "allkeys-lru" in text]) == 2
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used + 500_000)
        for number in range(300):
            client.set(f"junk{number}", b"x" * 10_000, ex=60)
            if number % 30 == 0:
                a.emit()
        client.config_set("maxmemory", 0)
    until(lambda: a.sync(1), 5)
    PAUSE.wait(1)
    nobody_is_deaf([a, b])


def test_p2_05_a_stream_poisoned_by_the_largest_id(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, b = nodes("a", "numbers", **FAST), nodes("b", "other", **FAST)
    with redis_server.client() as client:
        client.xadd(Keys(run_id).events("numbers"), {"x": "y"}, id="18446744073709551615-18446744073709551615")
        client.expire(Keys(run_id).events("numbers"), 60)
    began = time.monotonic()
    a.emit()
    with pytest.raises(BusError, match="events:numbers gives .*POISONED"):
        a.router.sync()
    assert time.monotonic() - began <= 1
    a.router.emit("other", "a", 1, 1)
    until(lambda: b.heard["other"], 3)


# A TLS socket of the standard library that is reset before its handshake is closed by nobody but the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("fault", ["reset", "blackhole", "frozen"])
def test_p1_28_tls_and_a_fault(
    fault: str, redis_server: RedisServer, nodes: MakeNode, run_id: str, tmp_path: Path
) -> None:
    """What is encrypted is hurt in the same ways, and heals in the same time."""
    ca = Certificates(tmp_path)
    with (
        TlsFront(redis_server.port, *ca.sign("server", "127.0.0.1")) as front,
        Proxy(("127.0.0.1", front.port)) as proxy,
    ):
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={ca.ca}"
        a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
        pouring = in_background(lambda: a.pour(200, pause=0.05, each=10))
        for _ in range(3):
            PAUSE.wait(0.3)
            if fault == "reset":
                proxy.reset()
            elif fault == "frozen":
                redis_server.freeze()
                PAUSE.wait(0.7)
                redis_server.thaw()
            else:
                proxy.blackhole()
                PAUSE.wait(0.7)
                proxy.heal()
        pouring.join()
        check_all(redis_server, run_id, [a], [b])
        nobody_is_deaf([a, b])
        a.stop()
        b.stop()
    gc.collect()


@pytest.mark.parametrize("edit", ["XTRIM", "XDEL", "RENAME", "EXPIRE"])
def test_p2_06_an_operator_edits_our_stream(
    edit: str, redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str
) -> None:
    """What was taken out before it was read is counted, to the event; whoever had read it notices nothing."""
    a, b, c = nodes("a"), nodes("b", "numbers"), nodes("c", "numbers", url=proxy.url)
    key = Keys(run_id).events("numbers")
    a.pour(10, each=1)
    until(lambda: len(c.heard["numbers"]) == 10)
    reader = proxy.find(b"XREAD")
    assert reader is not None
    proxy.blackhole(connection=reader)
    a.pour(50, each=1)
    until(lambda: len(b.heard["numbers"]) == 60)
    with redis_server.client() as client:
        if edit == "XTRIM":
            client.xtrim(key, maxlen=0)
        elif edit == "XDEL":
            for entry, _ in client.xrange(key)[15:50:3]:
                client.xdel(key, entry)
        elif edit == "RENAME":
            client.rename(key, b"elsewhere")
            client.expire(b"elsewhere", 60)
        else:
            client.expire(key, 0)
        proxy.heal()
        a.pour(20, each=1)
    until(lambda: c.heard["numbers"][-1][1] == 80, 5)
    assert c.router.stats().missed == 80 - len(c.heard["numbers"])
    until(lambda: len(b.heard["numbers"]) == 80, 5)
    assert b.router.stats().missed == 0
    for node in (b, c):
        verdict = judge([a.ledger], node.heard["numbers"])
        assert not (verdict.repeated or verdict.ghosts or verdict.disorder), str(verdict)
        assert not node.state_losses
