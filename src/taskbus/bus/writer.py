"""The outbox and the thread that empties it: self-clocking group commit.

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
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver

from taskbus import frame
from taskbus.bus.scripts import load
from taskbus.bus.wire import Backoff, Part, Wire, pack, pack_value
from taskbus.codec import Encoded
from taskbus.errors import BusDenied, BusError, BusUnavailable, EncodeError, Fenced

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.config import RouterConfig
    from taskbus.types import Sink

__all__ = ["Writer"]

log = logging.getLogger("taskbus")

_FRAME_TEXT = 256 * 1024
_BATCH_BYTES = 8 << 20
_HISTORY = 4096


class _Open:
    """A frame that still takes events."""

    __slots__ = ("buffers", "count", "event", "first", "full", "only_to", "size", "text", "transient")

    def __init__(self, event: str, first: int, only_to: tuple[str, ...], transient: bool) -> None:
        self.event = event
        self.first = first
        self.only_to = only_to
        self.transient = transient
        self.count = 0
        self.text = bytearray()
        self.buffers: list[bytes] = []
        self.size = 0
        self.full = False

    def views(self) -> list[memoryview]:
        return [memoryview(buffer) for buffer in self.buffers]


class Writer:
    """Takes events from any thread and has them appended, in order, each once."""

    def __init__(
        self, config: RouterConfig, target: Target, keys: Keys, producer: str, on_forgotten: Callable[[], None]
    ) -> None:
        self._config = config
        self._keys = keys
        self._producer = producer
        self._token = producer.encode()
        self._on_forgotten = on_forgotten
        self._wire = Wire(target, min(3.0, config.op_timeout))
        self._target = target
        self.numbering = threading.Lock()
        """Held while an event gets its number."""
        self._lock = self.numbering
        self._changed = threading.Condition(self._lock)  # acknowledged, refused, failed, stopped
        self._waiting = 0
        self._wake = threading.Lock()
        self._wake.acquire()
        self._idle = True
        self._stopping = threading.Event()
        self._frames: deque[_Open] = deque()
        self._open: dict[tuple[str, bool], _Open] = {}
        self._batch = 0
        self._blobs = 0
        self._history: deque[tuple[int, int]] = deque(maxlen=_HISTORY)
        self._thread = threading.Thread(target=self._run, name="taskbus-writer", daemon=True)
        self._refusal: BusError | None = None
        self.fatal: BusError | None = None
        self.denied: BusDenied | None = None
        self.node_id = ""
        self.sequence: dict[str, int] = {}
        self.emitted = self.acknowledged = self.lost = self.reconnects = 0
        self.bytes_waiting = 0
        self.sign_of_life = time.monotonic()

    # Callers ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write; ``node_id`` must be known."""
        self._thread.start()

    def append(
        self,
        event: str,
        encoded: Encoded,
        only_to: tuple[str, ...] = (),
        transient: bool = False,
        *,
        look: Callable[[str], Sequence[Sink]] = lambda event: (),
        timeout: float | None = None,
    ) -> Sequence[Sink]:
        """Queue one event; waits up to ``timeout`` (``op_timeout``) while the outbox is full, then ``BusUnavailable``.

        Returns what ``look(event)`` says at the moment at which the event gets its number.
        """
        text, buffers = encoded
        size = len(text) if not buffers else frame.body_size(text, buffers)
        if size > self._config.max_payload:
            raise EncodeError(
                f"the event {event!r} is {size} bytes long; max_payload allows {self._config.max_payload}",
                event=event,
                size=size,
            )
        copies = [bytes(buffer) for buffer in buffers]
        with self._lock:
            if self.fatal is not None or self._refusal is not None or self.denied is not None or self._is_full(size):
                self._make_room(size, self._config.op_timeout if timeout is None else timeout)
            key = (event, transient)
            open_frame = self._open.get(key)
            number = self.sequence.get(event, 0) + 1 if not transient else self.sequence.get("\0" + event, 0) + 1
            self.sequence["\0" + event if transient else event] = number
            if (
                open_frame is None
                or open_frame.full
                or open_frame.only_to != only_to
                or size > self._config.blob_threshold
            ):
                open_frame = self._open[key] = _Open(event, number, only_to, transient)
                self._frames.append(open_frame)
            if open_frame.count:
                open_frame.text += b","
            open_frame.text += text
            open_frame.buffers += copies
            open_frame.count += 1
            open_frame.size += size
            if open_frame.size >= _FRAME_TEXT:
                open_frame.full = True
            self.emitted += 1
            self.bytes_waiting += size
            if self._idle:
                self._idle = False
                self._wake.release()
            return look(event)

    def sync(self, timeout: float) -> None:
        """Return when all that was appended before is acknowledged.

        Raises what stands in the way, at the latest in ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            target = self.emitted
            while self.acknowledged < target:
                self._raise_fatal()
                self._wait(
                    deadline,
                    f"{target - self.acknowledged} events are not acknowledged by Redis at {self._target.where}",
                )
            self._raise_denied()

    @property
    def waiting(self) -> int:
        """Events that are not acknowledged."""
        return self.emitted - self.acknowledged

    def stop(self, deadline: float) -> int:
        """Write what is left until ``deadline`` (monotonic), and end the thread.

        Returns how many events were not acknowledged.
        """
        with self._changed:
            while self.waiting and self.fatal is None and time.monotonic() < deadline:
                self._waiting += 1
                self._changed.wait(deadline - time.monotonic())
                self._waiting -= 1
        self._stopping.set()
        self.fail(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._wire.abort()
            self._thread.join(max(0.1, deadline - time.monotonic()))
        return self.waiting

    def fail(self, error: BusError | None) -> None:
        """Let every caller that waits or comes later see ``error``; ``None`` only wakes them and the thread."""
        with self._changed:
            if error is not None and self.fatal is None:
                self.fatal = error
            self._changed.notify_all()
            if self._idle:
                self._idle = False
                self._wake.release()

    def _is_full(self, size: int) -> bool:
        waiting = self.emitted - self.acknowledged
        return waiting >= self._config.outbox_events or (
            waiting > 0 and self.bytes_waiting + size > self._config.outbox_bytes
        )

    def _make_room(self, size: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._raise_fatal()
            self._raise_denied()
            if self._refusal is not None and getattr(self._refusal, "__dict__", {}).get("full"):
                raise BusUnavailable(str(self._refusal), where=self._target.where, full=True)
            if not self._is_full(size):
                return
            cause = f": {self._refusal}" if self._refusal else ""
            self._wait(deadline, f"the outbox is full ({self.waiting} events, {self.bytes_waiting} bytes){cause}")

    def _wait(self, deadline: float, what: str) -> None:
        if self._stopping.is_set():
            raise BusUnavailable(f"the router was stopped: {what}")
        self._waiting += 1
        try:
            if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                reason = f" ({self._refusal})" if self._refusal and str(self._refusal) not in what else ""
                raise BusUnavailable(what + reason, where=self._target.where, waiting=self.waiting)
        finally:
            self._waiting -= 1

    def _raise_fatal(self) -> None:
        if self.fatal is not None:
            raise type(self.fatal)(str(self.fatal), **self.fatal.__dict__)

    def _raise_denied(self) -> None:
        if self.denied is not None:
            denied, self.denied = self.denied, None
            raise BusDenied(str(denied), **denied.__dict__)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._frames:
                    if self._stopping.is_set():
                        break
                    self._idle = True
                    batch = None
                else:
                    batch = self._take()
            if batch is None:
                self._wake.acquire()
                if self._stopping.is_set() and not self._frames:
                    break
                continue
            self._write(batch)
            if self._stopping.is_set():
                break
        self._wire.close()

    def _take(self) -> list[_Open]:
        batch: list[_Open] = []
        size = 0
        while self._frames and (not batch or size + self._frames[0].size <= _BATCH_BYTES):
            open_frame = self._frames.popleft()
            size += open_frame.size
            batch.append(open_frame)
            if self._open.get((open_frame.event, open_frame.transient)) is open_frame:
                del self._open[open_frame.event, open_frame.transient]
        return batch

    def _write(self, batch: list[_Open]) -> None:
        durable = [open_frame for open_frame in batch if not open_frame.transient]
        packed = self._pack_durable(durable) if durable else None
        transient = [self._pack_transient(open_frame) for open_frame in batch if open_frame.transient]
        if durable:
            self._batch += 1
        backoff = Backoff()
        while True:
            try:
                if not self._wire.is_open:
                    self._wire.open()
                answer = self._exchange(packed, transient)
                self.sign_of_life = time.monotonic()
                if answer == "again":
                    continue
                break
            except Fenced as error:
                self.fail(error)
            except BusDenied as error:
                self._refused(error)
            except BusUnavailable as error:
                transient = []  # kept by nobody: a second attempt could come twice
                self._refused(error)
                self.reconnects += not self._wire.is_open
            except Exception:
                log.exception(
                    "writing to Redis at %s failed in an unforeseen way; it is tried again", self._target.where
                )
                self._wire.close()
            if self.fatal is not None or self._stopping.wait(backoff.next()):
                return
        self._acknowledge(batch, durable)

    def _exchange(self, packed: tuple[list[list[Part]], list[Any]] | None, transient: list[bytes]) -> str:
        blobs, arguments = packed if packed else ([], None)
        script = load("append", self._target.in_process)
        parts: list[Part] = [part for blob in blobs for part in blob]
        parts += transient
        if arguments is not None:
            parts.append(self._command(b"EVALSHA", script.sha, arguments))
        self._wire.send(parts)
        # All are read before one is checked: a reply that is left would be taken for the next command's.
        replies = [self._wire.read() for _ in range(len(blobs) + len(transient) + (arguments is not None))]
        reply = replies.pop() if arguments is not None else None
        for other in replies:
            self._wire.check(other)
        if arguments is None:
            return "ok"
        if isinstance(reply, driver.NoScriptError):
            self._wire.send([self._command(b"EVAL", script.text, arguments)])
            reply = self._wire.read()
        return self._understand(self._wire.check(reply), arguments)

    def _command(self, how: bytes, script: bytes, arguments: list[Any]) -> bytes:
        streams, values = arguments
        keys = (self._keys.node(self.node_id), self._keys.producer(self._producer), self._keys.streams, *streams)
        head = (
            self._keys.prefix,
            self._token,
            self._batch,
            self._config.retention_events,
            self._config.retention_bytes,
        )
        ages = (int(self._config.retention_seconds * 1000), int(self._config.run_ttl * 1000))
        return pack(how, script, len(keys), *keys, *head, *ages, *values)

    def _understand(self, answer: list[Any], arguments: list[Any]) -> str:
        word = answer[0]
        if word == b"FENCED":
            raise Fenced(
                f"another process holds node id {self.node_id!r} now; this node may not write any more",
                node=self.node_id,
            )
        if word == b"FORGOTTEN":
            self._on_forgotten()
            return "again"
        if word == b"NOBLOB":
            raise BusUnavailable(f"Redis at {self._target.where} lost a large payload before its event was written")
        before = int(answer[1])
        if self._batch > 1 and before < self._batch - 1:
            self._report_loss(before)
        for position in range(2, len(answer), 2):
            event = self._keys.event_of(arguments[0][answer[position]])
            text = answer[position + 1].decode(errors="replace")
            self.denied = BusDenied(
                f"Redis refuses the event {event!r}: its stream {arguments[0][answer[position]].decode()} gives {text}",
                event=event,
            )
            log.error("%s", self.denied)
        return "ok"

    def _report_loss(self, before: int) -> None:
        gone = [(number, count) for number, count in self._history if number > before]
        count = sum(count for _, count in gone)
        if count:
            self.lost += count
            log.error(
                "Redis at %s lost %d acknowledged events of this node (batches %d to %d)",
                self._target.where,
                count,
                gone[0][0],
                gone[-1][0],
            )
            self._history.clear()

    def _pack_durable(self, frames: list[_Open]) -> tuple[list[list[Part]], list[Any]]:
        blobs: list[list[Part]] = []
        streams: list[bytes] = []
        values: list[Any] = []
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
                    b"[" + item.text + b"]",
                    item.views(),
                    blob=blob,
                    only_to=item.only_to,
                    secret=self._config.secret,
                    scope=stream.decode(),
                )
                blobs.append(pack_value((b"SET", self._keys.blob(blob)), chunks, (b"PX", life)))
            else:
                data = self._pack_inline(item, stream)
            streams.append(stream)
            values += (item.event, item.count, item.size, data, blob)
        return blobs, [streams, values]

    def _pack_transient(self, item: _Open) -> bytes:
        channel = self._keys.channel(item.event)
        return pack(b"PUBLISH", channel, self._pack_inline(item, channel))

    def _pack_inline(self, item: _Open, scope: bytes) -> bytes:
        return frame.pack(
            self._producer,
            item.first,
            item.count,
            b"[" + item.text + b"]",
            item.views(),
            only_to=item.only_to,
            secret=self._config.secret,
            scope=scope.decode(),
        )

    def _refused(self, error: BusError) -> None:
        with self._changed:
            if self._refusal is None or type(self._refusal) is not type(error):
                log.warning("%s; %d events wait", error, self.waiting)
            self._refusal = error
            if isinstance(error, BusDenied):
                self.denied = error
            self._changed.notify_all()

    def _acknowledge(self, batch: list[_Open], durable: list[_Open]) -> None:
        count = sum(item.count for item in batch)
        if durable:
            self._history.append((self._batch, sum(item.count for item in durable)))
        with self._lock:
            self.acknowledged += count
            self.bytes_waiting -= sum(item.size for item in batch)
            if self._refusal is not None:
                log.warning("Redis at %s takes events again", self._target.where)
                self._refusal = None
            if self._waiting:
                self._changed.notify_all()
