"""Task: an ordered pipeline of middleware over a context, its listeners, and its place on a run."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from fnmatch import fnmatchcase
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakSet

from taskbus.config import check_timeout, split_labels
from taskbus.context import Context
from taskbus.dispatch import LOCAL_TIMEOUT, Listener, Names, check_event, on_delivery_thread
from taskbus.errors import ConfigError, RunFinished, WaitTimeout
from taskbus.link import NOT_STARTED, Standalone
from taskbus.pipeline import VoidMiddleware
from taskbus.presence import Presence, Role
from taskbus.steps import Steps, enable_async
from taskbus.stopping import attempt, left_until
from taskbus.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from taskbus.types import Event, FinishInfo, Labels, Link, Since

__all__ = ["Role", "Task", "VoidMiddleware", "enable_async", "task"]

log = logging.getLogger(__name__)

STOP_TIMEOUT: Final = 2.0


class Task(Presence, Steps):
    """A pipeline that runs in this process, step by step, alone or as one node of a run.

    Args:
        router: The router to use at every start, unless ``start`` is given another.
    """

    def __init__(self, router: Link | None = None) -> None:
        Presence.__init__(self)
        Steps.__init__(self)
        self.running = False
        """Between ``start`` and ``stop``."""
        self._is_stopping = False
        self._router = router
        self._owns_link = False
        self._forget: list[Callable[[], None]] = []
        self._finish = False
        self._pid = 0
        self._listeners: WeakSet[Listener] = WeakSet()
        self._names, self._awaited = Names(), Names()  # that were emitted, and waited for, in this life
        self._waits = Waits(NOT_STARTED)
        self._life_lock = threading.Lock()

    # Start and stop --------------------------------------------------------------------------------------------------

    def start(
        self,
        async_mode: bool = False,
        n_async_workers: int = 3,
        ctx: Context | None = None,
        labels: Iterable[str] | str | None = None,
        *,
        router: Link | None = None,
    ) -> Self:
        """Begin a new life, with nothing of an earlier one.

        Args:
            async_mode: Run the forward halves of a step side by side in a pool of threads; the backward halves follow
                there, one after another.
            n_async_workers: Threads of that pool.
            ctx: The context of the first step.
            labels: This task's own labels; copied.
            router: Started and stopped with the task; one that is active already belongs to whoever started it, and is
                left as it is. Without one, the router of this process is used, if there is one.
        """
        if n_async_workers < 1:
            raise ConfigError(f"n_async_workers has to be at least 1, got {n_async_workers}")
        given = split_labels(labels or ())
        with self._life_lock:
            if self.running or self._is_stopping:
                raise ConfigError("the task is started already: stop() it first")
            self._finish = self._leaving = False
            self._listeners = WeakSet()
            self._join(router or self._router or _process_router() or Standalone(), given, async_mode)
            self._open_steps(Context() if ctx is None else ctx, async_mode, n_async_workers, self._waits)
            self.running, self._pid = True, os.getpid()
        return self

    def _join(self, link: Link, given: frozenset[str], async_mode: bool) -> None:
        self._owns_link = not link.is_active
        if self._owns_link:
            link.start()
        self._forget = []
        try:
            self._forget.append(self._enter_link(link, given | {"async"} if async_mode else given))
            self._waits = Waits(link)
            self._forget += [link.on_finish(self._on_finish), link.on_leave(self.request_leave)]
        except BaseException:
            self._link = NOT_STARTED
            for forget in self._forget:
                attempt(forget)
            if self._owns_link:
                link.stop()
            raise

    def stop(self) -> None:
        """Leave, and finish the run for every node; harmless when repeated.

        Before it returns, and within about 2 s, what was emitted is delivered to the listeners here and flushed to the
        bus; a warning names what was still running or not flushed. Waits end with ``NotStarted``.
        """
        self._stop(None)

    def request_leave(self) -> None:
        """Have this task leave without finishing the run; from any thread, and from a signal handler.

        ``run`` returns after the current step, waits end with ``None``, ``barrier`` and ``wait_for_nodes`` with
        ``RunFinished``, and the ``stop`` that follows finishes nothing.
        """
        self._leaving = True
        self._waits.leave()
        if self._link is not NOT_STARTED:
            self._link.wake_meetings()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(error)

    def _stop(self, error: BaseException | None) -> None:
        with self._life_lock:
            if not self.running:
                return
            self.running, self._is_stopping = False, True
        link, leaves, self._leaving = self._link, self._leaving, True
        if self._pid != os.getpid():  # threads, connections and locks are those of the process it was forked from
            self._link, self._names, self._awaited = NOT_STARTED, Names(), Names()
            self._is_stopping = False
            return
        now = monotonic()
        deadline = now + STOP_TIMEOUT
        try:
            self._waits.close()
            self._flush(link, now + 0.7 * STOP_TIMEOUT)
            if isinstance(error, Exception) and not (leaves and isinstance(error, RunFinished)):
                attempt(link.fail, error)
            elif error is None and not leaves and link.finished is None:
                attempt(link.finish, "stopped", left_until(now + 0.8 * STOP_TIMEOUT))
        finally:
            self._finish = self.finish
            self._link, self._names, self._awaited = NOT_STARTED, Names(), Names()
            self._part(link, deadline)
            self._close_steps(left_until(deadline))
            self._is_stopping = False

    def _flush(self, link: Link, deadline: float) -> None:
        """Deliver and write what was emitted; a warning says what was not done by ``deadline``."""
        self._end_steps(deadline)
        busy = link.loop.drain(left_until(deadline))
        if busy:
            log.warning("stopping while listeners still run: %s", ", ".join(busy))
        attempt(link.sync, left_until(deadline))

    def _part(self, link: Link, deadline: float) -> None:
        for forget in self._forget[self._owns_link :]:  # labels go with the link
            attempt(forget)
        for listener in list(self._listeners):
            link.unsubscribe(listener)
            listener.close()
        if self._owns_link:
            attempt(link.stop, left_until(deadline))

    # Steps -----------------------------------------------------------------------------------------------------------

    def run(self, max_step: int = int(1e12)) -> None:
        """Run steps until the one in which ``finish`` becomes true, or ``max_step`` of them, which sets ``finish``.

        A step is the forward half of all middleware, then the backward halves in reverse. After each of the two, async
        work is waited for, and an error of a listener is raised; Redis is not waited for, which ``sync`` does. A task
        that is finished already, here or on the bus, runs no step.
        """
        self._check_started()
        if not self._middleware or max_step < 1 or self.finish or self._leaving:
            return
        step, stack, kind, own = 0, self._stack, type(self), self.__dict__
        is_custom = kind.forward is not Task.forward or kind.backward is not Task.backward
        try:
            while True:
                if is_custom or self.async_mode or "forward" in own or "backward" in own:
                    self._run_step()
                else:  # the same, written out: a step of ten calls, 1.1 us without a task, takes 1.8 and not 2.1
                    stack, latch, errors = self._stack, self._latch, self._errors
                    stack.begin_all(self._middleware, self.ctx)
                    if latch.open or latch.errors.kept or errors.kept:  # as _await asks
                        self._await()
                    if stack.open:
                        stack.unwind()
                        if latch.open or latch.errors.kept or errors.kept:
                            self._await()
                step += 1
                self._link.progress(self.ctx.total_step + 1, self._role_names)
                if step >= max_step:
                    self.finish = True
                if self._finish or self._leaving or self._link.finished is not None:
                    return
                self.renew()
        except BaseException:
            stack.close()
            raise

    def renew(self) -> Self:
        """Replace ``ctx`` by the context of the next step; middleware that did not come to its end is closed."""
        self._check_started()
        if self._stack.open:
            self._stack.close()
        self.ctx = self.ctx.renew()
        return self

    def sync(self) -> Self:
        """Wait for async work, and until Redis has acknowledged everything emitted before.

        Raises:
            BaseException: What async work or a listener raised.
            BusUnavailable: Redis did not acknowledge in time.
        """
        self._check_started()
        self._await()
        self._link.sync()
        return self

    @property
    def finish(self) -> bool:
        """Whether the run is finished, here or by another node; set it to finish the run for every node."""
        return self._finish or self._link.finished is not None

    @finish.setter
    def finish(self, value: bool) -> None:
        self._check_started()
        is_news = value and not self._finish
        self._finish = value
        if is_news:
            self._waits.finished_here()
            self._link.finish("completed")

    def _on_finish(self, info: FinishInfo) -> None:
        if not (self._finish and info.node == self._link.node_id):
            self._waits.finished_by_another(info.node)

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
        """Emit ``event`` with these arguments to the listeners here and on every node of the run.

        Args:
            event: 1 to 128 characters of ``[A-Za-z0-9_.:-]``; names that begin with ``taskbus.`` are reserved.
            only_remote: Not to the listeners of this node.
            only_local: Not to other nodes.
            only_to: Label globs; only nodes that match receive it, this one included if it does.
            transient: By pub/sub: lowest cost, not kept, lost for whoever is not connected.

        Raises:
            BaseException: What a listener of this task raised since the last call.
            EncodeError: An argument cannot travel; the message says which.
            BusUnavailable: Too much waits to be written, or for a listener here that is too far behind.
        """
        if self._errors.kept and not on_delivery_thread():
            self._errors.raise_first()
        if not isinstance(event, str) or event not in self._names:
            self._check_started()
            self._names.learn(event)
        if only_local and only_to is None and not only_remote:
            self._link.loop.deliver(event, args, kwargs, LOCAL_TIMEOUT)
        else:
            self._link.emit_event(event, args, kwargs, only_remote, only_local, only_to, transient)

    def on(self, event: str, fn: Callable[..., Any], *, since: Since = "now") -> Self:
        """Call ``fn`` with the arguments of every ``event``: whatever any node emits after this returns arrives.

        Calls come in order, one at a time, on a thread of their own, so a slow listener delays only itself. One that is
        10 000 events or 64 MiB behind goes on by itself through what the run keeps, where this node's own events then
        reach it, too; what is trimmed there before is counted. Only an ``emit`` on this node that is the first to find
        it so waits for it, which keeps a node from outrunning itself.

        Args:
            event: Exact name.
            fn: An error it raises is logged, and raised at the next ``emit`` or ``sync``.
            since: ``"now"``, ``"start"`` (all that the run still keeps, this node's own included), or an entry id.
        """
        return self._listen(event, fn, since, once=False)

    def once(self, event: str, fn: Callable[..., Any], *, since: Since = "now") -> Self:
        """As ``on``, for one event only, however many threads and nodes emit it at the same time."""
        return self._listen(event, fn, since, once=True)

    def _listen(self, event: str, fn: Callable[..., Any], since: Since, *, once: bool) -> Self:
        self._check_started()
        check_event(event)
        if not callable(fn):
            raise TypeError(f"a listener has to be callable, got {fn!r}")
        if since == "last":
            raise ConfigError(
                "since='last' is for wait_for; a listener can begin at 'now', 'start' or the id of an entry"
            )
        listener = Listener(self._link.loop, event, fn, self._errors.add, once=once)
        self._link.subscribe(listener, since)
        self._listeners.add(listener)
        return self

    def off(self, event: str, fn: Callable[..., Any] | None = None) -> Self:
        """Remove ``fn``, or every listener of this task, from the events that match the shell-style glob ``event``."""
        self._check_started()
        for listener in list(self._listeners):
            if fnmatchcase(listener.event, event) and (fn is None or listener.fn == fn):
                self._link.unsubscribe(listener)
                listener.close()
                self._listeners.discard(listener)
        return self

    def wait_for(
        self, event: str, timeout: float = math.inf, ignore_timeout_exception: bool = True, *, since: Since = "now"
    ) -> Event | None:
        """Block the calling thread until ``event`` arrives, and return its arguments.

        ``emit("ask")`` and then ``wait_for("answer", since="last")``, or a loop of such waits, misses nothing however
        fast the answer is, and sees each event once.

        Args:
            event: Exact name.
            timeout: Seconds on the monotonic clock; 0 looks and returns, ``math.inf`` waits until the run is finished.
            ignore_timeout_exception: Return ``None`` at the timeout instead of raising.
            since: ``"now"``; ``"start"``: an event that the run still keeps counts too; ``"last"``: the first one after
                that which such a wait returned last, before the first after this task's router joined the run; or an
                entry id. What was trimmed in between is counted (``missed`` of ``router.stats()``) and logged.

        Returns:
            ``(args, kwargs)`` as emitted. ``None`` at the timeout; early when the run was finished, when middleware
            failed in async mode, or when this task is asked to leave.

        Raises:
            WaitTimeout: Nothing came in time, and exceptions were asked for.
            RunFinished: The run was finished meanwhile, and exceptions were asked for.
            NotStarted: Another thread stopped the task meanwhile.
            ConfigError: A standalone task keeps no events, so that ``since`` can only be ``"now"``.
        """
        if not isinstance(event, str) or event not in self._awaited:
            self._check_started()
            self._awaited.learn(event, may_be_ours=True)
        if timeout is not math.inf:
            check_timeout(timeout)
        try:
            return self._waits.wait(event, timeout, since)
        except WaitTimeout:
            if ignore_timeout_exception:
                return None
            raise


def _process_router() -> Link | None:
    # Not imported here: nobody made a router then, and a standalone task needs no Redis.
    module = sys.modules.get("taskbus.router")
    return module.active_router() if module is not None else None


task = Task()
"""The one that most programs need."""
