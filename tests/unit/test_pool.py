"""Threads for middleware that runs side by side, and the latch that waits for it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from taskbus.errors import NotStarted
from taskbus.pool import Latch, Pool
from taskbus.testing import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Alarm:
    def __init__(self) -> None:
        self.sources: list[object] = []

    def fail(self, source: object) -> None:
        self.sources.append(source)

    def recover(self, source: object) -> None:
        self.sources.clear()


@pytest.fixture
def latch() -> Latch:
    return Latch(Alarm())


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool("test", 3)
    yield made
    made.close(5)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("taskbus-test-")]


def test_wait_returns_when_all_jobs_are_done(pool: Pool, latch: Latch) -> None:
    done: list[int] = []
    for number in range(100):
        pool.submit(latch, done.append, number)
    latch.wait()
    assert sorted(done) == list(range(100))
    latch.wait()


def test_no_more_threads_than_allowed_and_none_without_work(pool: Pool, latch: Latch) -> None:
    assert threads() == []
    gate = threading.Event()
    for _ in range(10):
        pool.submit(latch, gate.wait, 30)
    assert len(threads()) == 3
    gate.set()
    latch.wait()


def test_a_free_thread_is_used_before_a_new_one(pool: Pool, latch: Latch) -> None:
    for _ in range(50):
        pool.submit(latch, lambda: None)
        latch.wait()
    assert len(threads()) == 1


def test_a_pool_without_a_limit_runs_everything_at_once(latch: Latch) -> None:
    pool = Pool("test")
    meeting = threading.Barrier(20)
    for _ in range(3):
        for _ in range(20):
            pool.submit(latch, meeting.wait, 10)
        latch.wait()
    assert len(threads()) == 20
    pool.close(5)
    assert threads() == []


def test_the_first_error_is_raised_when_all_have_ended(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    alarm = Alarm()
    latch = Latch(alarm)
    gate = threading.Event()
    done: list[int] = []

    def fail(number: int) -> None:
        raise ValueError(number)

    def slow() -> None:
        gate.wait(30)
        done.append(1)

    pool.submit(latch, fail, 1)
    until(lambda: alarm.sources == [latch])
    pool.submit(latch, fail, 2)
    until(lambda: len(latch.errors.kept) == 2)
    pool.submit(latch, slow)
    gate.set()
    with pytest.raises(ValueError, match="1") as raised:
        latch.wait()
    assert raised.value.__notes__ == ["and 1 more error(s), see the log"]
    assert done == [1]
    assert alarm.sources == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    latch.wait()


def test_exits_of_jobs_are_errors_as_well(pool: Pool, latch: Latch) -> None:
    def leave() -> None:
        raise SystemExit(3)

    pool.submit(latch, leave)
    with pytest.raises(SystemExit):
        latch.wait()


def test_rest_gives_up_at_the_timeout(pool: Pool, latch: Latch) -> None:
    gate = threading.Event()
    pool.submit(latch, gate.wait, 30)
    assert not latch.rest(0.01)
    gate.set()
    assert latch.rest(5)


def test_close_drops_what_waits_and_does_not_wait_for_ever(latch: Latch) -> None:
    pool = Pool("test", 1)
    gate = threading.Event()
    done: list[int] = []
    pool.submit(latch, gate.wait, 30)
    pool.submit(latch, done.append, 1)
    began = time.monotonic()
    pool.close(0.05)
    assert time.monotonic() - began < 1
    with pytest.raises(NotStarted, match="append cannot run: its task was stopped"):
        pool.submit(latch, done.append, 2)
    gate.set()
    latch.wait()
    until(lambda: not threads())
    assert done == []


def test_a_thread_may_close_its_own_pool(latch: Latch) -> None:
    pool = Pool("test", 1)
    pool.submit(latch, pool.close, 5)
    latch.wait()
    until(lambda: not threads())


def test_it_knows_its_own_threads(pool: Pool, latch: Latch) -> None:
    seen: list[bool] = []
    pool.submit(latch, lambda: seen.append(pool.owns_this_thread()))
    latch.wait()
    assert seen == [True]
    assert not pool.owns_this_thread()
