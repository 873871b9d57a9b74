"""What the workloads share: a private server, processes that act in step, and rows for the table."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from taskbus.testing import RedisServer

T = TypeVar("T")
now = time.perf_counter  # the machine's one monotonic clock, the same in every process

_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Row:
    """One line of the table: what was measured, by whom, over how many rounds."""

    workload: str
    unit: str
    ours: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    """What the least that could do it takes, see the module of that name."""
    reach: float | None = None
    """The bound of the ratio ours / raw: from above where less is better, from below where more is."""
    more_is_better: bool = False
    bound: float | None = None
    """A bound of the figure itself, where there is no raw loop."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if not self.ours or not self.raw:
            return None
        return statistics.median(self.ours) / statistics.median(self.raw)

    @property
    def reached(self) -> bool | None:
        for value, bound in ((self.ratio, self.reach), (statistics.median(self.ours), self.bound)):
            if value is not None and bound is not None:
                return value >= bound if self.more_is_better else value <= bound
        return None


class Actor:
    """A process that runs ``act(pipe, *args)``; what it sends can be received here, and the other way round."""

    def __init__(self, act: Callable[..., None], *args: Any, cpu: int | None = None) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_act, args=(act, theirs, cpu, args), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, value: Any = None) -> None:
        self._pipe.send(value)

    def receive(self, timeout: float = 120.0) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"{self._process.name} said nothing for {timeout:g} s")
        word, value = self._pipe.recv()
        if word == "error":
            raise RuntimeError(value)
        return value

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def end(self, timeout: float = 20.0) -> None:
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Pipe:
    """An actor's end."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, value: Any = None) -> None:
        self._connection.send(("ok", value))

    def receive(self) -> Any:
        return self._connection.recv()


def _act(act: Callable[..., None], connection: Any, cpu: int | None, args: Sequence[Any]) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        act(Pipe(connection), *args)
    except BaseException as error:
        connection.send(("error", f"{act.__module__}.{act.__name__}: {type(error).__name__}: {error}"))
        raise


@contextmanager
def actors(*acts: tuple[Any, ...]) -> Iterator[list[Actor]]:
    """Processes for ``(function, argument, ...)`` each; ended at the end, whatever happens."""
    cast = [Actor(*act) for act in acts]
    try:
        yield cast
    finally:
        for actor in cast:
            actor.end()


class Stage:
    """The server of a run of the bench, and how much is asked for."""

    def __init__(self, *, quick: bool, rounds: int) -> None:
        self.quick = quick
        self.rounds = 1 if quick else rounds
        self.url = ""
        self._server: RedisServer | None = None

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @contextmanager
    def server(self, *, one_cpu: bool = False) -> Iterator[str]:
        """A fresh private server; with ``one_cpu`` it and all processes begun meanwhile share one CPU."""
        before = os.sched_getaffinity(0)
        if one_cpu:
            os.sched_setaffinity(0, {min(before)})
        try:
            with RedisServer("--client-output-buffer-limit", "pubsub", "0", "0", "0") as server:
                self._server, self.url = server, server.url
                yield server.url
        finally:
            self._server = None
            os.sched_setaffinity(0, before)

    def client(self) -> Any:
        assert self._server is not None
        return self._server.client()

    def flush(self) -> None:
        """Nothing of the last round is in the way of the next."""
        with self.client() as client:
            client.flushall()


def in_turn(turn: int, *sides: T) -> Sequence[T]:
    """The sides in the order of this round: another one begins each time, and every other time it goes backwards."""
    first = turn // 2 % len(sides)
    order = sides[first:] + sides[:first]
    return order[::-1] if turn % 2 else order


def new_run() -> str:
    return f"bench-{secrets.token_hex(4)}"


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
