"""The condition that callers wait on, whose threads signals may interrupt."""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Condition"]


class Condition(threading.Condition):
    """``threading.Condition``, always with a reentrant lock, that keeps the exception of a signal handler.

    Where that comes in ``wait``, before the lock is held again, it leaves the ``with`` block without the lock. A plain
    lock would be released all the same, under the feet of whoever holds it by then; a reentrant one complains, and the
    complaint must not take the place of the exception.
    """

    def __init__(self, lock: threading.RLock | None = None) -> None:
        super().__init__(lock or threading.RLock())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        except RuntimeError:
            if error is None:
                raise
