"""Somebody at a run who is no node: looks, emits and finishes, and no node ever hears that it was there."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from taskbus.bus.calls import Calls
from taskbus.bus.connect import Target
from taskbus.bus.keys import Keys
from taskbus.bus.policy import check_version
from taskbus.bus.registry import Registry
from taskbus.bus.writer import Writer
from taskbus.condition import Flag
from taskbus.config import RouterConfig
from taskbus.errors import ConfigError
from taskbus.types import FinishInfo, NodeInfo

__all__ = ["Guest", "StreamState"]


@dataclass(frozen=True, slots=True)
class StreamState:
    """How far a stream is: events and bytes since the run began, and the time of its last entry (Unix, seconds)."""

    events: int
    bytes: int
    last: float


class Guest:
    """A run as seen from outside, over one connection that opens with the first call.

    Guests have no id, no lease and no labels: reading leaves no key behind, and emitting only what was emitted.
    """

    def __init__(self, config: RouterConfig) -> None:
        if not config.url:
            raise ConfigError("no URL of a Redis was given: use --url, or set TASKBUS_URL")
        self.config = config
        self.target = Target(config.url, config.connect_timeout)
        self.keys = Keys(config.run_id)
        self.name = f"shell-{socket.gethostname()}-{os.getpid()}"
        self._stopping = Flag()
        self.calls = Calls(
            self.target, timeout=min(2.5, config.op_timeout), deadline=config.op_timeout, stopping=self._stopping
        )
        self._token = secrets.token_hex(8)
        self._registry = Registry(config, self.keys, self.calls, self._token)
        self._registry.node_id = self.name

    def open(self) -> Self:
        """Connect, and refuse a server that is too old; every later call connects by itself where it has to."""
        check_version(self.calls, self.target.where)
        return self

    def close(self) -> None:
        self._stopping.set()
        self.calls.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Looking ---------------------------------------------------------------------------------------------------------

    def nodes(self) -> list[NodeInfo]:
        """Every live node of the run, by id."""
        return self._registry.nodes()

    def finished(self) -> FinishInfo | None:
        """The durable finish of the run."""
        self._registry.finish = None
        return self._registry.look_for_finish()

    def streams(self) -> dict[str, StreamState]:
        """Every event name of the run that was ever emitted, our own included."""
        flat = self.calls.call(b"HGETALL", self.keys.streams)
        found = {}
        for name, state in zip(flat[::2], flat[1::2], strict=True):
            numbers = state.split(b" ", 3)
            try:
                found[name.decode()] = StreamState(int(numbers[0]), int(numbers[1]), int(numbers[2]) / 1000)
            except (ValueError, IndexError):
                continue  # not written by us
        return dict(sorted(found.items()))

    def exists(self) -> bool:
        """Whether Redis knows the run at all."""
        keys = (self.keys.epoch, self.keys.finish, self.keys.streams, self.keys.nodes)
        return bool(self.calls.call(b"EXISTS", *keys))

    def now(self) -> str:
        """An entry id before all that is emitted from now on, for ``since``: Redis' clock, and no ordinal."""
        seconds, micros = self.calls.call(b"TIME")
        return f"{1000 * int(seconds) + int(micros) // 1000}-0"

    def sweep(self) -> list[str]:
        """Take the nodes whose lease ran out off the registry and tell the run, as a node does that waits for that."""
        gone = self._registry.sweep()
        for node_id in gone:
            self.emit("taskbus.node_left", (), {"node": node_id, "reason": "expired"})
        return gone

    # Doing -----------------------------------------------------------------------------------------------------------

    def finish(self, reason: str) -> FinishInfo:
        """Finish the run for every node; returns the finish that holds, which is an earlier one if there is."""
        finish = self._registry.write_finish(reason, self.config.op_timeout)
        assert finish is not None, "a guest has no place that it could lose"
        return finish

    def emit(
        self,
        event: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        only_to: tuple[str, ...] = (),
        transient: bool = False,
    ) -> None:
        """Emit one event and return when Redis has acknowledged it; raises what stands in the way."""
        deadline = time.monotonic() + self.config.op_timeout
        writer = Writer(self.config, self.target, self.keys, self._token, self._stand)
        writer.emit(event, args, kwargs, only_to=only_to or None, transient=transient)  # what cannot travel stays
        self._stand()
        writer.begin(self.calls)
        writer.start()
        try:
            writer.sync(max(0.1, deadline - time.monotonic()))
        finally:
            writer.stop(time.monotonic(), self.calls)
            self.calls.call(b"DEL", self.keys.producer(self._token), timeout=1.0)

    def _stand(self) -> None:
        self.calls.script("guest", (self.keys.producer(self._token),), (int(self.config.lease * 1000),))
