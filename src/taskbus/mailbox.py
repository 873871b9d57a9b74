"""A mailbox for each listener: events go in from any thread, and come out in order, one call at a time."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from taskbus.calling import in_order, parameters
from taskbus.condition import Condition
from taskbus.errors import BusUnavailable
from taskbus.types import LazyPage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskbus.types import Bare, Event

__all__ = ["ErrorBox", "Host", "Listener", "function_name"]

log = logging.getLogger(__name__)

MAX_EVENTS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024
CHUNK_EVENTS: Final = 256
PATIENCE: Final = 0.01
"""Seconds for which an emitter waits for half the mailbox to be free, before any room will do."""


def function_name(fn: Callable[..., Any]) -> str:
    """``module.qualname`` of ``fn``; partials and callable instances are named after what they hold."""
    if isinstance(fn, functools.partial):
        return f"partial({function_name(fn.func)})"
    named: Any = fn if hasattr(fn, "__qualname__") else type(fn)
    suffix = "" if named is fn else " instance"
    return f"{getattr(named, '__module__', None) or '?'}.{named.__qualname__}{suffix}"


class ErrorBox:
    """Errors of listeners on their way to the caller's thread; keeps the first ``limit`` and counts the rest."""

    def __init__(self, limit: int = 100) -> None:
        self.kept: list[BaseException] = []
        self._limit = limit
        self._more = 0
        self._lock = threading.Lock()

    def add(self, error: BaseException) -> None:
        with self._lock:
            if len(self.kept) < self._limit:
                self.kept.append(error)
            else:
                self._more += 1

    def raise_first(self) -> None:
        """Raise the oldest error, with a note about how many others there were, and forget them all."""
        with self._lock:
            errors, self.kept = self.kept, []
            others, self._more = len(errors) - 1 + self._more, 0
        if not errors:
            return
        if others:
            errors[0].add_note(f"and {others} more error(s), see the log")
        raise errors[0]


class Host(Protocol):
    """What a mailbox needs of the table it is in: a delivery thread, and a word when it has room again."""

    def lend(self, listener: Listener) -> None:
        """Run ``listener`` on a delivery thread, unless one runs it already."""

    def rest(self, listener: Listener) -> bool:
        """Take the delivery thread back; false: new mail came meanwhile, go on."""

    def refill(self, event: str) -> None:
        """Offer once more what a listener of ``event`` had no room for."""

    def remove(self, listener: Listener) -> None:
        """Take ``listener`` out of the table; its mail stays."""


class _Chunk:
    """Some consecutive events of one frame, and their share of its bytes.

    ``parts`` gives them once, some at a time: those of a :class:`LazyPage` become objects only there.
    """

    __slots__ = ("count", "nbytes", "parts")

    def __init__(self, events: Sequence[Event], start: int, end: int, nbytes: int) -> None:
        self.count = end - start
        self.nbytes = nbytes * self.count // len(events)
        if isinstance(events, LazyPage):
            self.parts = events.parts(start, end)
        else:
            all_of_them: list[Event | Bare] = list(events[start:end])
            self.parts = iter((all_of_them,))


class Listener:
    """A function and its bounded mailbox; a delivery thread runs it for as long as there is mail.

    Args:
        host: The table that lends threads; the listener takes no events before it is attached there.
        event: Exact name.
        fn: Called with the arguments of each event, in order, one call at a time, never on an emitting thread.
        report: Takes every error of ``fn``, ``SystemExit`` and ``KeyboardInterrupt`` included, after it was logged.
        once: Take exactly one event, however many threads emit, and leave the table with it.
        max_events: Room for events that wait.
        max_bytes: Room by the size of their frames; one frame of any size fits into an empty mailbox.
    """

    def __init__(
        self,
        host: Host,
        event: str,
        fn: Callable[..., Any],
        report: Callable[[BaseException], None],
        *,
        once: bool = False,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.event = event
        self.fn = fn
        self.ready = True
        self.by_pieces = not once
        self.awake = False
        """It was given to a delivery thread; changed by the host alone, as is ``is_taken``: one has it."""
        self.is_taken = False
        self.call: object = None
        """What the function is being called with; the same object for as long as the call lasts."""
        self._host = host
        self._report = report
        self._once = once
        self._taken = False
        self._closed = False
        self._mail: deque[Event | _Chunk] = deque()
        self._running: list[Any] = []
        self._through = 0  # events of its chunk before those
        self._room = Condition()
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._limit = 0 if once else max_events  # 0 sends every put over the slow path, which knows of once and closed
        self._chunked = 0  # events in the chunks of the mailbox, less the number of chunks
        self._bytes = 0
        self._refused = False  # an offer did not fit
        self._relief = False  # somebody waits for room
        self._emitters = 0  # how many of them do
        self._full_since = 0.0

    def __repr__(self) -> str:
        return f"<Listener {function_name(self.fn)} on {self.event!r}>"

    @property
    def depth(self) -> int:
        """Events that wait."""
        return len(self._mail) + self._chunked

    @property
    def left(self) -> int:
        """Events that wait, as :attr:`depth`, without those that are through of several that came together."""
        call = self.call
        now = next((index for index, one in enumerate(list(self._running)) if one is call), 0)
        return self.depth - self._through - now

    # Taking events: any thread

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        # Without a lock: append first, then look at `awake`; `Host.rest` does the reverse, so no mail is left lying.
        mail = self._mail
        if len(mail) + self._chunked < self._limit:
            mail.append((args, kwargs))
            if not self.awake:
                self._host.lend(self)
        else:
            self._put_slowly((args, kwargs), timeout)

    def _put_slowly(self, event: Event, timeout: float) -> None:
        with self._room:
            if self._once:
                self._take_once(event)
            elif not self._wait_for_room(monotonic() + timeout):
                raise BusUnavailable(
                    f"listener {function_name(self.fn)} of event {self.event!r} is {self.depth} events behind "
                    f"and had no room within {timeout:g} s",
                    event=self.event,
                    timeout=timeout,
                )
            elif not self._closed:
                self._mail.append(event)
        self._ask_for_thread()

    def _wait_for_room(self, deadline: float) -> bool:
        while True:
            self._relief = True  # before looking: delivery takes out first and looks at this second
            if self._closed or self.depth < self._max_events:
                return True
            begin = monotonic()
            if begin >= deadline:
                return False
            if not self._emitters:
                self._full_since = begin
            self._emitters += 1
            self._room.wait(deadline - begin)
            self._emitters -= 1

    def _take_once(self, event: Event) -> None:
        if not (self._taken or self._closed):
            self._taken = True
            self._host.remove(self)
            self._mail.append(event)

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        with self._room:
            if self._once:
                self._take_once(events[start])
                taken = len(events)
            elif self._closed:
                taken = len(events)
            else:
                self._relief = True  # as in _wait_for_room
                taken = self._take_chunks(events, start, nbytes)
                self._refused |= taken < len(events)  # until `_relieve` has it offered again
        self._ask_for_thread()
        return taken

    def _take_chunks(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        if self._bytes and self._bytes + nbytes > self._max_bytes:
            return start
        end = min(len(events), start + self._max_events - self.depth)
        for at in range(start, end, CHUNK_EVENTS):
            chunk = _Chunk(events, at, min(at + CHUNK_EVENTS, end), nbytes)
            self._chunked += chunk.count - 1
            self._bytes += chunk.nbytes
            self._mail.append(chunk)
        return max(start, end)

    def _ask_for_thread(self) -> None:
        if self._mail and not self.awake:
            self._host.lend(self)

    def close(self) -> None:
        """Take nothing any more and drop what waits; the running call ends by itself."""
        with self._room:
            self._closed = True
            self._limit = 0
            self._mail.clear()
            self._running.clear()
            self._room.notify_all()

    # Delivery: one delivery thread at a time

    def has_mail(self) -> bool:
        return bool(self._mail)

    def run(self) -> None:
        """Call the function for all mail, until the host takes the thread back."""
        while True:
            self._deliver_all()
            self.call = None
            if self._host.rest(self):
                return

    def _deliver_all(self) -> None:
        next_item = self._mail.popleft
        fn = self.fn
        while True:
            try:
                item = next_item()
            except IndexError:
                return
            if type(item) is tuple:
                self.call = item
                try:
                    fn(*item[0], **item[1])
                except BaseException as error:  # noqa: BLE001 the thread and the later events survive
                    self._failed(error)
            else:
                self._deliver_chunk(fn, item)  # type: ignore[arg-type]  # the exact type test above is too fine for mypy
            if self._relief:
                self._relieve()

    def _deliver_chunk(self, fn: Callable[..., Any], chunk: _Chunk) -> None:
        self._through = 0
        try:
            names = parameters(fn)
            for part in chunk.parts:
                event: Any
                events: list[Any] = part
                are_bare = bool(events) and type(events[0]) is dict  # all of them, or none
                rows = in_order(names, events) if are_bare else []
                self._running = events = rows or events
                # Looked at after that: `close` does the reverse, and empties it, which ends the loop.
                if self._closed:
                    return
                for event in events:
                    self.call = event
                    try:
                        if rows:
                            fn(*event)
                        elif are_bare:  # a tenth of what such an event costs is saved where it stays one
                            fn(**event)
                        else:
                            fn(*event[0], **event[1])
                    except BaseException as error:  # noqa: BLE001
                        self._failed(error)
                self._through += len(events)
        except BaseException as error:  # noqa: BLE001 of what makes objects of them
            self._failed(error)
        with self._room:
            self._running = []
            self._through = 0
            self._chunked -= chunk.count - 1
            self._bytes -= chunk.nbytes

    def _relieve(self) -> None:
        """Wake who waits for room: the reader when half is free, emitters too, or after a while for any room at all.

        An emitter that is woken for each free place changes threads for each event: a sixth of the events per second.
        """
        half = self.depth <= self._max_events // 2
        if not half and self._emitters and monotonic() - self._full_since < PATIENCE:
            return  # there is more to deliver, so this is asked again
        with self._room:
            half = self.depth <= self._max_events // 2
            waits = self._emitters > 0
            if waits and (half or self.depth < self._max_events):
                self._room.notify_all()
                waits = False
            refill = self._refused and half and self._bytes <= self._max_bytes // 2
            if refill:
                self._refused = False
            self._relief = self._refused or waits
        if refill:
            self._host.refill(self.event)

    def _failed(self, error: BaseException) -> None:
        log.error("listener %s failed on event %r", function_name(self.fn), self.event, exc_info=error)
        self._report(error)
