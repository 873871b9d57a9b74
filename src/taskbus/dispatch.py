"""The one table of listeners and waiters of a node, or of a standalone task, and the threads that call listeners."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from taskbus.condition import Condition
from taskbus.config import check_name
from taskbus.errors import BusUnavailable, ConfigError, NotStarted
from taskbus.mailbox import ErrorBox, Listener, function_name
from taskbus.threads import Thread
from taskbus.waiting import Trail, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskbus.types import Sink

__all__ = [
    "ErrorBox",
    "EventLoop",
    "Listener",
    "Names",
    "Trail",
    "Waiter",
    "check_event",
    "function_name",
    "on_delivery_thread",
]

LOCAL_TIMEOUT: Final = 5.0
"""Seconds that a local emit waits for a listener whose mailbox is full, as long as any one call on the bus may take."""

STOP_TIMEOUT: Final = 2.0
IDLE_THREADS: Final = 32
NAMES_KNOWN: Final = 10_000
WAITING: Final = (Waiter, Trail)  # a union is made anew whenever its line is passed
EVENT_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@lru_cache(10_000)
def _is_name(event: str) -> bool:
    return EVENT_NAME.fullmatch(event) is not None


def check_event(event: str) -> None:
    """Refuse what cannot be the name of an event, with a :class:`ConfigError` that quotes it."""
    if not isinstance(event, str) or len(event) > 128 or not _is_name(event):
        check_name("the name of an event", event)


class Names(set[str]):
    """Names of events that were found to be in order, so that each is checked but once."""

    def learn(self, event: str, *, may_be_ours: bool = False) -> None:
        """Check ``event`` and add it; only where it ``may_be_ours`` can it be one of those that taskbus emits."""
        check_event(event)
        if not may_be_ours and event.startswith("taskbus."):
            raise ConfigError(f"event names that begin with 'taskbus.' are reserved, {event!r} was given", event=event)
        if len(self) >= NAMES_KNOWN:
            self.clear()
        self.add(event)


class EventLoop:
    """Events within a process: listeners by name, each with a mailbox of its own.

    An emitting thread only drops events into mailboxes. Threads borrowed from this loop call the listeners: each in
    order and one call at a time, so a slow one delays nobody else. They start with the first mail and end with
    :meth:`stop`.
    """

    _named: ClassVar[dict[str, EventLoop]] = {}
    _named_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.on_room: Callable[[str], None] | None = None
        """Called, on any thread, with an event's name when a sink that was full has room again."""
        self._errors = ErrorBox()
        self._closed = False
        self.table: dict[str, tuple[Sink, ...]] = {}
        """Who takes which event; to look at without a lock, for its tuples are replaced, never changed."""
        self.listeners_attached = 0
        """How many sinks call a function, or want their events at once for another reason than a wait."""
        self._lock = self._quiet = Condition()
        self._busy: set[Listener] = set()
        self._looks: dict[Listener, tuple[object, float]] = {}
        self._idle: list[_DeliveryThread] = []
        self._threads: set[_DeliveryThread] = set()

    @classmethod
    def get_event_loop(cls, name: str = "default") -> EventLoop:
        """The loop of that name: the same one for everybody in the process until it is stopped."""
        with cls._named_lock:
            return cls._named.setdefault(name, cls(name))

    # For users

    def on(self, event: str, fn: Callable[..., Any]) -> None:
        """Call ``fn`` with the arguments of every ``event`` from now on."""
        self._listen(event, fn, once=False)

    def once(self, event: str, fn: Callable[..., Any]) -> None:
        """Call ``fn`` with the next ``event`` only, however many threads emit it at the same time."""
        self._listen(event, fn, once=True)

    def off(self, event: str, fn: Callable[..., Any] | None = None) -> None:
        """Remove ``fn``, or every listener, from the events that match the shell-style glob ``event``."""
        for listener in self.listeners(event, fn):
            self.remove(listener)
            listener.close()

    def emit(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Pass ``event`` to its listeners, in order with what this thread emitted before.

        Raises:
            BaseException: An error that a listener raised since the last call, as it was raised there.
            BusUnavailable: A listener is so far behind that its mailbox had no room within 5 s.
        """
        self._check_open()
        if self._errors.kept and not on_delivery_thread():
            self._errors.raise_first()
        self.deliver(event, args, kwargs, LOCAL_TIMEOUT)

    def listened(self, event: str) -> bool:
        """Whether anybody listens to or waits for ``event``."""
        return event in self.table

    def stop(self) -> None:
        """Deliver what was emitted, within 2 s, then drop all listeners and end the threads; harmless when repeated."""
        with self._named_lock:
            if self._named.get(self.name) is self:
                del self._named[self.name]
        deadline = monotonic() + STOP_TIMEOUT
        self.drain(STOP_TIMEOUT)
        self.close(max(0.0, deadline - monotonic()))

    def _listen(self, event: str, fn: Callable[..., Any], *, once: bool) -> None:
        if not callable(fn):
            raise TypeError(f"a listener has to be callable, got {fn!r}")
        self._check_open()
        self.attach(Listener(self, event, fn, self._errors.add, once=once))

    def _check_open(self) -> None:
        if self._closed:
            raise NotStarted(f"event loop {self.name!r} was stopped")

    # The table

    def attach(self, sink: Sink) -> None:
        """Put ``sink`` into the table: it takes part in what is delivered from now on."""
        with self._lock:
            if not self._closed:
                self.table[sink.event] = (*self.table.get(sink.event, ()), sink)
                self.listeners_attached += not isinstance(sink, WAITING)
                return
        sink.close()

    def remove(self, sink: Sink) -> None:
        """Take ``sink`` out of the table; harmless when it is not there."""
        with self._lock:
            sinks = self.table.get(sink.event, ())
            if sink not in sinks:
                return
            self.listeners_attached -= not isinstance(sink, WAITING)
            if len(sinks) == 1:
                del self.table[sink.event]
            else:
                self.table[sink.event] = tuple(other for other in sinks if other is not sink)

    def sinks(self, event: str) -> tuple[Sink, ...]:
        return self.table.get(event, ())

    def listeners(self, event: str, fn: Callable[..., Any] | None = None) -> list[Listener]:
        """The listeners of the events that match the shell-style glob ``event``; with ``fn`` those that call it."""
        return [
            sink
            for name in list(self.table)
            if fnmatchcase(name, event)
            for sink in self.sinks(name)
            if isinstance(sink, Listener) and (fn is None or sink.fn == fn)
        ]

    # Events in

    def deliver(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        """Put an event that stays in this process into every sink, waiting up to ``timeout`` seconds for room in all.

        Raises:
            BusUnavailable: At least one sink had no room in time; the others have the event.
        """
        # The loop of `deliver_to` once more: a list and a call less are a fifth of what a local emit costs.
        full: BusUnavailable | None = None
        for sink in self.table.get(event, ()):
            try:
                sink.put(args, kwargs, 0.0 if full else timeout)
            except BusUnavailable as error:
                full = full or error
        if full is not None:
            raise full

    def deliver_to(self, sinks: Sequence[Sink], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        """Put an event into these sinks, as :meth:`deliver` does."""
        full: BusUnavailable | None = None
        for sink in sinks:
            try:
                sink.put(args, kwargs, 0.0 if full else timeout)
            except BusUnavailable as error:
                full = full or error
        if full is not None:
            raise full

    def refill(self, event: str) -> None:
        if self.on_room is not None:
            self.on_room(event)

    # Delivery threads

    def lend(self, listener: Listener) -> None:
        try:
            with self._lock:
                if listener.awake or self._closed:
                    return
                listener.awake = True
                self._busy.add(listener)
                thread = self._idle[-1] if self._idle else self._new_thread()
                thread.listener = listener
                if self._idle:
                    self._idle.pop()  # only now, for a thread that is neither idle nor has a listener would be lost
            thread.wake()
        except BaseException:
            self._lend_again(listener)
            raise

    def _lend_again(self, listener: Listener) -> None:
        """After a signal handler's error, for nobody can tell how far that was; `take` lets one thread run it."""
        with self._lock:
            if not listener.awake or listener.is_taken:
                return
            for thread in [each for each in self._threads if each.listener is listener]:
                self._threads.discard(thread)
                thread.end()
            self._idle = [each for each in self._idle if not each.ends]
            thread = self._new_thread()
            thread.listener = listener
        thread.wake()

    def take(self, listener: Listener) -> bool:
        """Whether the thread that asks is to run ``listener``, and no other does."""
        with self._lock:
            if listener.is_taken or not listener.awake:
                return False
            self._busy.add(listener)
            listener.is_taken = True
            return True

    def rest(self, listener: Listener) -> bool:
        with self._lock:
            listener.awake = False
            if listener.has_mail() and not self._closed:
                listener.awake = True
                return False
            listener.is_taken = False
            self._busy.discard(listener)
            self._quiet.notify_all()
            thread = threading.current_thread()
            assert isinstance(thread, _DeliveryThread)
            self.park(thread)
        return True

    def park(self, thread: _DeliveryThread) -> None:
        """Keep a thread that has nothing to run for the next listener, or have it end."""
        with self._lock:
            thread.listener = None
            if not self._closed and not thread.ends and len(self._idle) < IDLE_THREADS:
                self._idle.append(thread)
            else:
                self._threads.discard(thread)
                thread.end()

    def _new_thread(self) -> _DeliveryThread:
        thread = _DeliveryThread(self, f"taskbus-{self.name}-{len(self._threads)}")
        self._threads.add(thread)
        return thread

    def drain(self, timeout: float) -> list[str]:
        """Wait until every mailbox is empty and no listener runs, save the one on this thread.

        Returns:
            Names of the functions that were still busy at the timeout, with how many more events wait for each.
        """
        thread = threading.current_thread()
        own = {thread.listener} if isinstance(thread, _DeliveryThread) else set()
        with self._quiet:
            self._quiet.wait_for(lambda: self._busy <= own, max(0.0, timeout))
            busy = [listener for listener in self._busy if listener not in own]
        return sorted(function_name(one.fn) + (f" (with {one.left:,} more events)" if one.left else "") for one in busy)

    def slow(self, older_than: float) -> list[tuple[str, str, float]]:
        """The calls that have run for longer than ``older_than`` seconds: ``(event, function, seconds)``.

        A call counts from the first of these looks that saw it, so this wants to be asked now and then. That keeps the
        clock out of the delivery of each event, where it would cost a tenth of it.
        """
        if not self._busy:
            self._looks = {}
            return []
        now = monotonic()
        with self._lock:
            busy = [(listener, listener.call) for listener in self._busy]
        before = self._looks
        self._looks = {
            one: before[one] if one in before and before[one][0] is call else (call, now) for one, call in busy
        }
        ages = [(one, now - since) for one, (call, since) in self._looks.items() if call is not None]
        return [(one.event, function_name(one.fn), age) for one, age in ages if age > older_than]

    def cancel(self, reason: Callable[[], BaseException]) -> None:
        """End every wait that goes on, each with a ``reason()`` of its own; listeners stay."""
        for sinks in list(self.table.values()):
            for sink in sinks:
                if isinstance(sink, WAITING):
                    sink.cancel(reason())

    def close(self, timeout: float = 0.0) -> None:
        """Close every sink and end the threads; those inside a call get ``timeout`` seconds, then end by themselves."""
        with self._lock:
            self._closed = True
            sinks = [sink for sinks in self.table.values() for sink in sinks]
            self.table.clear()
            self.listeners_attached = 0
            idle, self._idle = self._idle, []
            threads = list(self._threads)
        for sink in sinks:
            sink.close()
        for thread in idle:
            thread.end()
        deadline = monotonic() + timeout
        for thread in threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(None if thread in idle else max(0.0, deadline - monotonic()))


def on_delivery_thread() -> bool:
    """Whether the caller is a listener: errors of other listeners are not for it."""
    return isinstance(threading.current_thread(), _DeliveryThread)


class _DeliveryThread(Thread):
    """Runs one listener at a time; between two it blocks on its own lock, without a timeout."""

    def __init__(self, loop: EventLoop, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.listener: Listener | None = None
        """What to run when it is woken; set by the loop, under its lock."""
        self._loop = loop
        self.ends = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def wake(self) -> None:
        self._wake.release()
        if self.ident is None:
            self.start()

    def end(self) -> None:
        self.ends = True
        with suppress(RuntimeError):  # woken already
            self._wake.release()

    def run(self) -> None:
        while True:
            self._wake.acquire()
            if self.ends:
                return
            if self.listener is not None and self._loop.take(self.listener):
                self.listener.run()  # until it rests, which parks this thread
            else:
                self._loop.park(self)
