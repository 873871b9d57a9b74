"""``taskbus tail`` and ``taskbus wait``."""

from __future__ import annotations

import datetime
import json
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from taskbus import register_type
from taskbus.cli import main
from taskbus.testing import LinkedNodes, RedisServer, until
from tests.cli.conftest import Shell


@register_type
@dataclass
class Kept:
    """Known to this process alone."""

    number: int


def test_wait_since_start_prints_an_event_that_came_before(shell: Shell) -> None:
    shell.node(node_id="learner").emit("trained", 12, loss=0.5)
    [line] = shell.ok("wait", "trained", "--since", "start", "--timeout", "10").splitlines()
    told = json.loads(line)
    assert (told["event"], told["args"], told["kwargs"], told["node"]) == ("trained", [12], {"loss": 0.5}, "learner")


def test_wait_returns_when_the_event_comes(shell: Shell) -> None:
    node = shell.node()
    process = shell.start("wait", "eval.*", "--timeout", "20")

    def is_over() -> bool:  # it is not known when the process begins to wait, so it is emitted until it has
        node.emit("other")
        node.emit("eval.done")
        return process.poll() is not None

    until(is_over, 20)
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["event"] == "eval.done"
    assert process.returncode == 0


def test_wait_exits_124_when_the_time_is_over(shell: Shell) -> None:
    done = shell.run("wait", "never", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (124, "")
    hint, complaint = done.stderr.splitlines()
    assert hint == f"# run {shell.run_id!r} has no live nodes and no events yet; waiting"
    assert "did not come within 0.2 s" in complaint
    shell.node()
    assert shell.run("wait", "never", "--timeout", "0.2").stderr == f"{complaint}\n"
    other = shell.run("tail", "--no-follow", "--run-id", "nosuch")
    assert (other.stdout, other.stderr) == ("", "# run 'nosuch' has no live nodes and no events yet\n")


def test_wait_exits_3_when_the_run_is_finished_before(shell: Shell) -> None:
    shell.node(node_id="a").finish("completed")
    done = shell.run("wait", "never", "--timeout", "20")
    assert (done.returncode, done.stdout) == (3, "")
    assert "finished by node 'a'" in done.stderr


def test_wait_for_the_finish(shell: Shell) -> None:
    node = shell.node(node_id="a")
    assert shell.run("wait", "--finish", "--timeout", "0.1").returncode == 124
    node.finish("completed")
    assert json.loads(shell.ok("wait", "--finish"))["finish"]["reason"] == "completed"
    assert shell.run("wait", "--finish", "trained").returncode == 2
    assert shell.run("wait").returncode == 2


def test_waiting_and_looking_on_leave_no_trace(shell: Shell) -> None:
    heard: list[Any] = []
    node = shell.node()
    for event in ("taskbus.node_joined", "taskbus.node_left"):
        node.on(event, lambda **told: heard.append(told))
    node.emit("x")
    node.sync()
    before = shell.keys()
    for command in ("nodes", "tail --since start --no-follow", "wait x --since start", "runs", "top --interval 0.1"):
        shell.ok(*command.split())
    assert {key for key in shell.keys() - before if not key.endswith(b":swept")} == set()  # that is the node's own
    assert not heard
    assert len(node.nodes()) == 1


def test_who_waits_for_the_dead_is_told_of_them(shell: Shell) -> None:
    with LinkedNodes(shell.url, run_id=shell.run_id) as nodes:
        nodes.node(node_id="alive")
        nodes.node(node_id="dead").kill()
        told = json.loads(shell.ok("wait", "taskbus.node_left", "--timeout", "20"))
        assert told["kwargs"] == {"node": "dead", "reason": "expired"}


def place(told: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in told["id"].split("-"))


def test_tail_since_start_tells_all_that_is_kept_in_order(shell: Shell) -> None:
    a, b = shell.node(node_id="a"), shell.node(node_id="b")
    for number in range(300):
        (a, b)[number % 2].emit(("x", "y", "z")[number % 3], number)
        if number % 10 == 0:
            a.sync()
            b.sync()
    a.sync()
    b.sync()
    told = [json.loads(line) for line in shell.ok("tail", "--since", "start", "--no-follow", "--json").splitlines()]
    numbers = [one["args"][0] for one in told if one["event"] in "xyz"]
    assert sorted(numbers) == list(range(300))
    assert [one["at"] for one in told] == sorted(one["at"] for one in told)
    for name in "xyz":
        own = [one for one in told if one["event"] == name]
        assert [one["number"] for one in own] == list(range(1, 101))
        for node in "ab":
            in_order = [one["args"][0] for one in own if one["node"] == node]
            assert in_order == sorted(in_order)
    chosen = shell.ok("tail", "--since", "start", "--no-follow", "--json", "--event", "[xy]", "--event", "nosuch")
    assert {json.loads(line)["event"] for line in chosen.splitlines()} == {"x", "y"}
    later = shell.ok("tail", "--no-follow", "--json", "--event", "x", "--since", told[-1]["id"])
    assert all(place(json.loads(line)) > place(told[-1]) for line in later.splitlines())


def test_tail_follows_also_names_that_turn_up_later_until_the_run_is_finished(shell: Shell) -> None:
    node = shell.node(node_id="a")
    process = shell.start("tail", "--since", "start")
    assert process.stdout is not None and process.stderr is not None
    assert "taskbus.node_joined" in process.stdout.readline()
    node.emit("late", 1, [2], key="value")
    line = process.stdout.readline()
    assert "late" in line and " a " in line and "(1, [2], key='value')" in line
    node.emit("later")
    node.finish("completed")
    rest, noted = process.communicate(timeout=10)
    assert "later" in rest and process.returncode == 0
    assert "finished by node 'a': completed" in noted


def test_every_value_is_readable_as_json(shell: Shell) -> None:
    node = shell.node()
    when = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    node.emit("small", np.arange(6, dtype=np.float32).reshape(2, 3), np.int64(7), b"abc", {1: {2, 1}}, when)
    node.emit("odd", float("nan"), 2**70, (1, None), "ü")
    node.emit("large", np.zeros((1000, 1000)), many=list(range(3)))
    node.sync()
    lines = shell.ok("tail", "--since", "start", "--no-follow", "--json", "--event", "[slo]*").splitlines()
    told = {one["event"]: one for one in map(json.loads, lines)}
    array, number, raw, mapping, at = told["small"]["args"]
    assert array == {"dtype": "float32", "shape": [2, 3], "data": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
    assert (number, raw, mapping) == (7, {"bytes": 3, "base64": "YWJj"}, {"1": [1, 2]})
    assert at.startswith("2024-01-02")
    assert told["odd"]["args"] == ["nan", 2**70, [1, None], "ü"]
    assert told["large"]["args"] == [{"dtype": "float64", "shape": [1000, 1000], "first": [0.0] * 10}]
    readable = shell.ok("tail", "--since", "start", "--no-follow", "--event", "[slo]*")
    assert "float32[2, 3]" in readable and "8000" in readable


def test_what_is_no_frame_is_shown_as_such(shell: Shell) -> None:
    shell.node().emit("x", 1)
    shell.ok("wait", "x", "--since", "start")
    with shell.client() as client:
        client.xadd(f"taskbus:{{{shell.run_id}}}:events:x", {"some": "thing"}, id="99999999999999-5")
        client.expire(f"taskbus:{{{shell.run_id}}}:events:x", 60)
    told = [json.loads(line) for line in shell.ok("tail", "--since", "start", "--no-follow", "--json").splitlines()]
    assert "not a frame" in told[-1]["problem"]


def test_a_wait_for_what_cannot_be_read_here_says_what_would_help(shell: Shell) -> None:
    node = shell.node()
    node.emit("x", Kept(1))
    node.sync()
    done = shell.run("wait", "x", "--since", "start")
    assert done.returncode == 1
    assert "is not registered here; --import MODULE has it registered" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("glob", ["a b", "a b*", "{a,b}*", "", "[a"])
def test_what_no_event_matches_is_refused(capsys: pytest.CaptureFixture[str], glob: str) -> None:
    for command in (["tail", "--event", glob], ["wait", glob]):
        assert main(command) == 2
        assert "A-Z a-z 0-9" in capsys.readouterr().err


def test_nonsense_in_since_is_refused(shell: Shell) -> None:
    done = shell.run("tail", "--since", "yesterday")
    assert done.returncode == 2
    assert "since" in done.stderr


@pytest.mark.parametrize("empty", [False, True])
def test_tail_outlives_a_restart_of_redis(redis_server: RedisServer, empty: bool) -> None:
    shell = Shell(redis_server.url)
    try:
        node = shell.node(node_id="a")
        process = shell.start("tail", "--event", "x", "--since", "start", "--json")
        assert process.stdout is not None
        for number in range(3):
            node.emit("x", number)
            assert json.loads(process.stdout.readline())["args"] == [number]
        redis_server.restart(empty=empty)
        for number in range(3, 6):
            node.emit("x", number)
            assert json.loads(process.stdout.readline())["args"] == [number]
        node.finish("completed")
        rest, noted = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "")
        assert noted.count("trying again") == noted.count("can be reached again") == 1 and ".;" not in noted
    finally:
        shell.close()


def test_ctrl_c_is_no_error(shell: Shell) -> None:
    node = shell.node()
    node.emit("x")
    process = shell.start("tail", "--since", "start")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, noted = process.communicate(timeout=10)
    assert (process.returncode, noted) == (130, "")
