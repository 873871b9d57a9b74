"""Parallel.runner: local workers as nodes of one run, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from taskbus import BusUnavailable, ConfigError, Fenced, NotStarted, Parallel, WorkerFailed
from taskbus.testing import until

from . import jobs


def _notes(directory: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in directory.glob("*.log")}


def test_workers_meet_on_a_private_server_when_no_url_is_given(tmp_path: Path) -> None:
    Parallel.runner(2, labels={"worker"})(jobs.meet, str(tmp_path), 2)
    assert _notes(tmp_path) == {"0": ["node.0,worker"], "1": ["node.1,worker"]}


def test_workers_meet_on_a_given_server_under_given_ids(tmp_path: Path, real_redis_url: str) -> None:
    Parallel.runner(2, real_redis_url, run_id="given", node_ids=["a", "b"])(jobs.meet, str(tmp_path), 2)
    assert sorted(_notes(tmp_path)) == ["a", "b"]


def test_one_worker_runs_in_this_process_and_returns_its_value(memory_url: str) -> None:
    assert Parallel.runner(1, memory_url, node_ids=7)(jobs.value, 1) == (2, True, "7")
    assert not Parallel().is_active
    with pytest.raises(NotStarted):
        Parallel().emit("anything")


def test_a_worker_that_fails_ends_the_others_and_raises_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="the reason why") as failed:
        Parallel.runner(2, node_ids=0)(jobs.crash_one, str(tmp_path))
    text = str(failed.value)
    assert "in crash_one" in text
    assert "parallel.py" not in text, "the traceback is the user's, not ours"
    assert failed.value.worker == 0
    assert text.startswith(f"worker 0 (node '0', pid {failed.value.pid}) failed:")


def test_workers_that_cannot_join_say_why_as_one_alone_does(tmp_path: Path) -> None:
    for workers in (1, 2):
        with pytest.raises(BusUnavailable, match="cannot be reached"):
            Parallel.runner(workers, f"unix://{tmp_path}/nobody", op_timeout=0.3)(jobs.value, 1)


def test_an_error_that_is_longer_than_a_pipe_holds_is_raised_whole(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="the end of it"):
        Parallel.runner(2, node_ids=0)(jobs.crash_at_length, str(tmp_path))


def test_a_worker_that_is_killed_ends_the_others_and_raises(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="killed by signal 9"):
        Parallel.runner(2, node_ids=0)(jobs.kill_one, str(tmp_path))


def test_a_worker_that_ends_without_a_word_is_told_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"worker 0 \(node '0', pid \d+\) ended with exit code 7$"):
        Parallel.runner(2, node_ids=0)(jobs.exit_without_a_word, str(tmp_path))


def test_a_crash_is_retried_with_auto_recover(tmp_path: Path) -> None:
    Parallel.runner(2, node_ids=[0, 1], auto_recover=True)(jobs.crash_twice, str(tmp_path))
    assert _notes(tmp_path) == {"0": ["start"] * 3, "1": ["start"] * 3}


def test_max_retries_bounds_auto_recover(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="not yet"):
        Parallel.runner(2, node_ids=0, auto_recover=True, max_retries=1)(jobs.crash_twice, str(tmp_path))


def test_a_main_that_returns_because_its_place_was_taken_has_not_succeeded(memory_url: str) -> None:
    with pytest.raises(Fenced, match="node id '7'"):
        Parallel.runner(1, memory_url, node_ids=7)(jobs.lose_the_place)
    assert not Parallel().is_active


def test_one_worker_is_retried_in_this_process(tmp_path: Path, memory_url: str) -> None:
    Parallel.runner(1, memory_url, node_ids=0, auto_recover=True)(jobs.crash_twice, str(tmp_path))
    assert _notes(tmp_path) == {"0": ["start"] * 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attach_to": [1]}, "attach_to= is not needed"),
        ({"topology": "mesh"}, "topology= is not needed"),
        ({"protocol": "tcp"}, "protocol= is not needed"),
        ({"ports": 50515}, "ports= is not needed"),
        ({"address": "10.0.0.1"}, "address= is not needed"),
        ({"mq_type": "nng"}, "mq_type must be 'redis'"),
        ({"n_parallel_workers": 0}, "at least 1"),
        ({"n_parallel_workers": 2, "node_ids": [1, 1]}, "different ids"),
        ({"n_parallel_workers": 2, "redis_url": "memory://x"}, "lives in one process"),
        ({"redis_url": "redis://a", "redis_host": "b"}, "not both"),
        ({"leaze": 3}, "unknown setting 'leaze'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Parallel.runner(**given)  # type: ignore[arg-type]  # wrong on purpose


def test_several_workers_need_an_importable_main() -> None:
    with pytest.raises(ConfigError, match="importable"):
        Parallel.runner(2)(lambda: None)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_async_main_is_refused(workers: int, real_redis_url: str) -> None:
    async def main(x: int) -> None: ...

    for given in (main, partial(main, 1)):
        with pytest.raises(ConfigError, match="is async, and nothing would await it"):
            Parallel.runner(workers, real_redis_url)(given)


def _start(job: str, workers: int, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.launch.jobs", job, str(workers), str(directory)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _pids(directory: Path) -> list[int]:
    return [int(line.split()[1]) for lines in _notes(directory).values() for line in lines if line.startswith("pid")]


@pytest.mark.parametrize("job", ["step_for_ever", "wait_for_ever", "meet_for_ever"])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_everything_soon_without_tracebacks(tmp_path: Path, job: str, workers: int) -> None:
    process = _start(job, workers, tmp_path)
    until(lambda: len(_pids(tmp_path)) == workers, 30.0, "the workers are at work")
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - begin < 6.0, "two seconds, and as much again for a busy machine"
    assert "Traceback" not in errors
    assert all(lines[-1] == "left" for lines in _notes(tmp_path).values())


def test_a_ctrl_c_that_workers_hear_of_from_their_parent_first_is_one_ctrl_c(tmp_path: Path) -> None:
    process = _start("step_for_ever", 2, tmp_path)
    until(lambda: len(_pids(tmp_path)) == 2, 30.0, "the workers are at work")
    for pid in _pids(tmp_path):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert all(lines[-1] == "left" for lines in _notes(tmp_path).values())


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_lets_the_step_end_and_exits_with_0(tmp_path: Path, workers: int) -> None:
    process = _start("step_for_ever", workers, tmp_path)
    until(lambda: len(_pids(tmp_path)) == workers, 30.0, "the workers are at work")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert all(lines[-1] == "left" for lines in _notes(tmp_path).values())


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = _start("step_for_ever", 2, tmp_path)
    until(lambda: len(_pids(tmp_path)) == 2, 30.0, "the workers are at work")
    process.kill()
    process.communicate(timeout=10)
    until(lambda: not any(_alive(pid) for pid in _pids(tmp_path)), 20.0, "the workers have ended")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
