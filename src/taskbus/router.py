"""Router: one node of a run, for whoever wants events without a task; a task uses it as its link."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from taskbus.config import RouterConfig, check_name, encodable
from taskbus.dispatch import ErrorBox, EventLoop, Listener, Names, on_delivery_thread
from taskbus.errors import ConfigError, NotStarted, TaskbusError
from taskbus.globs import match_globs, parse_globs
from taskbus.meetings import Meetings
from taskbus.types import Emit, Event, FinishInfo, Labels, NodeInfo, RouterStats, Since, Sink
from taskbus.waiting import Waiter

if TYPE_CHECKING:
    from taskbus.bus.life import Life

__all__ = ["Router", "activate", "active_router"]

log = logging.getLogger("taskbus")

_NOT_STARTED = "the router was not started: call start(), or use it in a with statement"
_active: Router | None = None


def active_router() -> Router | None:
    """The router of this process, made active by ``Parallel.runner`` or ``taskbus run``; ``None`` without one."""
    return _active if _active is not None and _active.is_active else None


def activate(router: Router | None) -> None:
    """Make ``router`` the one that tasks of this process use when they are given none."""
    global _active
    _active = router


class Router(Meetings):
    """One node of a run.

    Args:
        url: Where the bus is: ``redis://``, ``rediss://``, ``unix://`` or ``memory://name``; default ``TASKBUS_URL``.
        run_id: The run to join; default ``TASKBUS_RUN_ID``, else ``"default"``.
        node_id: This node's id; default ``TASKBUS_NODE_ID``, else the smallest number that is free.
        labels: Tags that ``only_to`` and ``nodes`` match; a set, or a string separated by commas.
        settings: The other fields of :class:`~taskbus.config.RouterConfig`, by keyword.

    Any number of routers may live in a process. A router can be started again after ``stop``; it is another node then.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        run_id: str | None = None,
        node_id: str | int | None = None,
        labels: Iterable[str] | str = (),
        **settings: Any,
    ) -> None:
        given_id = str(node_id) if isinstance(node_id, int) else node_id
        self.config = RouterConfig.from_env(url=url, run_id=run_id, node_id=given_id, labels=labels or None, **settings)
        if not self.config.url:
            raise ConfigError(
                "a router needs the URL of its bus: give url=, set TASKBUS_URL, or use memory://name within one process"
            )
        super().__init__()
        self.launched: float | None = None
        """When the launch of local workers began that this node belongs to (Unix time)."""
        self.loop = EventLoop(f"router-{self.config.run_id}")
        self.errors = ErrorBox()
        self.recorded: deque[tuple[str, Event]] = deque(maxlen=self.config.retention_events)
        self._life: Life | None = None
        self.emit_event: Emit = self._refuse
        self._life_lock = threading.Lock()
        self._stopping = threading.Lock()
        self._left = 0
        self._lock = threading.Lock()
        self._labels_lock = threading.Lock()
        self._added_labels: Counter[str] = Counter()
        self._names = Names()
        self._leave_callbacks: list[Callable[[], None]] = []
        self._last_stats = RouterStats()

    @classmethod
    def from_env(cls, **settings: Any) -> Router:
        """A router from ``TASKBUS_URL``, ``_RUN_ID``, ``_LABELS``, ``_NODE_ID`` and ``_SECRET``."""
        return cls(**settings)

    def __repr__(self) -> str:
        state = f"node {self.node_id!r}" if self.is_active else "not started"
        return f"<Router {self.config.shown_url} run {self.config.run_id!r}, {state}>"

    def __enter__(self) -> Self:
        return self if self.is_active else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.is_active and not isinstance(error, KeyboardInterrupt | SystemExit):
                self.fail(error)
        finally:
            self.stop()

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Join the run; on return this node is registered and knows whether the run is finished.

        Raises:
            BusUnavailable: Redis was not reached within ``op_timeout`` (or ``start_timeout``, where given).
            BusDenied: Login or rights.
            NodeIdTaken: A live node holds the id.
            ConfigError: The URL makes no sense, or the server is too old.
        """
        with self._life_lock:
            if self._life is not None and not self._life.is_stopped:
                raise ConfigError(f"{self!r} is started already")
            if self._life is not None:
                self.loop, self.errors = EventLoop(self.loop.name), ErrorBox()
            self._added_labels, self._left = Counter(), 0
            life = self._new_life()
            life.on_fenced = self.request_leave
            try:
                life.start()
            except TaskbusError as error:
                raise error from None  # the driver's own trace says nothing more
            self._life = life
            self.emit_event = self._emit_first
        finished = life.finish.known
        if finished is not None:
            log.warning("%s", self._why_finished(finished))
        return self

    def _why_finished(self, finished: FinishInfo) -> str:
        if self.launched is not None and finished.at >= self.launched:
            return (
                f"node {finished.node!r} finished run {self.config.run_id!r} ({finished.reason}) in this launch, "
                "before this worker began: leaving `with task.start()` finishes the run for all, so only the node that "
                "decides the end should leave it, or all meet at a barrier() first"
            )
        return (
            f"run {self.config.run_id!r} is finished already (by node {finished.node!r}: {finished.reason}); give each "
            f"launch a run_id of its own, or use the name again after `{self.config.reset_command}`"
        )

    def _new_life(self) -> Life:
        from taskbus.bus.life import Life  # here: redis takes two thirds of the time of an import, and not all need it

        return Life(self.config, self.loop)

    def stop(self, timeout: float | None = None) -> int:
        """Deliver and flush what was emitted, leave the run, end every thread.

        Harmless when repeated.

        Args:
            timeout: Seconds for all of it; default ``stop_timeout``.

        Returns:
            How many events were not acknowledged by Redis; 0 when all is well.
        """
        life = self._life
        if life is None or life.is_stopped:
            return self._left
        budget = self.config.stop_timeout if timeout is None else timeout
        deadline = time.monotonic() + budget
        # Who stops it too waits for the first, but a listener does not: the first waits for him.
        if not self._stopping.acquire(timeout=0 if on_delivery_thread() else 1.5 * budget):
            return self._left
        try:
            if not life.is_stopped:
                self._left = life.stop(timeout=budget)
                self.loop.close(max(0.0, deadline - time.monotonic()))
                self._last_stats = life.stats()
        finally:
            self._stopping.release()
        return self._left

    @property
    def is_active(self) -> bool:
        """Started, and not stopped."""
        return self._life is not None and not self._life.is_stopped

    @property
    def life(self) -> Life:
        """What is between start and stop; raises ``NotStarted`` when there is none."""
        if self._life is None:
            raise NotStarted(_NOT_STARTED)
        self._life.check_alive()
        return self._life

    @property
    def node_id(self) -> str | None:
        """This node's id; before the start the one that was asked for."""
        return self._life.registry.node_id if self._life is not None else self.config.node_id

    @property
    def labels(self) -> frozenset[str]:
        """Given labels and, once started, ``node.{id}``."""
        return self._life.intake.labels if self._life is not None else self.config.labels

    def add_labels(self, labels: frozenset[str]) -> Callable[[], None]:
        """Carry these labels too, for ``only_to`` and the registry; returns what takes off those that nobody shares."""
        life = self.life
        with self._labels_lock:
            life.add_labels(labels)
            added = self._added_labels
            added.update(labels)

        def remove() -> None:
            with self._labels_lock:
                added.subtract(labels)
                gone = frozenset(label for label in labels - self.config.labels if not added[label])
                if gone and not life.is_stopped:
                    life.remove_labels(gone)

        return remove

    def stats(self) -> RouterStats:
        """What this node has done since it started; after the stop, its last word."""
        return self._life.stats() if self.is_active and self._life is not None else self._last_stats

    # Events ----------------------------------------------------------------------------------------------------------

    def emit(
        self,
        event: str,
        /,
        *args: Any,
        only_remote: bool = False,
        only_local: bool = False,
        only_to: Labels = None,
        transient: bool = False,
        **kwargs: Any,
    ) -> None:
        """Emit ``event`` to the listeners of this node and of the run; see ``Task.emit``."""
        if not isinstance(event, str) or event not in self._names:
            self._names.learn(event)
        self.emit_event(event, args, kwargs, only_remote, only_local, only_to, transient)

    def _emit_first(self, *event: Any, **how: Any) -> None:
        """Who only listens needs no thread that writes; where none can be started, the answer is waited for here."""
        life = self.life
        emit = self._record if self.config.record else life.emit  # a call less for each event
        try:
            life.writer.start()
        except RuntimeError:
            emit(*event, **how)
            life.writer.take_note(self.config.op_timeout)
            return
        self.emit_event = emit
        if self._life is not life:
            self.emit_event = self._emit_first  # started again meanwhile
        emit(*event, **how)

    def _record(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any], *how: Any) -> None:
        life = self.life
        self.recorded.append((event, (args, kwargs)))
        life.emit(event, args, kwargs, *how)

    def _refuse(self, *event: Any, **how: Any) -> None:
        raise NotStarted(_NOT_STARTED)

    def on(self, event: str, fn: Callable[..., Any], *, since: Since = "now") -> None:
        """Call ``fn`` for every ``event``; on return the subscription holds.

        Errors of ``fn`` are logged, and raised at the next ``sync``.
        """
        self._listen(event, fn, since, once=False)

    def once(self, event: str, fn: Callable[..., Any], *, since: Since = "now") -> None:
        """Call ``fn`` for one ``event``."""
        self._listen(event, fn, since, once=True)

    def off(self, event: str, fn: Callable[..., Any] | None = None) -> None:
        """Remove ``fn``, or every listener of this router, from the events that match the glob ``event``."""
        for listener in self.loop.listeners(event, fn):
            self.unsubscribe(listener)
            listener.close()

    def _listen(self, event: str, fn: Callable[..., Any], since: Since, *, once: bool) -> None:
        if not callable(fn):
            raise TypeError(f"a listener has to be callable, got {fn!r}")
        check_name("the name of an event", event)
        self.subscribe(Listener(self.loop, event, fn, self.errors.add, once=once), since)

    def subscribe(self, sink: Sink, since: Since = "now", timeout: float | None = None) -> None:
        """Attach ``sink``; on return the subscription holds. Gives up after ``timeout`` s (``op_timeout``)."""
        self.life.subscribe(sink, since, timeout)

    def unsubscribe(self, sink: Sink) -> None:
        """Detach ``sink``."""
        if self._life is not None and not self._life.is_stopped:
            self._life.unsubscribe(sink)

    def attend(self, waiter: Waiter, deadline: float) -> Event | None:
        """Block until ``waiter`` is resolved, or until ``deadline`` (monotonic)."""
        life = self._life
        if life is None or (life.is_stopped and not waiter.is_resolved()):
            life = self.life  # says why that is refused
        life.writer.pause()
        return life.reader.attend(waiter, deadline)

    def fall_behind(self, sink: Sink) -> None:
        """Have ``sink`` take no events directly any more, but from the run, as it has room; soon."""
        self.life.reader.fall_behind(sink)

    def note_missed(self, event: str, count: int) -> None:
        """Count and log events that were trimmed before this node came for them."""
        self.life.reader.taker.note_missed(event, count)

    def sync(self, timeout: float | None = None) -> None:
        """Return when Redis has acknowledged all that was emitted before; raise what stands in the way.

        Args:
            timeout: Seconds; default ``op_timeout``.
        """
        self.life.writer.sync(self.config.op_timeout if timeout is None else timeout)
        if self.errors.kept:
            self.errors.raise_first()

    # The run ---------------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> FinishInfo | None:
        """The durable finish of the run, once known."""
        return self._life.finish.known if self._life is not None else None

    def finish(self, reason: str = "completed", timeout: float | None = None) -> bool:
        """Finish the run for every node, now and later; the first reason stays.

        False when Redis did not take it within ``timeout`` seconds (``op_timeout``); that is tried again with every
        heartbeat. :attr:`finished` is true at once in any case.
        """
        return self.life.finish_run(reason, timeout)

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        """Call ``callback`` once when the run is finished, at once if it is; returns what removes it."""
        return self.life.finish.on_finish(callback)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this node leaves because of ``error``; with ``finish_on_error`` it ends the run."""
        life = self.life
        if life.failed:
            return
        life.failed = True
        reason = f"{type(error).__name__}: {_text(error)}"
        life.announce("taskbus.node_failed", reason=reason)
        if self.config.finish_on_error:
            life.finish_run(f"error: {reason}")

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback``, on a thread of its own, when this process is asked to leave; returns its remover."""
        with self._lock:
            self._leave_callbacks.append(callback)

        def remove() -> None:
            with self._lock:
                if callback in self._leave_callbacks:
                    self._leave_callbacks.remove(callback)

        return remove

    def request_leave(self) -> int:
        """Ask the tasks of this router to end their step and leave without a finish; returns how many there are."""
        with self._lock:
            callbacks = list(self._leave_callbacks)
        for callback in callbacks:
            callback()
        return len(callbacks)

    @property
    def has_tasks(self) -> bool:
        """Whether somebody is there who can be asked to leave."""
        return bool(self._leave_callbacks)

    def progress(self, step: int, role: str) -> None:
        """Note how far this node is; the registry shows it with the next heartbeat."""
        registry = self.life.registry
        registry.step, registry.role = step, role

    def nodes(self, patterns: Labels = None, timeout: float | None = None) -> list[NodeInfo]:
        """The live nodes by id; of ``patterns`` one matches a label or ``node.{id}``. Waits ``timeout`` s for Redis."""
        globs, found = parse_globs(patterns), self.life.nodes(timeout)
        return [node for node in found if match_globs((*node.labels, f"node.{node.id}"), globs)]


def _text(error: BaseException) -> str:
    try:
        return encodable(str(error))
    except Exception:  # noqa: BLE001 the text of an error may be anything
        return "(its text cannot be shown)"
