"""Latency under load: the ping-pong of wake-up while another event runs through the same nodes."""

from __future__ import annotations

import threading

from nodes import node
from stage import Pipe, Row, Stage, actors, in_turn, new_run, now, progress, quantile

_RATE = 10_000
_BURST = 20


def ask(pipe: Pipe, url: str, run: str, rounds: int, rate: int) -> None:
    with node(url, run) as task:
        task.wait_for("pong", timeout=0, since="last")
        task.barrier("ready", 2)
        ended = threading.Event()

        def load() -> None:
            due = now()
            number = 0
            while not ended.wait(max(0.0, due - now())):
                for _ in range(_BURST):
                    task.emit("noise", step=number, reward=0.5)
                    number += 1
                due += _BURST / rate

        noise = threading.Thread(target=load)
        if rate:
            noise.start()
            ended.wait(0.2)
        took = []
        for number in range(rounds):
            start = now()
            task.emit("ping", number)
            task.wait_for("pong", since="last")
            took.append(now() - start)
        ended.set()
        if rate:
            noise.join()
        task.emit("ping", None)
        task.sync()
    pipe.send(took[len(took) // 20 :])


def answer(pipe: Pipe, url: str, run: str) -> None:
    with node(url, run) as task:
        task.on("noise", lambda step, reward: None)
        task.wait_for("ping", timeout=0, since="last")
        task.barrier("ready", 2)
        while True:
            found = task.wait_for("ping", since="last")
            if found is None or found[0][0] is None:
                return
            task.emit("pong", found[0][0])


def run(stage: Stage) -> list[Row]:
    p50 = Row(f"wake-up under {_RATE:,} other events/s, p50", "us", note="the raw loop is the same without the load")
    p99 = Row(f"wake-up under {_RATE:,} other events/s, p99", "us", reach=10.0)
    rounds = stage.size(2000, 200)
    with stage.server():
        for turn in range(stage.rounds):
            progress(f"load, round {turn + 1}")
            for rate, name in in_turn(turn, (_RATE, "ours"), (0, "raw")):
                stage.flush()
                run_id = new_run()
                with actors((ask, stage.url, run_id, rounds, rate), (answer, stage.url, run_id)) as (asker, _):
                    took = asker.receive()
                getattr(p50, name).append(quantile(took, 0.5) * 1e6)
                getattr(p99, name).append(quantile(took, 0.99) * 1e6)
    return [p50, p99]
