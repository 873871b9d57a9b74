"""``taskbus top``: a run, live in the terminal."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from taskbus.cli.board import SORTS, Board, Sample
from taskbus.cli.common import OK, Commands, add_command, guest_of, seconds
from taskbus.errors import BusUnavailable

if TYPE_CHECKING:
    from taskbus.bus.guest import Guest

__all__ = ["add_to"]

_EXAMPLES = """\
  taskbus top
  taskbus top --sort r --interval 5
  taskbus top | cat                                     # one plain table, with the rates over one interval

keys: q quit; sort by i id, s step, r steps per second, l lag, m missed, a last seen, h host; again to turn it round.

LAG      events that are kept for this node's listeners and that it has not read
MISSED   events that were trimmed before it read them: its listeners are slower than the retention
REJECTED what it could not take: not ours, damaged, unsigned, of a type that is not registered there
RECONN   how often it had to open a connection to Redis again
SEEN     age of its last heartbeat; DEAF: it lives, but its reader hears nothing
Numbers of nodes are as of their last heartbeat, rates are over the last ten seconds."""

_HELP = "  ".join(f"{key}:{what}" for key, (what, _) in SORTS.items())


def add_to(commands: Commands) -> None:
    """The parser of the command."""
    parser = add_command(commands, "top", _top, "show a run live: nodes, steps, rates", _EXAMPLES)
    parser.add_argument("--interval", metavar="SECONDS", type=seconds(0.1), default=2.0, help="default: 2")
    parser.add_argument("--sort", choices=sorted(SORTS), default="i", help="the key to begin with (default: i)")


def _top(options: argparse.Namespace) -> int:
    with guest_of(options) as guest:
        board = Board(guest.config.run_id, guest.target.where)
        board.press(options.sort) if options.sort != board.sort else None
        board.add(Sample.take(guest))
        if _is_terminal():
            import curses

            curses.wrapper(_live, guest, board, options.interval)
            return OK
        threading.Event().wait(options.interval)
        board.add(Sample.take(guest))
        print("\n".join(board.lines()))
    return OK


def _is_terminal() -> bool:
    is_one = sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return is_one and importlib.util.find_spec("_curses") is not None  # not on every platform


def _live(screen: Any, guest: Guest, board: Board, interval: float) -> None:
    import curses

    curses.use_default_colors()
    try:
        curses.curs_set(0)
    except curses.error:
        pass  # a terminal that always shows its cursor
    screen.timeout(int(1000 * interval))
    while True:
        _draw(screen, board.lines())
        key = screen.getch()
        if key in (ord("q"), ord("Q"), 27):
            return
        if key != -1:
            if 0 < key < 128:
                board.press(chr(key))
            continue
        try:
            board.add(Sample.take(guest))
        except BusUnavailable as error:
            board.problem = f"NOT REACHABLE: {error}"


def _draw(screen: Any, lines: list[str]) -> None:
    import curses

    height, width = screen.getmaxyx()
    screen.erase()
    for row, line in enumerate([*lines[: max(0, height - 1)]]):
        is_head = row == 0 or line.startswith(("ID ", "EVENT "))
        screen.addnstr(row, 0, line, max(1, width - 1), curses.A_BOLD if is_head else curses.A_NORMAL)
    if height > 1:
        screen.addnstr(height - 1, 0, f"q:quit  sort by  {_HELP}", max(1, width - 1), curses.A_DIM)
    screen.refresh()
