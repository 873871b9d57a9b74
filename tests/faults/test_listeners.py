"""Listeners that raise, hang, come and go: they hurt nobody else."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from taskbus import Router
from taskbus.testing import RedisServer, until
from tests.faults.conftest import MakeNode, scaled
from tests.faults.node import LogLines

COUNT = 2000


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even a text")


def test_p0_24_a_listener_that_raises(redis_server: RedisServer, nodes: MakeNode, log_lines: LogLines) -> None:
    a, b = nodes("a"), nodes("b", "numbers")
    errors = [ValueError, KeyboardInterrupt, SystemExit, Unspeakable]
    raised: list[type[BaseException]] = []
    after: list[int] = []

    def bad(producer: str, number: int, body: object) -> None:
        if number % 10 == 0:
            raised.append(errors[(number // 10 - 1) % len(errors)])
            raise raised[-1]("bad")
        after.append(number)

    b.router.on("numbers", bad)
    a.pour(COUNT)
    until(lambda: len(b.heard["numbers"]) == COUNT and len(raised) + len(after) == COUNT, 20)
    assert b.router.loop.drain(5) == [], "the last error is reported"
    assert [number for _, number, _ in b.heard["numbers"]] == list(range(1, COUNT + 1))
    assert len(raised) == COUNT // 10
    reported = [
        text for text in log_lines.texts("ERROR") if "test_p0_24" in text and "failed on event 'numbers'" in text
    ]
    assert len(reported) == len(raised)
    with pytest.raises(ValueError, match="bad") as caught:
        b.router.sync()
    assert any("more error(s)" in note for note in caught.value.__notes__)
    b.router.sync()


@pytest.mark.parametrize("stuck", [1, 2, 16])
def test_p0_25_a_listener_that_never_returns(
    stuck: int, redis_server: RedisServer, nodes: MakeNode, log_lines: LogLines
) -> None:
    a, b = nodes("a"), nodes("b", "others")
    forever = threading.Event()

    def hang(producer: str, number: int, body: object) -> None:
        forever.wait(120)

    try:
        for _ in range(stuck):
            b.router.on("numbers", hang)
        a.pour(50)
        for number in range(200):
            a.emit("others")
            until(lambda number=number: len(b.heard["others"]) > number, 2)  # type: ignore[misc]
        if stuck == 1:
            until(lambda: [text for text in log_lines.texts("WARNING") if "hang of event 'numbers'" in text], 12)
            assert len([text for text in log_lines.texts("WARNING") if "hang of event" in text]) == 1
        a.router.finish("completed")
        until(lambda: b.router.finished, 4)
        b.stop()
        assert any("stopping while listeners still run" in text for text in log_lines.texts("WARNING"))
    finally:
        forever.set()


@pytest.mark.parametrize("listeners", [1, 2, 5])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("transient", [True, False])
def test_p0_26_each_listener_is_called_once_for_each_event(
    listeners: int, local: bool, transient: bool, redis_server: RedisServer, run_id: str
) -> None:
    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        hearer = a if local else b
        calls: Counter[tuple[int, int]] = Counter()
        once: list[int] = []
        for index in range(listeners):
            hearer.on("x", lambda number, index=index: calls.update([(index, number)]))
        hearer.once("x", once.append)
        for number in range(100):
            a.emit("x", number, transient=transient)
        until(lambda: sum(calls.values()) >= 100 * listeners and once)
        assert calls == Counter({(index, number): 1 for index in range(listeners) for number in range(100)})
        assert once == [0]


def test_p0_27_off_and_once_under_load(redis_server: RedisServer, run_id: str) -> None:
    count = scaled(2000, 5000)
    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        sibling: list[int] = []
        more_than_once: list[int] = []
        errors: list[BaseException] = []
        done = threading.Event()
        b.on("x", sibling.append)

        def come_and_go() -> None:
            try:
                while not done.is_set():
                    called: list[int] = []
                    heard: list[int] = []

                    def leave(number: int, heard: list[int] = heard) -> None:
                        heard.append(number)
                        b.off("x", leave)  # noqa: B023 itself

                    b.once("x", called.append)
                    b.on("x", leave)
                    b.on("x", heard.append)
                    b.off("x", heard.append)
                    b.off("x", leave)
                    b.off("x", called.append)
                    if len(called) > 1:
                        more_than_once.extend(called)
            except BaseException as error:  # noqa: BLE001 the test looks at it
                errors.append(error)

        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(count):
            a.emit("x", number)
            if number % 20 == 0:
                a.sync()
        until(lambda: len(sibling) >= count, 30)
        done.set()
        for thread in threads:
            thread.join()
        assert sibling == list(range(count))
        assert (more_than_once, errors) == ([], [])
        assert b.errors.kept == []
