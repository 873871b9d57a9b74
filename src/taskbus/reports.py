"""What is said of a ``main``: why it is refused, and why it failed, in words that travel from worker to parent."""

from __future__ import annotations

import inspect
import logging
import os
import traceback
from dataclasses import dataclass
from typing import Final

from taskbus.errors import ConfigError
from taskbus.router import active_router

__all__ = ["Failure", "check_main", "prefix_logs", "tell_restart"]

log = logging.getLogger("taskbus")

_LONGEST_REASON: Final = 200


def prefix_logs(worker: int | None = None) -> None:
    """Have log lines begin with time, level and node, or worker, where the program sets up no logging of its own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Prefix(worker))


class _Prefix(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(who)s%(message)s", "%Y-%m-%d %H:%M:%S")
        self._worker = "" if worker is None else f"worker {worker}: "

    def formatMessage(self, record: logging.LogRecord) -> str:
        router = active_router()
        record.who = self._worker if router is None else f"node {router.node_id}: "
        return super().formatMessage(record)


def check_main(main: object) -> None:
    """Refuse what cannot be called, and what would only return a coroutine."""
    if not callable(main):
        raise ConfigError(f"main has to be callable, got {main!r}")
    if inspect.iscoroutinefunction(main) or inspect.iscoroutinefunction(type(main).__call__):
        name = getattr(main, "__name__", "main")
        raise ConfigError(
            f"{name!r} is async, and nothing would await it: give a function that calls asyncio.run({name}())"
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as text: one line of it, and its traceback from the first frame that is not ours."""

    reason: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        short = text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
        return cls(short, "" if "joined" in vars(error) else _user_traceback(error))


def tell_restart(who: str, failure: Failure, before: Failure | None, start: int) -> None:
    """Log that ``main`` is started again; with the traceback, unless it is the one that was shown ``before``."""
    is_news = failure.trace and failure != before
    log.warning("%s; start %d of it%s", who, start, f"\n{failure.trace.rstrip()}" if is_news else "")


def _user_traceback(error: BaseException) -> str:
    ours = os.path.dirname(__file__)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    return "".join(traceback.format_exception(error.with_traceback(trace)))
