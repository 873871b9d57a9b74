"""The least that could do it: what the promises cost on the wire, or in the call, and nothing of what keeps them.

No lock, no deadline, no error, no check, no bound, no thread that minds the rest. What a row lacks to its reach beyond
this is the work of taskbus; what this lacks itself is the server's, the system's or Python's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from bare import Bare
from stage import Pipe, now

from taskbus import codec, frame
from taskbus.bus.keys import Keys
from taskbus.bus.scripts import load
from taskbus.config import RouterConfig

_BLOCK = 4000


class Node:
    """Appends by the script, reads two keys at a time, in our frames, each over a bare socket of its own."""

    def __init__(self, url: str, run: str, name: str, there: str) -> None:
        keys, self._name, config = Keys(run), name.encode(), RouterConfig(url=url, run_id=run)
        self._producer = f"{name:-<16}"
        self._writer, self._reader = Bare(url), Bare(url)
        inbox = keys.inbox(name)
        limits = (config.retention_events, config.retention_bytes, int(config.retention_seconds * 1000))
        self._limits = " ".join([*map(str, (*limits, int(config.run_ttl * 1000))), keys.prefix]).encode()
        self._script = self._writer.call(b"SCRIPT", b"LOAD", load("append", False).text)
        self._writer.call(b"HSET", keys.producer(self._producer), b"batch", b"-1")
        self._writer.call(b"XADD", inbox, b"*", b"k", b"none")
        self._keys = keys.producer(self._producer), keys.streams, keys.events(name)
        self._read = b"XREAD", b"COUNT", 64, b"BLOCK", _BLOCK, b"STREAMS", keys.events(there), inbox
        self._last = b"0-0"
        self._sent = 0

    def emit(self, *args: Any, **kwargs: Any) -> None:
        text, _ = codec.encode(args, kwargs)
        data = frame.pack(self._producer, self._sent + 1, 1, b"[%b]" % text)
        if self._sent:
            self._writer.read()
        values = self._limits, self._sent, self._name, 1, len(text), data, b""
        self._writer.send(b"EVALSHA", self._script, 3, *self._keys, *values)
        self._sent += 1

    def wait(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        [[_, [[self._last, [_, data]]]]] = self._reader.call(*self._read, self._last, b"9999999999999-0")
        return frame.events(frame.unpack(data, max_size=1 << 20))[0]


def ask(pipe: Pipe, url: str, run: str, rounds: int) -> None:
    node = Node(url, run, "ping", "pong")
    pipe.receive()
    took = []
    for number in range(rounds):
        start = now()
        node.emit(number)
        node.wait()
        took.append(now() - start)
    node.emit(None)
    pipe.send(took)


def answer(pipe: Pipe, url: str, run: str) -> None:
    node = Node(url, run, "pong", "ping")
    while (number := node.wait()[0][0]) is not None:
        node.emit(number)


class Table:
    """Who takes which event, and an ``emit`` of the signature of ours."""

    def __init__(self) -> None:
        self.takers: dict[str, tuple[Callable[[Any], Any], ...]] = {}

    def emit(
        self,
        event: str,
        /,
        *args: Any,
        only_remote: bool = False,
        only_local: bool = False,
        only_to: Any = None,
        transient: bool = False,
        **kwargs: Any,
    ) -> None:
        for take in self.takers.get(event, ()):
            take((args, kwargs))


def deliver(count: int, handler: Any) -> float:
    """Events a second to a function, by way of the queue of C and a thread."""
    table, queue = Table(), SimpleQueue[Any]()
    table.takers["event"] = (queue.put,)

    def work() -> None:
        while (event := queue.get()) is not None:
            handler(*event[0], **event[1])

    thread = threading.Thread(target=work)
    thread.start()
    start = now()
    for number in range(count):
        table.emit("event", number, only_local=True)
    handler.done.wait()
    took = now() - start
    queue.put(None)
    thread.join()
    return count / took


class Waits:
    """A ``wait_for`` that an ``emit`` ends: a table, a lock, a tuple."""

    def __init__(self) -> None:
        self._table = Table()
        self.emit = self._table.emit

    def wait_for(self, event: str) -> Any:
        found: list[Any] = []
        lock = threading.Lock()
        lock.acquire()

        def take(arguments: Any) -> None:
            found.append(arguments)
            lock.release()

        self._table.takers[event] = (take,)
        lock.acquire()
        del self._table.takers[event]
        return found[0]
