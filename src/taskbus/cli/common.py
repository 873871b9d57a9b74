"""What the commands share: options, exit codes, and how things are said."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskbus.bus.guest import Guest
from taskbus.config import RouterConfig
from taskbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "RUN_FINISHED",
    "TIMED_OUT",
    "UNKNOWN",
    "USAGE",
    "Commands",
    "add_command",
    "ago",
    "clean",
    "complain",
    "config_of",
    "guest_of",
    "note",
    "redis_url",
    "seconds",
    "table",
]

OK, FAILED, USAGE, RUN_FINISHED, UNKNOWN, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 124, 130

Commands = Any  # argparse keeps the type of its subparsers to itself


def add_command(
    commands: Commands,
    name: str,
    command: Callable[[argparse.Namespace], int],
    help: str,
    examples: str,
    *,
    of_bus: bool = True,
    of_run: bool = True,
) -> argparse.ArgumentParser:
    """A subcommand with the options of those that need a bus, or a run on it; ``examples`` ends its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    if not of_bus:
        return parser
    parser.add_argument("--url", help="where the bus is, as redis://host:port/db (default: TASKBUS_URL)")
    parser.add_argument("--redis-host", metavar="HOST", help="instead of --url")
    parser.add_argument("--redis-port", metavar="PORT", type=int, help="instead of --url")
    if of_run:
        parser.add_argument("--run-id", metavar="RUN", help='the run (default: TASKBUS_RUN_ID, else "default")')
    return parser


def redis_url(options: argparse.Namespace) -> str | None:
    """The URL that was asked for: ``--url``, or made of ``--redis-host`` and ``--redis-port``."""
    if options.url == "":
        raise ConfigError("--url is empty: give one as redis://host:port/db, or leave it out for TASKBUS_URL")
    if options.redis_host is None and options.redis_port is None:
        return options.url  # type: ignore[no-any-return]
    if options.url:
        raise ConfigError("give --url, or --redis-host and --redis-port, not both")
    return f"redis://{options.redis_host or '127.0.0.1'}:{options.redis_port or 6379}"


def config_of(options: argparse.Namespace, **settings: Any) -> RouterConfig:
    """Settings from the options and the environment, for who comes from outside."""
    config = RouterConfig.from_env(url=redis_url(options), run_id=getattr(options, "run_id", None), **settings)
    if config.url.startswith("memory://"):
        raise ConfigError("memory:// lives in one process, and no other sees into it; give a redis:// URL")
    return config


def guest_of(options: argparse.Namespace, **settings: Any) -> Guest:
    """A guest at the run of the options; not yet connected. Somebody sits before it, so it gives up early."""
    return Guest(config_of(options, **{"op_timeout": 2.0, **settings}))


def seconds(least: float = 0.0) -> Callable[[str], float]:
    """A type for argparse: a number of seconds."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not number >= least:
            raise argparse.ArgumentTypeError(f"a number of seconds of at least {least:g} is needed, not {text!r}")
        return number

    return parse


def clean(text: str) -> str:
    """``text`` without what a terminal would obey: who can write to Redis must not reach the screen of who looks on."""
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    )


def complain(name: str, what: object) -> None:
    """One sentence on stderr."""
    print(f"taskbus {name}: {clean(' '.join(str(what).split()))}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """News beside the output proper, on stderr; in one piece, for workers share it."""
    print(f"# {clean(text)}\n", end="", file=sys.stderr, flush=True)


def ago(seconds: float | None) -> str:
    """A duration in two letters' width: ``0.4s``, ``12s``, ``3m``, ``5h``, ``2d``."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds / 86_400:.0f}d"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, right: str = "") -> list[str]:
    """Lines with aligned columns; those named in ``right`` (separated by blanks) are aligned to the right."""
    cells = [[clean(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    to_right = [name in right.split() for name in head]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in cells
    ]
