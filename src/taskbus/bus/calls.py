"""Single calls that threads share one connection for, each with a deadline of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskbus.bus.backoff import Backoff
from taskbus.bus.connect import explain
from taskbus.bus.wire import Wire, pack
from taskbus.errors import BusDenied, BusError, BusUnavailable, ConfigError

if TYPE_CHECKING:
    from taskbus.bus.connect import Target
    from taskbus.bus.wire import Arg

__all__ = ["Calls", "check_version"]


class Calls:
    """A wire that threads share for single calls, each with a deadline of its own that bounds all attempts.

    Only for commands that may run twice: reads, and scripts that say so.
    """

    def __init__(self, target: Target, *, timeout: float, deadline: float, stopping: threading.Event) -> None:
        self._wire = Wire(target, timeout)
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

    def close(self) -> None:
        """Close the wire for good; a call that is under way in another thread ends with ``BusUnavailable``."""
        self._is_closed = True
        self._wire.abort()
        if self._lock.acquire(timeout=0.2):
            try:
                self._wire.close()
            finally:
                self._lock.release()


def check_version(calls: Calls, where: str) -> None:
    """Refuse a server below 7.0 with one sentence; a server that does not say its version is taken at its word."""
    try:
        hello = calls.call(b"HELLO")
    except BusError as error:
        if "unknown command" in str(error).lower():
            raise ConfigError(f"Redis at {where} is older than 6.0; taskbus needs Redis 7.0 or Valkey") from None
        if "closed" in str(error) or "reset" in str(error):
            raise BusUnavailable(f"{error}; if it wants TLS, the URL begins with rediss://", where=where) from error
        if "NOPERM" not in str(error):
            raise
        return
    fields = dict(zip(hello[::2], hello[1::2], strict=False))
    version, server = fields.get(b"version", b"").decode(), fields.get(b"server", b"").decode()
    if fields.get(b"role") in (b"replica", b"slave"):
        raise BusUnavailable(f"Redis at {where} is a read-only replica; give the address of its primary", where=where)
    major = version.partition(".")[0]
    if server == "redis" and major.isdigit() and int(major) < 7:
        raise ConfigError(f"Redis at {where} is version {version}; taskbus needs Redis 7.0 or Valkey", version=version)
