"""Messages about a bus that does not answer as it should."""

from __future__ import annotations

import uuid

import pytest
from redis import exceptions as driver

from taskbus import BusDenied, BusUnavailable, Router
from taskbus.bus.connect import MEMORY_SERVERS, explain
from taskbus.testing import LinkedNodes


def test_an_in_process_bus_that_is_away_is_called_by_its_name() -> None:
    name = uuid.uuid4().hex
    with LinkedNodes(f"memory://{name}") as nodes:
        nodes.node()
        MEMORY_SERVERS[name].connected = False
        try:
            with pytest.raises(BusUnavailable, match=f"memory://{name}") as raised:
                Router(f"memory://{name}", op_timeout=0.2).start()
        finally:
            MEMORY_SERVERS[name].connected = True
    assert "localhost" not in str(raised.value)


def test_messages_end_without_a_full_stop_because_others_go_on() -> None:
    error = explain(driver.ConnectionError("Error 111 connecting to host:1. Connection refused."), "host:1")
    assert str(error).endswith("Connection refused")


@pytest.mark.parametrize("said", ["Authentication required.", "NOAUTH HELLO must be called with the client logged in"])
def test_a_missing_password_is_asked_for(said: str) -> None:
    error = explain(driver.AuthenticationError(said), "host:1")
    assert isinstance(error, BusDenied)
    assert "needs a password, as in redis://:PASSWORD@HOST" in str(error)
