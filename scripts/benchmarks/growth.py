"""What an emit costs as the run grows: nodes, event names, events kept; and the calls that look at all nodes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nodes import node
from stage import Pipe, Row, Stage, actors, new_run, now, progress

from taskbus import Router, Task

_EMITS = 500


def be_there(pipe: Pipe, url: str, run: str, count: int) -> None:
    """Light nodes: each with its threads and connections, none that listens."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Router(url, run_id=run))
        pipe.send()
        pipe.receive()


def _acknowledged(task: Task, names: list[str], rounds: int) -> float:
    """Microseconds from an emit to its acknowledgement, the median."""
    took = []
    for number in range(rounds):
        start = now()
        task.emit(names[number % len(names)], number)
        task.sync()
        took.append(now() - start)
    return statistics.median(took) * 1e6


def _with_nodes(stage: Stage, run: str, task: Task, count: int) -> Iterator[None]:
    if count > 1:
        with actors((be_there, stage.url, run, count - 1)) as (crowd,):
            crowd.receive()
            yield
            crowd.send()
    else:
        yield


def _with_history(stage: Stage, run: str, task: Task, count: int) -> Iterator[None]:
    for number in range(count):
        task.emit("event-0", number)
    task.sync()
    yield


def _alone(stage: Stage, run: str, task: Task, count: int) -> Iterator[None]:
    yield


def _series(
    stage: Stage,
    what: str,
    counts: list[int],
    prepare: Callable[[Stage, str, Task, int], Iterator[None]],
    names_of: Callable[[int], int],
) -> list[Row]:
    rows = [Row(f"emit and its acknowledgement, {count:,} {what}", "us") for count in counts]
    for row in rows[1:]:
        row.reach = 1.5
    rounds = stage.size(_EMITS, 20)
    for turn in range(stage.rounds):
        progress(f"{what}, round {turn + 1}")
        for row, count in zip(rows, counts, strict=True):
            stage.flush()
            run = new_run()
            with (
                node(stage.url, run, retention_events=2 * max(counts)) as task,
                contextmanager(prepare)(stage, run, task, count),
            ):
                names = [f"event-{number}" for number in range(names_of(count))]
                _acknowledged(task, names, len(names))
                row.ours.append(_acknowledged(task, names, max(rounds, len(names))))
            if row is not rows[0]:
                row.raw.append(rows[0].ours[-1])  # what it is compared with: the smallest of the series
    return rows


def _all_nodes(stage: Stage, count: int) -> list[Row]:
    nodes = Row(f"nodes() with {count:,} registered nodes", "ms", note="one script, one reply: linear in the nodes")
    finish = Row(f"finish with {count:,} registered nodes", "ms", note="one script, an entry for each node's inbox")
    for turn in range(stage.rounds):
        progress(f"{count:,} nodes, round {turn + 1}")
        stage.flush()
        run = new_run()
        with node(stage.url, run) as task, stage.client() as client:
            _register(client, run, count)
            start = now()
            found: Any = task.nodes()
            nodes.ours.append((now() - start) * 1e3)
            assert len(found) == count + 1
            start = now()
            task.finish = True
            finish.ours.append((now() - start) * 1e3)
    return [nodes, finish]


def _register(client: Any, run: str, count: int) -> None:
    """Nodes as they stand in the registry, without their processes: copies of the one that is there."""
    prefix = f"taskbus:{{{run}}}:"
    known = client.hgetall(f"{prefix}node:0")
    pipeline = client.pipeline(transaction=False)
    for number in range(1, count + 1):
        pipeline.sadd(f"{prefix}nodes", number)
        pipeline.hset(f"{prefix}node:{number}", mapping={**known, b"token": b"%016x" % number})
        pipeline.pexpire(f"{prefix}node:{number}", 60_000)
        pipeline.xadd(f"{prefix}node:{number}:inbox", {"k": "wake"})
        pipeline.pexpire(f"{prefix}node:{number}:inbox", 60_000)
    pipeline.execute()


def run(stage: Stage) -> list[Row]:
    small = stage.quick
    with stage.server():
        return [
            *_series(stage, "nodes", [1, 4] if small else [1, 2, 4, 8, 16, 32, 64], _with_nodes, lambda count: 1),
            *_series(stage, "event names", [1, 10] if small else [1, 10, 100, 1000], _alone, lambda count: count),
            *_series(
                stage, "events kept", [10, 1000] if small else [10, 1000, 100_000], _with_history, lambda count: 1
            ),
            *_all_nodes(stage, 50 if small else 1000),
        ]
