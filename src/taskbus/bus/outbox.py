"""Where emitted events wait until Redis has acknowledged them: bounded, in order, one frame for each stream."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskbus import codec, frame
from taskbus.bus.bell import Bell
from taskbus.bus.room import snapshot
from taskbus.condition import Condition
from taskbus.config import check_reach
from taskbus.errors import (
    BusDenied,
    BusError,
    BusUnavailable,
    ConfigError,
    EncodeError,
    NotAcknowledged,
    NotStarted,
    TaskbusError,
)
from taskbus.globs import parse_globs

if TYPE_CHECKING:
    from taskbus.bus.batch import Batch
    from taskbus.config import RouterConfig
    from taskbus.types import Labels, Sink

__all__ = ["STOPPED", "OpenFrame", "Outbox"]

STOPPED = "the router was stopped"
_FRAME_TEXT = 256 * 1024  # 5000 small events, where enough are kept; of 64 kB eight consumers take a seventh less
_PIECE = frame.PIECE
_BATCH_BYTES = 8 << 20
_BATCH_FRAMES = 2500  # some 30 ms of the server's time, in which nobody else is served
_TRANSIENT_BYTES = 4 << 20


class OpenFrame:
    """A frame that still takes events."""

    __slots__ = ("buffers", "count", "elsewhere", "event", "first", "key", "only_to", "size", "text", "transient")

    def __init__(
        self, event: str, key: str, first: int, only_to: tuple[str, ...], transient: bool, elsewhere: bool
    ) -> None:
        self.event = event
        self.key = key
        self.first = first
        self.only_to = only_to
        self.transient = transient
        self.elsewhere = elsewhere
        self.count = 0
        self.text = bytearray(b"[")
        self.buffers: list[memoryview] = []
        self.size = 0


def _nobody(event: str) -> Sequence[Sink]:
    return ()


def _to_nobody(*event: object) -> None:
    pass


class Outbox:
    """The callers' side of the writer: takes events from any thread, and tells what became of them."""

    def __init__(self, config: RouterConfig, where: str) -> None:
        self._config = config
        self._where = where
        self._max_payload, self._alone = config.max_payload, config.blob_threshold
        # Trimming takes whole frames, so none holds more than an eighth of what is kept.
        self._most_in_frame = max(1, config.retention_events // 8)
        self._full = min(_FRAME_TEXT, config.retention_bytes // 8)
        self._max_bytes = config.outbox_bytes
        self._op_timeout = config.op_timeout
        self._encode = codec.encode_pickle if config.codec == "pickle" else codec.encode
        self.over = ""
        """Why nothing can be emitted any more, not even to listeners here: stopped, or this is a forked process."""
        self.numbering = threading.RLock()
        """Held while an event gets its number."""
        self._lock = self.numbering
        self._changed = Condition(self._lock)  # acknowledged, refused, failed, stopped
        self._waiting = 0
        self._bell = Bell()
        self._closed = False  # to what goes out
        self._is_inside = False  # of what follows once there is room; the lock lets the same thread in again
        self._idle = False  # nothing is under way, and the thread waits for the bell
        self._gathers = False  # the thread lets some come together before they leave
        self._rests = False  # the thread does not look whether what is under way is answered
        self._stopping = threading.Event()
        self._frames: deque[OpenFrame] = deque()
        self._open: dict[str, OpenFrame] = {}
        self._refusal: BusError | None = None
        self.fatal: BusError | None = None
        self._denied: BusDenied | None = None
        self._until = config.outbox_events
        """How many events may have been emitted before an emit has to ask whether there is room, and nothing wrong."""
        self.sequence: dict[str, int] = {}
        """How many events have a number, by event; those of transient events by a key of their own."""
        self.listened: Container[str] = ()
        """The events that somebody listens to here."""
        self.look: Callable[[str], Sequence[Sink]] = _nobody
        """Who takes an event of this node here; asked, and exchanged, under ``numbering``."""
        self.look_for_all: Callable[[str], Sequence[Sink]] = _nobody
        """The same for transient events, and for those that stay here."""
        self.matches: Callable[[tuple[str, ...]], bool] = lambda globs: True
        """Whether an event for nodes with such labels is for this one, too."""
        self.deliver: Callable[..., None] = _to_nobody
        """Gives sinks an event: those, its args and kwargs, and for how many seconds to wait for room."""
        self.emitted = self.acknowledged = 0
        self.bytes_waiting = 0

    # Events in -------------------------------------------------------------------------------------------------------

    def emit(
        self,
        event: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        only_remote: bool = False,
        only_local: bool = False,
        only_to: Labels = None,
        transient: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Encode, queue for the run, and deliver to the listeners here; see ``Task.emit``.

        Where there is no room it waits for up to ``timeout`` seconds (``op_timeout``), then ``BusUnavailable``.
        """
        # With `Task.emit` and the encoding this is what an event costs the thread that emits it, and what bounds the
        # events a second of one producer: of 2.8 us in all these lines take 1.2, each call more 0.1.
        if self.over:
            raise NotStarted(self.over)
        globs = () if only_to is None else parse_globs(only_to) or ()
        here = not only_remote and (not globs or self.matches(globs))
        if timeout is None:
            timeout = self._op_timeout
        if only_local:
            check_reach(only_remote, only_local)
            self.check_place()
            self.deliver(self.look_for_all(event) if here else (), args, kwargs, timeout)
            return
        text, buffers = self._encode(args, kwargs)
        size = len(text) if not buffers else frame.body_size(text, buffers)
        if size > self._max_payload or (transient and size > _TRANSIENT_BYTES):
            raise self._too_large(event, size, transient)
        copies = [snapshot(buffer) for buffer in buffers] if buffers else None
        key = "\0" + event if transient else event
        sinks: Sequence[Sink] = ()
        send: Callable[[], None] | None = None
        entered = False
        try:
            with self._lock:
                emitted = self.emitted
                if emitted >= self._until or self.bytes_waiting + size > self._max_bytes:
                    self._make_room(size, timeout)
                    emitted = self.emitted
                if self._is_inside:
                    raise ConfigError(f"event {event!r} is emitted in the middle of an emit, by a handler or __del__")
                self._is_inside = entered = True
                number = self.sequence.get(key, 0) + 1
                item = self._open.get(key)
                is_new = item is None or item.only_to != globs or item.elsewhere != only_remote or size > self._alone
                if item is None or is_new:
                    item = OpenFrame(event, key, number, globs, transient, only_remote)
                # From here to the append nothing is called, so that no signal handler can raise in the middle.
                self.sequence[key] = number
                whole = item.text  # one buffer: each text by itself would pin the 4 kB that orjson allots to it
                whole += text
                item.count = count = item.count + 1
                whole += b"," if count % _PIECE else b"\n,"
                item.size = whole_size = item.size + size
                if copies:
                    item.buffers += copies
                self.emitted = emitted + 1
                self.bytes_waiting += size
                if is_new:
                    self._open[key] = item
                    self._frames.append(item)
                if whole_size >= self._full or count >= self._most_in_frame or size > self._alone:
                    del self._open[key]
                if self._gathers and (is_new or key not in self._open):
                    self._bell.ring()
                if self._idle or (self._rests and self._hear()):
                    self._idle = False
                    send = self._begin(size)
                if here and event in self.listened:  # at the moment at which the event has its number
                    sinks = self.look_for_all(event) if transient else self.look(event)
                self._is_inside = False
            if send is not None:
                send()
        except BaseException as error:
            if isinstance(error, TaskbusError) and not entered:
                raise
            self._mend()  # after a signal handler's, which may come anywhere
            if "un-acquired lock" in str(error) and error.__context__ is not None:
                raise error.__context__ from None  # it came in a wait for room, and the lock is not held: see Condition
            raise
        if sinks:
            self.deliver(sinks, args, kwargs, timeout)

    def _begin(self, size: int) -> Callable[[], None] | None:
        """There is something to do; returns what the caller has to do for it once the lock is free."""
        self._bell.ring()
        return None

    def _mend(self) -> None:
        """An emit was interrupted: have the thread look after what it has left."""
        with self._lock:
            self._is_inside = self._idle = False
            self._bell.ring()

    def _hear(self) -> bool:
        """Whether what is under way is answered; if not, the thread looks after it from now on."""
        return False

    def _too_large(self, event: str, size: int, transient: bool) -> EncodeError:
        limit = f"max_payload allows {self._config.max_payload}"
        if transient:
            limit = f"a transient event has at most {_TRANSIENT_BYTES}, for Redis cuts off subscribers that are behind"
        return EncodeError(f"the event {event!r} is {size} bytes long; {limit}", event=event, size=size)

    def _is_full(self, size: int) -> bool:
        waiting = self.emitted - self.acknowledged
        return waiting >= self._config.outbox_events or (
            waiting > 0 and self.bytes_waiting + size > self._config.outbox_bytes
        )

    def _make_room(self, size: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if self._closed:
                raise NotStarted(STOPPED)
            self._raise_what_stays()
            if self._refusal is not None and self._refusal.__dict__.get("full"):
                raise BusUnavailable(str(self._refusal), where=self._where, full=True)
            if not self._is_full(size):
                return
            cause = f": {self._refusal}" if self._refusal else ""
            self._wait(deadline, f"the outbox is full ({self.waiting} events, {self.bytes_waiting} bytes){cause}")

    # What became of them ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Events that are not acknowledged."""
        return self.emitted - self.acknowledged

    def sync(self, timeout: float) -> None:
        """Return when all that was appended before is acknowledged.

        Raises what stands in the way, at the latest in ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            target = self.emitted
            if self._rests and self.acknowledged < target:
                self._idle = self._hear()
            while self.acknowledged < target:
                self._raise_what_stays()
                missing = target - self.acknowledged
                self._wait(deadline, f"{missing} events are not acknowledged by Redis at {self._where}")
            self._raise_what_stays()

    def close(self) -> None:
        """Take nothing more: what is counted as left afterwards is all that is."""
        with self._changed:
            self._closed = True
            self._look_again()
            self._changed.notify_all()

    def flush(self, deadline: float) -> None:
        """Return when nothing waits any more, or it cannot be written, or at ``deadline`` (monotonic)."""
        with self._changed:
            if self._rests and self.waiting:
                self._idle = self._hear()
            while self.waiting and self.fatal is None and time.monotonic() < deadline:
                self._wait_for_change(deadline - time.monotonic())

    def fail(self, error: BusError | None) -> None:
        """Let every caller that waits or comes later see ``error``; ``None`` only wakes them and the thread."""
        with self._changed:
            if error is not None and self.fatal is None:
                self.fatal = error
                self._look_again()
            self._changed.notify_all()
            if self._idle:
                self._idle = False
                self._bell.ring()

    def deny(self, error: BusDenied) -> None:
        """Raise ``error`` at the next emit or sync."""
        with self._lock:
            self._denied = error
            self._look_again()

    def _look_again(self) -> None:
        """Whether there is room, and nothing wrong, is another question now. The lock is held."""
        wrong = self._closed or (self._refusal or self.fatal or self._denied) is not None
        self._until = 0 if wrong else self.acknowledged + self._config.outbox_events

    def _wait(self, deadline: float, what: str) -> None:
        if self._stopping.is_set():
            raise BusUnavailable(f"{STOPPED}: {what}")
        if not self._wait_for_change(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
            if isinstance(self._refusal, NotAcknowledged):
                raise self._refusal.anew()
            reason = f" ({self._refusal})" if self._refusal and str(self._refusal) not in what else ""
            raise BusUnavailable(what + reason, where=self._where, waiting=self.waiting)

    def _wait_for_change(self, timeout: float) -> bool:
        self._waiting += 1
        try:
            if self._gathers:
                self._bell.ring()
            return self._changed.wait(timeout)
        finally:
            self._waiting -= 1

    def check_place(self) -> None:
        """Raise ``Fenced`` when another process has this node's place on the run."""
        if self.fatal is not None:
            raise self.fatal.anew()

    def _raise_what_stays(self) -> None:
        """Raise what no waiting heals: for ever (fenced), until somebody repairs it, or once for an event refused."""
        self.check_place()
        denied = self._refusal if isinstance(self._refusal, BusDenied) else self._denied
        self._denied = None
        self._look_again()
        if denied is not None:
            raise denied.anew()

    # For the thread --------------------------------------------------------------------------------------------------

    def _take(self) -> tuple[list[OpenFrame], deque[OpenFrame]]:
        """Close the frames that leave now; they, and those that stay, which is for the caller to note."""
        batch: list[OpenFrame] = []
        size = 0
        for open_frame in self._frames:
            if batch and (size + open_frame.size > _BATCH_BYTES or len(batch) >= _BATCH_FRAMES):
                break
            size += open_frame.size
            batch.append(open_frame)
            if self._open.get(open_frame.key) is open_frame:
                del self._open[open_frame.key]
            open_frame.text[-1:] = b"]"  # instead of the comma for the event that did not come
        return batch, deque(islice(self._frames, len(batch), None))

    def _settle(self, batch: Batch) -> bool:
        """The batch is acknowledged; true when Redis had refused before. The lock is held."""
        if len(batch.frames) == 1:
            count, size = batch.frames[0].count, batch.frames[0].size
        else:
            count, size = sum([item.count for item in batch.frames]), sum([item.size for item in batch.frames])
        # Once, however often the answer comes; nothing is called in between.
        self.acknowledged += count
        self.bytes_waiting -= size
        batch.frames = ()
        refused, self._refusal = self._refusal is not None, None
        self._look_again()
        if self._waiting:
            self._changed.notify_all()
        return refused

    def _refuse(self, error: BusError) -> bool:
        """The batch was not taken; true when the last attempt did not end the same way."""
        with self._changed:
            news = type(self._refusal) is not type(error)
            self._refusal = error
            self._look_again()
            self._changed.notify_all()
        return news
