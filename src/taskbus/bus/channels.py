"""Pub/sub: transient events, at the lowest cost, for whoever is connected.

The thread reads without a timeout. What shows that its connection lives is the node's own probe: a message that the
heartbeat publishes on a channel of this node, and that has to come in here before the next beat. The same channel wakes
the thread when there is a channel to add, so that only one thread ever writes to the connection.

The connection also hears of it when somebody changes a key in which Redis keeps what it knows of this node (client-side
caching, for which it speaks RESP3): the heartbeat then looks at once at what it looks at by turns otherwise. Where the
server or its rights do not have that, it stays with the turns.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis

from taskbus.bus.backoff import Backoff
from taskbus.bus.calls import Calls
from taskbus.bus.wire import Wire, pack
from taskbus.errors import BusDenied, BusError, BusUnavailable

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.keys import Keys

__all__ = ["Channels"]

log = logging.getLogger("taskbus")

_OPTIONAL = re.compile("unsubscribe|mget")
"""Who may not leave a channel hears what nobody listens to, and who may not read looks by turns: no harm."""


class Channels:
    """The subscriptions of one node; ``deliver(event, data)`` is called on the thread for each message."""

    def __init__(
        self,
        target: Target,
        keys: Keys,
        calls: Calls,
        deliver: Callable[[str, bytes], None],
        watched: Callable[[], list[bytes]] = list,
    ) -> None:
        self._keys = keys
        self._calls = calls
        self._deliver = deliver
        self._watched = watched
        self._where = target.where
        self._wire = Wire(target, None)
        self._changed = threading.Condition()
        self._wanted: set[str] = set()
        self._confirmed: set[str] = set()
        self._sent: set[str] = set()
        self._idle: set[str] = set()
        self._unwanted: set[str] = set()
        self._denied: BusDenied | None = None
        self._logged: type[BusError] | None = None
        self._logged_at = 0.0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._probed = 0.0
        self._turn = 0
        self._watches = False  # Redis tells when a watched key is changed, once for each time that it was read here
        self._is_stale = False  # one was, since they were read
        self._is_changed = False  # and then they were read again, so that nothing that comes now is missed
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
            self._begin()
        self._calls.call(b"PUBLISH", self.probe_channel, b"wake", timeout=timeout)
        with self._changed:
            over = self._changed.wait_for(
                lambda: event in self._confirmed or self._denied is not None or self._stopping.is_set(),
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
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskbus-channels", daemon=True)
            self._thread.start()

    def keep(self, listened: Callable[[str], bool]) -> None:
        """Forget the channels to which nobody listened at this look and at the one before; the thread leaves them."""
        with self._changed:
            idle = {event for event in self._wanted if not listened(event)}
            gone, self._idle = idle & self._idle & self._confirmed, idle
            for known in (self._wanted, self._confirmed, self._sent):
                known -= gone
            self._unwanted |= gone

    def probe(self) -> bool:
        """Publish to this node's own channel, every other time; true when that was this beat's command.

        Every time while there is a watched key that was changed, for it is the probe that has them read again: so
        nodes that come and go by the thousand cost a node that watches little.
        """
        self._turn += 1
        if self._thread is None or (self._turn % 2 == 0 and not self._is_stale):
            return False
        if self._probed <= self.sign_of_life:  # else one is on its way, for which the time runs already
            self._probed = time.monotonic()
        self._calls.call(b"PUBLISH", self.probe_channel, b"probe")
        return True

    def take_changed(self) -> bool:
        """Whether somebody has changed a watched key since this was asked last."""
        is_changed, self._is_changed = self._is_changed, False
        return is_changed

    def watch_anew(self) -> None:
        """The watched keys are others now."""
        self._is_stale = self._watches

    def suspect(self) -> None:
        """Open the connection anew, for Redis answers nothing else; without traffic it would not be noticed here."""
        self._wire.abort()

    def watch(self) -> None:
        """Cut the connection if it did not bring the last probe; open it where nobody has listened yet."""
        if self._thread is None and not self._wire.target.in_process:
            with self._changed:
                if not self._stopping.is_set():
                    self._is_stale = True  # by now they may have been changed
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
        if threading.current_thread() is not thread:
            thread.join(max(0.05, deadline - time.monotonic()))

    def _run(self) -> None:
        backoff = Backoff()
        first = True
        while not self._stopping.is_set():
            try:
                self._open(first)
                first = False
                while not self._stopping.is_set():
                    message = self._read()
                    if self._watches and type(message) is not hiredis.PushNotification:
                        self._is_changed = True  # the watched keys were read
                    else:
                        self._take(message)
                    backoff.reset()
            except BusError as error:
                self._wire.close()
                self._refused(error)
                if not self._stopping.is_set():
                    self._stopping.wait(backoff.next())
            except Exception:
                log.exception(
                    "reading channels of Redis at %s failed in an unforeseen way; it is tried again", self._where
                )
                self._wire.close()
                self._stopping.wait(backoff.next())
        self._wire.close()

    def _refused(self, error: BusError) -> None:
        if self._stopping.is_set():
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
        with self._changed:
            self._confirmed.clear()
            self._unwanted.clear()
            self._sent = set(self._wanted)
            if not first:
                self.gaps += 1
        channels = (self._keys.channel(event) for event in sorted(self._sent))
        commands = [pack(b"SUBSCRIBE", self.probe_channel, *channels)]
        is_late, self._is_stale = self._is_stale or not first, False
        self._watches = False
        if not self._wire.target.in_process:
            begin = (b"HELLO", b"3"), (b"CLIENT", b"TRACKING", b"ON"), (b"MGET", *self._watched())
            self._wire.send([*(pack(*command) for command in begin), *commands])
            replies = [self._wire.read() for _ in begin]
            self._watches = not any(isinstance(reply, Exception) for reply in replies)
            self._is_changed = self._watches and is_late
        else:
            self._wire.send(commands)

    def _read(self) -> Any:
        reply = self._wire.read()
        while isinstance(reply, Exception) and _OPTIONAL.search(str(reply)):
            reply = self._wire.read()
        if isinstance(reply, Exception):
            channels = sorted(self._keys.channel(event).decode() for event in self._sent - self._confirmed)
            raise self._wire.explain(reply, f"SUBSCRIBE {' '.join(channels)}")
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
            self._is_stale = True
            if message[1] and self._keys.finish in message[1]:
                self.on_finish()
            return
        elif kind == b"message" and message[2].startswith(b"echo"):
            self.echo = message[2]
        self._change()
        if self._is_stale:
            self._is_stale = False
            self._wire.send([pack(b"MGET", *self._watched())])

    def _change(self) -> None:
        with self._changed:
            new = self._wanted - self._sent
            self._sent |= new
            old, self._unwanted = self._unwanted, set()
        if old:  # first, for what is left may be wanted again
            self._wire.send([pack(b"UNSUBSCRIBE", *(self._keys.channel(event) for event in sorted(old)))])
        if new:
            self._wire.send([pack(b"SUBSCRIBE", *(self._keys.channel(event) for event in sorted(new)))])
