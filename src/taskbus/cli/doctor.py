"""``taskbus doctor``: what this Redis means for the promises of the bus, one line for each check."""

from __future__ import annotations

import argparse

from taskbus.cli.common import FAILED, OK, Commands, add_command, guest_of
from taskbus.cli.examine import Finding, examine

__all__ = ["add_to"]

_EXAMPLES = """\
  taskbus doctor --url rediss://user:secret@host:6380/0

ok: as it should be; note: works, and what it means; bad: a promise does not hold; ?: Redis does not let this user look.
Writes a few keys of its own under the run's prefix, to try the rights, and removes them.
exit codes: 0 nothing is bad; 1 something is."""


def add_to(commands: Commands) -> None:
    """The parser of the command."""
    add_command(commands, "doctor", _doctor, "check a Redis, and say what it means for the promises", _EXAMPLES)


def _doctor(options: argparse.Namespace) -> int:
    bad = 0
    finding: Finding
    for finding in examine(guest_of(options)):
        bad += finding.word == "bad"
        print(f"{finding.word:<4}  {finding.what:<12}  {finding.text}", flush=True)
    return FAILED if bad else OK
