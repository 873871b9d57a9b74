"""Local workers: ``main`` in one process or in several, each of them a node with its router active."""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from taskbus.config import RouterConfig, check_timeout
from taskbus.draining import GRACE, Draining, Terminated, patience
from taskbus.errors import ConfigError, NodeIdTaken, NotStarted, RunFinished, TaskbusError, WorkerFailed
from taskbus.reports import Failure, check_main, prefix_logs, tell_restart
from taskbus.router import Router, activate, active_router

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["REFUSED", "Parallel", "Plan", "run_node"]

log = logging.getLogger("taskbus")

REFUSED = {
    "protocol": "nodes meet in Redis and never connect to one another",
    "address": "nodes meet in Redis and never connect to one another",
    "ports": "nodes open no ports",
    "topology": "every node reaches every other over Redis; use only_to= of emit to narrow it",
    "attach_to": "a node joins by run_id and URL, and needs nobody's address",
    "local_ip": "nodes open no ports",
}
"""Settings of message queues without a server, and why there is nothing to set."""

_GRACE = 1.5
_WAS_CUT = 70
"""What a worker exits with when a step of it was cut: it has said so itself."""


class Parallel:
    """This process's own router, under the name that programs know it by.

    ``Parallel.runner(...)(main)`` starts the workers; inside ``main``, and in all that it calls, ``Parallel()`` is the
    router of that worker: ``Parallel().node_id``, ``.is_active``, ``.emit(...)`` and whatever else a router has.
    """

    def __getattr__(self, name: str) -> Any:
        router = active_router()
        if router is None:
            if name == "is_active":
                return False
            raise NotStarted("no router is active in this process: use Parallel.runner(...)(main) or taskbus run")
        return getattr(router, name)

    @classmethod
    def runner(
        cls,
        n_parallel_workers: int = 1,
        redis_url: str | None = None,
        redis_host: str | None = None,
        redis_port: int | None = None,
        run_id: str | None = None,
        labels: Iterable[str] | str | None = None,
        node_ids: Sequence[int | str] | int | str | None = None,
        auto_recover: bool = False,
        max_retries: float = math.inf,
        startup_interval: float = 0.0,
        *,
        mq_type: str = "redis",
        grace: float = GRACE,
        **settings: Any,
    ) -> Callable[..., Any]:
        """What runs ``main(*args, **kwargs)`` in so many local processes, each with a router that its tasks use.

        One worker runs in this process, and its return value is returned; several are spawned, so ``main`` has to be
        importable. Without a URL here or in ``TASKBUS_URL`` a private server is started for them and ended with them.

        Args:
            n_parallel_workers: How many.
            redis_url: Where the bus is; or ``redis_host`` and ``redis_port``.
            run_id: The run to join; default ``TASKBUS_RUN_ID``, else ``"default"``.
            labels: Of every worker.
            node_ids: One for each worker, or the first of consecutive numbers; default: whatever is free.
            auto_recover: Start ``main`` again when it failed or its process died, ``max_retries`` times per worker.
            startup_interval: Seconds between the starts of two workers.
            mq_type: ``"redis"``, the only one.
            grace: Seconds that a step may still take after SIGTERM, at most one of them after Ctrl-C; then it is cut.
            settings: Further settings of the routers, see :class:`~taskbus.config.RouterConfig`.

        Raises (when called):
            WorkerFailed: A worker failed or died; the others were ended. Its message holds the worker's traceback.
            TaskbusError: A worker could not join the run, for the reason that is raised; ``main`` was not called there.
            SystemExit: A signal came: 0 after SIGTERM, 130 after Ctrl-C, and 1 after either when a step was cut.
        """
        for name in REFUSED.keys() & settings.keys():
            raise ConfigError(f"{name}= is not needed: {REFUSED[name]}")
        if mq_type != "redis":
            raise ConfigError(f"mq_type must be 'redis', not {mq_type!r}: events cross processes over Redis only")
        if redis_host is not None or redis_port is not None:
            if redis_url is not None:
                raise ConfigError("give redis_url, or redis_host and redis_port, not both")
            redis_url = f"redis://{redis_host or '127.0.0.1'}:{redis_port or 6379}"
        plan = Plan(
            workers=n_parallel_workers,
            node_ids=_node_ids(node_ids, n_parallel_workers),
            auto_recover=auto_recover,
            max_retries=max_retries,
            startup_interval=startup_interval,
            grace=grace,
            settings={"url": redis_url, "run_id": run_id, "labels": labels, **settings},
        )

        def run(main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return plan.run(main, args, kwargs)
            except Terminated as ended:
                raise SystemExit(ended.exit_code) from None

        return run


@dataclass
class Plan:
    """What to start, checked before anything is started."""

    workers: int
    node_ids: list[str | None]
    auto_recover: bool = False
    max_retries: float = math.inf
    startup_interval: float = 0.0
    grace: float = GRACE
    settings: dict[str, Any] = field(default_factory=dict)
    launched: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or self.workers < 1:
            raise ConfigError(f"n_parallel_workers must be a whole number of at least 1, not {self.workers!r}")
        if check_timeout(self.grace, "grace") == math.inf:
            raise ConfigError("grace must be a finite number of seconds: who sends a signal waits for its end")
        if isinstance(self.settings.get("labels"), Iterable) and not isinstance(self.settings["labels"], str):
            self.settings["labels"] = frozenset(self.settings["labels"])
        self.url = RouterConfig.from_env(**self.settings).url
        if self.workers > 1 and self.url.startswith("memory://"):
            raise ConfigError("memory:// lives in one process; give a redis:// URL, or none for a private server")

    def run(self, main: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run it to its end.

        Raises ``WorkerFailed``, what ``main`` raised (one worker), or ``Terminated`` after a signal.
        """
        check_main(main)
        self.launched = time.time()
        with ExitStack() as stack:
            settings = dict(self.settings)
            if not self.url:
                from taskbus.bus.embedded import EmbeddedServer  # here: who gives a URL need not wait for it

                settings["url"] = stack.enter_context(EmbeddedServer()).url
                log.info(
                    "no URL was given: a private server was started for this run; nothing in it outlives this process"
                )
            if self.workers == 1:
                return self._run_here(settings, main, args, kwargs)
            _check_spawnable(main, args, kwargs)
            return _Workers(self, settings, (main, args, kwargs)).run()

    def _run_here(self, settings: dict[str, Any], main: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        attempt, told = 0, None
        while True:
            try:
                start = Start(self.grace, self.launched, attempt)
                return run_node(settings, self.node_ids[0], main, args, kwargs, start)
            except Exception as error:
                if not self.auto_recover or attempt >= self.max_retries:
                    raise
                attempt += 1
                failure = Failure.of(error)
                tell_restart(f"main failed ({failure.reason})", failure, told, attempt + 1)
                told = failure


@dataclass(frozen=True)
class Start:
    """One start of ``main``: ``attempt`` came before, the first ``launched`` at that Unix time."""

    grace: float
    launched: float
    attempt: int = 0
    worker: int = 0


def run_node(
    settings: dict[str, Any], node_id: str | None, main: Callable[..., Any], args: Any, kwargs: Any, start: Start
) -> Any:
    """Run ``main`` as one node in this process, with its router active.

    Raises ``Terminated`` after a signal, and ``Fenced`` when another process took this node's place meanwhile.
    """
    router = Router(**{**settings, "node_id": node_id})
    router.launched = start.launched
    with Draining(router, start.grace) as draining:
        try:
            _start(router, patient=start.attempt > 0)
        except TaskbusError as error:
            vars(error)["joined"] = False  # nothing of the user's was called: a traceback says no more than the message
            raise
        activate(router)
        try:
            result = main(*args, **kwargs)
            if router.is_active and router.finished is None:
                router.life.check_place()  # tasks of a fenced node leave in order, but it was no orderly end
        except Exception as error:
            if isinstance(error, RunFinished):
                draining.raise_signal()  # what a barrier says to whoever is asked to leave
            if router.is_active:
                router.fail(error)
            raise
        finally:
            activate(None)
            if router.is_active:
                router.life.was_cut = draining.was_cut
            router.stop()
        draining.raise_signal()
        return result


def _start(router: Router, patient: bool) -> None:
    """Start the router; one that comes after a crash waits for the lease of the life before it to run out."""
    deadline = time.monotonic() + (1.5 * router.config.lease if patient else 0.0)
    while True:
        try:
            router.start()
            return
        except NodeIdTaken as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            threading.Event().wait(min(left, error.expires_in))


class _Workers:
    """Spawned workers and what became of them."""

    def __init__(self, plan: Plan, settings: dict[str, Any], job: tuple[Any, ...]) -> None:
        self._plan = plan
        self._settings = settings
        self._job = job
        import multiprocessing.connection  # here: a node that spawns nobody need not wait for it

        self._context = multiprocessing.get_context("spawn")
        self._wait = multiprocessing.connection.wait
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._last_words: dict[int, Failure | TaskbusError | None] = {}
        self._told: dict[int, Failure] = {}
        self._attempts = [0] * plan.workers
        self._was_cut = False

    def run(self) -> None:
        with Draining(None):
            try:
                self._start_all()
                while self._processes:
                    ready = self._wait([*(one.sentinel for one in self._processes.values()), *self._pipes.values()])
                    for number, pipe in list(self._pipes.items()):
                        if pipe in ready:  # who has more to say than a pipe holds does not end before it is read
                            self._last_words[number] = _receive(self._pipes.pop(number))
                    for number, process in list(self._processes.items()):
                        if process.sentinel in ready:
                            self._ended(number, process)
            except Terminated as ended:
                allowed = patience(ended.number, self._plan.grace)
                self._stop_all(allowed + (1.0 if ended.number == signal.SIGINT else 3.0))
                raise Terminated(ended.number, self._was_cut) from None
            except BaseException:
                self._stop_all(_GRACE)
                raise
            if self._was_cut:
                raise Terminated(signal.SIGTERM, was_cut=True)

    def _start_all(self) -> None:
        for number in range(self._plan.workers):
            if number and self._plan.startup_interval:
                self._wait([process.sentinel for process in self._processes.values()], self._plan.startup_interval)
            self._start(number)

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        start = Start(self._plan.grace, self._plan.launched, self._attempts[number], number)
        arguments = (self._settings, self._plan.node_ids[number], self._job, start, theirs)
        process = self._context.Process(target=_work, args=arguments, name=f"taskbus-worker-{number}")
        process.start()
        theirs.close()
        self._processes[number], self._pipes[number] = process, ours

    def _ended(self, number: int, process: BaseProcess) -> None:
        process.join()
        del self._processes[number]
        if number in self._pipes:
            _receive(self._pipes.pop(number))  # held open by a process of its own
        why = self._last_words.pop(number, None)
        if not process.exitcode or process.exitcode == _WAS_CUT:
            self._was_cut = self._was_cut or process.exitcode == _WAS_CUT
            return
        node_id = self._plan.node_ids[number]
        who = f"worker {number} ({'' if node_id is None else f'node {node_id!r}, '}pid {process.pid})"
        how = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "failed"
        if how == "failed" and not why:  # it ended without a word, as by os._exit
            how = f"ended with exit code {process.exitcode}"
        if self._plan.auto_recover and self._attempts[number] < self._plan.max_retries:
            self._attempts[number] += 1
            failure = Failure.of(why) if isinstance(why, TaskbusError) else why or Failure("", "")
            reason = f" ({failure.reason})" if failure.reason else ""
            tell_restart(f"{who} {how}{reason}", failure, self._told.get(number), self._attempts[number] + 1)
            self._told[number] = failure
            threading.Event().wait(random.uniform(0.05, 0.2) * min(20, self._attempts[number]))
            self._start(number)
            return
        if isinstance(why, TaskbusError):
            raise why
        raise WorkerFailed(
            f"{who} {how}" + (f":\n\n{why.trace}" if why else ""),
            worker=number,
            node=node_id,
            pid=process.pid,
            exitcode=process.exitcode,
        )

    def _stop_all(self, grace: float) -> None:
        for process in self._processes.values():
            process.terminate()
        for pipe in self._pipes.values():
            pipe.close()  # nobody reads what they still say, so nobody waits to say it
        deadline = time.monotonic() + grace
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.error("%s did not end within %g s and is killed", process.name, grace)
                process.kill()
                process.join()
            self._was_cut = self._was_cut or process.exitcode in (_WAS_CUT, -signal.SIGKILL)


def _work(settings: dict[str, Any], node_id: str | None, job: tuple[Any, ...], start: Start, pipe: Connection) -> None:
    """A worker's whole life; the parent's death ends it as a SIGTERM does."""
    main, args, kwargs = job
    prefix_logs(start.worker)
    try:
        run_node(settings, node_id, main, args, kwargs, start)
    except Terminated as ended:
        raise SystemExit(_WAS_CUT if ended.was_cut else 0) from None
    except Exception as error:  # noqa: BLE001 whatever it is, the parent raises it
        with suppress(OSError):  # the parent has ended, or it has heard of another one first
            pipe.send(error if "joined" in vars(error) else Failure.of(error))
        raise SystemExit(1) from None


def _receive(pipe: Connection) -> Failure | TaskbusError | None:
    """Why the worker ended: how its main failed, or what kept it from joining the run."""
    try:
        why: Failure | TaskbusError | None = pipe.recv() if pipe.poll() else None
        return why
    except (EOFError, OSError):
        return None
    finally:
        pipe.close()


def _check_spawnable(main: Callable[..., Any], args: Any, kwargs: Any) -> None:
    try:
        import pickle

        pickle.dumps((main, args, kwargs))
    except Exception as error:  # noqa: BLE001 pickle lets errors of all kinds through
        raise ConfigError(
            f"several workers are spawned, so main and its arguments have to be importable from a module: {error}"
        ) from error


def _node_ids(given: Sequence[int | str] | int | str | None, workers: int) -> list[str | None]:
    if given is None:
        return [None] * workers
    ids = [given] if isinstance(given, int | str) else list(given)
    if len(ids) == 1 and workers > 1 and str(ids[0]).isdigit():
        ids = [int(ids[0]) + number for number in range(workers)]
    if len(ids) != workers or len({str(one) for one in ids}) != workers:
        raise ConfigError(f"node_ids must be {workers} different ids, or one number to count from, not {given!r}")
    return [str(one) for one in ids]
