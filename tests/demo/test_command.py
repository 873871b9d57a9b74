"""The demo as somebody types it: a process that starts others, trains for real, and leaves nothing behind."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskbus import Router
from taskbus.demo import main
from taskbus.testing import until

Demo = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Starts ``taskbus demo`` with output in a pipe; all of its processes are gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "taskbus", "demo", "--out", str(tmp_path / "out"), *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        try:
            until(functools.partial(is_gone, process.pid), timeout=10, what="all processes are gone")
        finally:
            if members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def members(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has ended meanwhile
        if int(sid) == session and state != "Z":
            found.append(int(entry.name))
    return found


def is_gone(session: int) -> bool:
    return not members(session)


def pids(line: str) -> dict[str, int]:
    """The processes that were started, from the line that says so."""
    return {name: int(pid) for name, pid in re.findall(r"([a-z0-9-]+) \(pid (\d+)\)", line)}


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    assert process.stderr is not None
    raise AssertionError(f"no {words!r}: {process.stderr.read()}")


@pytest.mark.timeout(240)
def test_it_learns_and_ends_by_itself_although_a_collector_is_killed(demo: Demo, tmp_path: Path) -> None:
    process = demo("--seed", "3")
    collector = pids(read_until(process, "started"))["collector-2"]
    read_until(process, "collector-2, demo")
    os.kill(collector, signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"collector-2 (pid {collector}) is gone, killed by SIGKILL: the training goes on" in out
    solved = r"Solved in \d+ s and [\d,]+ steps( \(of [\d,]+ until that was known\))?: "
    assert re.search(solved + r"mean return (4[789]\d|500)\.\d over 20 episodes", out)
    curve = tmp_path / "out" / "learning-curve.png"
    assert f"Learning curve: {curve}" in out
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert "collector-2" not in out.split("Solved")[0].splitlines()[-1]


@pytest.mark.timeout(120)
def test_a_given_redis_is_used_and_a_bound_on_time_ends_it(demo: Demo, real_redis_url: str) -> None:
    process = demo("--url", real_redis_url, "--workers", "3", "--timeout", "4")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert len(pids(out)) == 5
    assert re.fullmatch(r"taskbus demo: not solved within 4 s: the best mean return was \d+\.\d\n", err)


def test_a_run_that_is_finished_is_not_trained_again(demo: Demo, real_redis_url: str) -> None:
    with Router(real_redis_url, run_id="over") as router:
        router.finish()
    _, err = (process := demo("--url", real_redis_url, "--run-id", "over")).communicate(timeout=50)
    assert process.returncode == 1
    assert err.startswith("taskbus demo: run 'over' is finished already; take another name, or: taskbus reset over")


def test_a_redis_that_does_not_answer_is_one_sentence(demo: Demo) -> None:
    _, err = (process := demo("--url", "redis://127.0.0.1:1")).communicate(timeout=50)
    assert process.returncode == 1
    assert err.startswith("taskbus demo: ") and "127.0.0.1:1" in err and err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_of_it_without_a_traceback(demo: Demo, number: signal.Signals, code: int) -> None:
    process = demo()
    read_until(process, "started")
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=15)
    assert process.returncode == code
    assert "Traceback" not in err + out


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main([]) == 1
    assert capsys.readouterr().err == "taskbus demo needs gymnasium: pip install 'taskbus[demo]'\n"


def test_the_command_can_be_read_without_what_the_job_needs() -> None:
    script = "import sys, taskbus.demo.command; print({'gymnasium', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_makes_no_sense_is_refused_before_anything_is_started(demo: Demo) -> None:
    _, err = (process := demo("--workers", "0")).communicate(timeout=50)
    assert process.returncode == 2
    assert "a number of at least 1 is needed, not '0'" in err
