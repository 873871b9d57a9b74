"""Nodes of one run in one process, for tests: any number, and each can be cut off, frozen, killed and brought back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self

from taskbus.bus.connect import MEMORY_SERVERS
from taskbus.bus.follower import Follower
from taskbus.bus.guest import Guest
from taskbus.bus.life import Life
from taskbus.bus.runs import remove_run
from taskbus.config import RouterConfig
from taskbus.errors import BusError, BusUnavailable, NodeIdTaken, NotStarted, WaitTimeout
from taskbus.mailbox import ErrorBox
from taskbus.router import Router
from taskbus.seam import Seam, SeamTarget
from taskbus.types import FinishInfo, Labels, NodeInfo, Since, Sink
from taskbus.until import until

__all__ = ["Emitted", "LinkedNode", "LinkedNodes"]

_SETTINGS: dict[str, Any] = {"heartbeat": 0.2, "lease": 2.0, "block": 0.3, "op_timeout": 3.0, "stop_timeout": 1.0}
"""Short ones, so that a test does not wait long for a lease to run out."""

_LAST_SETTLING = 1.0


class Emitted(NamedTuple):
    """One event that the run keeps, and the node that emitted it."""

    event: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    node: str


class LinkedNode(Router):
    """A router whose connection to the bus a test can hurt; tasks take it as they take any router."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.seam = Seam(self.config.op_timeout)
        self.tokens: set[str] = set()
        """What its events are signed with, one for each of its lives."""

    def _new_life(self) -> Life:
        life = Life(self.config, self.loop, SeamTarget(self.config.url, self.config.connect_timeout, self.seam))
        self.tokens.add(life.producer)
        return life

    @property
    def life(self) -> Life:
        """As of every router; a node that the test has killed says so."""
        if self.seam.state == "ended":
            raise NotStarted(f"the test has killed node {self.node_id!r}: revive() it first")
        return super().life

    def subscribe(self, sink: Sink, since: Since = "now", timeout: float | None = None) -> None:
        with self._telling_of_a_freeze():
            super().subscribe(sink, since, timeout)

    def sync(self, timeout: float | None = None) -> None:
        with self._telling_of_a_freeze():
            super().sync(timeout)

    def nodes(self, patterns: Labels = None, timeout: float | None = None) -> list[NodeInfo]:
        with self._telling_of_a_freeze():
            return super().nodes(patterns, timeout)

    def add_labels(self, labels: frozenset[str]) -> Callable[[], None]:
        with self._telling_of_a_freeze():
            return super().add_labels(labels)

    @contextmanager
    def _telling_of_a_freeze(self) -> Iterator[None]:
        try:
            yield
        except BusError as error:
            if self.seam.state == "frozen":
                raise BusUnavailable(f"the test has frozen node {self.node_id!r}: thaw() it first") from error
            raise

    @property
    def is_linked(self) -> bool:
        """Started, and neither cut off nor frozen."""
        return self.is_active and self.seam.state == "open"

    def cut(self) -> None:
        """Break its connections and refuse new ones, as a network that is gone; :meth:`heal` ends it."""
        self.seam.cut()

    def heal(self) -> None:
        """End a cut: the node connects again by itself."""
        self.seam.open()

    def freeze(self) -> None:
        """Let nothing pass in either direction and break nothing, as a process that is paused; :meth:`thaw` ends it.

        Its lease runs out meanwhile. Listeners still run for what had arrived, and for what is emitted here. Whatever a
        test asks of it otherwise is refused after ``op_timeout``.
        """
        self.seam.freeze()

    def thaw(self) -> None:
        """End a freeze: what was held back passes now."""
        self.seam.open()

    def kill(self) -> None:
        """End it as SIGKILL ends a process: it does not flush, it does not leave, its lease runs out."""
        if not self.is_active:
            raise NotStarted(f"{self!r} cannot be killed: it does not live")
        known, self.errors = self.errors.kept, ErrorBox()  # what listeners say from now on, nobody would hear
        for error in known:
            self.errors.add(error)
        self.seam.end()
        self.loop.close()
        self.stop(timeout=0.1)

    def revive(self) -> Self:
        """Start it again under its id once its lease has run out, as a restarted process: it has no listeners."""
        if self.node_id is not None:
            self.config = replace(self.config, node_id=self.node_id)
        self.seam = Seam(self.config.op_timeout)
        before = self.errors.kept  # of the life that was killed, where nobody was told yet
        until(self._try_to_start, 2 * self.config.lease + 5.0, f"node {self.node_id!r} can have its id again")
        for error in before:
            self.errors.add(error)
        return self

    def _try_to_start(self) -> bool:
        try:
            self.start()
        except NodeIdTaken:
            return False
        return True


class LinkedNodes:
    """One run and its nodes, all in this process.

    Args:
        url: Where the bus is; default an in-process server of its own, which needs the extra ``embedded``.
        run_id: The run; default a new name.
        settings: Of every node, as for :class:`~taskbus.router.Router`; leases are short by default.
    """

    def __init__(self, url: str | None = None, *, run_id: str | None = None, **settings: Any) -> None:
        self.url = url or f"memory://{secrets.token_hex(8)}"
        self.run_id = run_id or f"test-{secrets.token_hex(6)}"
        self._settings = {**_SETTINGS, **settings}
        self._nodes: list[LinkedNode] = []
        self._is_closed = False
        self._guest = Guest(RouterConfig.from_env(url=self.url, run_id=self.run_id))
        self._echoes = 0

    def node(
        self, *, node_id: str | int | None = None, labels: Iterable[str] | str = (), **settings: Any
    ) -> LinkedNode:
        """A new node, started; it is stopped with the run."""
        known = {"run_id": self.run_id, "node_id": node_id, "labels": labels, "record": True}
        node = LinkedNode(self.url, **{**self._settings, **known, **settings})
        self._nodes.append(node)
        return node.start()

    def __iter__(self) -> Iterator[LinkedNode]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, node_id: str | int) -> LinkedNode:
        """The node of that id."""
        for node in self._nodes:
            if node.node_id == str(node_id):
                return node
        raise KeyError(node_id)

    # Looking ---------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> FinishInfo | None:
        """The durable finish, as Redis has it."""
        return self._guest.finished()

    def emitted(self, event: str = "*") -> list[Emitted]:
        """What the run keeps of the events that match the glob, oldest first; our own events only where they match.

        Transient events are not kept: ``node.recorded`` has what a node emitted.
        """
        names = {token: str(node.node_id) for node in self._nodes for token in node.tokens}
        follower = Follower(self._guest, [event], "start")
        try:
            found = []
            while page := follower.read(0.0):
                found += page
        finally:
            follower.close()
        return [
            Emitted(one.event, one.args, one.kwargs or {}, names.get(one.producer, one.producer))
            for one in found
            if event.startswith("taskbus.") or not one.event.startswith("taskbus.")
        ]

    def settle(self, timeout: float = 5.0) -> None:
        """Return when the bus is quiet: all that was emitted is acknowledged and read, and its listeners are done.

        Nodes that are cut off or frozen are left out. ``WaitTimeout`` says who is still busy. Raises the first error
        of a listener, as ``sync`` of its node would.
        """
        try:
            until(self._is_quiet, timeout)
        except TimeoutError as error:
            who = ", ".join(f"node {node.node_id!r} {why}" for node in self._linked() if (why := self._busy(node)))
            raise type(error)(f"the bus is not quiet within {timeout:g} s: {who or 'events come and go'}") from None
        self._raise_first()

    def _raise_first(self) -> None:
        """Raise the first error of a node's listeners that was raised nowhere yet."""
        for node in self._nodes:
            if node.errors.kept:
                node.errors.kept[0].add_note(f"in a listener of node {node.node_id!r}")
                node.errors.raise_first()

    def _linked(self) -> list[LinkedNode]:
        return [node for node in self._nodes if node.is_linked]

    def _is_quiet(self) -> bool:
        before = self._activity()
        return (
            not any(self._busy(node) for node in self._linked())
            and self._has_echoed()
            and not any(self._busy(node) for node in self._linked())
            and self._activity() == before
        )

    def _activity(self) -> tuple[int, int]:
        stats = [node.stats() for node in self._linked()]
        return sum(one.emitted for one in stats), sum(one.delivered for one in stats)

    def _busy(self, node: LinkedNode) -> str:
        """What a node still has to do; empty when it is nothing."""
        life = node.life
        if life.writer.waiting:
            return "has events that are not acknowledged"
        counts = {name: state.events for name, state in self._guest.streams().items()}
        if not life.reader.has_read(counts):
            return "has events to read"
        if names := life.loop.drain(0.0):
            return f"runs {', '.join(names)}"
        return ""

    def _has_echoed(self) -> bool:
        """Whether every transient event so far has arrived: they come in the order of their channel's connection."""
        self._echoes += 1
        word = f"echo{self._echoes}".encode()
        waiting = [node.life for node in self._linked() if node.life.channels.is_used]
        for life in waiting:
            self._guest.calls.call(b"PUBLISH", life.channels.probe_channel, word)
        try:
            until(lambda: all(life.channels.echo == word for life in waiting), 1.0)
        except TimeoutError:
            return False
        return True

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop every node and remove the run: no thread and no key stays behind. Harmless when repeated.

        What is under way may settle first, for a second. Raises, in the end, the first error of a listener that was
        raised nowhere yet.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with suppress(WaitTimeout, BusError):  # how busy a test leaves its nodes is its own affair
                until(self._is_quiet, _LAST_SETTLING)
            self._raise_first()
        finally:
            self._remove()

    def _remove(self) -> None:
        for node in self._nodes:
            node.seam.open()
        for node in self._nodes:
            node.stop()
        self._nodes.clear()
        if self.url.startswith("memory://"):
            self._guest.close()
            MEMORY_SERVERS.pop(self.url.partition("://")[2], None)
            return
        try:
            remove_run(self._guest)
        finally:
            self._guest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._remove()
