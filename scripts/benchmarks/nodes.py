"""Nodes of taskbus as users write them, for several workloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from taskbus import Router, Task


@contextmanager
def node(url: str, run: str, **settings: object) -> Iterator[Task]:
    """A started task on a run; it leaves without finishing the run."""
    router = Router(url, run_id=run, **settings)
    with router, Task().start(router=router) as task:
        yield task
        task.request_leave()
