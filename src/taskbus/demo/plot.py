"""The learning curve as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from taskbus.demo.board import Board
from taskbus.demo.goal import EPISODES, SOLVED

__all__ = ["save_curve"]


def save_curve(board: Board, path: Path) -> Path:
    """Draw what ``board`` knows to ``path`` (PNG); no display is needed."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(SOLVED, color="0.6", linestyle="--", linewidth=1, label=f"solved ({SOLVED:.0f})")
    axes.plot(*_columns(board.training), color="tab:blue", alpha=0.5, label="learner: last 50 episodes")
    points = [(evaluation.steps, evaluation.mean_return) for evaluation in board.evaluations]
    axes.plot(*_columns(points), "o-", color="tab:orange", markersize=3, label=f"evaluator: {EPISODES} episodes")
    axes.set(xlabel="steps", ylabel="return", ylim=(0, 515), title=f"CartPole-v1, {board.seconds:.0f} s")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
