"""The finish of a run while Redis forgets, and forgets again, the node that declares it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from taskbus.bus.finish import Finish
from taskbus.errors import BusUnavailable
from taskbus.types import FinishInfo


class Registry:
    """Has forgotten the node at each of the first writes; claims that come are counted."""

    def __init__(self, forgets: int) -> None:
        self.node_id = "7"
        self.forgets = forgets
        self.written = 0
        self.claims = 0
        self.finish: FinishInfo | None = None

    def write_finish(self, reason: str, timeout: float, *, node: str, at: float) -> FinishInfo | None:
        self.written += 1
        if self.written <= self.forgets:
            return None
        self.finish = FinishInfo(node, reason, at)
        return self.finish

    def claim(self) -> None:
        self.claims += 1
        time.sleep(0.02)


class Writer:
    waiting = acknowledged = 0


def finish(registry: Registry) -> Finish:
    made = Finish("run", registry, Writer())  # type: ignore[arg-type]
    made.on_forgotten = registry.claim
    return made


@pytest.mark.parametrize("forgets", [0, 1, 2, 5])
def test_a_finish_is_written_in_the_end_however_often_redis_forgets_the_node(forgets: int) -> None:
    registry = Registry(forgets)
    end = finish(registry)
    told: list[Any] = []
    end.on_finish(told.append)
    assert end.declare("completed", 5.0)
    assert (registry.claims, registry.written) == (forgets, forgets + 1)
    assert not end.is_pending
    assert told == [registry.finish]


def test_while_it_is_forgotten_again_and_again_the_finish_stays_pending_and_is_tried_again() -> None:
    registry = Registry(10**9)
    end = finish(registry)
    assert not end.declare("completed", 0.1)
    assert end.is_pending
    assert end.known is not None and registry.finish is None
    registry.forgets = 0
    end.retry()
    assert not end.is_pending
    assert registry.finish == end.known


def test_a_claim_that_fails_leaves_it_pending() -> None:
    registry = Registry(1)
    end = finish(registry)

    def fail() -> None:
        raise BusUnavailable("Redis is away")

    end.on_forgotten = fail
    assert not end.declare("completed", 1.0)
    assert end.is_pending
