"""``taskbus run``: a container's command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from taskbus.cli.common import FAILED, OK, Commands, add_command, note, redis_url, seconds
from taskbus.config import RouterConfig
from taskbus.draining import GRACE, Terminated
from taskbus.errors import ConfigError, RunFinished, TaskbusError, WorkerFailed
from taskbus.parallel import REFUSED, Parallel
from taskbus.reports import check_main, prefix_logs

__all__ = ["add_to"]

_EXAMPLES = """\
  taskbus run job:main                                  # one node, with a private server if no URL is known
  taskbus run job:main -n 4 --labels collector --url redis://host:6379/0 --run-id nightly
  taskbus run job:main --auto-recover --max-retries 3 -- fast 12   # calls main("fast", "12")

MODULE:FUNCTION is looked for in the current directory first. SIGTERM and Ctrl-C: the node ends its step, flushes,
leaves and exits 0, and the run goes on. A step that takes longer than --grace after SIGTERM, or 1 s after Ctrl-C, and
a step in which a second signal comes, is cut: the node says so, leaves and exits 1. A crash exits 1 with its traceback
and ends the other workers of this command (unless --auto-recover starts it again); the run is not finished by it, and
the nodes of other commands go on.
--parallel-workers, --main, --package and the other spellings of ditask are taken as well."""

_NOT_THE_USERS = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    os.path.dirname(importlib.__file__),
    contextlib.__file__,
    "<frozen importlib",
)


def add_to(commands: Commands) -> None:
    """The parser of the command."""
    parser = add_command(commands, "run", _run, "run a function as one node, or as several local ones", _EXAMPLES)
    parser.set_defaults(main_arguments=[])
    parser.add_argument("main", metavar="MODULE:FUNCTION", nargs="?", help="what to run; arguments for it follow --")
    parser.add_argument(
        "-n",
        "--workers",
        "--parallel-workers",
        metavar="N",
        type=int,
        default=1,
        help="processes to start (default: 1)",
    )
    parser.add_argument("--labels", metavar="A,B", help="labels of every node (default: TASKBUS_LABELS)")
    parser.add_argument("--node-ids", metavar="IDS", help="one for each process, or the number to count from")
    parser.add_argument("--auto-recover", action="store_true", help="start a function that failed again")
    parser.add_argument("--max-retries", metavar="N", type=int, default=None, help="how often (default: for ever)")
    parser.add_argument(
        "--startup-interval", metavar="SECONDS", type=seconds(), default=0.0, help="between two processes"
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=seconds(),
        default=GRACE,
        help=f"for a step to end after SIGTERM, before it is cut (default: {GRACE:g}; at most 1 after Ctrl-C)",
    )
    for spelling in ("-m", "--main"):
        parser.add_argument(spelling, dest="main_option", metavar="MODULE.FUNCTION", help=argparse.SUPPRESS)
    parser.add_argument("-p", "--package", default=".", help=argparse.SUPPRESS)
    for name in ("--mq-type", "--protocol", "--address", "--ports", "--topology", "--attach-to"):
        parser.add_argument(name, help=argparse.SUPPRESS)


def _run(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ConfigError(f"-n must be at least 1, not {options.workers}")
    if options.workers > 1 and not options.node_ids and RouterConfig.from_env().node_id is not None:
        raise ConfigError(f"TASKBUS_NODE_ID names one node, and {options.workers} are asked for: give --node-ids")
    prefix_logs()
    run = Parallel.runner(
        options.workers,
        redis_url=redis_url(options),
        run_id=options.run_id,
        labels=options.labels,
        node_ids=options.node_ids.split(",") if options.node_ids else None,
        auto_recover=options.auto_recover,
        max_retries=math.inf if options.max_retries is None else options.max_retries,
        startup_interval=options.startup_interval,
        grace=options.grace,
        **_spelled(options),
    )
    try:
        run(partial(_until_finished, _load(options)), *options.main_arguments)
    except SystemExit as end:
        if isinstance(end.__context__, Terminated):
            return FAILED if end.__context__.was_cut else OK
        raise
    except WorkerFailed as error:
        print(error, file=sys.stderr)
        return FAILED
    except Exception as error:
        trace = _from_user(error.__traceback__)
        if trace is None and isinstance(error, TaskbusError):
            raise
        traceback.print_exception(error.with_traceback(trace))
        return FAILED
    return OK


def _until_finished(main: Callable[..., Any], *arguments: str) -> None:
    """Run ``main``; who waits when the run is finished has nothing left to do, which is no failure."""
    try:
        main(*arguments)
    except RunFinished as error:
        note(str(error))


def _spelled(options: argparse.Namespace) -> dict[str, Any]:
    names = ("mq_type", "protocol", "address", "ports", "topology", "attach_to")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name in given.keys() & REFUSED.keys():
        raise ConfigError(f"--{name.replace('_', '-')} is not needed: {REFUSED[name]}")
    return given


def _load(options: argparse.Namespace) -> Callable[..., Any]:
    """The function that the command line names."""
    if (options.main is None) == (options.main_option is None):
        raise ConfigError("name the function to run, once: taskbus run package.module:main")
    text = options.main or options.main_option
    path, _, function = text.partition(":")
    if "/" in path or path.endswith(".py"):
        module = path.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"what to run is named as {module}:{function or 'main'}, not as {text!r}")
    module_name, _, name = text.partition(":") if ":" in text else text.rpartition(".")
    if not module_name or not name:
        raise ConfigError(f"what to run is named as package.module:function, not {text!r}")
    sys.path.insert(0, os.path.abspath(options.package))
    _find(module_name)
    value: Any = importlib.import_module(module_name)
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise ConfigError(f"module {module_name!r} has no function {name!r}")
    check_main(value)
    return value  # type: ignore[no-any-return]


def _find(module_name: str) -> None:
    """Refuse a module that is not there; an error *in* one is the user's, and has a traceback."""
    parts = module_name.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        if importlib.util.find_spec(name) is None:
            where = os.getcwd()
            raise ConfigError(f"there is no module {name!r} in {where} or among the installed packages")


def _from_user(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor the import's; ``None`` when all are."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        trace = trace.tb_next
    return trace
