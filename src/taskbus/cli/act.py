"""``taskbus emit``, ``finish`` and ``reset``: what a shell can do to a run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from taskbus.bus.runs import holds_run, remove_run
from taskbus.cli.common import FAILED, OK, Commands, add_command, clean, complain, guest_of, note
from taskbus.config import check_name
from taskbus.errors import ConfigError
from taskbus.globs import parse_globs

__all__ = ["add_to"]

_EMIT = """\
  taskbus emit pause
  taskbus emit learning_rate '[0.001]'
  taskbus emit weights '[1, 2]' '{"k": 3}' --only-to 'collector*,node.0'

  since=$(taskbus emit ask '[7]')             # and then for the answer, however fast it comes:
  taskbus wait answer --since "$since" --timeout 60

ARGS is a JSON array, KWARGS a JSON object: listeners are called as fn(*ARGS, **KWARGS). Exits 0 when Redis has it.
Prints the moment just before, as an id: whatever is emitted from then on comes behind it."""

_FINISH = """\
  taskbus finish                              # reason: stopped
  taskbus finish --reason 'error: out of budget'

The end is durable: every node leaves after its step, and whoever comes later sees it.
The first finish of a run stays."""

_RESET = """\
  taskbus reset default                       # asks
  taskbus reset nightly --yes                 # does not

Removes every key of the run, a finish included, so that its name can be used anew. Nodes that are still there join it
again as if Redis had lost it: finish the run first. Exits 0, too, where there is no such run, and says so."""


def add_to(commands: Commands) -> None:
    """The parsers of the three commands."""
    parser = add_command(commands, "emit", _emit, "emit one event into a run", _EMIT)
    parser.add_argument("event", metavar="EVENT", help="its name")
    parser.add_argument("args", metavar="ARGS", nargs="?", default="[]", help="positional arguments, a JSON array")
    parser.add_argument("kwargs", metavar="KWARGS", nargs="?", default="{}", help="keyword arguments, a JSON object")
    parser.add_argument("--only-to", metavar="GLOBS", help="only for nodes of which a label, or node.ID, matches one")
    parser.add_argument("--transient", action="store_true", help="for whoever listens now; not kept")
    parser = add_command(commands, "finish", _finish, "finish a run for all its nodes, now and later", _FINISH)
    parser.add_argument("--reason", default="stopped", help='default: "stopped"')
    parser = add_command(commands, "reset", _reset, "remove a run from Redis", _RESET, of_run=False)
    parser.add_argument("run_id", metavar="RUN", help="its id; see taskbus runs")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{what} must be JSON, and {text!r} is not: {error}") from None
    if not isinstance(value, kind):
        example = "an array as [1, 2]" if kind is list else 'an object as {"k": 3}'
        raise ConfigError(f"{what} must be {example}, not {text!r}")
    return value


def _emit(options: argparse.Namespace) -> int:
    args = tuple(_json(options.args, list, "ARGS"))
    kwargs = _json(options.kwargs, dict, "KWARGS")
    if check_name("the name of an event", options.event).startswith("taskbus."):
        raise ConfigError(f"event names that begin with 'taskbus.' are reserved, {options.event!r} was given")
    only_to = parse_globs(options.only_to) or ()
    with guest_of(options) as guest:
        since = guest.now()
        guest.emit(options.event, args, kwargs, only_to=only_to, transient=options.transient)
        finish, nodes = guest.finished(), guest.nodes()
    print(since, flush=True)  # before the notes, where both go to one place
    if finish is not None:
        note(f"run {guest.config.run_id!r} is finished already (by node {finish.node!r}: {finish.reason})")
    elif not nodes:
        kept = "nobody hears it" if options.transient else "it is kept for those that listen since the start"
        note(f"run {guest.config.run_id!r} has no live nodes; {kept}")
    return OK


def _finish(options: argparse.Namespace) -> int:
    with guest_of(options) as guest:
        if not guest.exists():
            complain("finish", f"there is no run {guest.config.run_id!r} on Redis at {guest.target.where}")
            return FAILED
        before = guest.finished()
        finish = before or guest.finish(options.reason)
    word = "was finished already" if before else "is finished"
    print(clean(f"run {guest.config.run_id!r} {word}, by node {finish.node!r}: {finish.reason}"))
    return OK


def _reset(options: argparse.Namespace) -> int:
    with guest_of(options) as guest:
        if not holds_run(guest):
            note(f"there is no run {guest.config.run_id!r} on Redis at {guest.target.where}; nothing to remove")
            return OK
        nodes = [node.id for node in guest.nodes()]
        who = f"{len(nodes)} live nodes ({', '.join(nodes)})" if nodes else "no live nodes"
        what = f"run {guest.config.run_id!r} on {guest.config.shown_url}, with {who}"
        if not options.yes and not _agrees(what):
            complain("reset", "nothing was removed")
            return FAILED
        if options.yes and nodes:
            note(f"the run has {who}; they join it anew")
        removed = remove_run(guest)
    print(f"removed run {guest.config.run_id!r}: {removed} keys")
    return OK


def _agrees(what: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is nobody to ask; give --yes to remove the run")
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
