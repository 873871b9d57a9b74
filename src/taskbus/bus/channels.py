"""Pub/sub: transient events, at the lowest cost, for whoever is connected.

The thread reads without a timeout. What shows that its connection lives is the node's own probe: a message that the
heartbeat publishes on a channel of this node, and that has to come in here before the next beat. The same channel wakes
the thread when there is a channel to add, so that only one thread ever writes to the connection.

The connection also hears of it when somebody changes a key in which Redis keeps what it knows of this node (client-side
caching, for which it speaks RESP3): with its next probe it asks whether that is still as it should be, and is so told
of the next change, too. An idle node knows within seconds what it would find out by turns otherwise; where the server
or its rights do not have that, it stays with the turns.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import hiredis

from taskbus.bus.backoff import Backoff
from taskbus.bus.calls import Calls
from taskbus.bus.packing import pack
from taskbus.bus.wire import Wire
from taskbus.condition import Condition, Flag
from taskbus.errors import BusDenied, BusError, BusUnavailable
from taskbus.threads import Thread

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys
    from taskbus.bus.registry import Question

__all__ = ["Channels"]

log = logging.getLogger("taskbus")


class Channels:
    """The subscriptions of one node; ``deliver(event, data)`` is called on the thread for each message."""

    def __init__(
        self,
        target: Target,
        keys: Keys,
        calls: Calls,
        deliver: Callable[[str, bytes], None],
        questions: Callable[[], list[Question]] = list,
    ) -> None:
        self._keys = keys
        self._calls = calls
        self._deliver = deliver
        self._questions = questions
        self._where = target.where
        self._wire = Wire(target, None)
        self._changed = Condition()
        self._wanted: set[str] = set()
        self._confirmed: set[str] = set()
        self._sent: set[str] = set()
        self._idle: set[str] = set()
        self._unwanted: set[str] = set()
        self._denied: BusDenied | None = None
        self._logged: type[BusError] | None = None
        self._logged_at = 0.0
        self._thread: Thread | None = None
        self._stopping = Flag()
        self._probed = 0.0
        self._turn = 0
        self._watches = False  # Redis tells of the first change of a key since it was asked about here
        self._touched: set[bytes] = set()  # the keys that were changed, and not asked about since
        self._asked: deque[Question] = deque()  # whose answers have not come
        self._is_wrong = False
        self._has_given_up = False
        self.on_finish: Callable[[], None] = lambda: None
        """Called when the key of the finish was changed."""
        self.probe_channel = b""
        self.echo = b""
        """The last message of this node's channel that began so; all messages before it were delivered. For tests."""
        self.gaps = 0
        self.sign_of_life = time.monotonic()

    @property
    def is_used(self) -> bool:
        """Whether there is a connection, and a thread that reads it."""
        return self._thread is not None

    def subscribe(self, event: str, timeout: float) -> None:
        """Return when messages on the channel of ``event`` arrive here."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._wanted.add(event)
            if event in self._confirmed:
                return
            self._denied = None
            self._begin()
        try:
            self._calls.call(b"PUBLISH", self.probe_channel, b"wake", timeout=timeout)
        except BusDenied:
            with self._changed:
                self._wanted.discard(event)
            raise
        with self._changed:
            over = self._changed.wait_for(
                lambda: event in self._confirmed or self._denied is not None or self._stopping.is_set,
                max(0.0, deadline - time.monotonic()),
            )
            if self._denied is not None and event not in self._confirmed:
                self._wanted.discard(event)  # the other channels shall work
                raise self._denied.anew()
            if not over:
                raise BusUnavailable(
                    f"Redis at {self._where} did not confirm the channel of event {event!r}", event=event
                )

    def _begin(self) -> None:
        self._has_given_up = False
        if self._thread is None:
            self._thread = Thread(target=self._run, name="taskbus-channels", daemon=True)
            self._thread.start()

    def keep(self, listened: Collection[str]) -> None:
        """Forget the channels to which nobody listened at this look and at the one before; the thread leaves them."""
        if not self._idle and self._wanted.issubset(listened):  # in C, so that no other thread comes in between
            return
        with self._changed:
            idle = {event for event in self._wanted if event not in listened}
            gone, self._idle = idle & self._idle & self._confirmed, idle
            for known in (self._wanted, self._confirmed, self._sent):
                known -= gone
            self._unwanted |= gone

    def probe(self) -> bool:
        """Publish to this node's own channel, every other time; true when that was this beat's command.

        Every time while something was changed, for it is the probe that has it asked about: so nodes that come and go
        by the thousand cost the others little.
        """
        self._turn += 1
        if self._thread is None or (self._turn % 2 == 0 and not (self._watches and self._touched)):
            return False
        if self._probed <= self.sign_of_life:  # else one is on its way, for which the time runs already
            self._probed = time.monotonic()
        try:
            self._calls.call(b"PUBLISH", self.probe_channel, b"probe")
        except BusDenied as error:
            if not self._give_up(error):
                raise
        return True

    def take_wrong(self) -> bool:
        """Whether Redis has said since this was asked last that something is not as it should be."""
        if not self._is_wrong:
            return False
        self._is_wrong = False
        return True

    def ask_again(self) -> None:
        """What should be in Redis is something else now."""
        self._touch(question.key for question in self._questions())

    def _touch(self, keys: Iterable[bytes]) -> None:
        with self._changed:
            self._touched |= set(keys)

    def suspect(self) -> None:
        """Open the connection anew, for Redis answers nothing else; without traffic it would not be noticed here."""
        self._wire.abort()

    def watch(self) -> None:
        """Cut the connection if it did not bring the last probe; open it where nobody has listened yet."""
        if self._thread is None and not self._has_given_up and not self._wire.target.in_process:
            with self._changed:
                if not self._stopping.is_set:
                    self._begin()
        if self._thread is not None and self._probed > self.sign_of_life and time.monotonic() - self._probed > 1.0:
            self._probed = 0.0
            log.warning("the pub/sub connection to Redis at %s is silent; it is opened anew", self._where)
            self._wire.abort()

    def stop(self, deadline: float) -> None:
        """End the thread; it is waited for until ``deadline`` (monotonic)."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            return
        try:
            self._calls.call(b"PUBLISH", self.probe_channel, b"wake", timeout=0.2)
        except BusError:
            pass  # the connection is cut below
        self._wire.abort()
        thread.join_until(deadline)

    def _run(self) -> None:
        backoff = Backoff()
        first = True
        while not self._stopping.is_set:
            try:
                self._open(first)
                first = False
                while not self._stopping.is_set:
                    self._take(self._read())
                    backoff.reset()
            except BusError as error:
                self._wire.close()
                if isinstance(error, BusDenied):
                    self._give_up(error)
                if self._has_ended():
                    return
                self._refused(error)
                if not self._stopping.is_set:
                    self._stopping.wait(backoff.next())
            except Exception:
                log.exception(
                    "reading channels of Redis at %s failed in an unforeseen way; it is tried again", self._where
                )
                self._wire.close()
                self._stopping.wait(backoff.next())
        self._wire.close()

    def _give_up(self, error: BusDenied) -> bool:
        """Do without the connection, where nobody has asked for it: those who only emit need no right to subscribe."""
        with self._changed:
            if self._wanted or "NOPERM" not in str(error):
                return False
            if not self._has_given_up:
                log.info("%s; changes of keys are looked for by turns", error)
            self._has_given_up = True
            self._wire.abort()
            return True

    def _has_ended(self) -> bool:
        with self._changed:
            if self._has_given_up:
                self._thread = None
            return self._has_given_up

    def _refused(self, error: BusError) -> None:
        if self._stopping.is_set:
            return
        if type(error) is not self._logged or time.monotonic() - self._logged_at > 10.0:
            self._logged, self._logged_at = type(error), time.monotonic()
            log.warning("%s; transient events may be missed until it is back", error)
        if isinstance(error, BusDenied):
            with self._changed:
                self._denied = error
                self._changed.notify_all()

    def _open(self, first: bool) -> None:
        self._wire.open()
        if self._stopping.is_set:
            raise BusUnavailable("the router was stopped")  # by who may have found nothing yet to cut
        with self._changed:
            self._confirmed.clear()
            self._unwanted.clear()
            self._sent = set(self._wanted)
            if not first:
                self.gaps += 1
        channels = (self._keys.channel(event) for event in sorted(self._sent))
        subscribe = pack(b"SUBSCRIBE", self.probe_channel, *channels)
        self._watches = False
        self._asked.clear()
        if self._wire.target.in_process:
            self._wire.send([subscribe])
            return
        with self._changed:
            self._touched = set()
        questions = self._questions()
        begin = (b"HELLO", b"3"), (b"CLIENT", b"TRACKING", b"ON"), *(question.command for question in questions)
        self._wire.send([*(pack(*command) for command in begin), subscribe])
        refused = [isinstance(self._wire.read(), Exception) for _ in range(2)]
        self._watches = not any(refused)
        self._asked.extend(questions)

    def _judge(self, question: Question, answer: Any) -> None:
        if not self._watches:
            return
        if not isinstance(answer, Exception):
            self._is_wrong |= not question.is_right(answer)
        elif isinstance(self._wire.explain(answer), BusDenied):
            self._is_wrong = True
        else:
            self._touch([question.key])  # Redis does not answer questions now, and would not tell of this key

    def _read(self) -> Any:
        while True:
            reply = self._wire.read()
            if isinstance(reply, Exception) and "unsubscribe" in str(reply):
                continue  # who may not leave a channel hears what nobody listens to: no harm
            if not self._asked or type(reply) is hiredis.PushNotification:
                break
            self._judge(self._asked.popleft(), reply)
        if isinstance(reply, Exception):
            channels = sorted(self._keys.channel(event) for event in self._sent - self._confirmed)
            what = b" ".join(channels or [self.probe_channel]).decode()
            raise self._wire.explain(reply, f"SUBSCRIBE {what}")
        return reply

    def _take(self, message: Any) -> None:
        self.sign_of_life = time.monotonic()
        kind, channel = message[0], message[1]
        if kind == b"subscribe":
            if channel != self.probe_channel:
                with self._changed:
                    self._denied = None
                    self._confirmed.add(self._keys.event_of(channel))
                    self._changed.notify_all()
                return
        elif kind == b"message" and channel != self.probe_channel:
            self._deliver(self._keys.event_of(channel), message[2])
            return
        elif kind == b"invalidate":
            keys = message[1] or [question.key for question in self._questions()]  # none: all there were
            self._touch(keys)
            if self._keys.finish in keys:
                self.on_finish()
            return
        elif kind == b"message" and message[2].startswith(b"echo"):
            self.echo = message[2]
        self._change()
        if self._watches and self._touched and not self._asked and self._sent <= self._confirmed:
            self._ask()

    def _ask(self) -> None:
        """With no refusal of a channel on its way, which would be taken for an answer."""
        with self._changed:
            touched, self._touched = self._touched, set()
        questions = [question for question in self._questions() if question.key in touched]
        self._asked.extend(questions)
        if questions:
            self._wire.send([pack(*question.command) for question in questions])

    def _change(self) -> None:
        with self._changed:
            new = self._wanted - self._sent
            self._sent |= new
            old, self._unwanted = self._unwanted, set()
        if old:  # first, for what is left may be wanted again
            self._wire.send([pack(b"UNSUBSCRIBE", *(self._keys.channel(event) for event in sorted(old)))])
        if new:
            self._wire.send([pack(b"SUBSCRIBE", *(self._keys.channel(event) for event in sorted(new)))])
