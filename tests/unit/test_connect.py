"""Messages about a bus that does not answer as it should."""

from __future__ import annotations

import re
import time
import uuid

import pytest
from redis import exceptions as driver

from taskbus import BusDenied, BusUnavailable, ConfigError, Router
from taskbus.bus.connect import MEMORY_SERVERS, Target, explain
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


@pytest.mark.parametrize(
    "url",
    [
        "redis://:ri@ght#x@127.0.0.1:6392/0",
        "redis://:ri@ght/x@127.0.0.1:6392/0",
        "redis://:ri@ght?x@127.0.0.1:6392/0",
        "redis://:1234#right@127.0.0.1:6392/0",
        "redis://:1234?right@127.0.0.1:6392/0",
        "redis://#ri@ght@127.0.0.1:6392/0",
        "rediss://user:ri@ght#x@127.0.0.1",
        "redis+sentinel://:ri@ght#x@127.0.0.1:1/service",
        "unix://:ri/ght@/tmp/socket",
    ],
)
def test_a_password_that_is_not_escaped_is_refused_and_no_part_of_it_is_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="%23") as raised:
        Target(url, 1.0)
    assert not {"ght", "ri", "right", "1234"} & set(re.findall(r"\w+", str(raised.value)))


@pytest.mark.parametrize(
    "url",
    [
        "unix:///tmp/a@b",
        "unix://user:password@/tmp/a@b",
        "redis://:p%40s%23@h/1",
        "redis://h?client_name=a%40b",
        "redis:///0",
    ],
)
def test_what_is_escaped_or_a_path_is_taken(url: str) -> None:
    Target(url, 1.0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h?bogus=1", "no option 'bogus'"),
        ("rediss://h?bogus=1", "no option 'bogus'"),
        ("unix:///tmp/x?bogus=1", "no option 'bogus'"),
        ("redis+sentinel://h:1/service?bogus=1", "no option 'bogus'"),
        ("rediss://:geheim@h?ssl_cert_reqs=perhaps", "make no sense"),
        ("redis://h/abc", "must be a number.*'abc'"),
        ("redis://h/-1", "must be a number.*'-1'"),
        ("redis://h/1/2", "must be a number.*'1/2'"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        Target(url, 1.0)
    assert "geheim" not in str(raised.value)


def test_a_database_that_redis_does_not_have_is_refused_at_once(real_redis_url: str) -> None:
    began = time.monotonic()
    with pytest.raises(BusDenied, match="has no such database"):
        Router(real_redis_url.rpartition("/")[0] + "/99").start()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("where", "hint"), [("127.0.0.1:1", True), ("localhost:1", True), ("10.0.0.1:1", False), ("localhosts:1", False)]
)
def test_who_is_refused_on_his_own_machine_is_asked_whether_it_runs(where: str, hint: bool) -> None:
    error = explain(driver.ConnectionError(f"Error 111 connecting to {where}. Connection refused."), where)
    assert str(error).endswith("Connection refused; is it running?") == hint


@pytest.mark.parametrize("said", ["Authentication required.", "NOAUTH HELLO must be called with the client logged in"])
def test_a_missing_password_is_asked_for(said: str) -> None:
    error = explain(driver.AuthenticationError(said), "host:1")
    assert isinstance(error, BusDenied)
    assert str(error) == "Redis at host:1 needs a password, as in redis://:PASSWORD@HOST"
