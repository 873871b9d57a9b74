"""What the onlooker keeps and shows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from taskbus.demo.board import Board
from taskbus.demo.display import Lines, Screen, open_display, sparkline
from taskbus.demo.plot import save_curve
from taskbus.types import NodeInfo


def a_node(name: str, producer: str = "one") -> NodeInfo:
    return NodeInfo(name, frozenset({name[:-2]}), "here", 42, "", 7, 0.0, 0.1, producer=producer)


def test_a_node_that_is_not_listed_any_more_is_gone_and_told_once() -> None:
    board = Board()
    assert board.saw([a_node("collector-1"), a_node("collector-2")]) == []
    assert board.saw([a_node("collector-1")]) == ["collector-2"]
    assert board.saw([a_node("collector-1")]) == []
    assert [node.id for node in board.here] == ["collector-1"]
    assert board.seats["collector-2"].gone


def test_a_killed_node_stays_gone_although_its_lease_still_runs() -> None:
    board = Board()
    board.saw([a_node("collector-1")])
    assert board.lost("collector-1", "killed by SIGKILL")
    board.saw([a_node("collector-1")])
    assert not board.lost("collector-1", "killed by SIGKILL")
    assert board.here == []
    assert board.saw([]) == [], "told before"
    assert board.seats["collector-1"].gone == "killed by SIGKILL"


def test_a_node_that_comes_again_is_there_again() -> None:
    board = Board()
    board.saw([a_node("collector-1")])
    board.lost("collector-1", "killed by SIGKILL")
    board.saw([a_node("collector-1", producer="two")])
    assert [node.id for node in board.here] == ["collector-1"]


def test_a_rate_of_long_ago_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr("taskbus.demo.board.monotonic", lambda: now)
    board = Board()
    board.saw([a_node("collector-1")])
    now = 101.0
    board.heard_progress(1000, 50, 1.0)
    assert board.rate == 100.0
    now = 110.0
    board.lost("collector-1", "killed by SIGKILL")
    assert board.rate == 0.0
    Lines().show(board)
    assert capsys.readouterr().out.endswith("    0 events/s  on the run: nobody\n")


def test_the_best_and_the_last_evaluation_are_known() -> None:
    board = Board()
    assert (board.best, board.solved) == (0.0, None)
    board.heard_evaluation(1000, 300.0, False)
    board.heard_evaluation(2000, 480.0, True)
    assert board.best == 480.0
    assert board.solved is not None and board.solved.steps == 2000


def test_a_line_says_how_far_it_is_and_who_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board()
    board.saw([a_node("collector-1"), a_node("evaluator")])
    board.heard_progress(12_345, 48, 21.0)
    board.heard_evaluation(12_000, 33.25, False)
    Lines().show(board)
    line = capsys.readouterr().out
    assert "12,345 steps" in line and "33.2 of 475" in line and "collector-1, evaluator" in line


def test_a_row_of_bars_never_gets_wider_than_asked_for() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 250.0, 500.0]) == "▁▅█"
    assert len(sparkline([1.0 * n for n in range(501)], width=70)) == 70


def test_the_curve_is_a_png(tmp_path: Path) -> None:
    board = Board()
    board.heard_progress(500, 2, 20.0)
    board.heard_evaluation(1000, 300.0, False)
    assert save_curve(board, tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_screen_shows_figures_curve_and_nodes() -> None:
    board = Board()
    board.saw([a_node("collector-1"), a_node("evaluator")])
    board.lost("collector-1", "killed by SIGKILL")
    board.heard_progress(12_345, 48, 21.0)
    board.heard_evaluation(12_000, 250.0, False)
    console = Console(file=io.StringIO(), force_terminal=True, width=90)
    screen = Screen(console)
    screen.show(board)
    screen.close()
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "12,345" in shown and "250.0" in shown and "▅" in shown
    assert "gone: killed by SIGKILL" in shown and "evaluator" in shown


def test_output_that_is_no_terminal_gets_lines() -> None:
    assert isinstance(open_display(), Lines)
