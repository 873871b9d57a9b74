"""Arrays: float32 there, an acknowledging event back; the bandwidth of the way there and the answer together."""

from __future__ import annotations

from typing import Any

import hiredis
import numpy as np
import redis
from bare import Bare
from nodes import node
from stage import Pipe, Row, Stage, actors, in_turn, new_run, now, progress

_MIB = 1 << 20
_KEPT = 64 * _MIB
"""What the run keeps."""

_WARM = 384 * _MIB
"""What passes first. Until 256 to 320 MiB have passed, Redis fills memory that is new to it for what a run keeps: a
round of 16 MiB took 25 ms so, and 15 from then on. A run that sends its weights again and again has that behind it. The
raw loop deletes each value, and is as fast before."""


def send(pipe: Pipe, url: str, run: str, size: int, rounds: int) -> None:
    array = np.arange(size // 4, dtype=np.float32)
    with node(url, run, outbox_bytes=256 * _MIB, retention_bytes=_KEPT) as task:
        task.wait_for("got", timeout=0, since="last")
        task.barrier("ready", 2)
        took = []
        for _ in range(rounds):
            start = now()
            task.emit("weights", array)
            assert task.wait_for("got", timeout=60, since="last") is not None
            took.append(now() - start)
        task.emit("weights", None)
        task.sync()
        pipe.send(took)


def receive(pipe: Pipe, url: str, run: str) -> None:
    with node(url, run) as task:
        task.wait_for("weights", timeout=0, since="last")
        task.barrier("ready", 2)
        while True:
            found = task.wait_for("weights", timeout=60, since="last")
            if found is None or found[0][0] is None:
                return
            task.emit("got", float(found[0][0][-1]))


def raw_send(pipe: Pipe, url: str, size: int, rounds: int) -> None:
    array = np.arange(size // 4, dtype=np.float32)
    client = redis.Redis.from_url(url)
    took = []
    for number in range(rounds):
        start = now()
        client.set(f"weights:{number}", array.tobytes())
        client.rpush("news", number)
        client.blpop(["got"], timeout=60)
        took.append(now() - start)
        client.delete(f"weights:{number}")
    client.rpush("news", -1)
    pipe.send(took)


def raw_receive(pipe: Pipe, url: str) -> None:
    client = redis.Redis.from_url(url)
    while True:
        number = int(client.blpop(["news"], timeout=4)[1])
        if number < 0:
            return
        data: Any = client.get(f"weights:{number}")
        client.rpush("got", float(np.frombuffer(data, np.float32)[-1]))


def bare_send(pipe: Pipe, url: str, size: int, rounds: int) -> None:
    array = np.arange(size // 4, dtype=np.float32)
    wire = Bare(url)
    took = []
    for number in range(rounds):
        start = now()
        key = b"weights:%d" % number
        wire.socket.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, array.nbytes))
        wire.socket.sendall(memoryview(array).cast("B"))
        wire.socket.sendall(b"\r\n" + hiredis.pack_command((b"RPUSH", b"news", number)))
        wire.read()
        wire.read()
        wire.call(b"BLPOP", b"got", 60)
        took.append(now() - start)
        wire.call(b"DEL", key)
    wire.call(b"RPUSH", b"news", -1)
    pipe.send(took)


def bare_receive(pipe: Pipe, url: str) -> None:
    wire = Bare(url)
    while True:
        number = int(wire.call(b"BLPOP", b"news", 4)[1])
        if number < 0:
            return
        data = wire.call(b"GET", b"weights:%d" % number)
        wire.call(b"RPUSH", b"got", float(np.frombuffer(data, np.float32)[-1]))


def _bandwidth(size: int, warm: int, sender: tuple[Any, ...], receiver: tuple[Any, ...]) -> float:
    """MiB a second, of all rounds after the warm ones."""
    with actors(sender, receiver) as (first, _):
        took = first.receive()[warm:]
    return size / _MIB * len(took) / sum(took)


def run(stage: Stage) -> list[Row]:
    rows = []
    for mib in (1, 16, 64) if not stage.quick else (1, 4):
        row = Row(f"arrays, {mib} MiB", "MiB/s", reach=2.0, more_is_better=True)
        size = mib * _MIB
        warm = stage.size(_WARM // size, 2)
        rounds = warm + stage.size(max(4, 128 // mib), 2)
        with stage.server():
            url = stage.url
            for turn in range(stage.rounds):
                progress(f"{row.workload}, round {turn + 1}")
                run_id = new_run()
                for side, sender, receiver in in_turn(
                    turn,
                    (row.ours, (send, url, run_id, size, rounds), (receive, url, run_id)),
                    (row.raw, (raw_send, url, size, rounds), (raw_receive, url)),
                    (row.bare, (bare_send, url, size, rounds), (bare_receive, url)),
                ):
                    side.append(_bandwidth(size, warm, sender, receiver))
                    stage.flush()
        rows.append(row)
    return rows
