"""What grows stops growing, what is left behind disappears, and who is idle costs next to nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from taskbus.router import Router
from taskbus.task import Task
from taskbus.testing import RedisServer, until
from tests.contract.conftest import Collected, Join, plain_client


def kept(client: Any, run_id: str, event: str) -> int:
    return int(client.xlen(f"taskbus:{{{run_id}}}:events:{event}"))


def test_a_stream_keeps_the_last_events_and_says_how_many_a_late_reader_missed(
    join: Join, redis_url: str, run_id: str
) -> None:
    a, b = join(retention_events=100), join()
    for number in range(1000):
        a.emit("x", number)
        a.sync()
    got = Collected()
    b.on("x", got, since="start")
    until(lambda: got and got[-1] == 999)
    assert 100 <= len(got) <= 125  # whole eighths are trimmed
    assert got == list(range(1000 - len(got), 1000))
    with plain_client(redis_url) as client:
        assert kept(client, run_id, "x") == len(got)


def test_large_payloads_are_bounded_by_bytes_and_go_with_their_events(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(retention_bytes=1_000_000, blob_threshold=10_000), join()
    for number in range(100):
        a.emit("big", number, bytes([number]) * 50_000)
        a.sync()
    with plain_client(redis_url) as client:
        blobs = len(list(client.scan_iter(f"taskbus:{{{run_id}}}:blob:*")))
        assert 20 <= blobs <= 24
        assert kept(client, run_id, "big") == blobs
        assert client.llen(f"taskbus:{{{run_id}}}:blobs:big") == blobs
    got = Collected()
    b.on("big", lambda number, data: got((number, data)), since="start")
    until(lambda: got and got[-1][0] == 99)
    assert got == [(number, bytes([number]) * 50_000) for number in range(100 - blobs, 100)]


def test_what_has_gathered_goes_out_in_pieces_between_which_others_are_served(redis_server: RedisServer) -> None:
    with redis_server.client() as client, Router(redis_server.url) as router:

        def calls() -> int:
            return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])

        router.emit("x")
        router.sync()
        before = calls()
        redis_server.freeze()
        for number in range(10_000):
            router.emit("x", number, only_to="node.*" if number % 2 else None)  # a frame each
        redis_server.thaw()
        router.sync(60)
        assert calls() - before >= 4


@pytest.mark.parametrize("end", ["time", "sync", "wait", "another name", "a full frame"])
def test_events_of_a_name_that_comes_in_bulk_wait_for_others_of_it(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A short while, which is made long here; and what is to end that ends it."""
    length = 1.0 if end == "time" else 10.0
    monkeypatch.setattr("taskbus.bus.writer._GATHERING", length)
    monkeypatch.setattr("taskbus.bus.direct._BULK_LASTS", 60.0)
    router = Router(redis_server.url, run_id=run_id)
    with Router(redis_server.url, run_id=run_id) as b, Task().start(router=router) as a:
        got, other = Collected(), Collected()
        b.on("x", got)
        b.on("y", other)
        a.sync()  # what it says of itself as it joins has left, and is in no batch with what follows
        redis_server.freeze()
        for number in range(200):
            a.emit("x", number)
        redis_server.thaw()
        a.sync()
        with plain_client(redis_server.url) as client:
            stream = f"taskbus:{{{run_id}}}:events:x"
            before = client.xlen(stream)
            for number in range(200, 203):
                began = time.monotonic()
                a.emit("x", number)
            until(lambda: router.life.writer._gathers)
            if end == "sync":
                a.sync()
            elif end == "wait":
                a.wait_for("nothing", timeout=0.1)
            elif end == "another name":
                a.emit("y", 1)
                until(lambda: other)
            elif end == "a full frame":
                for number in range(203, 200 + 10_000 // 8):
                    a.emit("x", number)
            until(lambda: 202 in got, 20)
            took = time.monotonic() - began
            assert took < length if end != "time" else took >= length / 2
            assert client.xlen(stream) == before + 1


def test_a_large_payload_travels_beside_the_stream_whatever_follows_it(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(blob_threshold=20_000), join()
    got = Collected()
    b.on("x", got)
    for number in range(20):
        a.emit("x", b"x" * 30_000)
        a.emit("x", number)
    a.sync()
    with plain_client(redis_url) as client:
        assert len(list(client.scan_iter(f"taskbus:{{{run_id}}}:blob:*"))) == 20
    until(lambda: len(got) == 40)
    assert got[1::2] == list(range(20))


def test_small_events_that_gather_are_taken_however_small_the_largest_may_be(
    redis_server: RedisServer, run_id: str
) -> None:
    settings: dict[str, Any] = {"run_id": run_id, "max_payload": 64, "blob_threshold": 64}
    roomy: dict[str, Any] = {"retention_events": 4_000_000, "outbox_events": 400_000}
    with Router(redis_server.url, **settings) as b, Router(redis_server.url, **settings, **roomy) as a:
        got = Collected()
        b.on("x", lambda: got(None))
        redis_server.freeze()
        for _ in range(200_000):
            a.emit("x")
        redis_server.thaw()
        a.sync(60)
        until(lambda: len(got) == 200_000, 60)
        assert not b.stats().rejected


def test_a_node_of_which_nobody_can_be_told_joins_fails_and_leaves(
    redis_url: str, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own events are larger than it may send: that takes the place of no error, and keeps it from nothing."""
    with Router(redis_url, run_id=run_id) as other:
        small = Router(redis_url, run_id=run_id, max_payload=8, blob_threshold=8)
        with pytest.raises(ValueError, match="its own"), small as node:
            assert {each.id for each in other.nodes()} == {other.node_id, node.node_id}
            raise ValueError("its own")
        assert [each.id for each in other.nodes()] == [other.node_id]
    for event in ("joined", "failed", "left"):
        assert f"taskbus.node_{event} was not emitted: the event" in caplog.text


def test_old_events_go_with_time(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(retention_seconds=0.4, blob_threshold=1000), join()
    a.emit("x", "old", b"x" * 5000)
    a.emit("y", "old")
    a.sync()
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 0.6)
    a.emit("x", "new")
    a.sync()
    got = Collected()
    b.on("x", got, since="start")
    until(lambda: got)
    assert got == ["new"]
    with plain_client(redis_url) as client:
        until(lambda: not client.exists(f"taskbus:{{{run_id}}}:events:y"), 10, "a stream that is not written to goes")
        assert not list(client.scan_iter(f"taskbus:{{{run_id}}}:blob:*"))
    a.emit("y", "again")
    again = Collected()
    b.on("y", again, since="start")
    until(lambda: again)
    assert again == ["again"]
    assert b.stats().missed == 0


def test_every_key_has_a_time_to_live_while_the_run_goes_on_and_after_it(
    join: Join, redis_url: str, run_id: str
) -> None:
    settings: dict[str, Any] = {"run_ttl": 100, "finish_ttl": 50, "retention_seconds": 30, "blob_threshold": 1000}
    a, b = join(labels="learner", **settings), join(labels={"x", "y"}, **settings)
    b.on("x", Collected())
    b.on("x", Collected(), since="start")
    a.emit("x", b"x" * 5000)
    a.emit("taskbus_like", transient=True)
    a.add_labels(frozenset({"late"}))
    a.sync()

    def lives(client: Any) -> dict[str, int]:
        keys = list(client.scan_iter(f"taskbus:{{{run_id}}}:*"))
        return {key.decode(): client.pttl(key) for key in keys}

    with plain_client(redis_url) as client:
        found = lives(client)
        assert len(found) > 15
        assert {key: life for key, life in found.items() if not 0 < life <= 100_000} == {}
        a.finish()
        a.stop()
        b.stop()
        found = lives(client)
        assert {key: life for key, life in found.items() if life <= 0} == {}
        shared = [f"taskbus:{{{run_id}}}:{name}" for name in ("finish", "epoch")]
        assert all(found[key] <= 50_000 for key in shared)
        assert not [key for key in found if ":node:" in key and not key.endswith(":owner")]


@pytest.mark.alone
@pytest.mark.parametrize(("more", "rate"), [((), 1.0), (("taskbus.node_left",), 1.3)])
def test_an_idle_node_costs_at_most_one_command_a_second(
    more: tuple[str, ...], rate: float, redis_server: RedisServer
) -> None:
    """Commands inside scripts count; who watches the others has to look after them, too."""
    with redis_server.client() as client, Router(redis_server.url, labels={"a", "b"}) as router:
        task = Task().start(router=router)
        for event in ("x", "y", "z", *more):
            task.on(event, Collected())
        task.wait_for("answer", timeout=0, since="last")

        def commands() -> tuple[float, int]:
            return time.monotonic(), client.info("stats")["total_commands_processed"]

        began, before = commands()
        until(lambda: time.monotonic() > began + 12, 20)
        ended, after = commands()
        assert after - before - 1 <= rate * (ended - began) + 2
        task.request_leave()
        task.stop()


def test_channels_that_nobody_listens_to_are_left(join: Join) -> None:
    router = join(heartbeat=0.05)
    got = Collected()

    def channels() -> int:
        return len(router.life.calls.call(b"PUBSUB", b"CHANNELS", router.life.keys.channel("answer.*")))

    for number in range(20):
        router.on(f"answer.{number}", got)
    assert channels() == 20
    router.off("answer.*")
    until(lambda: channels() == 0)
    router.on("answer.3", got)
    router.emit("answer.3", "again", transient=True)
    until(lambda: got == ["again"])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_does_not_grow_with_the_length_of_a_run(join: Join, redis_url: str, run_id: str) -> None:
    a, b = join(retention_events=500), join()
    count = Collected()
    b.on("x", lambda value: None)
    b.on("end", count)

    def pour(events: int) -> None:
        for number in range(events):
            a.emit("x", {"number": number, "text": "some text" * 10})
            if number % 100 == 0:
                a.sync()
        a.sync()
        ends = len(count)
        a.emit("end")
        until(lambda: len(count) > ends, 20)

    pour(5_000)
    before = resident()
    pour(15_000)
    assert resident() - before < 12_000_000
    with plain_client(redis_url) as client:
        assert kept(client, run_id, "x") <= 700
        assert len(client.hget(f"taskbus:{{{run_id}}}:streams", "x")) < 1000


@pytest.mark.parametrize(
    "settings", [{"retention_bytes": 1e9}, {"retention_bytes": 10**15}, {"retention_seconds": 1e12}], ids=str
)
def test_whatever_one_node_wants_kept_the_others_can_write(join: Join, settings: dict[str, Any]) -> None:
    a, b = join(**settings), join()
    for number in range(3):
        for node in (a, b):
            node.emit("x", number)
            node.sync(1)
