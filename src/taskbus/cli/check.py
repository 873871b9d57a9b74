"""``taskbus check``: the health check of a container."""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING

from taskbus.cli.common import FAILED, OK, UNKNOWN, Commands, add_command, ago, complain, guest_of
from taskbus.errors import BusUnavailable

if TYPE_CHECKING:
    from taskbus.types import NodeInfo

__all__ = ["add_to"]

_EXAMPLES = """\
  HEALTHCHECK CMD taskbus check || [ $? -eq 4 ]         # in a Dockerfile; nobody is restarted because Redis is away
  taskbus check --node-id learner                       # one node, from anywhere

Without --node-id or TASKBUS_NODE_ID it is about every node of this host whose process runs here. A node is healthy
while its lease holds and its reader and its heartbeat both show signs of life: alive but deaf is unhealthy.
exit codes: 0 healthy; 1 not, no such node, or Redis refuses the password or the user; 4 cannot tell, as Redis does not
answer: nodes wait for it, with what they have still to write, so that they should not be restarted for it."""


def add_to(commands: Commands) -> None:
    """The parser of the command."""
    parser = add_command(commands, "check", _check, "exit 0 only while this container's node is healthy", _EXAMPLES)
    parser.add_argument("--node-id", metavar="ID", help="default: TASKBUS_NODE_ID, else the nodes of this host")


def _check(options: argparse.Namespace) -> int:
    try:
        return _judge(options)
    except BusUnavailable as error:
        complain("check", f"cannot tell: {error}")
        return UNKNOWN


def _judge(options: argparse.Namespace) -> int:
    with guest_of(options, node_id=options.node_id) as guest:
        node_id = guest.config.node_id
        found = guest.nodes()
        mine = [node for node in found if (node.id == node_id if node_id else _is_here(node))]
        run = f"run {guest.config.run_id!r}"
    if not mine:
        who = f"node {node_id!r}" if node_id else f"node of a process on {socket.gethostname()}"
        complain("check", f"no {who} is on {run}")
        return FAILED
    if deaf := [node.id for node in mine if not node.healthy]:
        complain("check", f"node {', '.join(deaf)} of {run} lives, but hears nothing from Redis")
        return FAILED
    print("\n".join(f"node {node.id} of {run} is healthy, seen {ago(node.seen)} ago" for node in mine))
    return OK


def _is_here(node: NodeInfo) -> bool:
    if node.host != socket.gethostname() or node.pid <= 0:
        return False
    try:
        os.kill(node.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's, but it is there
    return True
