"""The shortest way: while the writer's thread has nothing to do, the thread that emits a small event sends it, too.

A hop to another thread and back takes longer (30 us on one CPU) than Redis takes for the event. The answer is read by
the next emit, while emits come one by one, or by who waits for it: the thread rests, and looks after it only if that
takes long (``GRACE``), or more events come first.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskbus.bus.batch import Batch, Packer
from taskbus.bus.openframe import OpenFrame
from taskbus.bus.outbox import Outbox
from taskbus.bus.scripts import load
from taskbus.bus.turn import GRACE
from taskbus.bus.wire import NOTHING, Wire

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.config import RouterConfig
    from taskbus.types import Sink

__all__ = ["Direct"]

log = logging.getLogger("taskbus")

_HISTORY = 10_000
_SENT_AT_ONCE = 8192  # bytes; fits into any socket's buffer when nothing is in flight, so that no emit is held up
_BURST = 0.0003  # seconds between two emits; to send an event alone takes 60 us, to let it gather with others 5
_BULK = 64  # events of one name in a batch, after which the next of that name wait for company
_BULK_LASTS = 0.02  # seconds since such a batch was acknowledged


class Direct(Outbox):
    """What the threads that emit do with the writer's wire, and what is noted of every batch."""

    def __init__(self, config: RouterConfig, target: Target, keys: Keys, producer: str) -> None:
        super().__init__(config, target.where)
        self._packer = Packer(config, keys, producer)
        self._script = load("append", target.in_process)
        self._wire = Wire(target, min(3.0, config.op_timeout))
        self._replicas = int(config.ack.partition(":")[2] or 0)
        self._most_alone = min(self._max_payload, self._beside_from, _SENT_AT_ONCE)
        self._packs_plain = config.secret is None
        self._batch = 0
        self._begun: Batch | None = None  # by an emit
        self._begun_at = 0.0
        self._sent_at = -GRACE  # by an emit
        self._bulk_event = ""  # of which many left together
        self._bulk_at = 0.0  # when those were acknowledged
        self._turn = threading.RLock()  # held by an emit while it sends, and only that can give it back
        self._epoch = b""  # when Redis acknowledged something last
        self._history: deque[tuple[Any, ...]] = deque(maxlen=_HISTORY)  # number, and event, first, count of each frame
        self.epoch: Callable[[], bytes] = lambda: b""
        self.sign_of_life = time.monotonic()

    def pause(self) -> None:
        """Whoever emits begins to wait for something: what comes next is no burst."""
        self._begun_at, self._bulk_event = 0.0, ""
        if self._gathers:
            self._bell.ring()

    # Sending ---------------------------------------------------------------------------------------------------------

    def _emit_alone(self, event: str, text: bytes) -> Sequence[Sink] | None:
        # What `_emit_slowly` does, for the event that is all there is: it does not pass through the list of frames. Of
        # 130 us that a process takes for a round of a ping-pong this saves 8.
        size = len(text)
        try:
            with self._lock:
                if self._is_inside or self._frames or self.emitted >= self._until:
                    return None
                if size > self._most_alone or self.bytes_waiting + size > self._max_bytes:
                    return None
                self._is_inside = True
                try:
                    is_free = self._idle or (self._rests and self._hear())
                    if not is_free or not self._take_turn(event):
                        return None
                    number = self.sequence.get(event, 0) + 1
                    item = OpenFrame(event, event, number, (), False, False)
                    item.text += text
                    item.text += b"]"
                    item.count, item.size = 1, size
                    batch = Batch([item], self._batch)
                    batch.is_plain = self._packs_plain
                    self.sequence[event] = number  # from here on nothing is called, so no signal handler comes in
                    self.emitted += 1
                    self.bytes_waiting += size
                    self._begun, self._batch, self._idle = batch, batch.number, False
                    sinks: Sequence[Sink] = self.look(event) if event in self.listened else ()
                finally:
                    self._is_inside = False
            self._send_begun(batch)
        except BaseException:  # a signal handler's, which may come anywhere
            self._mend()
            raise
        return sinks

    def _begin(self, event: str, size: int) -> Callable[[], None] | None:
        if size > _SENT_AT_ONCE or not self._take_turn(event):
            return super()._begin(event, size)
        return partial(self._send_begun, self._new_batch())

    def _take_turn(self, event: str) -> bool:
        """Take the turn, where it is better to send at once than to let some gather, and can be done.

        Asked a second time for an event it says no, for that is like a burst.
        """
        before, self._begun_at = self._begun_at, time.monotonic()
        is_burst = self._begun_at - before < _BURST or (self._bulk_event and self._is_bulk(event, self._begun_at))
        if is_burst or self._wire.descriptor < 0 or not self._turn.acquire(blocking=False):
            return False
        self._sent_at = self._begun_at
        return True

    def _is_bulk(self, event: str, now: float) -> bool:
        return now - self._bulk_at < _BULK_LASTS and event == self._bulk_event

    def _new_batch(self) -> Batch:
        was_inside, self._is_inside = self._is_inside, True  # what the collector finds here may emit when it goes
        try:
            frames, rest = self._take()
            batch = Batch(frames, self._batch)
            self._frames, self._begun, self._batch = rest, batch, batch.number  # all or, if interrupted, nothing
            return batch
        finally:
            self._is_inside = was_inside

    def _send_begun(self, batch: Batch) -> None:
        """On the thread of an emit. The writer's thread begins anew where that fails."""
        try:
            if batch.is_plain:
                command = self._packer.lone(self._script.sha, batch)
            else:
                self._packer.pack(batch)
                command = b"".join(batch.parts(self._command(b"EVALSHA", batch)))
            batch.is_sent = self._wire.send_now(command)
        finally:
            self._turn.release()
            if not batch.is_sent:
                with self._lock:
                    self._bell.ring()

    def _command(self, how: bytes, batch: Batch) -> bytes:
        script = self._script.sha if how == b"EVALSHA" else self._script.text
        return self._packer.command(how, script, batch)

    def _mend(self) -> None:
        try:
            self._turn.release()
        except RuntimeError:
            pass  # it is not held here
        super()._mend()

    # Hearing ---------------------------------------------------------------------------------------------------------

    def _expect_answer(self, timeout: float) -> None:
        # On the calling thread: two changes of threads less than to have the writer's do it.
        batch, descriptor = self._begun, self._wire.descriptor
        if batch is not None and batch.is_sent and batch.answer is None and descriptor >= 0 and timeout > 0:
            poll = select.poll()  # of its own, for any number of threads may be here
            poll.register(descriptor, select.POLLIN)
            poll.poll(timeout * 1000)

    def _hear(self) -> bool:
        batch = self._begun
        if batch is not None and batch.answer is None and batch.is_sent and not (batch.asked or batch.blobs):
            batch.is_sent = False  # if a signal handler raises now, nobody knows how much of the answer has been read
            answer = self._wire.read_now()
            batch.is_sent = True
            if answer is not NOTHING:
                batch.answer = answer
                before = batch.number - 1 or -1  # none
                if type(answer) is list and answer == [b"OK", before] and not self._replicas:
                    self._epoch = self.epoch()
                    self._done(batch)
                    self._begun = None
                    return True
        self._rests = False
        self._bell.ring()
        return False

    def _done(self, batch: Batch) -> None:
        """It is acknowledged. The lock is held."""
        self.sign_of_life = time.monotonic()
        if batch.frames and batch.frames[0].count >= _BULK:
            self._bulk_event, self._bulk_at = batch.frames[0].event, self.sign_of_life
        if batch.durable:
            # Flat: three tuples for each batch had the collector come three times as often.
            told: list[Any] = [batch.number]
            for item in batch.durable:
                told += item.event, item.first, item.count
            self._history.append(tuple(told))
        if self._settle(batch):
            log.warning("Redis at %s takes events again", self._where)
