"""The thread that empties the outbox: self-clocking group commit.

While nothing is in flight an event leaves at once; while a batch is in flight further events gather, one frame for each
stream, and leave together when it is acknowledged. Those of a name that comes in bulk leave a millisecond later.

A batch keeps its number on every attempt, and the append script takes each number once, so that a retry never writes an
event a second time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver

from taskbus.bus.backlog import SOON
from taskbus.bus.backoff import PAUSE_WHEN_DENIED, Backoff
from taskbus.bus.batch import Batch
from taskbus.bus.direct import Direct
from taskbus.bus.turn import GRACE
from taskbus.bus.wire import Wire
from taskbus.errors import BusDenied, BusError, BusUnavailable, Fenced, NotAcknowledged
from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.config import RouterConfig

__all__ = ["Writer"]

log = logging.getLogger("taskbus")

_GATHERING = 0.001
"""Seconds that events of a name that comes in bulk wait for others of it.

On a busy machine the thread that emits loses its core again and again, and events left one by one then, each of which
costs the server and every reader what a thousand together cost: a fifth of what eight consumers took.
"""
_WAIT_FOR_REPLICAS = 1.0


class Writer(Direct):
    """Has all that is in the outbox appended, in order, each event once."""

    def __init__(
        self, config: RouterConfig, target: Target, keys: Keys, producer: str, on_forgotten: Callable[[], None]
    ) -> None:
        super().__init__(config, target, keys, producer)
        self._keys = keys
        self._on_forgotten = on_forgotten
        self._thread: Any = None
        self._has_begun = self._is_wire_free = False
        self.on_fenced: Callable[[BusError], None] = self.fail
        self.diagnose: Callable[[BusDenied, Wire], BusDenied] = lambda error, wire: error
        self.lost = self.reconnects = self.suppressed = 0

    def begin(self, calls: Calls) -> None:
        """Begin to write, with the connection of ``calls``; without a thread yet, for what is heard of at once."""
        self._epoch = self.epoch()
        calls.hand_over(self._wire)
        self._idle = self._rests = True

    def start(self) -> None:
        """Have the thread run, from the first event on of which it may have to hear; harmless when it does.

        A ``RuntimeError`` says that it cannot be: by Python 3.12 no more once the main thread has ended.
        """
        if not self._has_begun:  # several may be started at a time: the first one to run stays
            Thread(target=self._run, name="taskbus-writer", daemon=True).start()

    def prepare(self) -> None:
        """Before something is emitted where there may be no thread yet."""
        if not self._has_begun:
            self.pause()
            with self._lock:
                self._notice_end()

    def _notice_end(self) -> None:
        """While there is no thread nobody sees that the connection has ended, and what is sent then comes back late."""
        if self._begun is None and self._wire.descriptor >= 0 and self._wire.has_ended:
            self._wire.close()

    def mind(self) -> bool:
        """Hear of what was emitted, if there is no thread that does, and start it where that takes long.

        False where it cannot be started: then what waits is written at the stop.
        """
        if not self._has_begun:
            self.take_note(SOON)
            if self.waiting:
                try:
                    self.start()
                except RuntimeError:
                    return False
        return True

    def stop(self, deadline: float, calls: Calls) -> int:
        """Write what is left until ``deadline`` (monotonic), and have the thread end; ``calls`` gets the connection.

        Returns how many events were not acknowledged.
        """
        self.close()
        if self.mind():
            self.flush(deadline)
        else:
            self._write_here(deadline)
        with self._lock:
            self._stopping.set()
            self._is_wire_free = not self.waiting  # the thread looks at the above before it goes on
        if self._is_wire_free:
            calls.take_over(self._wire)
            self.fail(None)
        else:
            self._wire.abort()
            self.fail(None)
            self.join(max(deadline, time.monotonic() + 0.1))
            if not self._has_begun:
                self._wire.close()
        return self.waiting

    def _write_here(self, deadline: float) -> None:
        self._expect_answer(deadline - time.monotonic())
        with self._lock:
            batch = self._next_batch() if self.waiting else None
        self._stopping.set()  # so that this is the only attempt
        if batch is not None:
            self._write(batch)

    def join(self, deadline: float) -> None:
        """Wait for the end of the thread until ``deadline`` (monotonic)."""
        if self._thread is not None:
            self._thread.join_until(deadline)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:
            if self._has_begun:
                return
            self._has_begun, self._thread = True, threading.current_thread()
            self._bell.open()
            self._notice_end()
        while (batch := self._next_batch()) is not None:
            self._write(batch)
        if not self._is_wire_free:
            self._wire.close()
        with self._lock:
            self._bell.close()

    def _next_batch(self) -> Batch | None:
        """What leaves together; waits for it, and is ``None`` when it is time to end."""
        ends = left = 0.0  # of the gathering, which a ring does not end, but what it tells of may
        while True:
            with self._lock:
                if self._stopping.is_set:
                    return None  # looked at under the lock, for `fail` rings only for a thread that is idle
                self._rests = self._idle = False  # also where an emit that was interrupted has left it so
                self._gathers = self._begun is None and self._may_gather()
                if self._gathers:
                    now = time.monotonic()
                    ends = ends or now + _GATHERING
                    left = ends - now
                    self._gathers = left > 0
                if self._begun is None and self._frames and not self._gathers:
                    new, self._begun = self._new_batch(), None
                    return new
                batch, self._begun = self._begun, None
                if batch is None and not self._gathers:
                    self._idle = True
                    self._rests = self._seconds_to_rest() > 0
            if batch is not None:
                return self._take_over(batch)
            if self._gathers:
                self._bell.wait(timeout=left)
                continue
            if self._rests:
                self._rest()
                continue
            is_news = self._bell.wait(self._wire.descriptor)
            with self._lock:
                if is_news and self._idle:
                    self._wire.close()  # nothing was asked, so what is there to read is the end of the connection

    def _rest(self) -> None:
        """Leave the answers to the emits that come one by one, as long as they do and have nothing for the thread.

        To read one of them at each look instead, so that the next emit found the thread awake, took 3 % of a ping-pong.
        """
        while self._rests and not self._frames and not self._stopping.is_set:
            left = self._seconds_to_rest()
            begun = self._begun
            if left <= 0 or (begun is not None and not begun.is_sent):
                break
            self._bell.wait(timeout=left)

    def _seconds_to_rest(self) -> float:
        return self._sent_at + GRACE - time.monotonic()

    def _may_gather(self) -> bool:
        """Whether all that is to leave comes in bulk, and its frame has room for more."""
        if self._waiting or not len(self._frames) == len(self._open) == 1:
            return False
        return self._is_bulk(self._frames[0].event, time.monotonic())

    def _take_over(self, batch: Batch) -> Batch:
        with self._turn:
            pass  # whoever sends it is done with the wire, however long he was held up
        if not batch.is_sent:
            self._wire.close()  # half a command may be on its way
            batch.answer = None
        return batch

    def _write(self, batch: Batch) -> None:
        backoff = Backoff()
        while True:
            pause = backoff.next()
            try:
                if self._exchange(batch):
                    break
            except Fenced as error:
                self.on_fenced(error)
            except BusDenied as error:
                self._refused(self.diagnose(error, self._wire))
                pause = PAUSE_WHEN_DENIED
            except BusError as error:
                self._refused(error)
            except Exception:
                log.exception("writing to Redis at %s failed in an unforeseen way; it is tried again", self._where)
                self._wire.close()
            if self.fatal is not None or self._stopping.wait(pause):
                return
        with self._lock:
            self._done(batch)

    def _open_wire(self) -> None:
        if not self._wire.is_open:
            self._wire.open()
            self.reconnects += self._batch > 1

    def _refused(self, error: BusError) -> None:
        if self._refuse(error):
            log.warning("%s; %d events wait", error, self.waiting)

    def _exchange(self, batch: Batch) -> bool:
        """One attempt; false when it has to be made again, for Redis had forgotten this node."""
        self._packer.pack(batch)
        if not batch.is_sent:
            self._open_wire()
            self._wire.send(batch.parts(self._command(b"EVALSHA", batch)))
        batch.is_sent = False  # the next attempt has to send again
        # All are read before one is checked: a reply that is left would be taken for the next command's.
        blobs = [(key, self._wire.read()) for key, _ in batch.blobs]
        published = [(channel, self._wire.read()) for channel, _ in batch.asked]
        answer, batch.answer = batch.answer, None
        if answer is None and batch.durable:
            answer = self._wire.read()
        for channel, reply in published:
            self._check_published(channel, reply)
        for key, reply in blobs:
            self._wire.check(reply, f"SET {key}")
        if not batch.durable:
            return True
        if isinstance(answer, driver.NoScriptError):
            self._wire.send([self._command(b"EVAL", batch)])
            answer = self._wire.read()
        if isinstance(answer, Exception):
            raise self._wire.explain(answer, self._script.culprit(str(answer), batch.streams)) from answer
        return self._understand(answer, batch)

    def _check_published(self, channel: str, reply: Any) -> None:
        """Transient events never keep durable ones waiting: what is refused is reported, and gone."""
        try:
            self._wire.check(reply, f"PUBLISH {channel}")
        except BusDenied as error:
            log.error("%s", error)
            self.deny(error)
        except BusUnavailable as error:
            log.warning("transient events are lost: %s", error)

    def _understand(self, answer: list[Any], batch: Batch) -> bool:
        word = answer[0]
        if word == b"FORGOTTEN":
            self._on_forgotten()  # raises Fenced, where somebody else has taken the place
            return False
        if word == b"NOBLOB":
            raise BusUnavailable(f"Redis at {self._where} lost a large payload before its event was written")
        if word == b"REPEATED":
            self.suppressed += 1
        self._look_for_loss(int(answer[1]))
        for position in range(2, len(answer), 2):
            stream = batch.streams[int(answer[position])]
            text = answer[position + 1].decode(errors="replace")
            what = f"refuses event {self._keys.event_of(stream)!r}: XADD {stream.decode()} gives {text}"
            if text.startswith("KEPT "):
                what = f"has taken event {self._keys.event_of(stream)!r}, but refuses {text[5:]}"
            error = BusDenied(f"Redis at {self._where} {what}", event=self._keys.event_of(stream))
            log.error("%s", error)
            self.deny(error)
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
        for number, *frames in self._history:
            if number > before:
                for event, first, count in zip(*[iter(frames)] * 3, strict=True):
                    gone.setdefault(event, []).append((first, count))
        self._history.clear()
        count = sum(count for frames in gone.values() for _, count in frames)
        if count:
            self.lost += count
            ranges = ", ".join(
                f"{event!r} {frames[0][0]} to {frames[-1][0] + frames[-1][1] - 1}" for event, frames in gone.items()
            )
            log.error("Redis at %s lost %d acknowledged events of this node: %s", self._where, count, ranges)
