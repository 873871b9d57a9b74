"""Fixtures for tests of programs on taskbus. Every pytest run loads this file, so it imports what it needs late."""

from __future__ import annotations

import uuid

import pytest

__all__ = ["pytest_addoption", "taskbus_url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("taskbus")
    group.addoption("--taskbus-url", metavar="URL", help="the bus that tests run over (default: memory://, in process)")


@pytest.fixture
def taskbus_url(request: pytest.FixtureRequest) -> str:
    """The URL of a bus for this test: that of ``--taskbus-url``, else a ``memory://`` of the test's own."""
    given: str | None = request.config.getoption("--taskbus-url")
    return given or f"memory://{uuid.uuid4().hex}"
