"""Idle: a node that is subscribed to ten events and gets none; what it costs Redis and its own process."""

from __future__ import annotations

import time
from pathlib import Path

from nodes import node
from stage import Pipe, Row, Stage, actors, new_run, now, progress


def listen(pipe: Pipe, url: str, run: str) -> None:
    with node(url, run) as task:
        for number in range(10):
            task.on(f"event-{number}", print)
        pipe.send()
        pipe.receive()


def _threads(pid: int) -> dict[str, tuple[str, float, int]]:
    """By thread id: its name, the seconds it ran, and how often it went to sleep (so how often it woke)."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        switches = [line for line in (path / "status").read_text().splitlines() if line.startswith("voluntary_ctxt")]
        ran = int((path / "schedstat").read_text().split()[0]) / 1e9
        found[path.name] = ((path / "comm").read_text().strip(), ran, int(switches[0].split()[1]))
    return found


def run(stage: Stage) -> list[Row]:
    commands = Row("idle, commands a second", "/s", bound=1.0)
    cpu = Row("idle, share of a core", "%", bound=0.05)
    wakes = Row("idle, wake-ups of the busiest thread", "/s", bound=2.0)
    seconds = stage.size(30, 3)
    with stage.server(), stage.client() as client:
        for turn in range(stage.rounds):
            progress(f"idle, round {turn + 1}")
            stage.flush()
            with actors((listen, stage.url, new_run())) as (actor,):
                actor.receive()
                time.sleep(1.0)
                before, asked, start = _threads(actor.pid), client.info("stats")["total_commands_processed"], now()
                time.sleep(seconds)
                after, answered, took = _threads(actor.pid), client.info("stats")["total_commands_processed"], now()
                took -= start
                actor.send()
            commands.ours.append((answered - asked - 1) / took)  # without the question itself
            cpu.ours.append(100 * sum(after[one][1] - before[one][1] for one in after if one in before) / took)
            wakes.ours.append(max((after[one][2] - before[one][2]) / took for one in after if one in before))
    return [commands, cpu, wakes]
