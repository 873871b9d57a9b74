"""The pipeline of a standalone task: ten functions or generators a step, in turn and side by side."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stage import Row, Stage, in_turn, now, progress

from taskbus import Context, Task

_PARTS = 10
_SLICES = 10  # by turns, for what the machine does beside changes within a second, and this is a difference
_WORKERS = 3


def _function(ctx: Any) -> None:
    ctx.total_step += 0


def _generator(ctx: Any) -> Iterator[None]:
    ctx.total_step += 0
    yield


def _ours(part: Callable[[Any], Any], steps: int, async_mode: bool = False) -> float:
    """Microseconds a call."""
    with Task().start(async_mode=async_mode, n_async_workers=_WORKERS) as task:
        for _ in range(_PARTS):
            task.use(part)
        start = now()
        task.run(max_step=steps)
        return (now() - start) / steps / _PARTS * 1e6


def _side_by_side(steps: int) -> float:
    return _ours(_function, steps, async_mode=True)


def _bare(part: Callable[[Any], Any], steps: int) -> float:
    """The loop that a person writes: every part, the generators to their end in reverse, a new context."""
    parts = [part] * _PARTS
    ctx = Context()
    start = now()
    for _ in range(steps):
        halves = []
        for each in parts:
            half = each(ctx)
            if half is not None:
                next(half)
                halves.append(half)
        while halves:
            next(halves.pop(), None)
        ctx = ctx.renew()
    return (now() - start) / steps / _PARTS * 1e6


def _executor(steps: int) -> float:
    async def loop() -> float:
        ctx = Context()
        here = asyncio.get_running_loop()
        with ThreadPoolExecutor(_WORKERS) as pool:
            start = now()
            for _ in range(steps):
                await asyncio.gather(*[here.run_in_executor(pool, _function, ctx) for _ in range(_PARTS)])
                ctx = ctx.renew()
            return (now() - start) / steps / _PARTS * 1e6

    return asyncio.run(loop())


def run(stage: Stage) -> list[Row]:
    logging.disable(logging.WARNING)
    rows = []
    for kind, part in (("functions", _function), ("generators", _generator)):
        row = Row(f"pipeline, ten {kind}, a call more than bare", "us", bound=0.3)
        steps = stage.size(20_000, 500) // _SLICES
        ours, bare = [], []
        for turn in range(stage.rounds):
            progress(f"pipeline, {kind}, round {turn + 1}")
            ours_now, bare_now = [], []
            for piece in range(_SLICES):
                for side, loop in in_turn(piece, (ours_now, _ours), (bare_now, _bare)):
                    side.append(loop(part, steps))
            ours.append(statistics.mean(ours_now))
            bare.append(statistics.mean(bare_now))
        row.ours = [one - other for one, other in zip(ours, bare, strict=True)]
        row.note = f"{statistics.median(ours):.2f} us a call, the bare loop {statistics.median(bare):.2f} us"
        rows.append(row)
    row = Row("pipeline, ten functions async", "us", reach=0.6)
    for turn in range(stage.rounds):
        progress(f"pipeline, async, round {turn + 1}")
        for side, loop in in_turn(turn, (row.ours, _side_by_side), (row.raw, _executor)):
            side.append(loop(stage.size(2_000, 100)))
    logging.disable(logging.NOTSET)
    return [*rows, row]
