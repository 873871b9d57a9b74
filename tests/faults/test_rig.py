"""The rig itself: what it says must be true before it may judge others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis

from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import MakeNode, MakeProcess, nobody_is_deaf
from tests.faults.node import kept_in
from tests.faults.oracle import Ledger, judge


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(proxy.url, socket_timeout=2.0) as client:
        yield client


def test_the_proxy_delays_throttles_and_drips(proxy: Proxy, client: redis.Redis) -> None:
    client.set("long", b"x" * 100_000)
    hurts: list[tuple[Callable[[], None], float]] = [
        (lambda: proxy.delay(0.05), 0.1),
        (lambda: proxy.throttle(500_000, direction="down"), 0.15),
        (lambda: proxy.drip(0.005, direction="up"), 0.05),
    ]
    for hurt, least in hurts:
        hurt()
        began = time.monotonic()
        assert len(client.get("long") or b"") == 100_000
        assert time.monotonic() - began >= least
        proxy.heal()


@pytest.mark.parametrize("mode", ["stall", "blackhole"])
def test_the_proxy_keeps_silent_and_then_goes_on(proxy: Proxy, client: redis.Redis, mode: str) -> None:
    client.ping()
    getattr(proxy, mode)()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    proxy.heal()
    assert client.ping()


def test_the_proxy_drops_one_reply_and_the_server_has_done_it(proxy: Proxy, client: redis.Redis) -> None:
    proxy.drop_reply(b"INCR")
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert client.get("n") == b"1"
    assert client.incr("n") == 2
    assert proxy.dropped_replies == 1


def test_the_proxy_cuts_resets_and_refuses(proxy: Proxy, client: redis.Redis) -> None:
    client.set("long", b"x" * 100_000)
    proxy.cut_after(1_000, direction="down")
    with pytest.raises(redis.ConnectionError):
        client.get("long")
    proxy.heal()
    proxy.refuse()
    proxy.reset()
    until(lambda: not proxy.connections)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    proxy.heal()
    assert client.ping()
    assert proxy.find(b"PING") == proxy.connections[-1]


def test_the_oracle_finds_every_kind_of_wrong() -> None:
    book = Ledger("a", acked={1, 2, 3}, unknown={4}, failed={5})
    assert judge([book], [("a", n, n) for n in (1, 2, 3, 4)]).clean
    verdict = judge([book], [("a", 2, 2), ("a", 1, 1), ("a", 1, 1), ("a", 5, 5), ("a", 4, 7), ("b", 1, 1)])
    assert verdict.lost == [("a", 3)]
    assert verdict.repeated == [("a", 1)]
    assert verdict.ghosts == [("a", 5, 5), ("a", 4, 7), ("b", 1, 1)]
    assert verdict.disorder == [("a", 2, 1), ("a", 5, 4)]
    assert "lost 1 [('a', 3)]" in str(verdict)


def test_nodes_here_and_elsewhere_hear_one_another(
    nodes: MakeNode, processes: MakeProcess, redis_server: RedisServer, run_id: str
) -> None:
    here, there = nodes("here", "numbers"), processes("there", "numbers")
    here.pour(50)
    there.call("pour", 50)
    books = [here.ledger, there.ledger()]
    until(lambda: len(here.heard["numbers"]) == 100)
    until(lambda: len(there.heard()) == 100)
    for heard in (here.heard["numbers"], there.heard()):
        assert judge(books, heard).clean
    with redis_server.client() as client:
        assert judge(books, kept_in(client, run_id)).clean
    nobody_is_deaf([here])
    assert there.call("stop") == 0
    assert there.quit() == 0
