"""Processes that are told to end, that fork, that exit without a word, and that come again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskbus import Router, Task
from taskbus.bus.keys import Keys
from taskbus.config import hide_password
from taskbus.frame import events, unpack
from taskbus.testing import RedisServer, until
from tests.faults.conftest import MakeNode, scaled

ROOT = Path(__file__).parents[2]
STOP = 2.0
SLACK = 2.0
"""Seconds for a busy machine, and for the interpreter to end."""


@contextmanager
def run(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose lines are read; it does not outlive the block."""
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def job(server: RedisServer, run_id: str, name: str) -> Any:
    return run("-m", "taskbus", "run", f"tests.faults.jobs:{name}", TASKBUS_URL=server.url, TASKBUS_RUN_ID=run_id)


def lines_until(process: subprocess.Popen[str], key: str) -> list[dict[str, Any]]:
    """What the process said, up to the first line with ``key``."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if line.startswith("{"):
            said.append(json.loads(line))
            if key in said[-1]:
                return said
    raise AssertionError(f"it ended without {key!r}; it said {said}")


def numbers_kept(server: RedisServer, run_id: str) -> list[int]:
    with server.client() as client:
        found: Any = client.xrange(Keys(run_id).events("numbers"))
        return [args[0] for _, fields in found for args, _ in events(unpack(fields[b"f"], max_size=1 << 30))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_p0_33_a_signal_in_a_step_lets_the_step_end(
    number: signal.Signals, redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    watcher = nodes("watcher")
    left: list[str] = []
    watcher.router.on("taskbus.node_left", lambda node, reason: left.append(reason))
    with job(redis_server, run_id, "in_a_step") as process:
        lines_until(process, "done")
        steps = lines_until(process, "step")[-1]["step"]
        process.send_signal(number)
        told = time.monotonic()
        rest = lines_until(process, "left")
        assert process.wait(10) == 0
        assert time.monotonic() - told <= 0.5 + STOP + SLACK
    assert rest[0] == {"done": steps}
    assert numbers_kept(redis_server, run_id) == list(range((steps + 1) * 100))
    until(lambda: left == ["left"])
    assert [node.id for node in watcher.router.nodes()] == ["watcher"]
    assert watcher.router.finished is None


def test_p0_33_a_signal_while_it_emits(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    watcher = nodes("watcher")
    with job(redis_server, run_id, "in_emit") as process:
        lines_until(process, "step")
        process.send_signal(signal.SIGTERM)
        emitted = lines_until(process, "emitted")[-1]["emitted"]
        assert process.wait(10) == 0
    kept = numbers_kept(redis_server, run_id)
    assert kept == list(range(emitted - len(kept), emitted))
    assert len(kept) >= min(emitted, 10_000)
    assert watcher.router.finished is None


def test_p0_33_a_signal_while_it_waits(redis_server: RedisServer, run_id: str) -> None:
    with job(redis_server, run_id, "in_a_wait") as process:
        lines_until(process, "step")
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert lines_until(process, "answer")[-1] == {"answer": None}
        assert process.wait(10) == 0
        assert time.monotonic() - told <= STOP + SLACK
    assert numbers_kept(redis_server, run_id) == [0]


def test_p0_33_a_signal_while_redis_is_frozen(redis_server: RedisServer, run_id: str) -> None:
    with job(redis_server, run_id, "in_a_step") as process:
        lines_until(process, "step")
        redis_server.freeze()
        lines_until(process, "done")
        lines_until(process, "step")
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        process.wait(15)
        took = time.monotonic() - told
        assert process.stderr is not None
        said = process.stderr.read()
        redis_server.thaw()
    assert took <= 0.5 + STOP + 1.0 + SLACK
    assert "events not acknowledged" in said or "are not acknowledged" in said
    assert "Traceback" not in said


def test_p0_34_forks_in_the_middle_of_everything(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    watcher = nodes("watcher")
    got: list[int] = []
    fresh: list[int] = []
    left: list[str] = []
    watcher.router.on("numbers", got.append)
    watcher.router.on("fresh", fresh.append)
    watcher.router.on("taskbus.node_left", lambda node, reason: left.append(node))
    rounds = scaled(40, 200)
    with run("-m", "tests.faults.jobs", "forks", redis_server.url, run_id, str(rounds)) as process:
        said = lines_until(process, "refused")[-1]
        assert process.wait(10) == 0
    assert said["refused"] == rounds
    assert said["heard"] == list(range(rounds))
    assert "parent" in said["nodes"]
    until(lambda: len(got) >= rounds)
    assert got == list(range(rounds))
    assert fresh == list(range(0, rounds, 10))
    until(lambda: "parent" in left)
    assert left[-1] == "parent", "no child has left in its name"
    assert left.count("parent") == 1


@pytest.mark.parametrize(("how", "status"), [("quietly", 3), ("error", 1)])
def test_p2_09_an_exit_without_a_stop_flushes_and_leaves(
    how: str, status: int, redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    watcher = nodes("watcher")
    left: list[str] = []
    watcher.router.on("taskbus.node_left", lambda node, reason: left.append(reason))
    with run("-m", "tests.faults.jobs", "exits", redis_server.url, run_id, how) as process:
        lines_until(process, "ready")
        began = time.monotonic()
        assert process.wait(10) == status
        assert time.monotonic() - began <= STOP + 1 + SLACK
        assert process.stderr is not None
        assert process.stderr.read().count("Traceback") == (how == "error")
    assert numbers_kept(redis_server, run_id) == list(range(1000))
    until(lambda: left == ["exited"])
    assert watcher.router.finished is None


def test_p2_09_an_exit_while_redis_is_frozen_says_what_is_lost(redis_server: RedisServer, run_id: str) -> None:
    with run("-m", "tests.faults.jobs", "exits", redis_server.url, run_id, "frozen") as process:
        lines_until(process, "ready")
        until(lambda: len(numbers_kept(redis_server, run_id)) == 1000)
        redis_server.freeze()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        began = time.monotonic()
        assert process.wait(10) == 3
        assert time.monotonic() - began <= STOP + 1 + SLACK
        assert process.stderr is not None
        assert "events not acknowledged" in process.stderr.read()
    redis_server.thaw()


def test_p0_36_a_run_that_is_finished_is_not_run_again_without_a_word(
    redis_server: RedisServer, run_id: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKBUS_URL", raising=False)

    def main(steps: list[int], got: list[object]) -> None:
        with Task().start(router=Router(redis_server.url, run_id=run_id)) as task:
            task.on("x", got.append)
            task.use(lambda ctx: steps.append(ctx.total_step)).run(3)
            task.emit("x", len(steps))

    steps: list[int] = []
    main(steps, [])
    assert steps == [0, 1, 2]
    rounds = scaled(10, 20)
    again: list[int] = []
    got: list[object] = []
    with caplog.at_level(logging.WARNING, "taskbus"):
        for _ in range(rounds):
            main(again, got)
    assert again == []
    assert caplog.text.count(f"run {run_id!r} is finished already (by node '0': completed)") == rounds
    assert f"taskbus reset {run_id} --url {hide_password(redis_server.url)}`" in caplog.text
    assert got == [0] * rounds, "only what this run emits itself"
    with run("-m", "taskbus", "reset", run_id, "--url", redis_server.url, "--yes") as process:
        assert process.wait(10) == 0, process.stderr and process.stderr.read()
    after: list[int] = []
    main(after, [])
    assert after == [0, 1, 2]
