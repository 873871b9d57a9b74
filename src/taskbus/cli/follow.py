"""``taskbus tail`` and ``taskbus wait``: the events of a run, as they come and as they are kept."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskbus.bus.backoff import Backoff
from taskbus.bus.follower import Follower, Sighting
from taskbus.cli.common import (
    FAILED,
    OK,
    RUN_FINISHED,
    TIMED_OUT,
    Commands,
    add_command,
    complain,
    guest_of,
    note,
    seconds,
)
from taskbus.cli.show import as_json, as_line
from taskbus.config import check_name
from taskbus.errors import BusUnavailable, ConfigError

if TYPE_CHECKING:
    from taskbus.bus.guest import Guest
    from taskbus.types import FinishInfo

__all__ = ["add_to"]

_LARGEST_SHOWN = 1 << 20
_PAGE = 1.0
_GLOB = re.compile(r"(?:[A-Za-z0-9_.:*?-]|\[!?\]?[^\]]*\])+\Z")

_TAIL = """\
  taskbus tail                                # all that is emitted from now on; ends when the run is finished
  taskbus tail --since start --event 'eval.*'
  taskbus tail --since start --no-follow --json | jq .args

The readable form cuts long values; --json has one object for each event: event, id, number, at, node, args, kwargs.
Transient events are not kept and not shown. Looking on leaves no trace on the run."""

_WAIT = """\
  taskbus wait trained --since start --timeout 60       # counts too if it was emitted already
  event=$(taskbus wait evaluated --timeout 60) || exit  # in two steps: behind a pipe, `||` is about jq
  score=$(jq .kwargs.score <<< "$event")
  since=$(taskbus emit ask '[7]')                       # the answer may come before the wait begins
  taskbus wait answer --since "$since" --timeout 60
  taskbus wait --finish --timeout 3600                  # until the run is finished

Prints the event as one line of JSON. EVENT may be a glob.
exit codes: 0 it came; 124 not in time; 3 the run was finished before it came."""


def add_to(commands: Commands) -> None:
    """The parsers of both commands."""
    parser = add_command(commands, "tail", _tail, "show what is emitted, as it comes", _TAIL)
    parser.add_argument("--event", metavar="GLOB", action="append", help="only these events (may be given again)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--no-follow", action="store_true", help="end when all that is kept was shown")
    _add_shared(parser)
    parser = add_command(commands, "wait", _wait, "wait for an event and print it as JSON", _WAIT)
    parser.add_argument("event", metavar="EVENT", nargs="?", help="its name, or a glob")
    parser.add_argument("--finish", action="store_true", help="wait for the finish of the run instead")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds(), default=math.inf, help="default: for ever")
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        metavar="WHEN",
        default="now",
        help="now (default), start (all that is kept), or an id: an event's, or what emit printed",
    )
    parser.add_argument(
        "--import",
        metavar="MODULE",
        dest="modules",
        action="append",
        default=[],
        help="import this first, for the types that it registers",
    )


def _check_glob(text: str) -> str:
    """``text``, unless no name of an event can match it."""
    if not set("*?[") & set(text):
        return check_name("the name of an event", text)
    if not _GLOB.match(text):
        raise ConfigError(
            f"no event matches {text!r}: names have characters of A-Z a-z 0-9 _ . : -, globs also * ? [ ]"
        )
    return text


def _import(modules: list[str]) -> None:
    sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"--import {name}: {error}") from None


class _Names:
    """Node ids by the token of the life that emitted; asked for again when a token is new."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._joined: Follower | None = None
        self._known: dict[str, str] = {}

    def of(self, sighting: Sighting) -> str:
        token = sighting.producer
        if token not in self._known:
            self._known.update((node.producer, node.id) for node in self._guest.nodes())
        if token not in self._known:  # it has left, or it is a guest as we are
            self._known.update(self._those_who_joined())
            self._known.setdefault(token, "shell" if token else "?")
        return self._known[token]

    def close(self) -> None:
        if self._joined is not None:
            self._joined.close()

    def _those_who_joined(self) -> Iterator[tuple[str, str]]:
        self._joined = self._joined or Follower(self._guest, ["taskbus.node_joined"], "start")
        while found := self._joined.read(0.0):
            yield from ((one.producer, str((one.kwargs or {}).get("node", "?"))) for one in found)


def _hint(guest: Guest, follow: bool) -> None:
    """Say so when nothing is there: the name of the run may be a slip."""
    if not guest.streams() and not guest.nodes() and guest.finished() is None:
        waiting = "; waiting" if follow else ""
        note(f"run {guest.config.run_id!r} has no live nodes and no events yet{waiting}")


def _pages(guest: Guest, follower: Follower, deadline: float, follow: bool) -> Iterator[list[Sighting]]:
    """What comes until the deadline, until the run is finished and all was read, or until all kept was read."""
    backoff = Backoff()
    is_over = is_away = False
    while True:
        try:
            found = follower.read(min(_PAGE, max(0.0, deadline - time.monotonic())) if follow and not is_over else 0.0)
            backoff.reset()
            if is_away:
                note("Redis can be reached again")
                is_away = False
            if found:
                yield found
                continue
            if is_over or not follow or time.monotonic() >= deadline:
                return
            is_over = guest.finished() is not None  # what was emitted before it is read once more
            if follower.matches("taskbus.node_left"):
                guest.sweep()
        except BusUnavailable as error:
            if not is_away:
                note(f"{str(error).rstrip('.')}; trying again until it can")
            is_away = True
            delay = min(backoff.next(), deadline - time.monotonic())
            if delay <= 0:
                return
            threading.Event().wait(delay)


def _tail(options: argparse.Namespace) -> int:
    globs = [_check_glob(glob) for glob in options.event or ["*"]]
    _import(options.modules)
    with guest_of(options) as guest:
        follower = Follower(guest, globs, options.since, 0 if options.json else _LARGEST_SHOWN)
        names, width, missed = _Names(guest), 12, 0
        try:
            _hint(guest, not options.no_follow)
            for page in _pages(guest, follower, math.inf, not options.no_follow):
                for sighting in page:
                    node = names.of(sighting)
                    width = max(width, min(40, len(sighting.event)))
                    print(as_json(sighting, node) if options.json else as_line(sighting, node, width))
                sys.stdout.flush()
                if follower.missed > missed:
                    note(f"{follower.missed - missed} events were trimmed before they were read")
                    missed = follower.missed
        finally:
            follower.close()
            names.close()
        finish = guest.finished()
        if finish is not None and not options.json:
            note(f"run {guest.config.run_id!r} was finished by node {finish.node!r}: {finish.reason}")
    return OK


def _wait(options: argparse.Namespace) -> int:
    if options.finish == (options.event is not None):
        raise ConfigError("give either the name of an event or --finish")
    deadline = time.monotonic() + options.timeout
    if options.event is not None:
        _check_glob(options.event)
    _import(options.modules)
    with guest_of(options) as guest:
        # The finish is an entry of no stream: it is looked for after every pause of the others.
        follower, names = Follower(guest, [options.event or "taskbus.finish"], options.since), _Names(guest)
        try:
            _hint(guest, follow=True)
            for page in _pages(guest, follower, deadline, follow=True):
                print(as_json(page[0], names.of(page[0])))
                if problem := page[0].problem:
                    hint = "; --import MODULE has it registered" if "not registered" in problem else ""
                    complain("wait", f"event {page[0].event!r} came, and cannot be read: {problem}{hint}")
                return FAILED if problem else OK
        finally:
            follower.close()
            names.close()
        return _give_up(guest, options, guest.finished())


def _give_up(guest: Guest, options: argparse.Namespace, finish: FinishInfo | None) -> int:
    if finish is None:
        what = "the finish" if options.finish else f"event {options.event!r}"
        complain("wait", f"{what} of run {guest.config.run_id!r} did not come within {options.timeout:g} s")
        return TIMED_OUT
    if options.finish:
        print(json.dumps({"finish": {"node": finish.node, "reason": finish.reason, "at": finish.at}}))
        return OK
    who = f"node {finish.node!r} ({finish.reason})"
    complain("wait", f"run {guest.config.run_id!r} was finished by {who} before event {options.event!r} came")
    return RUN_FINISHED
