"""The name in the URL leads elsewhere, or nobody can say where it leads; and what a URL may not change."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.errors import BusUnavailable
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, FAST, MakeNode, nobody_is_deaf
from tests.faults.node import Node
from tests.faults.test_redis_away import PAUSE, check_all, seconds
from tests.faults.test_servers import replica_of

NAME = "redis.invalid"
URL = f"redis://{NAME}:6379/0"


class Resolver:
    """Says at which port of this machine the server of ``NAME`` is; or does not answer while it is ``stuck``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stuck = False
        self.stuck_at = 0  # which lookup is stuck by itself
        self.asked = 0
        self.over = threading.Event()
        self._getaddrinfo = socket.getaddrinfo

    def getaddrinfo(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host != NAME:
            return self._getaddrinfo(host, port, *args, **kwargs)
        self.asked += 1
        if self.stuck or self.asked == self.stuck_at:
            self.over.wait(10)
            raise socket.gaierror("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", self.port))]


@pytest.fixture
def resolver(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver(redis_server.port)
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    return resolver


def test_p1_20_redis_comes_back_at_another_address(
    redis_server: RedisServer, resolver: Resolver, nodes: MakeNode, run_id: str
) -> None:
    """The name is looked up anew with each connection, so it is followed."""
    with replica_of(redis_server) as other:
        a, b = nodes("a", "numbers", url=URL, **FAST), nodes("b", "numbers", url=URL, **FAST)
        a.pour(50)
        with redis_server.client() as client:
            until(lambda: client.wait(1, 1000) == 1, 10)
        redis_server.kill()
        a.emit()
        with other.client() as client:
            client.replicaof("NO", "ONE")
        resolver.port = other.port
        moved = time.monotonic()
        until(lambda: a.sync(1), 5)
        assert time.monotonic() - moved <= 3 + BUSY
        a.pour(50)
        check_all(other, run_id, [a], [a, b])
        nobody_is_deaf([a, b])
        assert not a.state_losses + b.state_losses
        a.stop()
        b.stop()
    redis_server.start()


@pytest.mark.parametrize("lost", ["all connections", "nothing yet"])
def test_p1_20_a_resolver_that_is_stuck_does_not_hold_up_the_stop(
    lost: str, redis_server: RedisServer, resolver: Resolver, run_id: str
) -> None:
    node = Node(URL, run_id, "a", **FAST).start("numbers")
    asked, resolver.stuck = resolver.asked, True
    if lost == "all connections":
        redis_server.kill()
        until(lambda: resolver.asked > asked + 1, 5, "it is asked again")
        node.emit()
    assert seconds(node.stop) <= 2.5 + BUSY
    assert seconds(node.stop) <= 0.05 + BUSY
    resolver.over.set()
    redis_server.start()


@pytest.mark.parametrize("lookup", [1, 2])
def test_p1_20_one_lookup_that_is_stuck_at_the_start_holds_up_no_part_of_a_node(
    lookup: int, redis_server: RedisServer, resolver: Resolver, run_id: str
) -> None:
    """The first one or the second, and all others answer: what waited for it goes on with another one."""
    resolver.stuck_at = lookup
    heard: list[Any] = []
    with Router(URL, run_id=run_id, lease=2.0, heartbeat=0.5, connect_timeout=0.5) as router:
        router.on("x", heard.append)
        with redis_server.client() as client:
            PAUSE.wait(3)  # longer than the lease
            assert client.exists(Keys(run_id).node(str(router.node_id)))
        with Router(redis_server.url, run_id=run_id) as other:
            other.emit("x", 1)
            until(lambda: heard == [1], 3)
        assert seconds(router.stop) <= 0.5 + BUSY
    resolver.over.set()


@pytest.mark.parametrize("lookup", [1, 2])
def test_p1_20_a_thread_whose_lookup_ends_late_leaves_the_heartbeat_to_the_one_that_took_over(
    lookup: int, redis_server: RedisServer, resolver: Resolver, run_id: str
) -> None:
    def hearts() -> int:
        return sum(thread.name == "taskbus-heart" for thread in threading.enumerate())

    resolver.stuck_at = lookup
    with Router(URL, run_id=run_id, connect_timeout=0.5):
        assert hearts() == 2
        resolver.over.set()
        until(lambda: hearts() == 1, 5)


def test_p1_20_a_resolver_that_is_stuck_does_not_hold_up_the_start(resolver: Resolver, run_id: str) -> None:
    resolver.stuck = True
    router = Router(URL, run_id=run_id, op_timeout=1.0, connect_timeout=0.5)
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match=r"redis\.invalid"):
        router.start()
    assert time.monotonic() - began <= 2
    assert seconds(router.stop) <= 0.05 + BUSY
    resolver.over.set()


def test_p1_35_a_url_does_not_change_the_protocol(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Of the parsers and protocols of the driver one is in use, whatever a URL asks for.

    Replies are read with hiredis, a dependency of its own, and never with the driver's parsers; every connection speaks
    RESP2, but for that of pub/sub, which asks for RESP3 itself; and the form of replies that the driver lets choose
    (legacy or unified) is that of its client, which has no part in this.
    """
    url = f"{redis_server.url}?protocol=3"
    a, b = nodes("a", "numbers", url=url, **FAST), nodes("b", "numbers", url=url, **FAST)
    a.pour(50)
    a.router.emit("numbers", "a", 51, 51, transient=True)
    until(lambda: len(b.heard["numbers"]) == 51)
    assert {node.id for node in a.router.nodes()} == {"a", "b"}
    with redis_server.client() as client:
        others = [one for one in client.client_list() if one["id"] != str(client.client_id())]
    assert len(others) >= 8
    assert {(one["sub"] != "0", one["resp"]) for one in others} == {(False, "2"), (True, "3")}
    nobody_is_deaf([a, b])
