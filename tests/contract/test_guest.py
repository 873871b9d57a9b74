"""Somebody at a run who is no node: what it sees, and that nobody sees it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from taskbus.bus.calls import Calls
from taskbus.bus.connect import Target
from taskbus.bus.follower import Follower, Sighting
from taskbus.bus.guest import Guest
from taskbus.bus.runs import list_runs, remove_run
from taskbus.config import RouterConfig
from taskbus.errors import ConfigError, EncodeError
from taskbus.router import Router
from taskbus.testing import until


@pytest.fixture
def config(redis_url: str) -> RouterConfig:
    return RouterConfig(url=redis_url, run_id=f"guest-{uuid.uuid4().hex[:8]}", run_ttl=60)


@pytest.fixture
def guest(config: RouterConfig) -> Iterator[Guest]:
    with Guest(config) as guest:
        yield guest


@pytest.fixture
def node(config: RouterConfig) -> Iterator[Router]:
    with Router(config.url, run_id=config.run_id, node_id="a", block=0.5, run_ttl=60) as router:
        yield router


def all_of(follower: Follower) -> list[Sighting]:
    found = []
    while page := follower.read(0.0):
        found += page
    follower.close()
    return found


def test_a_guest_sees_the_run_and_nobody_sees_the_guest(guest: Guest, node: Router) -> None:
    node.emit("x", 1)
    node.sync()
    assert guest.exists()
    assert [one.id for one in guest.nodes()] == ["a"]
    assert guest.streams()["x"].events == 1
    assert guest.finished() is None
    assert [one.id for one in node.nodes()] == ["a"]
    assert node.finish("completed")
    found = guest.finished()
    assert found is not None and found.reason == "completed"


def test_what_a_guest_emits_is_heard_as_that_of_a_node(guest: Guest, node: Router) -> None:
    heard: list[Any] = []
    node.on("x", lambda *args, **kwargs: heard.append((args, kwargs)))
    guest.emit("x", (1, "large" * 100_000), {"k": (2,)})
    guest.emit("x", ("others",), {}, only_to=("b*",))
    guest.emit("x", ("transient",), {}, transient=True)
    until(lambda: len(heard) == 2)
    assert ((1, "large" * 100_000), {"k": (2,)}) in heard
    assert (("transient",), {}) in heard
    with pytest.raises(EncodeError):
        guest.emit("x", (object(),), {})
    assert [one.id for one in guest.nodes()] == ["a"]


def test_a_guest_finishes_a_run_and_the_first_reason_stays(guest: Guest, node: Router) -> None:
    assert guest.finish("stopped").reason == "stopped"
    assert guest.finish("again").reason == "stopped"
    until(lambda: node.finished is not None)


def test_a_follower_tells_every_event_with_its_number_node_and_size(guest: Guest, node: Router) -> None:
    for number in range(150):
        node.emit("x", number, only_to=["a*"] if number == 149 else None)
    node.emit("array", np.arange(100_000))
    node.sync()
    told = all_of(Follower(guest, ["x"], "start"))
    assert [(one.number, one.args) for one in told] == [(number + 1, (number,)) for number in range(150)]
    assert {one.producer for one in told} == {node.life.producer}
    assert told[-1].only_to == ("a*",)
    [array] = all_of(Follower(guest, ["arr*"], "start"))
    assert array.args[0].shape == (100_000,) and array.size >= 800_000
    [left_out] = all_of(Follower(guest, ["array"], "start", largest=1000))
    assert "not fetched" in left_out.problem and left_out.args == ()
    assert all_of(Follower(guest, ["x"], told[-1].entry)) == []
    with pytest.raises(ConfigError):
        Follower(guest, ["x"], "tomorrow")


def test_a_follower_from_now_on_misses_nothing_also_of_names_to_come(guest: Guest, node: Router) -> None:
    node.emit("old", 0)
    node.sync()
    follower = Follower(guest, ["old", "ne*"])
    node.emit("old", 1)
    node.emit("new", 2)
    node.emit("other", 3)
    node.sync()
    found: list[Sighting] = []
    while len(found) < 2:
        found += follower.read(5.0)
    assert sorted(one.args for one in found) == [(1,), (2,)]
    follower.close()


def test_a_follower_from_now_on_begins_now_also_when_the_run_is_busy(guest: Guest, node: Router) -> None:
    stop, done = threading.Event(), threading.Event()

    def emit() -> None:
        number = 0
        while not stop.is_set():
            node.emit("x", number)
            node.sync()
            number += 1
        done.set()

    threading.Thread(target=emit, daemon=True).start()
    try:
        until(lambda: guest.streams().get("x") and guest.streams()["x"].events > 20)
        for pattern in ("x", "*"):
            begin = guest.streams()["x"].events
            follower = Follower(guest, [pattern])
            first = next(one for one in follower.read(5.0) if one.event == "x")
            assert first.number > begin
            follower.close()
    finally:
        stop.set()
        done.wait(5)


def test_a_follower_counts_what_was_trimmed_before_it_came(config: RouterConfig, guest: Guest) -> None:
    with Router(config.url, run_id=config.run_id, retention_events=100, run_ttl=60) as node:
        node.emit("x", 0)
        node.sync()
        follower = Follower(guest, ["x"], "start")
        assert [one.args for one in follower.read(1.0)] == [(0,)]
        for number in range(1, 1001):
            node.emit("x", number)
            if number % 50 == 0:
                node.sync()
        node.sync()
        told = all_of(follower)
    assert told[-1].args == (1000,)
    assert follower.missed == 1000 - len(told) > 0


def test_nodes_join_before_they_leave_however_fast(config: RouterConfig, guest: Guest) -> None:
    for _ in range(5):
        node = Router(config.url, run_id=config.run_id, run_ttl=60).start()
        node.fail(ValueError("at once"))
        node.stop()
    told = [one.event.removeprefix("taskbus.node_") for one in all_of(Follower(guest, ["taskbus.*"], "start"))]
    assert told == ["joined", "failed", "left"] * 5


def test_runs_are_listed_and_removed(config: RouterConfig, guest: Guest, node: Router) -> None:
    node.emit("x")
    node.sync()
    other = replace(config, run_id=f"{config.run_id}-other")
    with Guest(other) as stranger:
        stranger.emit("x", (), {})
        known = {run.id: run for run in list_runs(config)[0]}
        assert (known[config.run_id].state, known[config.run_id].nodes) == ("live", 1)
        assert (known[other.run_id].state, known[other.run_id].age) == ("idle", None)
        node.stop()
        assert remove_run(guest) > 0
        assert not guest.exists() and stranger.exists()
        assert config.run_id not in {run.id for run in list_runs(config)[0]}
        remove_run(stranger)


def test_commands_in_one_round_trip_answer_each_for_itself(config: RouterConfig, guest: Guest) -> None:
    key = guest.keys.prefix + "probe"
    first, wrong, last = guest.calls.each([("SET", key, "v", "PX", "1000"), ("LPOP", key), ("GET", key)])
    assert (first, last) == (b"OK", b"v")
    assert isinstance(wrong, Exception)
    assert isinstance(guest.calls, Calls) and isinstance(guest.target, Target)
