"""Who reads: one blocking read over all subscribed streams at a time, from concrete cursors of this node's own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskbus.bus.backoff import PAUSE_WHEN_DENIED, Backoff
from taskbus.bus.bell import Bell
from taskbus.bus.calls import Calls
from taskbus.bus.cursor import EntryId, parse_id
from taskbus.bus.goals import Goals
from taskbus.bus.subscriptions import COUNT, Subscriptions, Wanted
from taskbus.bus.taker import LargePayload
from taskbus.bus.turn import Turn
from taskbus.bus.wire import NOTHING, Wire
from taskbus.condition import Flag
from taskbus.errors import BusDenied, BusError, BusUnavailable, Fenced
from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.bus.taker import Admission
    from taskbus.config import RouterConfig
    from taskbus.types import Event
    from taskbus.waiting import Waiter

__all__ = ["Reader"]

log = logging.getLogger("taskbus")

_PATIENCE = 0.005
"""Seconds that a wait asks for the turn to read; the thread may be in the middle of something that takes longer."""
_PATIENCE_FOR_PAYLOADS = 0.5
"""Seconds that the thread of a wait gives a large payload; so long it does not see that its wait is cancelled."""


class Reader(Subscriptions):
    """Reads for one node. One thread at a time does: its own, or the one that waits for what comes (:meth:`attend`)."""

    def __init__(self, config: RouterConfig, target: Target, keys: Keys, calls: Calls, node: Admission) -> None:
        self._stopping = Flag()
        self._has_begun = self._is_lent = False
        blobs = Calls(target, timeout=config.op_timeout, deadline=config.op_timeout, stopping=self._stopping)
        super().__init__(config, keys, calls, blobs, node, target.where)
        self._silence = config.block + 1.2
        self._wire = Wire(target, self._silence)
        self.begin_to_open = self._wire.begin_to_open
        self._sources.append(self._wire)
        self._turn = Turn()  # to use the wire
        self.recall = self._turn.call
        """Have the thread read again, where it leaves that to those who wait and none does: there is news."""
        self._bell = Bell()
        self._asked: Wanted | None = None  # the read that is in flight
        self._asked_at, self._rewinds_asked = 0.0, 0
        self._reply: Any = None  # of a read, where it is for the thread to look into, or to go on with
        self._mail: list[Any] = []  # entries of the inbox for the thread
        self._fault: BaseException | None = None  # what went wrong on another thread
        self._waiters: set[object] = set()
        self.goals = Goals(keys)
        self._thread = Thread(target=self._run, name="taskbus-reader", daemon=True)
        self.join = self._thread.join_until
        self.reconnects = 0

    def start(self) -> None:
        """Start the thread, which waits for :meth:`begin`; harmless when started."""
        if self._thread.ident is None:
            self._thread.start()

    def begin(self, inbox: bytes, at: EntryId) -> None:
        """Begin to read; with ``inbox`` after the entry ``at``."""
        self.inbox, self._inbox_cursor.at = inbox, at
        self._has_begun = True
        self._bell.ring()

    def end(self) -> None:
        """Have the thread end after what it is at."""
        self._stopping.set()
        self._wire.abort()
        self._bell.ring()
        self._turn.call()
        if self._wire.target.in_process:
            self.wake()  # there is no socket to cut
        self._blobs.close()

    # Being woken ------------------------------------------------------------------------------------------------------

    def wake(self, timeout: float = 1.0) -> None:
        """Have the blocked read begin anew with the subscriptions as they are now."""
        with self._lock:
            blocked, self._blocked, self._plan = self._blocked, False, None
        if threading.current_thread() is self._thread:
            return
        self._turn.call()
        if not blocked:
            return
        try:
            woken = self._calls.script("wake", (self.inbox,), (), timeout=min(1.0, timeout))
        except BusError:
            woken = 0
        if not woken:
            self._wire.abort()  # Redis is away, or has no inbox: a new connection does it as well

    def call_when_read(self, callback: Callable[[], None]) -> None:
        """Call back, on some thread of the bus, when all is handed over that the subscribed streams hold now."""
        self.goals.add(callback)
        self.wake()

    # Reading on the thread that waits --------------------------------------------------------------------------------

    def attend(self, waiter: Waiter, deadline: float) -> Event | None:
        """:meth:`Waiter.wait`; if nobody else waits here, by reading what comes on the calling thread.

        From the socket by way of the reader's thread it would be one change of threads more, which costs as much as
        Redis takes for the event. What is more than handing over events is left to the reader's thread.
        """
        try:
            self._waiters.add(waiter)
            if len(self._waiters) > 1:
                self._turn.call()  # what comes for this one is read when the one who reads now has left
            elif not waiter.is_resolved() and deadline > time.monotonic():
                self._lead_if_free(waiter, deadline)
            return waiter.wait(deadline)
        finally:
            self._waiters.discard(waiter)

    def _lead_if_free(self, waiter: Waiter, deadline: float) -> None:
        try:
            if self._turn.borrow_now() or self._ask_for_turn():
                self._lead(waiter, deadline)
                self._give_back()
        except BaseException:  # of a signal handler, which may raise between any two of these calls
            self._turn.give_back(at_once=True)
            raise

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile, too, all is read as it comes, for somebody waits for what it brings about."""
        token = object()
        try:
            self._waiters.add(token)
            self.recall()
            yield
        finally:
            self._waiters.discard(token)

    def _ask_for_turn(self) -> bool:
        if self._is_lent or self._wire.descriptor < 0:
            return False
        self._turn.is_wanted = True
        self._bell.ring()
        has_turn = self._turn.borrow(_PATIENCE)
        self._turn.is_wanted = False
        return has_turn

    def _lead(self, waiter: Waiter, deadline: float) -> None:
        self._is_lent = True
        try:
            while (descriptor := self._wire.descriptor) >= 0 and not self._has_work():
                if self._asked is None:
                    self._ask()
                waiter.alarm = self._bell.ring
                if waiter.is_resolved():
                    return
                left = min(deadline, self._asked_at + self._silence) - time.monotonic()
                is_news = left > 0 and self._bell.wait(descriptor, left)
                waiter.alarm = None
                if is_news:
                    self._take(deadline)
                if waiter.is_resolved() or time.monotonic() >= deadline:
                    return
                if left <= 0:
                    raise self._silent()
        except BusError as error:
            self._fault = error  # the reader's thread raises it, and knows what to do
        except BaseException:  # a signal handler's, which is for whoever waits
            if self._asked is None:
                log.error("reading was interrupted while it handed over events: one of them may not be delivered here")
            self._fault = BusUnavailable("reading was interrupted", where=self._where)
            raise
        finally:
            waiter.alarm, self._is_lent = None, False

    def _has_work(self) -> bool:
        """Whether there is more to do than to read and to hand over."""
        return bool(
            self._fault is not None
            or self._reply is not None
            or self._mail
            or self._any_wrong
            or self.goals.open
            or self.taker.gone_back
            or self._stopping.is_set
        )

    def _give_back(self) -> None:
        at_once = len(self._waiters) > 1 or self._node.loop.listeners_attached > 0 or self._has_work()
        # A plan that is kept is without laggards.
        at_once = at_once or (self._plan is None and self._has_laggards())
        self._turn.give_back(at_once=at_once)

    def _has_laggards(self) -> bool:
        return any(not o.is_parked for s in list(self._streams.values()) for o in s.laggards)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff()
        first = True
        self._turn.take()
        self._bell.open()
        while not (self._has_begun or self._stopping.is_set):
            self._bell.wait()
        self._wire.forget_failure()
        while not self._stopping.is_set:
            pause = backoff.next()
            try:
                fault, self._fault = self._fault, None
                if fault is not None:
                    raise fault
                if not self._wire.is_open:
                    self._forget_read()
                    self._wire.open()
                    if not first:
                        self._come_back()
                    first = False
                self._read_once()
                backoff.reset()
                continue
            except Fenced:
                break  # whoever has the place of this node reads for it now
            except BusDenied as error:
                pause = PAUSE_WHEN_DENIED
                if not self._stopping.is_set:
                    self.on_denied(error)
                    self.taker.warn("reader", "%s; the reader tries again", error, every=10.0)
            except BusError as error:
                if not self._stopping.is_set:
                    self.taker.warn("reader", "%s; the reader tries again", error, every=10.0)
            except Exception:
                log.exception("reading from Redis at %s failed in an unforeseen way; it is tried again", self._where)
            self._wire.close()
            self._part_full()
            self._stopping.wait(pause)
        self._wire.close()
        self._bell.close()

    def _forget_read(self) -> None:
        with self._lock:
            self._asked = self._reply = None
            self._blocked = False

    def _come_back(self) -> None:
        self.reconnects += 1
        rewinds = self._rewinds
        self._wire.call(b"EXISTS", self.inbox)  # an answer at once, where that to a blocking read takes seconds
        self.sign_of_life = time.monotonic()
        try:
            self._node.recover()
        except BusDenied:
            self._look_for_wrong(self._wire, [self.inbox])
            if not self._inbox_wrong:
                raise
        self._compare(rewinds)
        log.warning("reading from Redis at %s again", self._where)

    def _read_once(self) -> None:
        while self._mail:
            self._take_inbox([self._mail.pop(0)])  # one by one: an error leaves the others for the next time
        if self.taker.gone_back:
            self._explain_going_back()
        if self._any_wrong:
            self._look_for_wrong(self._wire)
        if self._asked is None:
            self.goals.look(self._wire, list(self._streams.values()))
            self.goals.check()
            self._ask()
        if self._reply is None and self._wire.descriptor >= 0:
            left = self._asked_at + self._silence - time.monotonic()
            is_news = left > 0 and self._bell.wait(self._wire.descriptor, left)
            if self._turn.is_wanted:
                self._turn.lend()
                return
            if left <= 0:
                raise self._silent()
            if not is_news or self._stopping.is_set:
                return
        self._take()

    def _silent(self) -> BusUnavailable:
        return BusUnavailable(f"Redis at {self._where} cannot be reached: timed out", where=self._where)

    def _ask(self) -> None:
        """Send one blocking read for all streams that somebody has room for."""
        self._asked_at = time.monotonic()
        with self._lock:
            if self._asked_at >= self._next_prune:
                self._prune()
            if self._full:
                self._part_full()
            plan = self._plan or self._make_plan()
            self._plan = None if plan.has_laggards else plan
            if self._stopping.is_set:
                return  # whoever stops it may have found nothing yet to cut or to wake
            self._asked, self._rewinds_asked = plan.wanted, self._rewinds
            self._blocked = True
        if not (plan.cursors or plan.tail):
            self._stopping.wait(1.0)  # every key is wrong
            self._forget_read()
            return
        command = bytearray(plan.head)
        for cursor in plan.cursors:
            at = b"%d-%d" % cursor.at
            command += b"$%d\r\n%b\r\n" % (len(at), at)
        command += plan.tail
        self._wire.send([command])

    def _take(self, deadline: float | None = None) -> None:
        """Hand over what a read has brought.

        The thread of a wait, which has a ``deadline``, takes what is there, and large payloads that come soon; what
        takes longer is left to the reader's thread.
        """
        leads = deadline is not None
        wanted = self._asked
        if wanted is None:
            return  # it is being stopped, or every key is wrong
        reply, self._reply = self._reply, None
        if reply is None:
            reply = self._wire.read_now() if leads else NOTHING
            if reply is NOTHING and leads and not self._wire.has_ended:
                self._wire.heard = self._asked_at = time.monotonic()  # a part of it is no silence
                return
            if reply is NOTHING:
                reply = self._wire.read()
        self._blocked = False
        self.sign_of_life = now = time.monotonic()
        until = None if deadline is None else min(deadline, now + _PATIENCE_FOR_PAYLOADS)
        if isinstance(reply, Exception):
            if leads:
                self._reply = reply
                return
            self._asked = None
            self._explain(reply, [*wanted, self.inbox])
            return
        self._asked = None
        pages: dict[bytes, Any] = dict(reply or ())
        try:
            for key, (stream, readers) in wanted.items():
                entries = pages.get(key, ())
                if entries:
                    self.taker.take(stream, readers, entries, until)
                if readers.laggards and len(entries) < COUNT:
                    with self._lock:
                        stream.merge(self._node, readers, parse_id(entries[-1][0]) if entries else (0, 0))
        except LargePayload:
            self._asked, self._reply = wanted, reply  # the reader's thread goes on where this one ends
            return
        if not leads:
            if self.taker.gone_back:
                self._explain_going_back()
            self.goals.check()
        if self.inbox in pages:
            self._take_inbox(pages[self.inbox], later=leads)

    def _explain(self, reply: Exception, keys: Sequence[bytes]) -> None:
        """A read was refused: raise what that means, unless it is a key that holds no stream, which is left out."""
        try:
            self._wire.check(reply, b" ".join((b"XREAD", *keys)).decode())
        except BusDenied as error:
            if not error.__dict__.get("wrong"):
                raise
        self._look_for_wrong(self._wire, keys)

    def _take_inbox(self, entries: Sequence[Any], *, later: bool = False) -> None:
        if entries:
            self._plan = None  # it holds the place in the inbox
        for entry_id, fields in entries:
            self._inbox_cursor.at = max(self._inbox_cursor.at, parse_id(entry_id))
            if later:
                self._mail.append((entry_id, fields))
                continue
            self._node.on_inbox(dict(zip(fields[::2], fields[1::2], strict=False)))

    def _explain_going_back(self) -> None:
        """A stream counts from an earlier number: Redis has lost its end, or all of it."""
        rewinds = self._rewinds_asked
        self._node.recover()
        self._compare(rewinds)

    def _compare(self, rewinds: int) -> None:
        known = list(self.taker.gone_back)
        if self._rewinds == rewinds:  # it is the same run still, and nobody has reported this yet
            self._compare_tails(known)
        del self.taker.gone_back[: len(known)]
