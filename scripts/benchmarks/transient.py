"""Transient events: throughput and fan-out by pub/sub."""

from __future__ import annotations

from stage import Row, Stage
from throughput import measure


def run(stage: Stage) -> list[Row]:
    one = Row("transient, 1 consumer", "events/s", reach=2.0)
    consumers = stage.size(8, 2)
    many = Row(f"transient, {consumers} consumers", "deliveries/s", reach=2.0)
    return [
        measure(stage, one, stage.size(100_000, 2_000), 1, transient=True, bare=False),
        measure(stage, many, stage.size(50_000, 1_000), consumers, transient=True, bare=False),
    ]
