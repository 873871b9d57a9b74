"""``taskbus demo``: starts the job on this machine, shows how it goes, and says where the learning curve is."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from taskbus import Router
from taskbus.bus.embedded import EmbeddedServer
from taskbus.config import RouterConfig, hide_password
from taskbus.demo.board import Board
from taskbus.demo.crew import Crew
from taskbus.demo.display import Display, open_display
from taskbus.demo.goal import EPISODES
from taskbus.demo.watch import Watch
from taskbus.errors import ConfigError, TaskbusError

__all__ = ["main"]

_NEEDED = ("gymnasium", "matplotlib", "numpy", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns its exit code: 0 solved, 1 not, 2 wrong arguments, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(f"taskbus demo needs {', '.join(missing)}: pip install 'taskbus[demo]'", file=sys.stderr)
        return 1
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(options)
    except TaskbusError as error:
        print(f"taskbus demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("taskbus demo: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`| head`) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, with the exit code that a shell expects."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taskbus demo", description="Train a policy for CartPole-v1 with several processes."
    )
    parser.add_argument("--url", help="the Redis to use (default: TASKBUS_URL, else a private server)")
    parser.add_argument("--run-id", help="the run to make (default: a new name)")
    parser.add_argument("--workers", type=_count, default=2, metavar="N", help="collectors to start (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights (default: 0)")
    parser.add_argument("--out", type=Path, default="demo-output", help="for curve and logs (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=_timeout, default=180.0, help="seconds until it gives up (default: %(default)g)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, not {text!r}")
    return int(text)


def _timeout(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"a number of seconds is needed, not {text!r}")
    return number


def _run(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    run_id = options.run_id or f"demo-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        stack.enter_context(_log(options.out / "demo.log"))
        url = stack.enter_context(_bus(options.url))
        router = stack.enter_context(Router(url, run_id=run_id, node_id="demo", labels="observer"))
        if router.finished is not None:
            again = router.config.reset_command
            raise ConfigError(f"run {run_id!r} is finished already; take another name, or: {again}")
        board, display = Board(), open_display()
        display.say(f"run {run_id} on {hide_password(url)}")
        try:
            failure = _train(options, router, board, display)
        finally:
            display.close()
    return _report(options, board, failure)


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Warnings of this process go to a file, so that they do not disturb the display."""
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("taskbus")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _bus(url: str | None) -> Iterator[str]:
    """The URL of the bus; of a private server, for as long as it is needed, when no other is named."""
    known = RouterConfig.from_env(url=url).url
    if known:
        yield known
        return
    with EmbeddedServer() as server:
        yield server.url


def _train(options: argparse.Namespace, router: Router, board: Board, display: Display) -> str:
    """Start the processes and look on until the run is over; returns what went wrong, if anything did."""
    watch = Watch(router, board, display, options.workers)
    crew = Crew(router.config.url, router.config.run_id, options.out, watch.ended)
    try:
        crew.start("learner", "learner", str(options.seed))
        for number in range(1, options.workers + 1):
            crew.start("collector", f"collector-{number}")
        crew.start("evaluator", "evaluator")
        display.say("started " + ", ".join(f"{member.name} (pid {member.pid})" for member in crew.members.values()))
        watch.until_over(options.timeout)
    finally:
        if router.finished is None:
            router.finish("stopped")
        crew.stop(timeout=5.0 if not watch.failure else 1.0)
    return watch.failure


def _report(options: argparse.Namespace, board: Board, failure: str) -> int:
    solved = board.solved
    if solved is not None:
        mean = f"mean return {solved.mean_return:.1f} over {EPISODES} episodes"
        more = f" (of {board.steps:,} until that was known)" if board.steps > solved.steps else ""
        print(f"Solved in {board.seconds:.0f} s and {solved.steps:,} steps{more}: {mean}.", flush=True)
    if board.evaluations:
        from taskbus.demo.plot import save_curve  # late: its first import on a machine takes some seconds

        print(f"Learning curve: {save_curve(board, options.out / 'learning-curve.png')}")
    if failure:
        print(f"taskbus demo: {failure}", file=sys.stderr)
    return 1 if failure else 0
