"""Throughput, fan-out and transient: one producer, one or eight consumers, until all events were handled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import orjson
import redis
from bare import Bare
from nodes import node
from stage import Pipe, Row, Stage, actors, new_run, now, progress

_BATCH = 1000
_PUBLISH_BATCH = 100
_BLOCK = 4000
_OBS = [0.25, -1.5, 3.125, 0.0]


def _value(number: int) -> dict[str, Any]:
    return {"step": number, "reward": 0.5, "obs": _OBS}


class _Handler:
    """Handles events until ``count`` are there."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = threading.Event()
        self.ended = 0.0

    def __call__(self, step: int, reward: float, obs: list[float]) -> None:
        self._left -= 1
        if not self._left:
            self.ended = now()
            self.done.set()


# taskbus: what a user writes


def produce(pipe: Pipe, url: str, run: str, count: int, transient: bool) -> None:
    with node(url, run, retention_events=2 * count) as task:
        pipe.send()
        pipe.receive()
        start = now()
        if transient:
            _emit_transient(task.emit, count, pipe)
        else:
            for number in range(count):
                task.emit("sample", step=number, reward=0.5, obs=_OBS)
        task.sync()
        pipe.send(start)
        pipe.receive()


def _emit_transient(emit: Callable[..., None], count: int, pipe: Pipe) -> None:
    for number in range(count):
        emit("sample", step=number, reward=0.5, obs=_OBS, transient=True)


def consume(pipe: Pipe, url: str, run: str, count: int) -> None:
    with node(url, run) as task:
        handler = _Handler(count)
        task.on("sample", handler)
        pipe.send()
        if not handler.done.wait(90):
            raise TimeoutError(f"{handler._left} of {count} events did not come: {task._link.stats()}")
        pipe.send(handler.ended)


# The raw loop


def raw_produce(pipe: Pipe, url: str, count: int) -> None:
    client = redis.Redis.from_url(url)
    client.ping()
    pipe.send()
    pipe.receive()
    start = now()
    for first in range(0, count, _BATCH):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, min(count, first + _BATCH)):
            pipeline.xadd("sample", {"d": orjson.dumps(_value(number))})
        pipeline.execute()
    pipe.send(start)
    pipe.receive()


def raw_consume(pipe: Pipe, url: str, count: int) -> None:
    client = redis.Redis.from_url(url)
    handler = _Handler(count)
    last: Any = "0-0"
    pipe.send()
    while not handler.done.is_set():
        for _, entries in client.xread({"sample": last}, count=_BATCH, block=_BLOCK):
            for entry_id, fields in entries:
                last = entry_id
                handler(**orjson.loads(fields[b"d"]))
    pipe.send(handler.ended)


def bare_produce(pipe: Pipe, url: str, count: int) -> None:
    import hiredis

    wire = Bare(url)
    pipe.send()
    pipe.receive()
    start = now()
    for first in range(0, count, _BATCH):
        last = min(count, first + _BATCH)
        wire.socket.sendall(
            b"".join(
                hiredis.pack_command((b"XADD", b"sample", b"*", b"d", orjson.dumps(_value(number))))
                for number in range(first, last)
            )
        )
        for _ in range(first, last):
            wire.read()
    pipe.send(start)
    pipe.receive()


def bare_consume(pipe: Pipe, url: str, count: int) -> None:
    wire = Bare(url)
    handler = _Handler(count)
    last = b"0-0"
    pipe.send()
    while not handler.done.is_set():
        reply = wire.call(b"XREAD", b"COUNT", _BATCH, b"BLOCK", _BLOCK, b"STREAMS", b"sample", last)
        for entry_id, (_, data) in reply[0][1] if reply else ():
            last = entry_id
            handler(**orjson.loads(data))
    pipe.send(handler.ended)


def raw_publish(pipe: Pipe, url: str, count: int) -> None:
    client = redis.Redis.from_url(url)
    client.ping()
    pipe.send()
    pipe.receive()
    start = now()
    for first in range(0, count, _PUBLISH_BATCH):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, min(count, first + _PUBLISH_BATCH)):
            pipeline.publish("sample", orjson.dumps(_value(number)))
        pipeline.execute()
    pipe.send(start)
    pipe.receive()


def raw_subscribe(pipe: Pipe, url: str, count: int) -> None:
    client = redis.Redis.from_url(url)
    handler = _Handler(count)
    channel = client.pubsub()
    channel.subscribe("sample")
    messages = channel.listen()
    next(messages)
    pipe.send()
    for message in messages:
        handler(**orjson.loads(message["data"]))
        if handler.done.is_set():
            break
    pipe.send(handler.ended)


def _race(count: int, consumers: int, producer: tuple[Any, ...], consumer: tuple[Any, ...]) -> float:
    """Deliveries a second, from the first emit to the last event handled by the last consumer."""
    with actors(producer, *[consumer] * consumers) as (first, *others):
        for actor in (*others, first):
            actor.receive()
        first.send()
        start = first.receive()
        ended = max(actor.receive() for actor in others)
        first.send()
    return count * consumers / (ended - start)


def measure(stage: Stage, row: Row, count: int, consumers: int, *, transient: bool = False, bare: bool = True) -> Row:
    row.more_is_better = True
    with stage.server():
        url = stage.url
        for turn in range(stage.rounds):
            progress(f"{row.workload}, round {turn + 1}")
            stage.flush()
            run = new_run()
            row.ours.append(_race(count, consumers, (produce, url, run, count, transient), (consume, url, run, count)))
            stage.flush()
            raws = (raw_publish, raw_subscribe) if transient else (raw_produce, raw_consume)
            row.raw.append(_race(count, consumers, (raws[0], url, count), (raws[1], url, count)))
            stage.flush()
            if bare:
                row.bare.append(_race(count, consumers, (bare_produce, url, count), (bare_consume, url, count)))
    return row


def run(stage: Stage) -> list[Row]:
    consumers = stage.size(8, 2)
    return [
        measure(stage, Row("throughput, 1 consumer", "events/s", reach=3.0), stage.size(300_000, 5_000), 1),
        measure(
            stage,
            Row(f"fan-out, {consumers} consumers", "deliveries/s", reach=3.0),
            stage.size(100_000, 2_000),
            consumers,
        ),
    ]
