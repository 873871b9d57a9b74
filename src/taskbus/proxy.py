"""A small TCP proxy between nodes and Redis that hurts connections on demand, for tests."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self

__all__ = ["Direction", "Proxy"]

Direction = Literal["up", "down", "both"]
"""``up`` is from the node to Redis, ``down`` is what Redis answers."""

_READ = 1 << 16
_QUEUED = 1 << 20
_REMEMBERED = 4096
_IDLE = 3600.0
_HOLDS = ("stall", "blackhole")


@dataclass
class _Rule:
    """How one direction of one connection is treated, or of all."""

    kind: str = "pass"
    seconds: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    count: int = 0
    containing: bytes = b""


_PASS = _Rule()


@dataclass
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket | None
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    queued: int = 0
    sent: int = 0
    not_before: float = 0.0
    blocked: bool = False
    ended: bool = False
    closed: bool = False


class _Link:
    """One connection of a node, and its other half to the server."""

    def __init__(self, index: int, client: socket.socket) -> None:
        self.index = index
        self.client = client
        self.server: socket.socket | None = None
        self.up = _Pipe(client, None)
        self.down: _Pipe | None = None
        self.beginning = b""
        self.end = b""
        self.drops_reply = False

    def pipes(self) -> list[tuple[Direction, _Pipe]]:
        return [("up", self.up)] if self.down is None else [("up", self.up), ("down", self.down)]


class Proxy:
    """Stands before a server, forwards in both directions, and hurts on demand.

    Every connection has an index, in the order of their coming; :meth:`find` tells which is which. A fault is for all
    connections, present and to come, or for the one given as ``connection``, and for both directions or for one. It
    replaces the fault that was there; :meth:`heal` takes all away, and what was held back is forwarded then. When a
    call returns, what it says is so.

    Args:
        target: Host and port of the server.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._turned = threading.Condition(self._lock)
        self._turns = 0
        self._rules: dict[tuple[Direction, int | None], _Rule] = {}
        self._links: dict[int, _Link] = {}
        self._listener: socket.socket | None = None
        self._refusing = False
        self._resetting: list[int | None] = []
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="taskbus-proxy", daemon=True)
        self.port = self.accepted = self.dropped_replies = 0

    # For tests -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen on a free port of 127.0.0.1, from now on its address."""
        self._listen()
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close everything; harmless when repeated."""
        if self._thread.is_alive():
            self._stopping = True
            with suppress(OSError):  # it has seen that already
                self._wake_in.send(b".")
            self._thread.join()

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> list[int]:
        """The indices of the connections that are open."""
        with self._lock:
            return sorted(self._links)

    def find(self, containing: bytes) -> int | None:
        """The newest open connection whose first or latest bytes to the server contain ``containing``."""
        with self._lock:
            found = (i for i, link in self._links.items() if containing in link.beginning or containing in link.end)
            return max(found, default=None)

    def move(self, target: tuple[str, int]) -> None:
        """Send new connections to another server."""
        self._target = target

    def heal(self) -> None:
        """No fault from now on."""
        self._rules.clear()
        self._refusing = False
        self._wake()

    def delay(
        self, seconds: float, jitter: float = 0.0, *, direction: Direction = "both", connection: int | None = None
    ) -> None:
        """Everything arrives later, by ``seconds`` plus or minus ``jitter``, in order."""
        self._set(_Rule("delay", seconds=seconds, jitter=jitter), direction, connection)

    def throttle(self, rate: float, *, direction: Direction = "both", connection: int | None = None) -> None:
        """At most ``rate`` bytes a second."""
        self._set(_Rule("throttle", rate=rate), direction, connection)

    def drip(self, seconds: float, *, direction: Direction = "both", connection: int | None = None) -> None:
        """One byte every ``seconds``."""
        self.throttle(1 / seconds, direction=direction, connection=connection)

    def stall(self, *, direction: Direction = "both", connection: int | None = None) -> None:
        """Accept connections, and read nothing from them."""
        self._set(_Rule("stall"), direction, connection)

    def blackhole(self, *, direction: Direction = "both", connection: int | None = None) -> None:
        """Forward nothing, neither bytes nor ends; the sockets stay open."""
        self._set(_Rule("blackhole"), direction, connection)

    def cut_after(self, count: int, *, direction: Direction = "both", connection: int | None = None) -> None:
        """Reset a connection once ``count`` more bytes went through."""
        with self._lock:
            for link in self._links.values():
                for _, pipe in link.pipes():
                    pipe.sent = 0
        self._set(_Rule("cut", count=count), direction, connection)

    def drop_reply(self, containing: bytes = b"", times: int = 1, *, connection: int | None = None) -> None:
        """Forward requests that contain ``containing``, and reset the connection instead of the reply, ``times``."""
        self._set(_Rule("drop", count=times, containing=containing), "up", connection)

    def refuse(self) -> None:
        """Let nobody connect any more; see also :meth:`reset`."""
        self._refusing = True
        self._wake()

    def reset(self, connection: int | None = None) -> None:
        """RST to both sides of the open connections, or of one."""
        self._resetting.append(connection)
        self._wake()

    def _set(self, rule: _Rule, direction: Direction, connection: int | None) -> None:
        for one in ("up", "down") if direction == "both" else (direction,):
            self._rules[one, connection] = rule
        self._wake()

    def _wake(self) -> None:
        """Have the thread act on what has changed, and return when it did."""
        with self._turned:
            turns = self._turns
            self._wake_in.send(b".")
            self._turned.wait_for(lambda: self._turns > turns or not self._thread.is_alive(), 5.0)

    # The thread ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while self._listener is None:
            # Below the ports that clients are given: who tries a dead port among those may connect to itself.
            port = self.port or random.randrange(12_000, 32_000)
            try:
                self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
            except OSError:
                if self.port:
                    raise
        self.port = port
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _run(self) -> None:
        while not self._stopping:
            with self._turned:
                self._obey()
                pause = self._serve()
                self._turns += 1
                self._turned.notify_all()
            for key, _ in self._selector.select(pause):
                if key.fileobj is self._wake_out:
                    self._wake_out.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data is not None:
                    for _, pipe in key.data.pipes():
                        pipe.blocked = False
        with self._lock:
            for link in list(self._links.values()):
                self._close(link, reset=False)
        for sock in (self._listener, self._wake_in, self._wake_out):
            if sock is not None:
                sock.close()
        self._selector.close()

    def _obey(self) -> None:
        while self._resetting:
            wanted = self._resetting.pop()
            for link in list(self._links.values()):
                if wanted is None or link.index == wanted:
                    self._close(link, reset=True)
        if self._refusing and self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        elif not self._refusing and self._listener is None:
            self._listen()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it hung up before it was its turn
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._links[self.accepted] = _Link(self.accepted, client)
            self.accepted += 1

    def _rule(self, direction: Direction, link: _Link) -> _Rule:
        return self._rules.get((direction, link.index)) or self._rules.get((direction, None)) or _PASS

    def _serve(self) -> float:
        """Move what may be moved now; returns how long there is nothing to do unless a socket has news."""
        now = time.monotonic()
        pause = _IDLE
        wanted: dict[socket.socket, tuple[int, _Link]] = {}
        for link in list(self._links.values()):
            try:
                if link.server is None and self._rule("up", link).kind != "stall":
                    self._connect(link)
                for direction, pipe in link.pipes():
                    pause = min(pause, self._move(link, direction, pipe, now))
                if link.index in self._links and all(pipe.closed for _, pipe in link.pipes()):
                    self._close(link, reset=False)
            except OSError:
                self._close(link, reset=True)
            if link.index in self._links:
                self._want(link, wanted)
        self._watch(wanted)
        return pause

    def _connect(self, link: _Link) -> None:
        link.server = server = socket.create_connection(self._target, timeout=2.0)
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.up.sink = server
        link.down = _Pipe(server, link.client)

    def _move(self, link: _Link, direction: Direction, pipe: _Pipe, now: float) -> float:
        rule = self._rule(direction, link)
        if rule.kind in _HOLDS or link.index not in self._links:
            return _IDLE
        self._read(link, direction, pipe, rule, now)
        while pipe.queue and not pipe.blocked and link.index in self._links:
            due = max(pipe.queue[0][0] if rule.kind == "delay" else 0.0, pipe.not_before)
            if due > now:
                return due - now
            self._send(link, pipe, rule, now)
        if pipe.ended and not pipe.queue and not pipe.closed:
            pipe.closed = True
            if pipe.sink is not None:
                pipe.sink.shutdown(socket.SHUT_WR)
        return _IDLE

    def _read(self, link: _Link, direction: Direction, pipe: _Pipe, rule: _Rule, now: float) -> None:
        while not pipe.ended and pipe.queued < _QUEUED and link.index in self._links:
            try:
                data = pipe.source.recv(_READ)
            except BlockingIOError:
                return
            if not data:
                pipe.ended = True
                return
            if direction == "up":
                self._remember(link, data, rule)
            elif link.drops_reply:
                self.dropped_replies += 1
                self._close(link, reset=True)
                return
            due = now + max(0.0, rule.seconds + random.uniform(-rule.jitter, rule.jitter))
            pipe.queue.append((max(due, pipe.queue[-1][0] if pipe.queue else 0.0), data))
            pipe.queued += len(data)

    @staticmethod
    def _remember(link: _Link, data: bytes, rule: _Rule) -> None:
        link.beginning += data[: _REMEMBERED - len(link.beginning)]
        link.end = (link.end + data[-_REMEMBERED:])[-_REMEMBERED:]
        if rule.kind == "drop" and rule.count > 0 and not link.drops_reply and rule.containing in link.end:
            rule.count -= 1
            link.drops_reply = True
            link.end = b""

    def _send(self, link: _Link, pipe: _Pipe, rule: _Rule, now: float) -> None:
        due, data = pipe.queue[0]
        size = len(data)
        if rule.kind == "throttle":
            size = min(size, max(1, int(rule.rate / 100)))
        elif rule.kind == "cut":
            size = min(size, max(0, rule.count - pipe.sent))
            if size == 0:
                self._close(link, reset=True)
                return
        assert pipe.sink is not None
        try:
            count = pipe.sink.send(data[:size])
        except BlockingIOError:
            pipe.blocked = True
            return
        pipe.sent += count
        pipe.queued -= count
        if rule.kind == "throttle":
            pipe.not_before = now + count / rule.rate
        if count == len(data):
            pipe.queue.popleft()
        else:
            pipe.queue[0] = (due, data[count:])

    def _want(self, link: _Link, wanted: dict[socket.socket, tuple[int, _Link]]) -> None:
        def want(sock: socket.socket, mask: int) -> None:
            wanted[sock] = (mask | wanted.get(sock, (0, link))[0], link)

        for direction, pipe in link.pipes():
            if self._rule(direction, link).kind not in _HOLDS:
                if not pipe.ended and pipe.queued < _QUEUED:
                    want(pipe.source, selectors.EVENT_READ)
                if pipe.blocked and pipe.sink is not None:
                    want(pipe.sink, selectors.EVENT_WRITE)

    def _watch(self, wanted: dict[socket.socket, tuple[int, _Link]]) -> None:
        always = (self._wake_out, self._listener)
        known = {key.fileobj for key in self._selector.get_map().values() if key.fileobj not in always}
        for sock in known - wanted.keys():
            self._selector.unregister(sock)
        for sock, (mask, link) in wanted.items():
            if sock in known:
                self._selector.modify(sock, mask, link)
            else:
                self._selector.register(sock, mask, link)

    def _close(self, link: _Link, reset: bool) -> None:
        self._links.pop(link.index, None)
        for sock in (link.client, link.server):
            if sock is not None:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if sock in self._selector.get_map():
                    self._selector.unregister(sock)
                sock.close()
