"""``taskbus run``: a container's command."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from taskbus.cli import main
from taskbus.testing import until
from tests.cli.conftest import Shell

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_main_is_called_with_what_follows_the_dashes(shell: Shell) -> None:
    said = shell.ok("run", "tests.cli.jobs:say", "--labels", "a,b", "--node-ids", "7", "--", "fast", "--slow")
    assert said == "heard fast --slow on 7 a b node.7\n"


def test_several_processes_are_several_nodes(shell: Shell) -> None:
    said = shell.ok("run", "tests.cli.jobs:say", "-n", "2", "--node-ids", "5")
    assert sorted(said.splitlines()) == ["heard on 5 node.5", "heard on 6 node.6"]


def test_one_id_is_not_enough_for_several(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:say", "-n", "2", env={"TASKBUS_NODE_ID": "a"})
    assert done.returncode == 2 and "--node-ids" in done.stderr
    assert shell.run("run", "tests.cli.jobs:say", env={"TASKBUS_NODE_ID": "a"}).stdout == "heard on a node.a\n"


def test_the_spellings_of_ditask_are_taken(shell: Shell) -> None:
    said = shell.ok(
        *("run", "--package", ".", "--main", "tests.cli.jobs.say", "--parallel-workers", "1"),
        *("--labels", "learner", "--node-ids", "0", "--mq-type", "redis"),
    )
    assert said == "heard on 0 learner node.0\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_step_that_is_cut_is_told_and_exits_1(shell: Shell, workers: str, number: signal.Signals) -> None:
    looker = shell.node(labels="looker")
    begun: list[int] = []
    left: list[str] = []
    looker.on("in_the_long_step", lambda: begun.append(1))
    looker.on("taskbus.node_left", lambda node, reason: left.append(reason))
    process = shell.start("run", "tests.cli.jobs:long_step", "-n", workers, "--grace", "0.5", start_new_session=True)
    until(lambda: len(begun) == int(workers), 20, "all are in their long step")
    os.killpg(process.pid, number)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    told = f"step 1 did not end within 0.5 s of {number.name} and was cut"
    lines = complaint.splitlines()
    assert len(lines) == int(workers)
    assert all(re.fullmatch(rf"{TIME} ERROR node \d: {told}", line) for line in lines), lines
    until(lambda: left == ["cut"] * int(workers), what="the others are told")
    assert looker.finished is None


def test_a_second_signal_cuts_the_step_and_says_so(shell: Shell) -> None:
    looker = shell.node(labels="looker")
    begun: list[int] = []
    looker.on("in_the_long_step", lambda: begun.append(1))
    process = shell.start("run", "tests.cli.jobs:long_step")
    until(lambda: begun, 20, "it is in its long step")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert re.fullmatch(rf"{TIME} ERROR node 1: step 1 was cut by a second signal\n", complaint)


def test_a_file_is_refused_with_the_name_to_give_instead(shell: Shell) -> None:
    names = {"job.py:main": "job:main", "./tests/cli/jobs.py:say": "tests.cli.jobs:say", "job.py": "job:main"}
    for given, meant in names.items():
        done = shell.run("run", given)
        assert done.returncode == 2
        assert done.stderr == f"taskbus run: what to run is named as {meant}, not as {given!r}\n"


def test_an_async_main_is_refused(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:wait_nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("taskbus run: 'wait_nowhere' is async") and done.stderr.count("\n") == 1


def test_no_workers_are_refused_in_the_words_of_the_shell(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:say", "-n", "0")
    assert (done.returncode, done.stderr) == (2, "taskbus run: -n must be at least 1, not 0\n")


@pytest.mark.parametrize("grace", ["-1", "inf", "soon"])
def test_a_grace_without_an_end_is_refused(shell: Shell, grace: str) -> None:
    done = shell.run("run", "tests.cli.jobs:say", "--grace", grace)
    assert done.returncode == 2 and "grace" in done.stderr and "number of seconds" in done.stderr


def test_what_only_peers_need_is_refused_with_the_reason(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:say", "--topology", "mesh")
    assert done.returncode == 2
    assert "--topology is" in done.stderr and "not needed" in done.stderr and done.stderr.count("\n") == 1


def test_without_a_url_a_private_server_is_started(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:say", "-n", "2", env={"TASKBUS_URL": ""})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("name", ["tests.cli.nosuch:main", "tests.cli.jobs:nosuch", "tests/cli/jobs.py", "nosuch"])
def test_a_function_that_is_not_there_is_one_sentence(shell: Shell, name: str) -> None:
    done = shell.run("run", name)
    assert done.returncode == 2
    assert done.stderr.startswith("taskbus run: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_crash_exits_1_with_the_users_traceback_and_not_ours(shell: Shell, workers: str) -> None:
    done = shell.run("run", "tests.cli.jobs:crash", "-n", workers)
    assert done.returncode == 1
    assert "ValueError: no such luck" in done.stderr and "jobs.py" in done.stderr
    assert "src/taskbus" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_started_again_says_why(shell: Shell, workers: str) -> None:
    done = shell.run("run", "tests.cli.jobs:crash", "-n", workers, "--auto-recover", "--max-retries", "1")
    assert done.returncode == 1
    who = "main" if workers == "1" else r"worker \d \(pid \d+\)"
    told = (
        rf"{TIME} WARNING {who} failed \(ValueError: no such luck\); start 2 of it\n"
        r"Traceback \(most recent call last\):\n.*jobs\.py"
    )
    assert re.search(told, done.stderr), done.stderr
    assert "src/taskbus" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_keeps_workers_from_joining_is_one_sentence(shell: Shell, workers: str, tmp_path: Path) -> None:
    nobody = shell.run("run", "tests.cli.jobs:say", "-n", workers, env={"TASKBUS_URL": f"unix://{tmp_path}/nobody"})
    assert nobody.returncode == 1 and nobody.stdout == ""
    assert nobody.stderr.startswith("taskbus run: Redis at ") and nobody.stderr.count("\n") == 1
    shell.node(node_id="0")
    taken = shell.run("run", "tests.cli.jobs:say", "-n", workers, "--node-ids", "0")
    assert taken.returncode == 1
    assert "node id '0' of run" in taken.stderr and "Traceback" not in taken.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_server_and_no_url_is_a_sentence_that_says_how_to_get_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.delenv("TASKBUS_URL", raising=False)
    monkeypatch.setattr("taskbus.bus.server._candidates", lambda: iter(()))
    assert main(["run", "tests.cli.jobs:say", "-n", workers]) == 2
    said = capsys.readouterr().err
    assert said.startswith("taskbus run: ") and said.count("\n") == 1 and "install" in said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_comes_to_a_finished_run_has_nothing_to_do_and_exits_0(shell: Shell, workers: str) -> None:
    shell.node(node_id="a").finish("completed")
    done = shell.run("run", "tests.cli.jobs:late", "-n", workers)
    assert done.returncode == 0, done.stderr
    whose = "" if workers == "1" else r"worker \d: "
    told = rf"^{TIME} WARNING {whose}run .* is finished already \(by node 'a': completed\)"
    assert len(re.findall(told, done.stderr, re.M)) == int(workers)
    assert "Traceback" not in done.stderr


def test_what_a_worker_tells_is_written_line_by_line_so_that_those_of_several_do_not_mix(shell: Shell) -> None:
    shell.node(node_id="a").finish("completed")
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # keeps apart what was written at once
    with here, there:
        done = shell.start("run", "tests.cli.jobs:late", stderr=there)
        assert done.wait(30) == 0
        here.setblocking(False)
        pieces = []
        with suppress(BlockingIOError):
            while piece := here.recv(65536):
                pieces.append(piece.decode())
    assert len(pieces) == 2 and pieces[1].startswith("# the run was finished"), pieces
    assert all(piece.endswith("\n") for piece in pieces)


@pytest.mark.parametrize("url", ["private", "given"])
def test_a_worker_that_comes_after_its_sibling_has_finished_the_run_is_told_what_to_change(
    shell: Shell, url: str
) -> None:
    environment = {"TASKBUS_URL": ""} if url == "private" else {}
    command = ("run", "tests.cli.jobs:leave_at_once", "-n", "2", "--node-ids", "0", "--startup-interval", "3")
    done = shell.run(*command, env=environment)
    assert done.returncode == 0, done.stderr
    assert "node '0' finished run" in done.stderr and "before this worker began" in done.stderr
    assert "barrier()" in done.stderr
    assert "unix://" not in done.stderr and "taskbus reset" not in done.stderr


def test_an_error_in_the_users_module_has_its_traceback(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.broken:main")
    assert done.returncode == 1
    assert "RuntimeError: not even imported" in done.stderr and "broken.py" in done.stderr
    assert "src/taskbus" not in done.stderr and "importlib" not in done.stderr


def test_an_error_of_taskbus_in_the_users_code_has_a_traceback_too(shell: Shell) -> None:
    done = shell.run("run", "tests.cli.jobs:impatient")
    assert done.returncode == 1
    assert "WaitTimeout: the answer did not come" in done.stderr and "jobs.py" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_ends_the_step_and_exits_0_and_the_run_goes_on(
    shell: Shell, workers: str, number: signal.Signals
) -> None:
    looker = shell.node(labels="looker")
    process = shell.start("run", "tests.cli.jobs:steps", "-n", workers, "--labels", "stepper")
    looker.wait_for_nodes("stepper", int(workers), 20)
    until(lambda: all(node.step > 1 for node in looker.nodes("stepper")), 20, "all have begun to step")
    process.send_signal(number)
    said, complaint = process.communicate(timeout=20)
    assert process.returncode == 0, complaint
    assert said.splitlines() == ["left in order"] * int(workers)
    assert [node.id for node in looker.nodes()] == [looker.node_id]
    assert looker.finished is None
