"""Nodes and tasks on a run of the test's own, over memory:// and over a real server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fakeredis
import pytest
import redis

from taskbus.bus.connect import MEMORY_SERVERS
from taskbus.router import Router
from taskbus.task import Task

Join = Callable[..., Router]
StartTask = Callable[..., Task]


class Collected(list[Any]):
    """A listener that keeps the first argument of each event; can be held back in the middle of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, value: Any = None, *args: Any, **kwargs: Any) -> None:
        self.gate.wait(30)
        self.append(value)


@pytest.fixture
def run_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
def join(redis_url: str, run_id: str) -> Iterator[Join]:
    """Makes started routers on one run, which are stopped at the end: ``join(labels="learner")``."""
    made: list[Router] = []

    def make(**settings: Any) -> Router:
        router = Router(redis_url, run_id=run_id, **settings)
        made.append(router)
        return router.start()

    yield make
    for router in made:
        router.stop()


@pytest.fixture
def start_task(redis_url: str, run_id: str) -> Iterator[StartTask]:
    """Makes started tasks, each a node of one run; they leave at the end without a finish."""
    made: list[Task] = []

    def make(**settings: Any) -> Task:
        task = Task().start(router=Router(redis_url, run_id=run_id, **settings))
        made.append(task)
        return task

    yield make
    for task in made:
        task.request_leave()
        task.stop()


@contextmanager
def plain_client(url: str) -> Iterator[Any]:
    """A plain client of the server behind ``url``, to look at keys."""
    if url.startswith("memory://"):
        with fakeredis.FakeRedis(server=MEMORY_SERVERS[url.removeprefix("memory://")]) as client:
            yield client
    else:
        with redis.Redis.from_url(url) as client:
            yield client
