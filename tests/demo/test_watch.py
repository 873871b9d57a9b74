"""Looking on: the run is over when it is finished; a process that is lost matters only if nobody can do its work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskbus import Router
from taskbus.demo.board import Board
from taskbus.demo.crew import Member
from taskbus.demo.watch import Watch
from taskbus.testing import until


class Said:
    """A display that remembers."""

    every = 0.02

    def __init__(self) -> None:
        self.shown = 0
        self.texts: list[str] = []

    def show(self, board: Board) -> None:
        self.shown += 1

    def say(self, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None:
        pass


@pytest.fixture
def evaluator(memory_url: str) -> Iterator[Router]:
    with Router(memory_url, node_id="evaluator", labels="evaluator") as router:
        yield router


@pytest.fixture
def watch(memory_url: str) -> Iterator[Watch]:
    with Router(memory_url, node_id="demo") as router:
        yield Watch(router, Board(), Said(), collectors=2)


@pytest.fixture
def a_member(tmp_path: Path) -> Iterator[Callable[[str, str], Member]]:
    """A process of a role that ends as its shell command says."""
    members: list[Member] = []

    def start(role: str, command: str) -> Member:
        ended = threading.Event()
        name = f"{role}-{len(members) + 1}"
        member = Member(role, name, ["sh", "-c", command], os.environ, tmp_path / "log", lambda _: ended.set())
        members.append(member)
        assert ended.wait(20)
        return member

    yield start
    for member in members:
        assert member.ended


def test_the_end_is_the_durable_finish_and_what_was_emitted_before_it_is_known(watch: Watch, evaluator: Router) -> None:
    evaluator.emit("evaluation", steps=1000, mean_return=480.0, solved=True)
    evaluator.finish()
    watch.until_over(timeout=20)
    assert watch.failure == ""
    assert watch.board.solved is not None


def test_who_is_on_the_run_is_shown(watch: Watch, evaluator: Router) -> None:
    threading.Thread(target=watch.until_over, args=(20,), daemon=True, name="watching").start()
    until(lambda: [node.id for node in watch.board.here] == ["demo", "evaluator"], what="both are seen")
    evaluator.emit("evaluation", steps=1000, mean_return=480.0, solved=True)
    evaluator.finish()


def test_a_run_that_is_not_solved_in_time_is_a_failure_that_says_how_far_it_came(
    watch: Watch, evaluator: Router
) -> None:
    evaluator.emit("evaluation", steps=1000, mean_return=123.4, solved=False)
    until(lambda: watch.board.evaluations)
    watch.until_over(timeout=0.1)
    assert watch.failure == "not solved within 0.1 s: the best mean return was 123.4"


def test_a_finish_by_somebody_else_is_a_failure_that_names_him(
    watch: Watch, evaluator: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskbus.demo.watch._GRACE", 0.05)
    evaluator.finish("stopped")
    watch.until_over(timeout=20)
    assert watch.failure == "the run was finished by node 'evaluator' (stopped)"


def test_a_killed_collector_is_shown_as_gone_and_the_training_goes_on(
    watch: Watch, a_member: Callable[[str, str], Member]
) -> None:
    watch.ended(a_member("collector", "kill -9 $$"))
    assert watch.failure == ""
    assert isinstance(watch.display, Said)
    assert "collector-1" in watch.display.texts[0] and "killed by SIGKILL" in watch.display.texts[0]


def test_without_any_collector_it_cannot_go_on(watch: Watch, a_member: Callable[[str, str], Member]) -> None:
    for _ in range(2):
        watch.ended(a_member("collector", "kill -9 $$"))
    watch.until_over(timeout=20)
    assert watch.failure == "no collector is left"


@pytest.mark.parametrize("role", ["learner", "evaluator"])
def test_without_a_learner_or_an_evaluator_it_cannot_end_and_says_why(
    watch: Watch, a_member: Callable[[str, str], Member], role: str
) -> None:
    watch.ended(a_member(role, "echo out of luck; exit 3"))
    watch.until_over(timeout=20)
    assert watch.failure.startswith(f"{role}-1 ended with exit code 3: out of luck")


def test_who_ended_without_a_word_is_told_without_a_pointer_to_nothing(
    watch: Watch, a_member: Callable[[str, str], Member]
) -> None:
    watch.ended(a_member("learner", "kill -9 $$"))
    assert watch.failure == "learner-1 killed by SIGKILL"


def test_processes_that_end_after_the_finish_are_nothing_to_speak_of(
    watch: Watch, evaluator: Router, a_member: Callable[[str, str], Member]
) -> None:
    evaluator.emit("evaluation", steps=1000, mean_return=480.0, solved=True)
    evaluator.finish()
    watch.ended(a_member("evaluator", "exit 0"))
    watch.until_over(timeout=20)
    watch.ended(a_member("collector", "exit 1"))
    assert watch.failure == ""
    assert isinstance(watch.display, Said) and watch.display.texts == []
