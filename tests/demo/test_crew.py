"""The processes of the demo: how each ended is known, and none is left behind."""

from __future__ import annotations

import os
import queue
import signal
import sys
from pathlib import Path

import pytest

from taskbus.demo.crew import Crew, Member

FOR_EVER = "import threading; threading.Event().wait()"


@pytest.fixture
def ended() -> queue.Queue[Member]:
    return queue.Queue()


def a_member(code: str, log: Path, ended: queue.Queue[Member]) -> Member:
    return Member("collector", "one", [sys.executable, "-c", code], os.environ, log / "one.log", ended.put)


def test_an_end_is_reported_with_its_reason_and_last_words(tmp_path: Path, ended: queue.Queue[Member]) -> None:
    a_member("import sys; print('hello'); sys.exit('no bus')", tmp_path, ended)
    member = ended.get(timeout=20)
    assert member.ended and not member.is_well
    assert member.how == "ended with exit code 1"
    assert member.last_words() in ("no bus", "hello")


def test_a_member_that_was_killed_is_known_by_its_signal(tmp_path: Path, ended: queue.Queue[Member]) -> None:
    member = a_member(FOR_EVER, tmp_path, ended)
    assert member.how == "running"
    os.kill(member.pid, signal.SIGKILL)
    assert ended.get(timeout=20) is member
    assert member.how == "killed by SIGKILL"
    assert member.last_words() == ""


def test_a_crew_that_does_not_end_by_itself_is_ended(tmp_path: Path, ended: queue.Queue[Member]) -> None:
    crew = Crew("memory://nowhere", "run", tmp_path, ended.put)
    for name in ("one", "two"):
        command = [sys.executable, "-c", FOR_EVER]
        crew.members[name] = Member("collector", name, command, os.environ, tmp_path / name, ended.put)
    crew.stop(timeout=0.0)
    assert {member.how for member in crew.members.values()} == {"killed by SIGTERM"}


def test_every_process_is_a_node_by_its_name_with_its_role_as_label(
    tmp_path: Path, ended: queue.Queue[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "echo")
    crew = Crew("redis://here", "run-1", tmp_path, ended.put)
    crew.start("collector", "collector-1", "7")
    said = ended.get(timeout=20).last_words()
    assert said == "-m taskbus run taskbus.demo.collector:main --labels collector --node-ids collector-1 -- 7"


def test_the_password_of_the_bus_is_not_on_a_command_line(
    tmp_path: Path, ended: queue.Queue[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\necho "$TASKBUS_URL $TASKBUS_RUN_ID"\n', encoding="ascii")
    show.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(show))
    Crew("redis://:secret@here", "run-1", tmp_path, ended.put).start("learner", "learner")
    assert ended.get(timeout=20).last_words() == "redis://:secret@here run-1"
