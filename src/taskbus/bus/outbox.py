"""Where emitted events wait until Redis has acknowledged them: bounded, in order, one frame for each stream."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any

from taskbus import codec, frame
from taskbus.bus.backlog import Backlog
from taskbus.bus.openframe import OpenFrame
from taskbus.bus.room import snapshot
from taskbus.config import check_reach
from taskbus.errors import ConfigError, EncodeError, NotStarted, TaskbusError
from taskbus.globs import parse_globs

if TYPE_CHECKING:
    from taskbus.config import RouterConfig
    from taskbus.types import Labels, Sink

__all__ = ["Outbox"]

_FRAME_TEXT = 256 * 1024  # 5000 small events, where enough are kept; of 64 kB eight consumers take a seventh less
_PIECE = frame.PIECE
_BATCH_BYTES = 8 << 20
_BATCH_FRAMES = 2500  # some 30 ms of the server's time, in which nobody else is served
_TRANSIENT_BYTES = 4 << 20


def _nobody(event: str) -> Sequence[Sink]:
    return ()


def _to_nobody(*event: object) -> None:
    pass


class Outbox(Backlog):
    """The callers' side of the writer: takes events from any thread."""

    def __init__(self, config: RouterConfig, where: str) -> None:
        super().__init__(config, where)
        self._max_payload, self._beside_from = config.max_payload, config.blob_threshold
        # Trimming takes whole frames, so none holds more than an eighth of what is kept.
        self._most_in_frame = max(1, config.retention_events // 8)
        self._full = min(_FRAME_TEXT, config.retention_bytes // 8)
        self._max_bytes = config.outbox_bytes
        self._op_timeout = config.op_timeout
        self._encode = codec.encode_pickle if config.codec == "pickle" else codec.encode
        self.over = ""
        """Why nothing can be emitted any more, not even to listeners here: stopped, or this is a forked process."""
        self._is_inside = False  # of what follows once there is room; the lock lets the same thread in again
        self._frames: list[OpenFrame] = []
        self._open: dict[str, OpenFrame] = {}
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
        if self.over:
            raise NotStarted(self.over)
        if timeout is None:
            timeout = self._op_timeout
        if only_local:
            self._emit_here(event, args, kwargs, only_remote, only_to, timeout)
            return
        text, buffers = self._encode(args, kwargs)
        sinks: Sequence[Sink] | None = None
        is_plain = only_to is None and not (only_remote or transient or buffers)
        if is_plain and self._growing is not None:
            # With `Task.emit` and the encoding this is what bounds the events a second of one producer: of 2.6 us in
            # all these lines take 0.8. Until the event is counted nothing is called, so no signal handler comes in.
            size = len(text)
            with self._lock:
                item = self._growing
                if (
                    item is not None
                    and item.event == event
                    and item.size + size < item.until
                    and item.count < item.most
                    and not self._is_inside
                ):
                    whole = item.text  # one buffer: each text by itself would pin the 4 kB that orjson allots to it
                    whole += text
                    item.count = count = item.count + 1
                    whole += b"," if count % _PIECE else b"\n,"
                    item.size += size
                    self.sequence[event] += 1
                    self.emitted += 1
                    self.bytes_waiting += size
                    sinks = self._look(event) if event in self.listened else ()
        elif is_plain and (self._idle or self._rests):
            sinks = self._emit_alone(event, text)
        if sinks is None:
            sinks = self._emit_slowly(event, text, buffers, only_remote, only_to, transient, timeout)
        if sinks:
            self.deliver(sinks, args, kwargs, timeout)

    def _emit_here(
        self,
        event: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        only_remote: bool,
        only_to: Labels,
        timeout: float,
    ) -> None:
        check_reach(only_remote, only_local=True)
        globs = parse_globs(only_to) or ()
        self.check_place()
        here = not globs or self.matches(globs)
        self.deliver(self.look_for_all(event) if here else (), args, kwargs, timeout)

    def _emit_slowly(
        self,
        event: str,
        text: bytes,
        buffers: Sequence[memoryview],
        only_remote: bool,
        only_to: Labels,
        transient: bool,
        timeout: float,
    ) -> Sequence[Sink]:
        """Queue any event, have it sent if nothing is on its way, and return who takes it here."""
        globs = () if only_to is None else parse_globs(only_to) or ()
        here = not only_remote and (not globs or self.matches(globs))
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
                if self._is_inside:
                    raise ConfigError(f"event {event!r} is emitted in the middle of an emit, by a handler or __del__")
                if self.emitted >= self._until or self.bytes_waiting + size > self._max_bytes:
                    self._make_room(size, timeout)
                self._is_inside = entered = True
                try:
                    self._growing = None
                    number = self.sequence.get(key, 0) + 1
                    item = before = self._open.get(key)
                    if (
                        item is None
                        or item.only_to != globs
                        or item.elsewhere != only_remote
                        or size > self._beside_from
                    ):
                        item = OpenFrame(event, key, number, globs, transient, only_remote)
                    is_new = item is not before
                    # As in `emit`, written out there; and here, too, nothing is called from now on to the append.
                    self.sequence[key] = number
                    whole = item.text
                    whole += text
                    item.count = count = item.count + 1
                    whole += b"," if count % _PIECE else b"\n,"
                    item.size = whole_size = item.size + size
                    if copies:
                        item.buffers += copies
                    self.emitted += 1
                    self.bytes_waiting += size
                    if is_new:
                        self._open[key] = item
                        self._frames.append(item)
                    if whole_size >= self._full or count >= self._most_in_frame or size > self._beside_from:
                        del self._open[key]
                    if self._gathers and (is_new or key not in self._open):
                        self._bell.ring()
                    if self._idle or (self._rests and self._hear()):
                        self._idle = False
                        send = self._begin(event, size)
                    elif key in self._open and not (self._rests or transient or only_remote or globs):
                        self._let_grow(item)
                    if here and event in self.listened:  # at the moment at which the event has its number
                        sinks = self.look_for_all(event) if transient else self.look(event)
                finally:
                    self._is_inside = False  # before another thread has the lock
            if send is not None:
                send()
        except BaseException as error:
            if isinstance(error, TaskbusError) and not entered:
                raise
            self._mend()  # after a signal handler's, which may come anywhere
            raise
        return sinks

    def _look(self, event: str) -> Sequence[Sink]:
        """Who takes an event here that has its number and is not delivered yet: none may come before it."""
        self._is_inside = True
        try:
            return self.look(event)
        finally:
            self._is_inside = False

    def _let_grow(self, item: OpenFrame) -> None:
        """Add the next events to it as they are, but for the one that fills it, or the outbox."""
        most = min(self._max_payload, self._beside_from, self._max_bytes - self.bytes_waiting)
        item.until = min(self._full, item.size + most)
        item.most = min(self._most_in_frame, item.count + self._until - self.emitted) - 1
        self._growing = item

    def _emit_alone(self, event: str, text: bytes) -> Sequence[Sink] | None:
        """Have an event for all sent at once; ``None`` where that cannot be, and then nothing was done with it."""
        return None

    def _begin(self, event: str, size: int) -> Callable[[], None] | None:
        """There is something to do; returns what the caller has to do for it once the lock is free."""
        self._bell.ring()
        return None

    def _mend(self) -> None:
        """An emit was interrupted: have the thread look after what it has left."""
        with self._lock:
            self._is_inside = self._idle = self._rests = False
            self._bell.ring()

    def _too_large(self, event: str, size: int, transient: bool) -> EncodeError:
        limit = f"max_payload allows {self._config.max_payload}"
        if transient:
            limit = f"a transient event has at most {_TRANSIENT_BYTES}, for Redis cuts off subscribers that are behind"
        return EncodeError(f"the event {event!r} is {size} bytes long; {limit}", event=event, size=size)

    # For the thread --------------------------------------------------------------------------------------------------

    def _take(self) -> tuple[list[OpenFrame], list[OpenFrame]]:
        """Close the frames that leave now; they, and those that stay, which is for the caller to note."""
        self._growing = None
        if len(self._frames) == 1:  # as mostly
            self._open.clear()
            self._frames[0].text[-1:] = b"]"  # instead of the comma for the event that did not come
            return self._frames, []
        batch: list[OpenFrame] = []
        size = 0
        for open_frame in self._frames:
            if batch and (size + open_frame.size > _BATCH_BYTES or len(batch) >= _BATCH_FRAMES):
                break
            size += open_frame.size
            batch.append(open_frame)
            if self._open.get(open_frame.key) is open_frame:
                del self._open[open_frame.key]
            open_frame.text[-1:] = b"]"
        return batch, self._frames[len(batch) :]
