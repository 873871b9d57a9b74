"""Showing a board while the run goes on: in place on a terminal, as a few plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from taskbus.demo.board import Board, Seat
from taskbus.demo.goal import SOLVED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Display", "Lines", "Screen", "open_display"]

_BARS = "▁▂▃▄▅▆▇█"
_FULL = 500.0


class Display(Protocol):
    """``every`` is how many seconds may pass between two calls of ``show``."""

    every: float

    def show(self, board: Board) -> None: ...

    def say(self, text: str) -> None:
        """Say something that stays."""

    def close(self) -> None: ...


def open_display() -> Display:
    """The one that fits where standard output goes."""
    from rich.console import Console

    console = Console(highlight=False)
    return Screen(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


class Lines:
    """A line now and then, for files and pipes."""

    every = 2.0

    def show(self, board: Board) -> None:
        last = f"{board.evaluations[-1].mean_return:5.1f}" if board.evaluations else "  ..."
        who = ", ".join(node.id for node in board.here) or ("nobody" if board.seats else "nobody yet")
        self.say(
            f"{board.seconds:5.0f} s  {board.steps:9,d} steps  return {last} of {SOLVED:.0f}"
            f"  {board.rate:5.0f} events/s  on the run: {who}"
        )

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class Screen:
    """A panel that is drawn in place."""

    every = 0.25

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, board: Board) -> None:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table

        figures = Table.grid(padding=(0, 3))
        last = board.evaluations[-1].mean_return if board.evaluations else 0.0
        figures.add_row("steps", f"[bold]{board.steps:,}[/]", "events/s", f"[bold]{board.rate:,.0f}[/]")
        figures.add_row("return", f"[bold]{last:.1f}[/] of {SOLVED:.0f}", "seconds", f"[bold]{board.seconds:.0f}[/]")
        curve = f"[cyan]{sparkline([evaluation.mean_return for evaluation in board.evaluations])}[/]"
        content = Group(figures, curve, "", _who(board))
        self._live.update(Panel(content, title="taskbus · CartPole-v1", width=min(100, self._console.width)))
        self._live.refresh()

    def say(self, text: str) -> None:
        self._console.print(text)

    def close(self) -> None:
        self._live.stop()


def sparkline(values: list[float], width: int = 70) -> str:
    """``values`` as a row of bars, each the mean of its share when there are more than ``width``."""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    return "".join(_BARS[min(len(_BARS) - 1, int(mean / _FULL * len(_BARS)))] for mean in means)


def _who(board: Board) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("node", "labels", "host", "pid", "step", ""):
        table.add_column(header, justify="right" if header in ("pid", "step") else "left")
    for name, seat in sorted(board.seats.items()):
        node = seat.node
        gone, style = (f"gone: {seat.gone}", "dim red") if seat.gone else ("", "")
        table.add_row(name, _labels(seat), node.host, str(node.pid), f"{node.step:,}", gone, style=style)
    return table


def _labels(seat: Seat) -> str:
    """Its labels, without those that every node has."""
    own = {label for label in seat.node.labels if not label.startswith("node.")} - {"distributed"}
    return " ".join(sorted(own))
