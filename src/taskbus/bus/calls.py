"""Single calls that threads share one connection for, each with a deadline of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskbus.bus.backoff import Backoff
from taskbus.bus.connect import explain
from taskbus.bus.packing import pack
from taskbus.bus.wire import Wire
from taskbus.errors import BusDenied, BusError, BusUnavailable

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.packing import Arg
    from taskbus.condition import Flag

__all__ = ["Calls"]


class Calls:
    """A wire that threads share for single calls, each with a deadline of its own that bounds all attempts.

    Only for commands that may run twice: reads, and scripts that say so.
    """

    def __init__(self, target: Target, *, timeout: float, deadline: float, stopping: Flag) -> None:
        self._wire = Wire(target, timeout)
        self.begin_to_open = self._wire.begin_to_open
        self._deadline = deadline
        self._stopping = stopping
        self._lock = threading.RLock()  # which only the one who holds it can give back
        self._is_closed = False
        self.diagnose: Callable[[BusDenied, Wire], BusDenied] = lambda error, wire: error

    @property
    def heard(self) -> float:
        """When something of an answer last came (monotonic)."""
        return self._wire.heard

    def script(self, name: str, keys: Sequence[Arg], args: Sequence[Arg], timeout: float | None = None) -> Any:
        """Run a script; see :meth:`Wire.script`."""
        return self._attempt(timeout, Wire.script, name, keys, args)

    def call(self, *args: Arg, timeout: float | None = None) -> Any:
        """Run one command."""
        return self._attempt(timeout, Wire.call, *args)

    def each(self, commands: Sequence[Sequence[Arg]], timeout: float | None = None) -> list[Any]:
        """Run commands in one round trip; an error reply is an item of the answer, in our words, not raised."""

        def use(wire: Wire) -> list[Any]:
            wire.send([pack(*command) for command in commands])
            replies = [wire.read() for _ in commands]
            return [explain(reply, wire.target.where) if isinstance(reply, Exception) else reply for reply in replies]

        return list(self._attempt(timeout, use))

    def call_with(
        self, command: Sequence[Arg], also: Sequence[Sequence[Arg]], meanwhile: Callable[[], None]
    ) -> tuple[Any, list[Any]]:
        """Run ``command`` and what is ``also`` asked in one round trip; of those an error reply is an item as it came.

        What is to be done ``meanwhile`` is done in each attempt.
        """

        def use(wire: Wire) -> tuple[Any, list[Any]]:
            wire.send([pack(*asked) for asked in (command, *also)])
            meanwhile()
            try:
                answer = wire.check(wire.read())
            except BusError:
                wire.close()  # who is refused may get no more answers
                raise
            return answer, [wire.read() for _ in also]

        answers: tuple[Any, list[Any]] = self._attempt(None, use)
        return answers

    def _attempt(self, timeout: float | None, use: Callable[..., Any], *args: Any) -> Any:
        deadline = time.monotonic() + (self._deadline if timeout is None else timeout)
        backoff: Backoff | None = None
        while True:
            try:
                return self._once(deadline, use, args)
            except BusUnavailable as error:
                backoff = backoff or Backoff()
                delay = backoff.next()
                if time.monotonic() + delay >= deadline or self._stopping.wait(delay):
                    raise error

    def _once(self, deadline: float, use: Callable[..., Any], args: Sequence[Any]) -> Any:
        try:
            if not self._lock.acquire(timeout=max(0.001, deadline - time.monotonic())):
                raise BusUnavailable(
                    f"Redis at {self._wire.target.where} did not answer in time", where=self._wire.target.where
                )
            if self._is_closed:
                raise BusUnavailable(
                    f"the connection to Redis at {self._wire.target.where} was closed", where=self._wire.target.where
                )
            self._wire.deadline = max(deadline, time.monotonic() + 0.01)  # at least one attempt
            if not self._wire.is_open:
                self._wire.open()
            return use(self._wire, *args)
        except BusDenied as error:
            raise self.diagnose(error, self._wire) from error
        except BusError:
            raise
        except BaseException:  # a signal handler's, which may have come between a command and its reply
            self._wire.close()
            raise
        finally:
            if self._is_closed:
                self._wire.close()
            try:
                self._lock.release()
            except RuntimeError:
                pass  # it is not held here: it was not free in time, or a signal handler has raised

    def hand_over(self, wire: Wire) -> None:
        """Have ``wire`` go on with the connection; the next call opens another."""
        with self._lock:
            wire.take_over(self._wire)

    def take_over(self, wire: Wire) -> None:
        """Go on with the connection of ``wire``, if there is none here, and nobody opens one; ``wire`` is closed."""
        if self._lock.acquire(blocking=False):
            try:
                if not (self._is_closed or self._wire.is_open):
                    self._wire.take_over(wire)
            finally:
                self._lock.release()
        wire.close()

    def close(self) -> None:
        """Close the wire for good; a call that is under way in another thread ends with ``BusUnavailable``."""
        self._is_closed = True
        if not self._lock.acquire(blocking=False):
            self._wire.abort()
            if not self._lock.acquire(timeout=0.2):
                return  # whoever uses it closes it
        try:
            self._wire.close()
        finally:
            self._lock.release()
