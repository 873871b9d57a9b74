"""A cable that is pulled out: a node on a host of its own, which is a network namespace, loses the host of Redis."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from taskbus.bus.server import find_server
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, MakeNode, MakeProcess, scaled
from tests.faults.oracle import judge
from tests.faults.test_redis_away import PAUSE

ADDRESS, OTHER, PORT = "10.213.0.1", "10.213.0.2", 6390
NOTICED_WITHIN, HEALED_WITHIN = 6.0, 3.0
SAID_WITHIN = 1.5 + 5.0
"""A beat of the heart and the deadline of a call: then the last of the three connections is given up."""


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Cable:
    """Two hosts, and a cable between them."""

    def __init__(self) -> None:
        self.here, self.there = (f"taskbus-{os.getpid()}-{side}" for side in ("here", "there"))

    def lay(self) -> None:
        for host in (self.here, self.there):
            ip("netns", "add", host)
        ip("-n", self.here, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.there)
        for host, address in ((self.here, ADDRESS), (self.there, OTHER)):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")

    def pull(self) -> None:
        ip("-n", self.here, "link", "set", "cable", "down")

    def plug(self) -> None:
        ip("-n", self.here, "link", "set", "cable", "up")

    def remove(self) -> None:
        for host in (self.here, self.there):
            with suppress(OSError):  # there is no such program
                subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    try:
        cable.lay()
    except (OSError, subprocess.CalledProcessError) as error:
        cable.remove()
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield cable
    cable.remove()


@pytest.fixture
def redis_server(cable: Cable, tmp_path: Path) -> Iterator[RedisServer]:
    """A server on one host; on this machine it is reached over its unix socket."""
    inside = tmp_path / "redis-server"
    inside.write_text(f'#!/bin/sh\nexec ip netns exec {cable.here} "{find_server()}" "$@"\n', encoding="utf-8")
    inside.chmod(0o755)
    where = ("--port", str(PORT), "--bind", ADDRESS, "--protected-mode", "no")
    with RedisServer(*where, unix=True, binary=inside) as server:
        yield server


SAYS = {
    "reader": "the reader tries again",
    "channels": "transient events may be missed",
    "heart": "no heartbeat",
}


@pytest.mark.timeout(120)
def test_p0_09_a_cable_is_pulled_out(cable: Cable, nodes: MakeNode, processes: MakeProcess) -> None:
    """Each of the three connections notices without traffic from outside, and all are in use again soon after."""
    url = f"redis://{ADDRESS}:{PORT}/0"
    a = processes("a", "numbers", url=url, prefix=("ip", "netns", "exec", cable.there))
    b = nodes("b", "numbers")
    a.call("pour", 20)
    b.pour(20)
    until(lambda: len(b.heard["numbers"]) == len(a.heard()) == 40)
    PAUSE.wait(random.uniform(0, 6))  # at any turn of the heart
    pulled = time.monotonic()
    cable.pull()
    until(lambda: not a.call("stats")["healthy"], 10, "a says that it is not well")
    assert time.monotonic() - pulled <= NOTICED_WITHIN + BUSY

    def noticed() -> dict[str, float]:
        lines = a.call("log")
        return {who: min(at - pulled for at, _, text in lines if words in text) for who, words in SAYS.items()}

    until(lambda: all(any(words in text for _, _, text in a.call("log")) for words in SAYS.values()), 10)
    assert max(noticed().values()) <= SAID_WITHIN + BUSY, noticed()
    a.call("emit")
    b.pour(20)
    PAUSE.wait(max(0.0, pulled + scaled(9, 20) - time.monotonic()))
    cable.plug()
    plugged = time.monotonic()
    b.emit()
    until(lambda: len(a.heard()) == len(b.heard["numbers"]) == 62, 10, "both hear all that was emitted meanwhile")
    assert time.monotonic() - plugged <= HEALED_WITHIN + BUSY
    until(lambda: a.call("stats")["healthy"], HEALED_WITHIN)
    assert a.call("sync")
    for heard in (a.heard(), b.heard["numbers"]):
        verdict = judge([a.ledger(), b.ledger], heard)
        assert verdict.clean, str(verdict)
    assert a.call("state_losses") == []
