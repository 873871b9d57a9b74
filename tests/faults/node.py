"""One node under observation: a router, what it heard, what it emitted; the same in this process and in a worker's."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from taskbus import Task, frame
from taskbus.bus.keys import Keys
from taskbus.errors import BusError, NotStarted
from taskbus.router import Router
from tests.faults.oracle import Heard, Ledger

__all__ = ["LogLines", "Node", "Steps", "WaitingNode", "kept_in"]

EVENT = "numbers"


class LogLines(logging.Handler):
    """Keeps what taskbus logs, with the time on the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += f" [{record.exc_info[1]!r}]"
        self.lines.append((time.monotonic(), record.levelname, text))

    def texts(self, level: str = "") -> list[str]:
        return [text for _, name, text in self.lines if not level or name == level]

    def __enter__(self) -> LogLines:
        logger = logging.getLogger("taskbus")
        logger.addHandler(self)
        self._level, logger.level = logger.level, logging.INFO
        return self

    def __exit__(self, *exc: object) -> None:
        logger = logging.getLogger("taskbus")
        logger.removeHandler(self)
        logger.level = self._level


class Node:
    """A router whose every durable event is on a ledger; ``heard`` holds what its listeners were given."""

    def __init__(self, url: str, run_id: str, name: str, **settings: Any) -> None:
        self.name = name
        self.router = Router(url, run_id=run_id, node_id=name, **settings)
        self.ledger = Ledger(name)
        self.heard: dict[str, list[Heard]] = {}
        self.errors: list[str] = []
        self.state_losses: list[str] = []
        self.over = threading.Event()
        self._number = 0
        self._lock = threading.Lock()

    def start(self, *events: str, since: str = "now") -> Node:
        """Join the run and listen to ``events``."""
        self.router.start()
        self.router.on("taskbus.state_lost", lambda node, why: self.state_losses.append(why))
        for event in events:
            self.listen(event, since=since)
        return self

    def listen(self, event: str = EVENT, since: str = "now") -> None:
        heard = self.heard.setdefault(event, [])
        self.router.on(event, lambda producer, number, body: heard.append((producer, number, body)), since=since)

    def emit(self, event: str = EVENT, pad: str = "", **how: Any) -> bool:
        """Emit the next number; false when that raised, which makes it *failed*."""
        with self._lock:
            self._number += 1
            number = self._number
            began = time.monotonic()
            try:
                self.router.emit(event, self.name, number, number if not pad else f"{number}{pad}", **how)
                self.ledger.unknown.add(number)
                return True
            except BusError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self.ledger.failed.add(number)
                return False
            finally:
                self.ledger.longest = max(self.ledger.longest, time.monotonic() - began)

    def sync(self, timeout: float | None = None) -> bool:
        """Have all acknowledged; false when that raised, and the numbers stay *unknown*."""
        began = time.monotonic()
        try:
            self.router.sync(timeout)
            self.ledger.settle()
            return True
        except BusError as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            return False
        finally:
            if timeout is None:
                self.ledger.longest = max(self.ledger.longest, time.monotonic() - began)

    def pour(self, count: int, event: str = EVENT, *, each: int = 20, pause: float = 0.0) -> None:
        """Emit ``count`` events, with a sync after ``each`` of them and ``pause`` seconds after that."""
        waiting = threading.Event()
        for index in range(count):
            self.emit(event)
            if index % each == each - 1:
                self.sync()
                waiting.wait(pause)
        self.sync()

    def chatter(self, event: str = EVENT, *, each: int = 5, pause: float = 0.05) -> None:
        """Emit until :meth:`hush`: ``each`` events, a sync, ``pause`` seconds; each of these rounds is a step."""
        while not self.over.wait(pause):
            self.router.progress(self._number // each, "main")
            for _ in range(each):
                self.emit(event)
            self.sync()

    def hush(self) -> None:
        self.over.set()

    def emitted(self) -> int:
        """The highest number so far."""
        return self._number

    def stop(self) -> int:
        return self.router.stop()


class WaitingNode(Node):
    """One that waits for its events, again and again, where others listen: the thread that waits reads them itself."""

    def start(self, *events: str, since: str = "now") -> WaitingNode:
        self.router.start()
        self._task = Task().start(router=self.router)
        for event in events:
            self._task.wait_for(event, 0, since="last")
            self.heard[event] = []
            threading.Thread(target=self._wait, args=(event,), daemon=True).start()
        return self

    def _wait(self, event: str) -> None:
        try:
            while True:
                found = self._task.wait_for(event, 1.0, since="last")
                if found is not None:
                    producer, number, body = found[0]
                    self.heard[event].append((producer, number, body))
        except NotStarted:
            pass  # it was stopped

    def stop(self) -> int:
        self._task.request_leave()
        self._task.stop()
        return super().stop()


def kept_in(client: Any, run_id: str, event: str = EVENT) -> list[Heard]:
    """What the stream of ``event`` holds, read with a plain client."""
    found: list[Heard] = []
    for _, fields in client.xrange(Keys(run_id).events(event)):
        head = frame.unpack(fields[b"f"], max_size=1 << 30)
        found += [(args[0], args[1], args[2]) for args, _ in frame.events(head)]
    return found


class Steps:
    """Nodes at work: each takes a step after another, which its heartbeat has to tell."""

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        step = 0
        while not self._over.wait(0.05):
            step += 1
            for node in self._nodes:
                node.router.progress(step, "main")
