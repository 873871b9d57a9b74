"""Whether the server is set up for keeping what it is given."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from taskbus.errors import BusError

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.connect import Target

__all__ = ["warn_of_eviction"]

log = logging.getLogger("taskbus")


def warn_of_eviction(calls: Calls, target: Target) -> None:
    """Say so when the server would evict keys of the run for memory; a server that does not tell is left alone."""
    if target.in_process:
        return
    try:
        told = calls.call(b"INFO", b"memory", timeout=1.0).decode(errors="replace")
    except BusError:
        return
    found = re.search(r"^maxmemory_policy:(\S+)", told, re.MULTILINE)
    if found and found[1] != "noeviction":
        log.warning(
            "Redis at %s has maxmemory-policy %s: when memory is full it deletes keys of the run, which loses events; "
            "set it to noeviction",
            target.where,
            found[1],
        )
