"""The command line as a whole: help, exit codes, errors of one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskbus.cli import main
from taskbus.testing import RedisServer
from tests.cli.conftest import Shell

COMMANDS = ("run", "nodes", "tail", "emit", "wait", "finish", "reset", "runs", "check", "doctor", "top")


def test_help_names_every_command_and_the_exit_codes(shell: Shell) -> None:
    text = shell.ok("--help")
    for name in (*COMMANDS, "server", "demo"):
        assert re.search(rf"^ +{name} ", text, re.M)
    assert "exit codes" in text and "124" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_teaches_with_examples(shell: Shell, name: str) -> None:
    text = shell.ok(name, "--help")
    assert f"  taskbus {name}" in text.partition("examples:")[2]
    assert "--url" in text


def test_the_version_is_told(shell: Shell) -> None:
    assert re.fullmatch(r"taskbus \d+\.\d+\.\d+\S*\n", shell.ok("--version"))


def test_wrong_arguments_exit_2(shell: Shell) -> None:
    assert shell.run().returncode == 2
    assert shell.run("nosuch").returncode == 2
    assert shell.run("tail", "--sinc", "start").returncode == 2
    assert shell.run("nodes", "--", "more").returncode == 2
    unknown = shell.run("run", "job:main", "--platform", "k8s")
    assert unknown.returncode == 2
    assert unknown.stderr == "taskbus run: unexpected --platform k8s: see taskbus run --help\n"


def test_numbers_that_make_no_sense_are_refused_in_words(shell: Shell) -> None:
    for command in ("wait x --timeout soon", "top --interval 0", "wait x --timeout nan"):
        done = shell.run(*command.split())
        assert done.returncode == 2
        assert "a number of seconds of at least" in done.stderr


def test_a_command_without_any_url_says_how_to_give_one(shell: Shell) -> None:
    done = shell.run("nodes", env={"TASKBUS_URL": ""})
    assert done.returncode == 2
    assert "--url" in done.stderr and "TASKBUS_URL" in done.stderr and done.stderr.count("\n") == 1


def test_urls_that_cannot_be_meant_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("nodes", "tail", "runs", "top", "emit x", "wait x", "finish", "reset x", "check", "doctor"):
        assert main([*command.split(), "--url", "memory://x"]) == 2
        assert "lives in one process" in capsys.readouterr().err
    for command in ("nodes", "run tests.cli.jobs:say"):
        assert main([*command.split(), "--url", ""]) == 2
        assert "--url is empty" in capsys.readouterr().err


def test_an_unreachable_redis_is_one_sentence_without_the_password(shell: Shell) -> None:
    commands = (
        "nodes",
        "tail",
        "emit x",
        "wait x",
        "finish",
        "runs",
        "check",
        "doctor",
        "top",
        "run tests.cli.jobs:say",
    )
    url = "redis://user:geheim@127.0.0.1:9/0"
    started = {command: shell.start(*command.split(), "--url", url) for command in commands}
    for command, process in started.items():
        said, complaint = process.communicate(timeout=30)
        assert process.returncode == (4 if command == "check" else 1), command
        assert "geheim" not in said + complaint
        if command == "doctor":
            said, complaint = "", said.splitlines()[-1] + "\n"
        assert said == "" and "127.0.0.1:9" in complaint and complaint.count("\n") == 1, command


def test_a_server_that_is_no_sentinel_is_named(redis_server: RedisServer) -> None:
    address = f"127.0.0.1:{redis_server.port}"
    done = Shell("").run("nodes", "--url", f"redis+sentinel://{address}/main")
    assert done.returncode == 1
    assert done.stderr.endswith(f" {address} is no sentinel\n") and done.stderr.count("\n") == 1


def test_the_output_may_be_cut_off_by_its_reader(shell: Shell) -> None:
    node = shell.node()
    for number in range(3000):
        node.emit("x", "a" * 100, number)
    node.sync()
    process = shell.start("tail", "--since", "start", "--no-follow")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["nodes", "runs", "tail --since start --no-follow"])
def test_a_full_disk_is_one_sentence(shell: Shell, command: str) -> None:
    shell.node().emit("x")
    with open("/dev/full", "w") as full:
        process = shell.start(*command.split(), stdout=full)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert complaint.endswith("the output cannot be written: No space left on device\n") and complaint.count("\n") == 1


def test_host_and_port_stand_in_for_a_url(redis_server: RedisServer) -> None:
    port = str(redis_server.port)  # of a server of its own: the shared one may want a password
    shell = Shell(redis_server.url)
    shell.node(node_id="a")
    done = shell.run("nodes", "--redis-host", "127.0.0.1", "--redis-port", port, env={"TASKBUS_URL": ""})
    shell.close()
    assert done.stdout.splitlines()[1].startswith("a ")
