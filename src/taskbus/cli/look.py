"""``taskbus nodes`` and ``taskbus runs``: who is there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from taskbus.bus.runs import list_runs
from taskbus.cli.common import OK, Commands, add_command, ago, config_of, guest_of, note, table

if TYPE_CHECKING:
    from taskbus.types import NodeInfo

__all__ = ["add_to"]

_NODES = """\
  taskbus nodes
  taskbus nodes --labels 'collector*,node.0' --json"""

_RUNS = """\
  taskbus runs --url redis://host:6379/0
  taskbus runs --json | jq -r 'select(.state == "idle").id'

state: live (nodes are there), idle (kept, but nobody is there), finished. age: since the first node joined, if one has.
size: memory in Redis. Walks all keys of taskbus there, in small steps; an abandoned run disappears by itself."""


def add_to(commands: Commands) -> None:
    """The parsers of both commands."""
    parser = add_command(commands, "nodes", _nodes, "list the live nodes of a run", _NODES)
    parser.add_argument(
        "--labels", metavar="GLOBS", help="only nodes of which a label, or node.ID, matches one of these"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser = add_command(commands, "runs", _runs, "list the runs that a Redis holds", _RUNS, of_run=False)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _matches(node: NodeInfo, globs: list[str]) -> bool:
    return any(fnmatchcase(label, glob) for glob in globs for label in (*node.labels, f"node.{node.id}"))


def _nodes(options: argparse.Namespace) -> int:
    with guest_of(options) as guest:
        found = guest.nodes()
        finish = guest.finished()
    if options.labels:
        globs = [glob.strip() for glob in options.labels.split(",")]
        found = [node for node in found if _matches(node, globs)]
    if options.json:
        for node in found:
            print(json.dumps({**dataclasses.asdict(node), "labels": sorted(node.labels)}))
        return OK
    now = time.time()
    rows = [
        (
            node.id,
            ",".join(sorted(node.labels)) or "-",
            f"{node.host}:{node.pid}",
            node.role or "-",
            node.step,
            ago(max(0.0, now - node.started)),
            ago(node.seen),
            "healthy" if node.healthy else "DEAF",
        )
        for node in found
    ]
    head = ("ID", "LABELS", "HOST:PID", "ROLE", "STEP", "UP", "SEEN", "STATE")
    print("\n".join(table(head, rows, right="STEP UP SEEN")))
    if finish is not None:
        note(f"run {guest.config.run_id!r} was finished by node {finish.node!r}: {finish.reason}")
    elif not found:
        note(f"run {guest.config.run_id!r} has no live nodes{' that match' if options.labels else ''}")
    return OK


def _runs(options: argparse.Namespace) -> int:
    found, refused = list_runs(config_of(options, op_timeout=2.0))
    if refused:
        some = ", ".join(refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        note(f"this user may not look into {len(refused)} other runs: {some}")
    if options.json:
        for run in found:
            print(json.dumps({**dataclasses.asdict(run), "state": run.state}))
        return OK
    rows = [
        (
            run.id,
            run.state,
            run.nodes,
            "-" if run.age is None else ago(run.age),
            _size(run.size),
            f"{run.finish.reason} (node {run.finish.node})" if run.finish else "-",
        )
        for run in found
    ]
    print("\n".join(table(("RUN", "STATE", "NODES", "AGE", "SIZE", "FINISH"), rows, right="NODES AGE SIZE")))
    return OK


def _size(size: float | None) -> str:
    if size is None:
        return "?"
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
