"""Aliases, protocols and frozen values that several parts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from taskbus.dispatch import EventLoop
    from taskbus.waiting import Waiter

__all__ = [
    "Bare",
    "Emit",
    "Event",
    "FinishInfo",
    "Labels",
    "LazyPage",
    "Link",
    "NodeInfo",
    "Page",
    "Place",
    "RouterStats",
    "Since",
    "Sink",
]

Event = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one event: ``(args, kwargs)``, type for type as they were emitted."""

Bare = dict[str, Any]
"""An event of keyword arguments alone, on its way to one who calls a function with them."""

Emit = Callable[..., None]
"""``emit`` of a name that was checked: event, args and kwargs, then only_remote, only_local, only_to and transient."""

Place = tuple[int, int]
"""Where an event stands in its stream: the milliseconds of its entry, and its own ordinal."""


class Page(list[Event]):
    """The events of the entry whose id is ``entry``; of some ``indexes``, where not all could be read."""

    __slots__ = ("entry", "indexes")

    def __init__(self, events: Sequence[Event], entry: Place, indexes: Sequence[int] | None = None) -> None:
        list.__init__(self, events)  # half as dear as by `super`
        self.entry = entry
        self.indexes = indexes

    def place(self, index: int) -> Place:
        """Where the event at this index of the page stands."""
        ms, ordinal = self.entry
        return ms, ordinal + (index if self.indexes is None else self.indexes[index])


class LazyPage(Sequence[Event]):
    """The same for an entry of many events, which ``read`` piece by piece, and each time anew, as they are handed over.

    Each piece has ``size`` events and the last one the rest; none, if it turns out that it cannot be read.
    """

    __slots__ = ("_count", "_read", "size")

    def __init__(self, count: int, size: int, read: Callable[[int], list[Event | Bare]]) -> None:
        self.size = size
        self._count = count
        self._read = read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        at, offset = divmod(range(self._count)[index], self.size)
        event = self._read(at)[offset]
        return ((), event) if isinstance(event, dict) else event

    def parts(self, start: int, end: int) -> Iterator[list[Event | Bare]]:
        """Those from ``start`` to before ``end``, one piece after another."""
        at = start
        while at < end:
            number, offset = divmod(at, self.size)
            count = min(end - at, self.size - offset)
            events = self._read(number)
            yield events[offset : offset + count] if count < len(events) else events
            at += count


Since = str
"""``"now"``, ``"start"``, ``"last"`` (waits only) or the id of an entry, as ``"1718000000000-42"``."""

Labels = Sequence[str] | set[str] | frozenset[str] | str | None
"""Label globs: one, or several of which one has to match; ``None`` matches every node."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A live node as the registry knows it.

    ``seen`` is the age of its last sign of life in seconds, by Redis' clock; ``started`` is a Unix time; ``healthy`` is
    the node's own word on its reader (a node that writes but no longer hears says ``False``). ``lag``, ``missed``,
    ``rejected`` and ``reconnects`` are those of :class:`RouterStats`, as of its last heartbeat.
    """

    id: str
    labels: frozenset[str]
    host: str
    pid: int
    role: str
    step: int
    started: float
    seen: float
    healthy: bool = True
    producer: str = ""
    lag: int = 0
    missed: int = 0
    rejected: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class FinishInfo:
    """The durable end of a run: which node ended it, why, and when (Unix time).

    ``reason`` is ``"completed"``, ``"stopped"`` or ``"error: ..."``.
    """

    node: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class RouterStats:
    """What a router has done since it started; counts of events unless said otherwise.

    ``missed`` were trimmed before they were read; ``lost`` had been acknowledged to this node when Redis lost them;
    ``suppressed`` counts the writes that were repeated because their reply was lost, and that Redis took only once;
    ``gaps`` is how often the pub/sub connection was away, and ``dropped`` the transient events that a full listener had
    no room for. ``lag`` is the number of events that Redis keeps for this node's subscriptions and that it has not read
    yet, as of the last look; ``reader_age`` and ``heartbeat_age`` are seconds since the last sign of life of each.
    """

    emitted: int = 0
    acknowledged: int = 0
    delivered: int = 0
    missed: int = 0
    repeated: int = 0
    lost: int = 0
    suppressed: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0
    gaps: int = 0
    dropped: int = 0
    state_losses: int = 0
    outbox_events: int = 0
    outbox_bytes: int = 0
    lag: int = 0
    reader_age: float = 0.0
    heartbeat_age: float = 0.0
    healthy: bool = True


class Sink(Protocol):
    """Whatever takes the events of one name, in order: a listener's mailbox, a waiter, a trail.

    ``ready`` is false while the sink still catches up from a cursor of its own; the table then passes it over.
    """

    event: str
    ready: bool
    by_pieces: bool
    """Whether it takes the events of a large entry one after another, so that they need not all be read before."""

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float) -> None:
        """Take an event emitted in this process; waits up to ``timeout`` seconds for room, then ``BusUnavailable``."""

    def offer(self, events: Sequence[Event], start: int, nbytes: int) -> int:
        """Take ``events[start:]`` as far as there is room, without blocking; return the index of the next."""

    def close(self) -> None:
        """Take nothing any more, and wake whoever waits."""


class Link(Protocol):
    """What a task needs of the bus: a :class:`~taskbus.router.Router`, or its stand-in without one."""

    loop: EventLoop

    @property
    def is_active(self) -> bool: ...

    @property
    def node_id(self) -> str | None: ...

    @property
    def labels(self) -> frozenset[str]: ...

    @property
    def finished(self) -> FinishInfo | None: ...

    def start(self) -> object: ...

    def stop(self, timeout: float | None = None) -> object: ...

    @property
    def emit_event(self) -> Emit: ...

    def add_labels(self, labels: frozenset[str]) -> Callable[[], None]:
        """Carry these labels too, for ``only_to`` and the registry; returns what takes them off."""

    def subscribe(self, sink: Sink, since: Since = "now", timeout: float | None = None) -> None:
        """Attach ``sink``; on return the subscription holds. ``"joined"`` (trails): all since this node joined.

        Raises ``BusUnavailable`` after ``timeout`` seconds, or as many as any one call may take.
        """

    def unsubscribe(self, sink: Sink) -> None: ...

    def attend(self, waiter: Waiter, deadline: float) -> Event | None:
        """:meth:`Waiter.wait`; the bus may use the calling thread meanwhile."""

    def fall_behind(self, sink: Sink) -> None:
        """Have ``sink`` take no events directly any more, but from the run, as it has room; soon."""

    def note_missed(self, event: str, count: int) -> None:
        """Count and log events that were trimmed before this node came for them."""

    def sync(self, timeout: float | None = None) -> None:
        """Return when all emitted before is acknowledged; raise what stands in the way."""

    def finish(self, reason: str, timeout: float | None = None) -> object: ...

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        """Call ``callback`` at most once, from a thread of the bus, when the run is finished; returns its remover."""

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` when this process is asked to leave the run without finishing it; returns its remover."""

    def fail(self, error: BaseException) -> None:
        """Leave because of an error: the others hear ``taskbus.node_failed``."""

    def progress(self, step: int, role: str) -> None:
        """Note how far this node is; the registry shows it with the next heartbeat."""

    def nodes(self, patterns: Labels = None) -> list[NodeInfo]: ...

    def wait_for_nodes(
        self, patterns: Labels, count: int, timeout: float, leaves: Callable[[], bool]
    ) -> list[NodeInfo]: ...

    def barrier(self, name: str, count: int, timeout: float, leaves: Callable[[], bool]) -> None: ...

    def wake_meetings(self) -> None:
        """Have those two look again at ``leaves``; also from a signal handler."""
