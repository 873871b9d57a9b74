"""The least that could do it: what the promises cost on the wire, or in the call, and nothing of what keeps them.

No lock, no deadline, no bound, no thread that minds the rest, no error but those of our codec and frames, which check
what they write and read. What lies between this and a row of ours is the work of taskbus.
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
from taskbus.bus.packing import bulk
from taskbus.bus.scripts import load
from taskbus.config import RouterConfig

_BLOCK = 4000


class Node:
    """Appends by the script, reads two keys at a time, in our frames, each over a bare socket of its own.

    What does not change is packed once, as taskbus does, too.
    """

    def __init__(self, url: str, run: str, name: str, there: str) -> None:
        keys, event, config = Keys(run), name.encode(), RouterConfig(url=url, run_id=run)
        self._producer = f"{name:-<16}"
        self._writer, self._reader = Bare(url), Bare(url)
        producer, inbox = keys.producer(self._producer), keys.inbox(name)
        limits = (config.retention_events, config.retention_bytes, int(config.retention_seconds * 1000))
        limit = " ".join([*map(str, (*limits, int(config.run_ttl * 1000))), keys.prefix]).encode()
        script = self._writer.call(b"SCRIPT", b"LOAD", load("append", False).text)
        self._writer.call(b"HSET", producer, b"batch", b"-1")
        self._writer.call(b"XADD", inbox, b"*", b"k", b"none")
        append = b"EVALSHA", script, b"3", producer, keys.streams, keys.events(name), limit
        self._append = b"*13\r\n" + b"".join(map(bulk, append))
        self._event = bulk(event) + bulk(b"1")
        block = b"%d" % _BLOCK
        read = b"XREAD", b"COUNT", b"64", b"BLOCK", block, b"STREAMS", keys.events(there), inbox
        self._read = b"*10\r\n" + b"".join(map(bulk, read))
        self._inbox = bulk(b"9999999999999-0")
        self._last = b"0-0"
        self._sent = 0

    def emit(self, *args: Any, **kwargs: Any) -> None:
        text, _ = codec.encode(args, kwargs)
        data = frame.pack(self._producer, self._sent + 1, 1, b"[%b]" % text)
        if self._sent:
            self._writer.read()
        number, size = b"%d" % self._sent, b"%d" % len(text)
        self._sent += 1
        values = self._append, bulk(number), self._event, bulk(size), bulk(data), bulk(b"")
        self._writer.socket.send(b"".join(values))

    def wait(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._reader.socket.send(self._read + bulk(self._last) + self._inbox)
        [[_, [[self._last, [_, data]]]]] = self._reader.read()
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
