"""``taskbus nodes``, ``runs``, ``top`` and ``check``."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskbus.testing import RedisServer, until
from tests.cli.conftest import ROOT, Shell


def test_nodes_are_listed_with_what_the_registry_knows(shell: Shell) -> None:
    node = shell.node(node_id="a", labels="learner")
    shell.node(node_id="b", labels={"collector", "fast"})
    node.progress(12, "learner")
    until(lambda: node.nodes("learner")[0].step == 12, what="the heartbeat tells the step")
    head, first, second = shell.ok("nodes").splitlines()
    assert head.split() == ["ID", "LABELS", "HOST:PID", "ROLE", "STEP", "UP", "SEEN", "STATE"]
    assert first.split()[:2] == ["a", "learner"] and " 12 " in first and first.endswith("healthy")
    assert second.split()[:2] == ["b", "collector,fast"]
    [told] = [json.loads(line) for line in shell.ok("nodes", "--json", "--labels", "fa*").splitlines()]
    assert (told["id"], told["labels"], told["pid"]) == ("b", ["collector", "fast"], os.getpid())


def test_a_run_without_nodes_says_so(shell: Shell) -> None:
    done = shell.run("nodes")
    assert done.returncode == 0
    assert "has no live nodes" in done.stderr


def test_runs_are_listed_with_state_nodes_age_and_size(shell: Shell) -> None:
    node = shell.node(node_id="a")

    def told() -> dict[str, object]:
        runs = [json.loads(line) for line in shell.ok("runs", "--json").splitlines()]
        return next(run for run in runs if run["id"] == shell.run_id)

    live = told()
    assert (live["state"], live["nodes"]) == ("live", 1)
    assert 0 <= float(str(live["age"])) < 60 and int(str(live["size"])) > 500
    node.finish()
    node.stop()
    assert (told()["state"], told()["nodes"]) == ("finished", 0)
    line = next(line for line in shell.ok("runs").splitlines() if line.startswith(shell.run_id))
    assert "completed (node a)" in line


def test_top_is_a_plain_table_where_stdout_is_no_terminal(shell: Shell) -> None:
    node = shell.node(node_id="a", labels="learner")
    process = shell.start("top", "--interval", "1")
    while process.poll() is None:
        node.emit("sample", 1)
        node.sync()
    assert process.stdout is not None
    text = process.stdout.read()
    assert process.returncode == 0
    assert "1 nodes, 1 healthy" in text
    assert re.search(r"^a +learner ", text, re.M)
    rate = re.search(r"^sample +\d+ +(\S+)", text, re.M)
    assert rate is not None and float(rate[1]) > 0
    node.finish("completed")
    assert "by node a: completed" in shell.ok("top", "--interval", "0.1")


def test_top_is_live_in_a_terminal_and_takes_keys(shell: Shell) -> None:
    shell.node(node_id="a", labels="learner")
    outer, inner = pty.openpty()
    try:
        process = shell.start("top", "--interval", "0.2", stdin=inner, stdout=inner, env={"TERM": "xterm"})
        seen = _read(outer, lambda seen: "learner" in seen and "sort by" in seen)
        assert "q:quit" in seen
        os.write(outer, b"srq")
        _read(outer, lambda seen: process.poll() is not None)
        assert process.returncode == 0
    finally:
        os.close(outer)
        os.close(inner)


def _read(terminal: int, is_enough: Callable[[str], bool]) -> str:
    seen, deadline = "", time.monotonic() + 20
    while not is_enough(seen) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_what_others_wrote_into_redis_does_not_reach_the_terminal(shell: Shell) -> None:
    node = shell.node(node_id="a")
    node.emit("x", "\x1b[2J")
    node.sync()
    with shell.client() as client:
        prefix = f"taskbus:{{{shell.run_id}}}:"
        client.hset(f"{prefix}node:a", "role", "\x1b[31mred\0")
        client.hset(f"{prefix}streams", "\x1b]0;title\x07", "1 1 1 -1 0 0 ")
    node.finish("\x1b[2Jgone")
    for command in ("nodes", "top --interval 0.1", "runs", "tail --since start --no-follow", "finish"):
        done = shell.run(*command.split())
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr and "\0" not in done.stdout


def test_a_run_that_no_node_has_joined_has_no_age(shell: Shell) -> None:
    shell.ok("emit", "x")
    [line] = [line for line in shell.ok("runs").splitlines() if line.startswith(shell.run_id)]
    assert line.split()[1:4] == ["idle", "0", "-"]


def test_check_is_about_the_nodes_of_this_host(shell: Shell) -> None:
    done = shell.run("check")
    assert done.returncode == 1 and "no node" in done.stderr
    shell.node(node_id="a")
    assert "node a" in shell.ok("check")
    shell.node(node_id="b")
    assert shell.ok("check").count("healthy") == 2


def test_check_is_about_the_node_that_is_named(shell: Shell) -> None:
    shell.node(node_id="a")
    assert shell.ok("check", "--node-id", "a")
    assert shell.run("check", env={"TASKBUS_NODE_ID": "a"}).returncode == 0
    assert shell.run("check", env={"TASKBUS_NODE_ID": "b"}).returncode == 1


def test_a_node_that_is_alive_but_deaf_is_unhealthy(shell: Shell) -> None:
    node = shell.node(node_id="a")
    node.life.heart.is_healthy = lambda: False
    until(lambda: not node.nodes()[0].healthy, what="the heartbeat tells it")
    done = shell.run("check")
    assert done.returncode == 1
    assert "node a" in done.stderr and "hears nothing" in done.stderr
    assert "DEAF" in shell.ok("nodes")


def test_check_cannot_tell_while_redis_is_away(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    node = shell.node(node_id="a")
    redis_server.freeze()
    frozen = shell.run("check", "--node-id", "a")
    redis_server.kill()
    gone = shell.run("check", "--node-id", "a")
    redis_server.start()
    until(lambda: shell.run("check", "--node-id", "a").returncode == 0, 20, "it has registered again")
    node.stop()
    for done in (frozen, gone):
        assert done.returncode == 4
        assert done.stderr.startswith("taskbus check: cannot tell: Redis at ") and done.stderr.count("\n") == 1


def test_a_check_that_redis_refuses_has_failed(redis_server: RedisServer) -> None:
    shell = Shell(redis_server.url)
    address = redis_server.url.partition("//")[2]
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">geheim", "~other:*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
        refused = [shell.run("check", "--url", f"redis://{who}{address}") for who in ("", ":wrong@", "narrow:geheim@")]
        client.execute_command("ACL", "SETUSER", "default", "nopass")
    for done in refused:
        assert done.returncode == 1
        assert done.stderr.startswith("taskbus check: Redis at ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yml", "kubernetes.yaml"])
def test_the_containers_are_healthy_while_nobody_can_tell(file: str, tmp_path: Path) -> None:
    command = re.findall(r"taskbus check.*? -eq 4 \]", (ROOT / "docker" / file).read_text())[-1]
    taskbus = tmp_path / "taskbus"
    for code, expected in ((0, 0), (1, 1), (4, 0)):
        taskbus.write_text(f"#!/bin/sh\nexit {code}\n")
        taskbus.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB": "run-role"}
        done = subprocess.run(["sh", "-c", command.replace("$$", "$")], env=environment, check=False)
        assert done.returncode == expected


def test_a_node_that_left_is_not_healthy(shell: Shell) -> None:
    shell.node(node_id="a").stop()
    assert shell.run("check", "--node-id", "a").returncode == 1
