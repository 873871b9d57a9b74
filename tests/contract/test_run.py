"""Who is on the run, how nodes meet, and how a run ends."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from taskbus.errors import ConfigError, NodeIdTaken, NotStarted, RunFinished, WaitTimeout
from taskbus.router import Router
from taskbus.testing import until
from tests.contract.conftest import Collected, Join, StartTask, plain_client

QUICK = {"heartbeat": 0.2, "lease": 1.0}


def die(router: Router) -> None:
    """As after SIGKILL: nothing is told to anybody, and the lease runs out."""
    life = router.life
    life.registry.leave = lambda timeout: None  # type: ignore[method-assign]
    life.emit = lambda *event, **how: None
    router.stop()


# Nodes ---------------------------------------------------------------------------------------------------------------


def test_nodes_shows_who_is_there_by_labels(join: Join) -> None:
    a, b, c = join(labels="learner"), join(labels={"collector", "gpu.1"}), join(node_id="eva", labels="evaluator")
    assert [node.id for node in a.nodes()] == ["0", "1", "eva"]
    assert [node.id for node in b.nodes("coll*")] == ["1"]
    assert [node.id for node in b.nodes(["node.eva", "gpu.*"])] == ["1", "eva"]
    assert a.nodes("nobody") == []
    c.stop()
    assert [node.id for node in a.nodes()] == ["0", "1"]
    info = a.nodes("gpu.*")[0]
    assert info.labels == {"collector", "gpu.1"}
    assert info.healthy
    assert 0 <= info.seen < 8
    assert abs(time.time() - info.started) < 60
    b.add_labels(frozenset({"late"}))
    assert [node.id for node in a.nodes("late")] == ["1"]


def test_the_smallest_free_id_is_taken_and_a_held_one_is_refused_with_its_holder(join: Join) -> None:
    a, b = join(), join()
    a.stop()
    assert (join().node_id, join().node_id) == ("0", "2")
    with pytest.raises(NodeIdTaken, match=r"node id '1' of run .* is held by process \d+ on ") as caught:
        join(node_id="1")
    host, _, pid = caught.value.holder.rpartition(":")
    info = b.nodes("node.1")[0]
    assert (host, int(pid)) == (info.host, info.pid)
    assert 0 < caught.value.expires_in <= 8.1
    with pytest.raises(NotStarted):
        a.nodes()


def test_nodes_join_leave_and_fail_as_events(join: Join) -> None:
    a = join()
    joined, left, failed = Collected(), Collected(), Collected()
    a.on("taskbus.node_joined", lambda **data: joined(data))
    a.on("taskbus.node_left", lambda **data: left(data))
    a.on("taskbus.node_failed", lambda **data: failed(data))
    b = join(node_id="b", labels="b")
    b.stop()
    with pytest.raises(ZeroDivisionError), join(node_id="c"):
        raise ZeroDivisionError("by zero")
    until(lambda: len(joined) == len(left) == 2 and failed)
    assert joined == [{"node": "b", "labels": ["b"]}, {"node": "c", "labels": []}]
    assert left == [{"node": "b", "reason": "left"}, {"node": "c", "reason": "failed"}]
    assert failed == [{"node": "c", "reason": "ZeroDivisionError: by zero"}]
    assert a.finished is None


def test_a_node_that_dies_is_gone_with_its_lease_and_the_others_are_told_once(
    join: Join, redis_url: str, run_id: str
) -> None:
    a, b = join(**QUICK), join(labels="mortal", **QUICK)
    left = [Collected(), Collected()]
    for listener in left:
        a.on("taskbus.node_left", lambda node, reason, listener=listener: listener((node, reason)))
    die(b)
    until(lambda: len(a.nodes()) == 1 and all(left), 5)
    assert left == [[("1", "expired")], [("1", "expired")]]
    with plain_client(redis_url) as client:
        prefix = f"taskbus:{{{run_id}}}:"
        assert not client.exists(f"{prefix}label:mortal", f"{prefix}node:1", f"{prefix}node:1:inbox")
        assert client.smembers(f"{prefix}nodes") == {b"0"}
        assert client.smembers(f"{prefix}labels") == set()
    assert join().node_id == "1"


def test_a_failing_node_ends_the_run_only_where_that_is_asked_for(join: Join) -> None:
    a = join()
    with pytest.raises(ValueError, match="bad"), join(finish_on_error=True):
        raise ValueError("bad")
    until(lambda: a.finished)
    assert a.finished is not None
    assert a.finished.reason == "error: ValueError: bad"


# Meeting -------------------------------------------------------------------------------------------------------------


def test_wait_for_nodes_returns_when_they_are_there(join: Join) -> None:
    a = join()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(a.wait_for_nodes, "collector", 2, 10)
        join(labels="learner")
        join(labels="collector")
        assert not waiting.done()
        join(labels="collector")
        assert [node.id for node in waiting.result(5)] == ["2", "3"]
    assert len(a.wait_for_nodes(None, 4, 0)) == 4


def test_a_wait_for_nodes_that_is_over_says_how_many_were_there(join: Join) -> None:
    a = join()
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"0 of 1 nodes are there that match 'collector'"):
        a.wait_for_nodes("collector", 1, 0.2)
    with pytest.raises(WaitTimeout, match=r"1 of 3 nodes are there"):
        a.wait_for_nodes(None, 3, 0)
    assert time.monotonic() - began < 3


def test_a_barrier_opens_for_all_and_can_be_used_again_at_once(join: Join) -> None:
    nodes = [join() for _ in range(3)]
    rounds: list[list[int]] = [[], [], []]

    def meet(index: int) -> None:
        for number in range(20):
            nodes[index].barrier("step", 3, 20)
            rounds[index].append(number)
            assert max(map(len, rounds)) - min(map(len, rounds)) <= 1

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(meet, index) for index in range(3)]:
            done.result(30)
    assert rounds == [list(range(20))] * 3


def test_a_node_that_died_or_gave_up_does_not_count_at_a_barrier(join: Join) -> None:
    a, b, c = join(**QUICK), join(**QUICK), join(**QUICK)
    with pytest.raises(WaitTimeout, match=r"1 of 2 nodes are at barrier 'x': 1"):
        b.barrier("x", 2, 0.1)
    with pytest.raises(WaitTimeout, match=r"1 of 2 nodes are at barrier 'x': 0"):
        a.barrier("x", 2, 0.1)
    with ThreadPoolExecutor(2) as pool:
        dying = pool.submit(c.barrier, "x", 2, 20)
        until(lambda: arrived(c, "x"))
        die(c)
        with pytest.raises(NotStarted):
            dying.result(5)
        until(lambda: len(a.nodes()) == 2, 5)
        again = join(node_id="2", **QUICK)  # the next life of that id has not arrived
        with pytest.raises(WaitTimeout, match=r"1 of 2 nodes are at barrier 'x': 0"):
            a.barrier("x", 2, 0.1)
        waiting = pool.submit(a.barrier, "x", 2, 20)
        again.barrier("x", 2, 10)
        waiting.result(5)


def arrived(router: Router, name: str) -> bool:
    return bool(router.life.calls.call(b"EXISTS", router.life.keys.barrier(name)))


def test_the_finish_ends_those_who_wait_for_others(join: Join) -> None:
    a, b = join(), join()
    with ThreadPoolExecutor(2) as pool:
        waits: list[Future[object]] = [
            pool.submit(a.barrier, "x", 3, 60),
            pool.submit(a.wait_for_nodes, None, 3, 60),
        ]
        until(lambda: arrived(a, "x"))
        b.finish("completed")
        for wait in waits:
            with pytest.raises(RunFinished, match=r"finished by node '1' \(completed\) while \d of 3 nodes are"):
                wait.result(5)


# The end -------------------------------------------------------------------------------------------------------------


def test_the_finish_is_durable_and_the_first_reason_stays(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    a, b = join(), join()
    told: list[str] = []
    b.on_finish(lambda info: told.append(info.reason))
    removed = b.on_finish(lambda info: told.append("removed"))
    removed()
    assert a.finish("completed")
    until(lambda: told)
    assert b.finish("too late")
    assert a.finished == b.finished
    assert b.finished is not None
    assert (b.finished.node, b.finished.reason) == ("0", "completed")
    assert abs(time.time() - b.finished.at) < 60
    with caplog.at_level(logging.WARNING, "taskbus"):
        c = join()
    assert c.finished == a.finished
    assert "is finished already (by node '0': completed)" in caplog.text
    c.on_finish(lambda info: told.append(f"at once: {info.reason}"))
    assert told == ["completed", "at once: completed"]
    for node in (a, b, c):
        node.stop()
    assert join().finished == a.finished


def test_ten_nodes_that_finish_at_once_agree_on_one_reason(join: Join) -> None:
    nodes = [join() for _ in range(10)]
    told: list[str] = []
    for node in nodes:
        node.on_finish(lambda info: told.append(info.reason))
    ready = threading.Barrier(10)

    def finish(node: Router) -> None:
        ready.wait(10)
        node.finish(f"reason {node.node_id}")

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(finish, nodes))
    until(lambda: len(told) == 10)
    assert {node.finished for node in nodes} == {nodes[0].finished}
    assert nodes[0].finished is not None
    assert set(told) == {nodes[0].finished.reason}


def test_what_was_emitted_before_the_finish_is_delivered_before_it(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    at_finish: list[int] = []
    b.on("x", got)
    b.on_finish(lambda info: at_finish.append(b.stats().delivered))
    for number in range(5000):
        a.emit("x", number, only_to="node.*" if number % 2 else None)  # an entry each, so that they are many pages
    assert a.finish(timeout=60)  # however slow the server is: it is written after them only while there is time
    until(lambda: at_finish, 20)
    assert at_finish[0] >= 5000
    until(lambda: got == list(range(5000)), 20)


def test_a_loop_of_waits_sees_all_that_came_before_the_finish(join: Join, start_task: StartTask) -> None:
    a, task = join(), start_task()
    task.wait_for("x", timeout=0, since="last")
    for number in range(2000):
        a.emit("x", number, only_to="node.*" if number % 2 else None)
    assert a.finish(timeout=60)
    seen = list(iter(lambda: task.wait_for("x", 30, since="last"), None))
    assert [args[0] for args, _ in seen] == list(range(2000))


def test_leaving_is_not_finishing_and_stopping_twice_is_harmless(join: Join) -> None:
    a, b = join(), join()
    b.emit("x")
    assert b.stop() == 0
    assert b.stop() == 0
    assert a.finished is None
    local = (lambda: b.emit("x", only_local=True), lambda: b.emit("x", only_local=True, only_to="nobody"))
    for call in (lambda: b.emit("x"), *local, lambda: b.on("x", print), b.sync, b.nodes):
        with pytest.raises(NotStarted, match="the router was stopped"):
            call()
    b.start()
    assert b.is_active
    with pytest.raises(ConfigError, match="is started already"):
        b.start()


def test_what_was_emitted_before_the_stop_is_delivered_here_and_written(join: Join) -> None:
    a, b = join(), join()
    here, there = Collected(), Collected()
    a.on("x", here)
    b.on("x", there)
    for number in range(1000):
        a.emit("x", number)
    assert a.stop() == 0
    assert here == list(range(1000))
    until(lambda: there == list(range(1000)))


def test_stats_tell_what_a_node_has_done(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    b.on("x", got)
    for number in range(100):
        a.emit("x", number)
    a.sync()
    until(lambda: len(got) == 100)
    stats = a.stats()
    assert stats.emitted == stats.acknowledged >= 101
    assert (stats.outbox_events, stats.outbox_bytes, stats.lost) == (0, 0, 0)
    stats = b.stats()
    assert stats.delivered == 100
    assert (stats.missed, stats.repeated, stats.rejected, stats.lag) == (0, 0, {}, 0)
    assert stats.healthy
    assert stats.reader_age < 6
    assert stats.heartbeat_age < 6
    b.stop()
    assert b.stats().delivered == 100


@pytest.mark.parametrize("whence", ["a listener", "the finish"])
def test_a_node_may_be_stopped_by_what_it_hears(join: Join, whence: str) -> None:
    a, b = join(), join()
    left = Collected()
    b.on("x", lambda: left(a.stop()))
    a.on("x", lambda: left(a.stop()))
    if whence == "a listener":
        b.off("x")
        b.emit("x")
    else:
        a.off("x")
        b.off("x")
        a.on_finish(lambda info: left(a.stop()))
        b.finish()
    until(lambda: left)
    assert left == [0]
    until(lambda: len(b.nodes()) == 1)
    assert not a.is_active
