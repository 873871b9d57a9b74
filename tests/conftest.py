"""Servers for the suites, and the checks that every test passes through."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from typing import TYPE_CHECKING, Any

import fakeredis
import hypothesis
import pytest
import redis

from taskbus.bus.connect import MEMORY_SERVERS
from taskbus.errors import ConfigError, WaitTimeout
from taskbus.testing import RedisServer, until

if TYPE_CHECKING:
    from collections.abc import Iterator

hypothesis.settings.register_profile("taskbus", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("taskbus")

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it."""
    for name in os.environ:
        if name.startswith("TASKBUS_") and not name.startswith("TASKBUS_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_thread_stays_behind(settings_from_outside: None) -> Iterator[None]:
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        return sorted({t.name for t in set(threading.enumerate()) - before if t.name.startswith("taskbus-")})

    try:
        until(lambda: not left(), timeout=5)
    except WaitTimeout:
        pytest.fail(f"threads stayed behind: {', '.join(left())}", pytrace=False)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    """The URL of the real server that most tests share: TASKBUS_TEST_REDIS_URL, else a private one."""
    if url := os.environ.get("TASKBUS_TEST_REDIS_URL"):
        yield url
        return
    with _started(RedisServer()) as server:
        yield server.url


@pytest.fixture
def real_redis_url(shared_redis: str) -> Iterator[str]:
    """A real server, shared with other tests: use a run id of your own, and do not hurt it."""
    yield shared_redis
    with redis.Redis.from_url(shared_redis) as client:
        _check_keys(client)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A real server of this test's own, to be frozen, killed and restarted."""
    with _started(RedisServer()) as server:
        yield server
        if server.alive:
            server.thaw()
            with server.client() as client:
                _check_keys(client)


@pytest.fixture
def memory_url() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    server = MEMORY_SERVERS.pop(name, None)
    if server is not None:
        with fakeredis.FakeRedis(server=server) as client:
            _check_keys(client)


@pytest.fixture(params=["memory", "redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """The contract: whatever takes this passes in process and on a real server."""
    url: str = request.getfixturevalue({"memory": "memory_url", "redis": "real_redis_url"}[request.param])
    return url


def _started(server: RedisServer) -> RedisServer:
    try:
        return server.start()
    except ConfigError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def _check_keys(client: redis.Redis) -> None:
    """Every key of ours has an expiry, at any time: an abandoned run disappears by itself."""
    found: list[Any] = list(client.scan_iter("taskbus:*"))
    for_ever = sorted(key.decode() for key in found if client.ttl(key) == -1)
    if for_ever:
        client.delete(*for_ever)  # one test's fault, not that of all that follow
        pytest.fail(f"keys without an expiry: {', '.join(for_ever)}")
