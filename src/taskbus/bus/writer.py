"""The thread that empties the outbox: self-clocking group commit.

While nothing is in flight an event leaves at once; while a batch is in flight further events gather, one frame for each
stream, and leave together when it is acknowledged. A batch keeps its number on every attempt, and the append script
takes each number once, so that a retry never writes an event a second time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions as driver

from taskbus import frame
from taskbus.bus.outbox import OpenFrame, Outbox
from taskbus.bus.scripts import load
from taskbus.bus.wire import Backoff, Part, Wire, pack, pack_value
from taskbus.errors import BusDenied, BusError, BusUnavailable, Fenced, NotAcknowledged

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.config import RouterConfig

__all__ = ["Writer"]

log = logging.getLogger("taskbus")

_HISTORY = 4096
_WAIT_FOR_REPLICAS = 1.0
_PAUSE_WHEN_DENIED = 5.0


class _Packed(NamedTuple):
    """A batch as it goes over the wire, on every attempt the same."""

    blobs: list[tuple[str, list[Part]]]
    streams: list[bytes]
    values: list[Any]


class Writer(Outbox):
    """Has all that is in the outbox appended, in order, each event once."""

    def __init__(
        self, config: RouterConfig, target: Target, keys: Keys, producer: str, on_forgotten: Callable[[], None]
    ) -> None:
        super().__init__(config, target.where)
        self._keys = keys
        self._producer = producer
        self._on_forgotten = on_forgotten
        self._in_process = target.in_process
        self._wire = Wire(target, min(3.0, config.op_timeout))
        self._replicas = int(config.ack.partition(":")[2] or 0)
        self._batch = 0
        self._blobs = 0
        self._epoch = b""
        self._history: deque[tuple[int, tuple[tuple[str, int, int], ...]]] = deque(maxlen=_HISTORY)
        self._thread = threading.Thread(target=self._run, name="taskbus-writer", daemon=True)
        self.node_id = ""
        self.on_fenced: Callable[[BusError], None] = self.fail
        self.epoch: Callable[[], bytes] = lambda: b""
        self.diagnose: Callable[[BusDenied, Wire], BusDenied] = lambda error, wire: error
        self.lost = self.reconnects = self.suppressed = 0
        self.sign_of_life = time.monotonic()

    def start(self) -> None:
        """Begin to write; ``node_id`` must be known."""
        self._epoch = self.epoch()
        self._thread.start()

    def stop(self, deadline: float) -> int:
        """Write what is left until ``deadline`` (monotonic), and end the thread.

        Returns how many events were not acknowledged.
        """
        self.flush(deadline)
        self._stopping.set()
        self.fail(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._wire.abort()
            self._thread.join(max(0.1, deadline - time.monotonic()))
        return self.waiting

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            self._write(batch)
        self._wire.close()

    def _write(self, batch: list[OpenFrame]) -> None:
        durable = [item for item in batch if not item.transient]
        packed = self._pack_durable(durable) if durable else None
        transient = [self._pack_transient(item) for item in batch if item.transient]
        if durable:
            self._batch += 1
        backoff = Backoff()
        while True:
            pause = backoff.next()
            try:
                self._open_wire()
                once, transient = transient, []  # kept by nobody: a second attempt could come twice
                if self._exchange(packed, once):
                    break
            except Fenced as error:
                self.on_fenced(error)
            except BusDenied as error:
                self._refused(self.diagnose(error, self._wire))
                pause = _PAUSE_WHEN_DENIED
            except BusError as error:
                self._refused(error)
            except Exception:
                log.exception("writing to Redis at %s failed in an unforeseen way; it is tried again", self._where)
                self._wire.close()
            if self.fatal is not None or self._stopping.wait(pause):
                return
        self.sign_of_life = time.monotonic()
        if durable:
            self._history.append((self._batch, tuple((item.event, item.first, item.count) for item in durable)))
        if self._settle(batch):
            log.warning("Redis at %s takes events again", self._where)

    def _open_wire(self) -> None:
        if not self._wire.is_open:
            self._wire.open()
            self.reconnects += self._batch > 1

    def _refused(self, error: BusError) -> None:
        if self._refuse(error):
            log.warning("%s; %d events wait", error, self.waiting)

    def _exchange(self, packed: _Packed | None, transient: list[tuple[str, bytes]]) -> bool:
        """One attempt; false when it has to be made again, for Redis had forgotten this node."""
        script = load("append", self._in_process)
        parts: list[Part] = [part for _, blob in packed.blobs for part in blob] if packed else []
        parts += [part for _, part in transient]
        if packed:
            parts.append(self._command(b"EVALSHA", script.sha, packed))
        self._wire.send(parts)
        # All are read before one is checked: a reply that is left would be taken for the next command's.
        blobs = [(key, self._wire.read()) for key, _ in packed.blobs] if packed else []
        published = [(channel, self._wire.read()) for channel, _ in transient]
        answer: Any = self._wire.read() if packed else None
        for channel, reply in published:
            self._check_published(channel, reply)
        for key, reply in blobs:
            self._wire.check(reply, f"SET {key}")
        if packed is None:
            return True
        if isinstance(answer, driver.NoScriptError):
            self._wire.send([self._command(b"EVAL", script.text, packed)])
            answer = self._wire.read()
        if isinstance(answer, Exception):
            raise self._wire.explain(answer, script.culprit(str(answer), packed.streams)) from answer
        return self._understand(answer, packed)

    def _check_published(self, channel: str, reply: Any) -> None:
        """Transient events never keep durable ones waiting: what is refused is reported, and gone."""
        try:
            self._wire.check(reply, f"PUBLISH {channel}")
        except BusDenied as error:
            log.error("%s", error)
            self.denied = error
        except BusUnavailable as error:
            log.warning("transient events are lost: %s", error)

    def _command(self, how: bytes, script: bytes, packed: _Packed) -> bytes:
        config = self._config
        node, producer = self._keys.node(self.node_id), self._keys.producer(self._producer)
        keys = (node, producer, self._keys.streams, *packed.streams)
        head = (self._keys.prefix, self._producer, self._batch, config.retention_events, config.retention_bytes)
        ages = (int(config.retention_seconds * 1000), int(config.run_ttl * 1000))
        return pack(how, script, len(keys), *keys, *head, *ages, *packed.values)

    def _understand(self, answer: list[Any], packed: _Packed) -> bool:
        word = answer[0]
        if word == b"FENCED":
            raise Fenced(
                f"another process holds node id {self.node_id!r} now; this node may not write any more",
                node=self.node_id,
            )
        if word == b"FORGOTTEN":
            self._on_forgotten()
            return False
        if word == b"NOBLOB":
            raise BusUnavailable(f"Redis at {self._where} lost a large payload before its event was written")
        if word == b"REPEATED":
            self.suppressed += 1
        self._look_for_loss(int(answer[1]))
        for position in range(2, len(answer), 2):
            stream = packed.streams[int(answer[position])]
            text = answer[position + 1].decode(errors="replace")
            what = f"refuses event {self._keys.event_of(stream)!r}: XADD {stream.decode()} gives {text}"
            if text.startswith("KEPT "):
                what = f"has taken event {self._keys.event_of(stream)!r}, but refuses {text[5:]}"
            self.denied = BusDenied(f"Redis at {self._where} {what}", event=self._keys.event_of(stream))
            log.error("%s", self.denied)
        if self._replicas:
            self._wait_for_replicas()
        return True

    def _wait_for_replicas(self) -> None:
        """The whole attempt is made again until enough replicas have it, which writes nothing twice."""
        count = self._wire.call(b"WAIT", self._replicas, int(_WAIT_FOR_REPLICAS * 1000))
        if count < self._replicas:
            raise NotAcknowledged(
                f"Redis at {self._where} wrote the events, but only {count} of {self._replicas} replicas have them",
                where=self._where,
                replicas=count,
            )

    def _look_for_loss(self, before: int) -> None:
        """Compare the number of the batch that Redis had before with that of the last one that it acknowledged."""
        epoch = self.epoch()
        if self._batch > 1 and before < self._batch - 1:
            if before < 0 and epoch == self._epoch:
                log.warning("Redis at %s has lost its record of this node's batches, and no event", self._where)
            else:
                self._report_loss(before)
        self._epoch = epoch

    def _report_loss(self, before: int) -> None:
        gone: dict[str, list[tuple[int, int]]] = {}
        for number, frames in self._history:
            if number > before:
                for event, first, count in frames:
                    gone.setdefault(event, []).append((first, count))
        self._history.clear()
        count = sum(count for frames in gone.values() for _, count in frames)
        if count:
            self.lost += count
            ranges = ", ".join(
                f"{event!r} {frames[0][0]} to {frames[-1][0] + frames[-1][1] - 1}" for event, frames in gone.items()
            )
            log.error("Redis at %s lost %d acknowledged events of this node: %s", self._where, count, ranges)

    # Packing ---------------------------------------------------------------------------------------------------------

    def _pack_durable(self, frames: Sequence[OpenFrame]) -> _Packed:
        packed = _Packed([], [], [])
        life = b"%d" % int(self._config.retention_seconds * 1000)
        for item in frames:
            stream = self._keys.events(item.event)
            blob = ""
            if item.size > self._config.blob_threshold and item.count == 1:
                self._blobs += 1
                blob = f"{self._producer}-{self._blobs}"
                data, chunks = frame.pack_blob(
                    self._producer,
                    item.first,
                    item.text,
                    item.views(),
                    blob=blob,
                    only_to=item.only_to,
                    secret=self._config.secret,
                    scope=stream.decode(),
                )
                key = self._keys.blob(blob)
                packed.blobs.append((key.decode(), pack_value((b"SET", key), chunks, (b"PX", life))))
            else:
                data = self._pack_inline(item, stream)
            packed.streams.append(stream)
            packed.values.extend((item.event, item.count, item.size, data, blob))
        return packed

    def _pack_transient(self, item: OpenFrame) -> tuple[str, bytes]:
        channel = self._keys.channel(item.event)
        return channel.decode(), pack(b"PUBLISH", channel, self._pack_inline(item, channel))

    def _pack_inline(self, item: OpenFrame, scope: bytes) -> bytes:
        return frame.pack(
            self._producer,
            item.first,
            item.count,
            item.text,
            item.views(),
            only_to=item.only_to,
            secret=self._config.secret,
            scope=scope.decode(),
        )
