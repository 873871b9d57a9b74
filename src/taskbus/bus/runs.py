"""The runs that a Redis holds: who they are, how large, and how one is removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from taskbus.bus.guest import Guest
from taskbus.errors import BusDenied

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.config import RouterConfig
    from taskbus.types import FinishInfo

__all__ = ["RunInfo", "holds_run", "list_runs", "remove_run"]

_RUN = re.compile(rb"taskbus:\{([^{}]+)\}:")
_BATCH = 500


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as it is kept: ``age`` in seconds since its first node joined, ``size`` in bytes of memory.

    Both are ``None`` where Redis does not say: no node has joined yet, or this user may not ask for sizes.
    """

    id: str
    nodes: int
    keys: int
    age: float | None
    size: int | None
    finish: FinishInfo | None

    @property
    def state(self) -> str:
        """``"finished"``, ``"live"`` (there are nodes), or ``"idle"``: kept, but nobody is there."""
        return "finished" if self.finish else "live" if self.nodes else "idle"


def list_runs(config: RouterConfig) -> tuple[list[RunInfo], list[str]]:
    """Every run on the Redis of ``config``, by id; walks all its keys in small steps.

    Second the ids of those that this user may not look into.
    """
    keys: dict[str, int] = {}
    sizes: dict[str, int | None] = {}
    with Guest(config) as server:
        for batch in _scan(server.calls, "taskbus:*"):
            answers = server.calls.each([(b"MEMORY", b"USAGE", key) for key in batch])
            for key, size in zip(batch, answers, strict=True):
                if found := _RUN.match(key):
                    run = found[1].decode(errors="replace")
                    keys[run] = keys.get(run, 0) + 1
                    known = sizes.get(run, 0)
                    sizes[run] = None if isinstance(size, Exception) or known is None else known + (size or 0)
        now = int(server.calls.call(b"TIME")[0])
    runs: list[RunInfo] = []
    refused: list[str] = []
    for run in sorted(keys):
        try:
            runs.append(_run(replace(config, run_id=run), now, keys[run], sizes[run]))
        except BusDenied:
            refused.append(run)
    return runs, refused


def _run(config: RouterConfig, now: int, keys: int, size: int | None) -> RunInfo:
    with Guest(config) as guest:
        epoch = guest.calls.call(b"GET", guest.keys.epoch) or b""
        began = epoch.partition(b"@")[2]
        age = max(0.0, now - int(began) / 1000) if began.isdigit() else None
        return RunInfo(config.run_id, len(guest.nodes()), keys, age, size, guest.finished())


def holds_run(guest: Guest) -> bool:
    """Whether there is any key of the guest's run."""
    return any(_scan(guest.calls, f"{guest.keys.prefix}*"))


def remove_run(guest: Guest) -> int:
    """Remove every key of the guest's run, in batches; returns how many there were."""
    removed = 0
    for batch in _scan(guest.calls, f"{guest.keys.prefix}*"):
        removed += guest.calls.call(b"UNLINK", *batch)
    return removed


def _scan(calls: Calls, pattern: str) -> Iterator[list[bytes]]:
    position = b"0"
    batch: dict[bytes, None] = {}
    while True:
        position, found = calls.call(b"SCAN", position, b"MATCH", pattern, b"COUNT", _BATCH)
        batch.update(dict.fromkeys(found))
        if batch and (len(batch) >= _BATCH or position == b"0"):
            yield list(batch)
            batch.clear()
        if position == b"0":
            return
