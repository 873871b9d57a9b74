"""What a reader makes of single events: those of types it does not know, their ids, and how many a frame may hold."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import Any

import pytest

from taskbus import ConfigError, Router
from taskbus.bus.follower import Follower
from taskbus.bus.guest import Guest
from taskbus.config import RouterConfig
from taskbus.testing import until
from tests.contract.conftest import Join

_EMITTER = """
import sys
import taskbus
class Only:
    pass
taskbus.register_type(Only, lambda value: 1, lambda value: Only())
with taskbus.Router(sys.argv[1], run_id=sys.argv[2]) as router:
    for number in range(10):
        router.emit("number", number)
    router.emit("number", Only())
    for number in range(10, 20):
        router.emit("number", number)
"""


def test_an_event_of_an_unknown_type_is_refused_alone(real_redis_url: str) -> None:
    run_id = uuid.uuid4().hex[:12]
    got: list[int] = []
    with Router(real_redis_url, run_id=run_id) as router:
        router.on("number", got.append)
        subprocess.run([sys.executable, "-c", _EMITTER, real_redis_url, run_id], check=True, timeout=60)
        until(lambda: len(got) == 20, 10.0, "all others are there")
        assert got == list(range(20))
        assert router.stats().rejected == {"unknown type": 1}
        assert router.stats().missed == 0


def test_what_is_rejected_is_not_missed_as_well(real_redis_url: str) -> None:
    run_id = uuid.uuid4().hex[:12]
    got: list[int] = []
    secret: dict[str, Any] = {"run_id": run_id, "secret": "right"}
    with Router(real_redis_url, **secret) as a, Router(real_redis_url, **secret) as b:
        b.on("number", got.append)
        with Router(real_redis_url, run_id=run_id) as stranger:
            for number in range(3):
                stranger.emit("number", number)
                stranger.sync()
        a.emit("number", 3)
        until(lambda: got == [3], 10.0)
        assert b.stats().rejected["signature"] == 3
        assert b.stats().missed == 0


def test_every_event_has_an_id_from_which_reading_goes_on(real_redis_url: str) -> None:
    run_id = uuid.uuid4().hex[:12]
    with (
        Router(real_redis_url, run_id=run_id) as router,
        Guest(RouterConfig(url=real_redis_url, run_id=run_id)) as guest,
    ):
        for number in range(50):
            router.emit("number", number)
        router.sync()
        follower = Follower(guest, ["number"], "start")
        found = follower.read(5.0)
        follower.close()
        assert len({sighting.entry for sighting in found}) == 50
        for at in (0, 17, 48):
            rest: list[int] = []
            router.on("number", rest.append, since=found[at].entry)
            until(lambda rest=rest, at=at: len(rest) == 49 - at, 5.0)  # type: ignore[misc]
            assert rest == list(range(at + 1, 50))
            router.off("number")
            other = Follower(guest, ["number"], found[at].entry)
            assert [sighting.args for sighting in other.read(5.0)] == [(number,) for number in rest]
            other.close()


def test_small_frames_are_taken_whatever_a_single_event_may_be(join: Join) -> None:
    a, b = join(max_payload=2000), join(max_payload=2000)
    got: list[int] = []
    b.on("x", lambda number, text: got.append(number))
    for number in range(1000):
        a.emit("x", number, "x" * 100)
    until(lambda: len(got) == 1000, 10.0)
    assert not b.stats().rejected


def test_a_burst_is_trimmed_too(join: Join) -> None:
    a = join(retention_events=100)
    for number in range(3000):
        a.emit("x", number)
    a.sync()
    kept: list[int] = []
    a.on("x", kept.append, since="start")
    until(lambda: bool(kept) and kept[-1] == 2999, 10.0)
    assert 100 <= len(kept) <= 150


@pytest.mark.parametrize("nobody", [[], (), "", "a\ud800", [3]])
def test_an_empty_or_senseless_only_to_reaches_nobody_and_says_so(join: Join, nobody: Any) -> None:
    a, b = join(), join()
    got: list[int] = []
    b.on("x", got.append)
    with pytest.raises(ConfigError, match="label glob"):
        a.emit("x", 1, only_to=nobody)
    a.emit("x", 2, only_to="nobody,node.*")
    until(lambda: got == [2], 10.0)
