"""Fixtures for tests of programs on taskbus.

Every pytest run of an environment with taskbus loads this file. It is no part of the package, because importing the
package imports the driver, and no part of anybody's test run should pay for that; the fixtures import what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from taskbus.testing import LinkedNodes

__all__ = ["pytest_addoption", "pytest_configure", "taskbus_run", "taskbus_settings", "taskbus_url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("taskbus")
    group.addoption("--taskbus-url", metavar="URL", help="the bus that tests run over (default: memory://, in process)")
    group.addoption("--taskbus-redis", action="store_true", help="run them over a private Redis, started for this")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--taskbus-url") and config.getoption("--taskbus-redis"):
        raise pytest.UsageError("give --taskbus-url or --taskbus-redis, not both")


@pytest.fixture(scope="session")
def _taskbus_server() -> Iterator[str]:
    from taskbus.testing import RedisServer

    with RedisServer() as server:
        yield server.url


@pytest.fixture
def taskbus_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a bus: of ``--taskbus-url``, of the server of ``--taskbus-redis``, else in process, for this test."""
    if request.config.getoption("--taskbus-redis"):
        yield request.getfixturevalue("_taskbus_server")
        return
    given: str | None = request.config.getoption("--taskbus-url")
    if given:
        yield given
        return
    import uuid

    from taskbus.bus.connect import MEMORY_SERVERS

    name = uuid.uuid4().hex
    yield f"memory://{name}"
    MEMORY_SERVERS.pop(name, None)


@pytest.fixture
def taskbus_settings() -> dict[str, Any]:
    """Settings of every node of ``taskbus_run``, as for a router; override this fixture to change them."""
    return {}


@pytest.fixture
def taskbus_run(taskbus_url: str, taskbus_settings: dict[str, Any]) -> Iterator[LinkedNodes]:
    """A run of this test's own, without nodes yet: ``taskbus_run.node(labels="learner")`` starts one.

    All nodes live in this process. They can be cut off, frozen, killed and brought back; ``settle()`` waits until the
    bus is quiet and raises what a listener of ``node.on`` raised (or else the end of the test does), ``emitted()``
    tells what the run keeps. Afterwards no thread, connection or key is left.
    """
    from taskbus.testing import LinkedNodes

    with LinkedNodes(taskbus_url, **taskbus_settings) as nodes:
        yield nodes
