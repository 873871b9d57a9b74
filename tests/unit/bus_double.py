"""A bus that keeps what it is told, for tests of who calls it when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskbus.link import Standalone
from taskbus.types import FinishInfo

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bus"]


class Bus(Standalone):
    """A link that keeps what it is told; trails see what comes after they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.callbacks: list[Callable[[FinishInfo], None]] = []
        self.leavers: list[Callable[[], None]] = []
        self.fails_at = ""

    def start(self) -> None:
        self._note("start")
        self.is_active = True
        self.node_id = "7"  # type: ignore[assignment]
        self.labels = frozenset({"router"})

    def stop(self, timeout: float | None = None) -> None:
        self._note("stop")
        self.is_active = False
        super().stop(timeout)

    def subscribe(self, sink: Any, since: str = "now", timeout: float | None = None) -> None:
        self._note(f"subscribe {since}")
        self.loop.attach(sink)

    def sync(self, timeout: float | None = None) -> None:
        self._note("sync")

    def finish(self, reason: str, timeout: float | None = None) -> None:
        self._note(f"finish {reason}")
        self.end("7", reason)

    def fail(self, error: BaseException) -> None:
        self._note(f"fail {error}")

    def on_finish(self, callback: Callable[[FinishInfo], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.calls.append("forget finish")

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.leavers.append(callback)
        return lambda: self.calls.append("forget leave")

    def progress(self, step: int, role: str) -> None:
        self.calls.append((step, role))

    def end(self, node: str, reason: str = "completed") -> None:
        if self.finished is None:
            self.finished = FinishInfo(node, reason, 0.0)
            for callback in self.callbacks:
                callback(self.finished)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call.split()[0] == self.fails_at:
            raise RuntimeError(f"{call} failed")
