"""The rig: servers to hurt, a proxy before them, nodes here and in processes of their own, and what must not stay."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from taskbus.errors import WaitTimeout
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.node import LogLines, Node
from tests.faults.process import NodeProcess

FULL = os.environ.get("TASKBUS_FAULTS") == "full"
"""Whether the tests run with the counts of the matrix, which takes long, or with fewer."""

MakeNode = Callable[..., Node]
MakeProcess = Callable[..., NodeProcess]


FAST: dict[str, float] = {"heartbeat": 0.3, "lease": 2.0, "block": 1.0, "op_timeout": 3.0, "connect_timeout": 1.0}
"""Settings under which everything that is noticed by time is noticed soon."""


BUSY = 0.0 if FULL else 1.0
"""Seconds over the bounds of the matrix for a machine that does other things at the same time."""


def scaled(few: int, many: int) -> int:
    """``few`` in every run of the suite, ``many`` with ``TASKBUS_FAULTS=full``."""
    return many if FULL else few


@pytest.fixture(autouse=True)
def no_socket_stays_behind(settings_from_outside: None) -> Iterator[None]:
    def open_sockets() -> int:
        count = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                count += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "pipe:"))
            except OSError:
                pass  # it was the directory's own
        return count

    before = open_sockets()
    yield
    try:
        until(lambda: open_sockets() <= before, timeout=5)
    except WaitTimeout:
        pytest.fail(f"{open_sockets() - before} sockets or pipes stayed behind", pytrace=False)


@pytest.fixture
def run_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before the server of this test."""
    with Proxy(("127.0.0.1", redis_server.port)) as proxy:
        yield proxy


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    with LogLines() as lines:
        yield lines


@pytest.fixture
def nodes(redis_server: RedisServer, run_id: str) -> Iterator[MakeNode]:
    """Makes nodes in this process, which are stopped at the end: ``nodes("a", "numbers", url=..., **settings)``."""
    made: list[Node] = []

    def make(name: str, *events: str, url: str | None = None, since: str = "now", **settings: Any) -> Node:
        node = Node(url or redis_server.url, run_id, name, **settings)
        made.append(node)
        return node.start(*events, since=since)

    yield make
    for node in made:
        node.stop()


@pytest.fixture
def processes(redis_server: RedisServer, run_id: str, tmp_path: Path) -> Iterator[MakeProcess]:
    """Makes nodes in processes of their own, which are killed at the end: as ``nodes``."""
    with ExitStack() as stack:

        def make(name: str, *events: str, url: str | None = None, since: str = "now", **settings: Any) -> NodeProcess:
            process = stack.enter_context(NodeProcess(url or redis_server.url, run_id, name, tmp_path, **settings))
            process.call("start", *events, since=since)
            return process

        yield make


def nobody_is_deaf(nodes: Sequence[Node], timeout: float = 3.0) -> None:
    """An event emitted now by any node reaches every other one."""
    event = f"probe.{uuid.uuid4().hex[:8]}"
    for node in nodes:
        node.listen(event)
    for node in nodes:
        node.router.emit(event, node.name, 1, 1)
    names = {node.name for node in nodes}
    for node in nodes:
        until(
            lambda node=node: names <= {producer for producer, _, _ in node.heard[event]},  # type: ignore[misc]
            timeout,
            f"{node.name} hears all of {sorted(names)}",
        )
