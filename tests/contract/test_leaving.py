"""What a task or a router takes along when it leaves, and what ends with it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskbus.errors import BusDenied, BusUnavailable, ConfigError, NotStarted, RunFinished
from taskbus.router import Router
from taskbus.task import Role, Task
from taskbus.testing import RedisServer, until
from tests.contract.conftest import Collected, Join, StartTask


def test_labels_of_a_task_end_with_it_on_a_router_that_stays(join: Join) -> None:
    router, other = join(labels="own"), join()
    first = Task().start(router=router, labels="own, shared, first")
    second = Task().start(router=router, labels={"shared"})
    assert [node.labels for node in other.nodes("first")] == [{"own", "shared", "first"}]
    first.request_leave()
    first.stop()
    assert router.labels == {"own", "shared", f"node.{router.node_id}"}
    assert [node.labels for node in other.nodes("own")] == [{"own", "shared"}]
    assert not router.life.calls.call(b"EXISTS", router.life.keys.label("first"))
    second.request_leave()
    second.stop()
    assert [node.labels for node in other.nodes("own")] == [{"own"}]


@pytest.mark.parametrize("labels", ["sp ace", {1}, ["a", "b,c"]])
def test_labels_of_a_task_are_checked_before_it_starts(join: Join, labels: str) -> None:
    router = join()
    task = Task()
    with pytest.raises(ConfigError, match="label"):
        task.start(router=router, labels=labels)
    assert not task.running
    assert router.labels == {f"node.{router.node_id}"}


@pytest.mark.parametrize(
    "wait",
    [
        lambda task: task.barrier("x", 3, timeout=20),
        lambda task: task.wait_for_nodes(count=3, timeout=20),
    ],
)
def test_who_is_asked_to_leave_waits_for_nobody(start_task: StartTask, wait: Callable[[Task], object]) -> None:
    task = start_task()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, task)
        until(lambda: task._link._wakers)  # type: ignore[attr-defined]
        task.request_leave()
        with pytest.raises(RunFinished, match="asked to leave the run while 1 of 3"):
            waiting.result(5)


def test_a_role_is_in_the_registry_before_the_first_step(start_task: StartTask) -> None:
    task = start_task(heartbeat=0.1, lease=2.0)
    task.add_role(Role.LEARNER)
    until(lambda: [node.role for node in task.nodes()] == ["learner"])


def test_a_reason_that_is_no_text_ends_the_run_all_the_same(join: Join) -> None:
    a, b = join(finish_on_error=True), join()
    failed = Collected()
    b.on("taskbus.node_failed", lambda node, reason: failed.append(reason))
    with pytest.raises(ValueError), a:  # noqa: PT011 its text is what this is about
        raise ValueError("half \ud800")
    assert not a.is_active
    until(lambda: b.finished)
    assert b.finished is not None
    assert b.finished.reason == "error: ValueError: half \\ud800"
    until(lambda: failed == ["ValueError: half \\ud800"])


def test_a_look_that_fails_does_not_end_the_heart(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    router = join(heartbeat=0.05)
    looks = []

    def look() -> None:
        looks.append(1)
        raise ValueError("unforeseen")

    with caplog.at_level(logging.CRITICAL, "taskbus"):
        router.life.heart.each_beat.insert(0, look)
        until(lambda: len(looks) > 2)


def test_a_router_in_its_next_life_knows_nothing_of_errors_before(join: Join) -> None:
    router = join()
    router.on("x", lambda: 1 / 0)
    router.emit("x")
    until(lambda: router.errors.kept)
    router.stop()
    router.start()
    router.sync()


def test_dead_nodes_are_looked_for_as_long_as_somebody_listens(join: Join) -> None:
    router = join()
    watches = router.life.heart.watches
    router.on("taskbus.node_left", print)
    assert watches()
    router.off("taskbus.*")
    assert not watches()
    router.once("taskbus.node_failed", print)
    assert watches()
    router.loop.deliver("taskbus.node_failed", (), {}, 1.0)
    assert not watches()


def test_who_stops_a_router_too_waits_for_the_first(join: Join) -> None:
    router = join()
    got = Collected()
    got.gate.clear()
    router.on("x", got)
    for number in range(50):
        router.emit("x", number)
    first = threading.Thread(target=router.stop)
    first.start()
    until(lambda: router.life._leaving)
    threading.Timer(0.1, got.gate.set).start()
    assert router.stop() == 0
    assert not router.is_active
    assert got == list(range(50))
    first.join()


def test_what_is_wrong_is_raised_by_the_next_emit_while_events_gather(redis_server: RedisServer, run_id: str) -> None:
    got = Collected()
    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        b.on("x", got)
        redis_server.freeze()
        for number in range(10):
            a.emit("x", number)  # the first is on its way, the others gather
        a.life.writer.deny(BusDenied("what some other thread has heard of"))
        with pytest.raises(BusDenied, match="some other thread"):
            a.emit("x", 10)
        a.emit("x", 11)
        redis_server.thaw()
        a.sync()
        until(lambda: got == [*range(10), 11])


@pytest.mark.parametrize("only_remote", [False, True])
def test_what_is_emitted_while_the_router_stops_is_written_or_refused(join: Join, only_remote: bool) -> None:
    a, b = join(), join()
    got = Collected()
    b.on("x", got)
    emitted: list[int] = []

    def emit() -> None:
        with pytest.raises(NotStarted):
            while True:
                a.emit("x", len(emitted), only_remote=only_remote)
                emitted.append(len(emitted))

    with ThreadPoolExecutor(1) as pool:
        emitting = pool.submit(emit)
        until(lambda: len(emitted) > 100)
        assert a.stop() == 0
        emitting.result(10)
    until(lambda: got == emitted)


def test_a_start_that_waits_for_redis_keeps_nobody_from_asking_to_leave() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        router = Router(f"redis://127.0.0.1:{silent.getsockname()[1]}", op_timeout=1.5)
        starting = pool.submit(router.start)
        with silent.accept()[0]:
            assert router.request_leave() == 0
            assert not starting.done()
            with pytest.raises(BusUnavailable):
                starting.result(10)
