"""Throughput, fan-out and transient: one producer, one or eight consumers, until all events were handled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import orjson
import redis
from bare import Bare
from nodes import node
from stage import Pipe, Row, Stage, actors, in_turn, new_run, now, progress

_BATCH = 1000
_PUBLISH_BATCH = 100
_BLOCK = 4000
_OBS = [0.25, -1.5, 3.125, 0.0]


def _value(number: int) -> dict[str, Any]:
    return {"step": number, "reward": 0.5, "obs": _OBS}


class _Handler:
    """Handles events until ``count`` are there."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.done = threading.Event()
        self.ended = 0.0

    def __call__(self, step: int, reward: float, obs: list[float]) -> None:
        self.left -= 1
        if not self.left:
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
            raise TimeoutError(f"{handler.left} of {count} events did not come: {task._link.stats()}")
        pipe.send((handler.ended, count))


def consume_transient(pipe: Pipe, url: str, run: str, count: int) -> None:
    """Takes what comes: what finds a full mailbox is lost, and only what was handled counts."""
    with node(url, run) as task:
        handler = _Handler(count)
        task.on("sample", handler)
        pipe.send()
        last, ended = count, now()
        while handler.left and (last == count or handler.left < last or now() - ended < 1.0):
            if handler.left < last:
                last, ended = handler.left, now()
            handler.done.wait(0.02)
        pipe.send((handler.ended or ended, count - handler.left))


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
    pipe.send((handler.ended, count))


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
    pipe.send((handler.ended, count))


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
    pipe.send((handler.ended, count))


def _race(producer: tuple[Any, ...], consumers: list[tuple[Any, ...]]) -> tuple[float, int]:
    """Deliveries a second, from the first emit to the last event handled by the last consumer; and their number."""
    with actors(producer, *consumers) as (first, *others):
        for actor in (*others, first):
            actor.receive()
        first.send()
        start = first.receive()
        heard = [actor.receive() for actor in others]
        first.send()
    handled = sum(count for _, count in heard)
    return handled / (max(ended for ended, _ in heard) - start), handled


def measure(stage: Stage, row: Row, count: int, consumers: int, *, transient: bool = False, bare: bool = True) -> Row:
    row.more_is_better = True
    handled = 0
    with stage.server():
        url = stage.url
        for turn in range(stage.rounds):
            progress(f"{row.workload}, round {turn + 1}")
            run = new_run()
            listen = consume_transient if transient else consume
            raw_begin, raw_end = (raw_publish, raw_subscribe) if transient else (raw_produce, raw_consume)
            sides = [
                (row.ours, (produce, url, run, count, transient), (listen, url, run, count)),
                (row.raw, (raw_begin, url, count), (raw_end, url, count)),
            ]
            if bare:
                sides.append((row.bare, (bare_produce, url, count), (bare_consume, url, count)))
            for side, producer, consumer in in_turn(turn, *sides):
                stage.flush()
                rate, number = _race(producer, [consumer] * consumers)
                side.append(rate)
                handled += number if side is row.ours else 0
    if transient:
        lost = 1 - handled / (stage.rounds * count * consumers)
        row.note = f"{lost:.1%} of the events found a full mailbox and are not counted as deliveries"
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
