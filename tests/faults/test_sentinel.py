"""Redis behind Sentinel: the primary is asked for, and a failover is followed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbus import BusUnavailable, ConfigError, Router
from taskbus.bus.server import find_server
from taskbus.testing import RedisServer, until
from tests.faults.conftest import FAST, scaled

_SETTINGS: dict[str, Any] = dict(FAST)


@pytest.fixture
def primary() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def replica(primary: RedisServer) -> Iterator[RedisServer]:
    with RedisServer("--replicaof", "127.0.0.1", str(primary.port)) as server:
        yield server


@pytest.fixture
def sentinel_port(primary: RedisServer, replica: RedisServer, tmp_path: Path) -> Iterator[int]:
    with RedisServer() as short_lived:
        port = short_lived.port
    file = tmp_path / "sentinel.conf"
    file.write_text(
        f"port {port}\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 4000\n",
        encoding="ascii",
    )
    process = subprocess.Popen(
        [str(find_server()), str(file), "--sentinel", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: _knows_replica(port), 30.0, "the sentinel knows the replica")
        yield port
    finally:
        process.kill()
        process.wait()


def _knows_replica(port: int) -> bool:
    client: Any = redis.Redis(port=port, protocol=2, socket_timeout=1.0)
    try:
        return bool(client.execute_command("SENTINEL", "REPLICAS", "main"))
    except redis.RedisError:
        return False
    finally:
        client.close()


def test_a_failover_is_followed_and_the_buffered_events_arrive_once(primary: RedisServer, sentinel_port: int) -> None:
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel_port}/main/0"
    count = scaled(200, 2000)
    got: list[int] = []
    with Router(url, **_SETTINGS) as a, Router(url, **_SETTINGS) as b:
        b.on("number", got.append)
        for number in range(count):
            a.emit("number", number)
        a.sync()
        until(lambda: len(got) == count, 10.0, "all before the failover")
        primary.kill()
        for number in range(count, 2 * count):
            a.emit("number", number)
        until(lambda: len(got) >= 2 * count, 45.0, "all after the failover")
        assert sorted(set(got)) == list(range(2 * count)), "replication was at rest, so nothing was lost"
        assert len(got) == 2 * count
        assert got == sorted(got)


def test_a_service_that_no_sentinel_knows_is_named(sentinel_port: int) -> None:
    with pytest.raises(BusUnavailable, match="knows no service 'other'"):
        Router(f"redis+sentinel://127.0.0.1:{sentinel_port}/other", **_SETTINGS).start()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://a:1", "must end with /service"),
        ("redis+sentinel://a:x/main", "host:port"),
        ("redis+sentinel://u:secret@a:1/main/zero", "must end with /service"),
    ],
)
def test_an_url_that_makes_no_sense_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Router(url).start()
    assert "secret" not in str(refused.value)
