"""``taskbus emit``, ``finish`` and ``reset``."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import Any

import pytest

from taskbus.testing import until
from tests.cli.conftest import Shell


def test_emit_reaches_the_listeners_and_nobody_joins_for_it(shell: Shell) -> None:
    heard: list[Any] = []
    node = shell.node(labels="collector")
    node.on("weights", lambda *args, **kwargs: heard.append((args, kwargs)))
    node.on("taskbus.node_joined", lambda **told: heard.append(told))
    node.sync()
    before = shell.keys()
    done = shell.run("emit", "weights", "[1, [2]]", '{"k": 3}')
    assert (done.returncode, done.stderr) == (0, "")
    shell.ok("emit", "weights", '["for collectors"]', "--only-to", "coll*")
    shell.ok("emit", "weights", '["for others"]', "--only-to", "learner")
    shell.ok("emit", "weights", '["brief"]', "--transient")
    until(lambda: len(heard) == 3, what="all three are heard")
    assert heard == [((1, [2]), {"k": 3}), (("for collectors",), {}), (("brief",), {})]
    assert {key.rpartition(b":")[2] for key in shell.keys() - before} == {b"weights"}


def test_what_emit_prints_is_where_the_wait_for_an_answer_begins(shell: Shell) -> None:
    node = shell.node()
    node.emit("answer", "to an earlier question")
    node.on("ask", lambda x: node.emit("answer", x + 1))
    node.sync()
    since = shell.ok("emit", "ask", "[7]")
    told = json.loads(shell.ok("wait", "answer", "--since", since.strip(), "--timeout", "10"))
    assert told["args"] == [8]


@pytest.mark.parametrize("arguments", ["{1 {}", "[1] [2]", '{"a":1}', "[1] {"])
def test_arguments_that_are_no_json_are_refused(shell: Shell, arguments: str) -> None:
    done = shell.run("emit", "x", *arguments.split(" "))
    assert done.returncode == 2
    assert "ARGS" in done.stderr and done.stderr.count("\n") == 1


def test_reserved_and_impossible_names_are_refused(shell: Shell) -> None:
    assert shell.run("emit", "taskbus.node_left").returncode == 2
    assert shell.run("emit", "no blanks").returncode == 2


def test_emit_says_when_nobody_is_there(shell: Shell) -> None:
    done = shell.run("emit", "x")
    assert done.returncode == 0
    assert "has no live nodes" in done.stderr


def test_finish_ends_the_run_for_all(shell: Shell) -> None:
    node = shell.node()
    assert "is finished" in shell.ok("finish", "--reason", "error: out of budget")
    until(lambda: node.finished is not None, what="the node hears it")
    assert node.finished is not None and node.finished.reason == "error: out of budget"
    assert "was finished already" in shell.ok("finish")
    assert node.finished.reason == "error: out of budget"


def test_a_run_that_is_not_there_is_not_finished_by_a_slip(shell: Shell) -> None:
    done = shell.run("finish")
    assert done.returncode == 1
    assert "there is no run" in done.stderr
    assert not shell.keys()


def test_reset_removes_all_of_a_finished_run_and_nothing_else(shell: Shell) -> None:
    node = shell.node(run_ttl=60)
    for number in range(1500):
        node.emit(f"name{number}")
    node.finish()
    node.stop()
    other = Shell(shell.url)
    other.run_id = f"{shell.run_id}x"
    try:
        other.node().sync()
        others = other.keys()
        assert len(shell.keys()) > 1500
        assert "removed run" in shell.ok("reset", shell.run_id, "--yes")
        assert not shell.keys()
        assert other.keys() == others
    finally:
        other.close()


def test_reset_says_when_there_is_no_such_run(shell: Shell) -> None:
    for arguments in (["--yes"], []):
        done = shell.run("reset", shell.run_id, *arguments)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith(f"# there is no run {shell.run_id!r} on Redis at ")


def test_reset_does_not_ask_where_nobody_answers(shell: Shell) -> None:
    shell.node()
    done = shell.run("reset", shell.run_id)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert shell.keys()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1)])
def test_reset_asks_at_a_terminal(shell: Shell, answer: str, code: int) -> None:
    shell.node(node_id="a").stop()
    outer, inner = pty.openpty()
    try:
        process = shell.start("reset", shell.run_id, stdin=inner, stderr=subprocess.PIPE)
        os.write(outer, answer.encode())
        _, asked = process.communicate(timeout=20)
    finally:
        os.close(outer)
        os.close(inner)
    assert process.returncode == code
    assert shell.run_id in asked and "no live nodes" in asked
    assert bool(shell.keys()) == bool(code)


def test_the_secret_comes_from_the_environment(shell: Shell) -> None:
    heard: list[int] = []
    node = shell.node(secret="geheim")
    node.on("x", heard.append)
    assert shell.run("emit", "x", "[1]").returncode == 0
    until(lambda: node.stats().rejected.get("signature") == 1, what="the unsigned frame is refused")
    assert shell.run("emit", "x", "[2]", env={"TASKBUS_SECRET": "geheim"}).returncode == 0
    until(lambda: heard == [2])
    seen = shell.run("tail", "--since", "start", "--no-follow", "--event", "x", env={"TASKBUS_SECRET": "geheim"})
    assert "signature" in seen.stdout.splitlines()[0] and "(2)" in seen.stdout.splitlines()[1]
