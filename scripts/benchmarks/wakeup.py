"""Wake-up: a question by `emit`, its answer by `wait_for`, across two processes; the time there and back."""

from __future__ import annotations

from typing import Any

import least
import redis
from bare import Bare
from nodes import node
from stage import Pipe, Row, Stage, actors, in_turn, new_run, now, progress, quantile

_BLOCK = 4000


def ask(pipe: Pipe, url: str, run: str, rounds: int) -> None:
    with node(url, run) as task:
        task.wait_for("pong", timeout=0, since="last")
        task.barrier("ready", 2)
        pipe.receive()
        took = []
        for number in range(rounds):
            start = now()
            task.emit("ping", number)
            task.wait_for("pong", since="last")
            took.append(now() - start)
        task.emit("ping", None)
        task.sync()
    pipe.send(took)


def answer(pipe: Pipe, url: str, run: str) -> None:
    with node(url, run) as task:
        task.wait_for("ping", timeout=0, since="last")
        task.barrier("ready", 2)
        while True:
            found = task.wait_for("ping", since="last")
            if found is None or found[0][0] is None:
                return
            task.emit("pong", found[0][0])


def raw_ask(pipe: Pipe, url: str, rounds: int) -> None:
    client = redis.Redis.from_url(url)
    client.ping()
    pipe.receive()
    last: Any = "0-0"
    took = []
    for number in range(rounds):
        start = now()
        client.xadd("ping", {"n": number})
        last = client.xread({"pong": last}, count=1, block=_BLOCK)[0][1][0][0]
        took.append(now() - start)
    client.xadd("ping", {"n": -1})
    pipe.send(took)


def raw_answer(pipe: Pipe, url: str) -> None:
    client = redis.Redis.from_url(url)
    client.ping()
    last: Any = "0-0"
    while True:
        last, fields = client.xread({"ping": last}, count=1, block=_BLOCK)[0][1][0]
        if fields[b"n"] == b"-1":
            return
        client.xadd("pong", fields)


def bare_ask(pipe: Pipe, url: str, rounds: int) -> None:
    wire = Bare(url)
    pipe.receive()
    last = b"0-0"
    took = []
    for number in range(rounds):
        start = now()
        wire.call(b"XADD", b"ping", b"*", b"n", number)
        last = wire.call(b"XREAD", b"COUNT", 1, b"BLOCK", _BLOCK, b"STREAMS", b"pong", last)[0][1][0][0]
        took.append(now() - start)
    wire.call(b"XADD", b"ping", b"*", b"n", -1)
    pipe.send(took)


def bare_answer(pipe: Pipe, url: str) -> None:
    wire = Bare(url)
    last = b"0-0"
    while True:
        last, (_, number) = wire.call(b"XREAD", b"COUNT", 1, b"BLOCK", _BLOCK, b"STREAMS", b"ping", last)[0][1][0]
        if number == b"-1":
            return
        wire.call(b"XADD", b"pong", b"*", b"n", number)


def ping_pong(stage: Stage, turn: int, rounds: int) -> dict[str, list[float]]:
    """The samples of one round of each side, in seconds."""
    found = {}
    url, run = stage.url, new_run()
    for name, first, second in in_turn(
        turn,
        ("ours", (ask, url, run, rounds), (answer, url, run)),
        ("raw", (raw_ask, url, rounds), (raw_answer, url)),
        ("bare", (bare_ask, url, rounds), (bare_answer, url)),
        ("least", (least.ask, url, run, rounds), (least.answer, url, run)),
    ):
        stage.flush()
        with actors(first, second) as (asker, _):
            asker.send()
            samples = asker.receive()
        found[name] = samples[len(samples) // 20 :]  # without the first few, which warm up
    return found


def run(stage: Stage) -> list[Row]:
    rows = []
    for place, one_cpu in (("one CPU", True), ("all CPUs", False)):
        p50 = Row(f"wake-up, {place}, p50", "us", reach=0.6)
        p99 = Row(f"wake-up, {place}, p99", "us", reach=1.0)
        with stage.server(one_cpu=one_cpu):
            for turn in range(stage.rounds):
                progress(f"wake-up, {place}, round {turn + 1}")
                for name, samples in ping_pong(stage, turn, stage.size(2000, 200)).items():
                    getattr(p50, name).append(quantile(samples, 0.5) * 1e6)
                    getattr(p99, name).append(quantile(samples, 0.99) * 1e6)
        rows += [p50, p99]
    return rows
