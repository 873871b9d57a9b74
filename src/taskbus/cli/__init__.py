"""The command line: one parser, a file for each group of commands, and the exit codes that scripts rely on."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence

from taskbus import __version__
from taskbus.cli import act, check, doctor, follow, look, run, server, top
from taskbus.cli.common import FAILED, INTERRUPTED, OK, USAGE, complain
from taskbus.errors import ConfigError, TaskbusError

__all__ = ["main"]

_EPILOG = """\
two shells on one Redis (`taskbus server` runs one):
  taskbus run job:main --labels learner                  # the first node of run "default"
  taskbus run job:main --labels collector -n 3           # three more
and a third one that looks on:
  taskbus top                                            # nodes, steps, events per second
  taskbus tail --event 'sample*'                         # what is emitted
  taskbus wait trained --since start --timeout 60        # for scripts: prints the event, or exits 124

Every command but server takes --url (default: TASKBUS_URL) and, where it is about one run, --run-id (default:
TASKBUS_RUN_ID, else "default"). `taskbus COMMAND --help` has examples.

exit codes: 0 done; 1 failed; 2 wrong arguments; 3 the run finished before the event came (wait);
            4 cannot tell, Redis is away (check); 124 the time is over (wait); 130 Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:
        return _demo(arguments[1:])
    arguments, rest = _split(arguments)
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        complain(options.name, f"unexpected {' '.join(unknown)}: see taskbus {options.name} --help")
        return USAGE
    if rest and not hasattr(options, "main_arguments"):
        parser.error(f"unexpected arguments after --: {' '.join(rest)}")
    options.main_arguments = rest
    try:
        return _run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(options.name, f"the output cannot be written: {error.strerror}")
        return FAILED


def _run(options: argparse.Namespace) -> int:
    if options.name != "run":
        logging.getLogger("taskbus").setLevel(logging.CRITICAL)  # one sentence says it all
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        complain(options.name, error)
        return USAGE
    except TaskbusError as error:
        complain(options.name, error)
        return FAILED


def _demo(arguments: list[str]) -> int:
    from taskbus.demo import main as demo

    return demo(arguments)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Ours, and what stands behind ``--`` for the main of ``taskbus run``."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taskbus",
        description="Run pipelines on many processes that wait for one another over Redis, and see how they do.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"taskbus {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="name", required=True)
    run.add_to(commands)
    commands.add_parser("demo", help="train a policy with several processes, and watch it", add_help=False)
    for module in (server, look, follow, act, check, doctor, top):
        module.add_to(commands)
    return parser
