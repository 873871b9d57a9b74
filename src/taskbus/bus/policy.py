"""Whether a server will do: its version, and that it is set up for keeping what it is given."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskbus.errors import BusError, BusUnavailable, ConfigError

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.packing import Arg

__all__ = ["ASK_FOR_EVICTION", "check_version", "warn_of_eviction"]

log = logging.getLogger("taskbus")


def check_version(
    calls: Calls, where: str, also: Sequence[Sequence[Arg]] = (), meanwhile: Callable[[], None] = lambda: None
) -> list[Any]:
    """Refuse a server below 7.0 with one sentence; a server that does not say its version is taken at its word.

    Returns the answers to the commands that were ``also`` to be asked, see :meth:`Calls.call_with`; none of a server
    that does not say.
    """
    try:
        hello, answers = calls.call_with((b"HELLO",), also, meanwhile)
    except BusError as error:
        if "unknown command" in str(error).lower():
            raise ConfigError(f"Redis at {where} is older than 6.0; taskbus needs Redis 7.0 or Valkey") from None
        if "closed" in str(error) or "reset" in str(error):
            raise BusUnavailable(f"{error}; if it wants TLS, the URL begins with rediss://", where=where) from error
        if "NOPERM" not in str(error):
            raise
        return []
    fields = dict(zip(hello[::2], hello[1::2], strict=False))
    version, server = fields.get(b"version", b"").decode(), fields.get(b"server", b"").decode()
    if fields.get(b"role") in (b"replica", b"slave"):
        raise BusUnavailable(f"Redis at {where} is a read-only replica; give the address of its primary", where=where)
    major = version.partition(".")[0]
    if server == "redis" and major.isdigit() and int(major) < 7:
        raise ConfigError(f"Redis at {where} is version {version}; taskbus needs Redis 7.0 or Valkey", version=version)
    return answers


ASK_FOR_EVICTION: Final = (b"INFO", b"memory")
"""What to ask the server for :func:`warn_of_eviction`."""


def warn_of_eviction(told: Sequence[Any], where: str) -> None:
    """Say so when the server would evict keys of the run for memory; one that has not ``told`` is left alone."""
    for text in told:
        found = re.search(rb"^maxmemory_policy:(\S+)", text, re.MULTILINE) if isinstance(text, bytes) else None
        if found and found[1] != b"noeviction":
            log.warning(
                "Redis at %s has maxmemory-policy %s: when memory is full it deletes keys of the run, which loses "
                "events; set it to noeviction",
                where,
                found[1].decode(errors="replace"),
            )
