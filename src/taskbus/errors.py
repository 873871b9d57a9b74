"""Every error that taskbus raises on purpose, and nothing else of ours.

::

    TaskbusError
    ├── ConfigError (ValueError)        a setting, an argument or a combination of them makes no sense
    ├── NotStarted (RuntimeError)       the call needs a started task or router
    ├── WaitTimeout (TimeoutError)      what was waited for did not come in time
    │   └── RunFinished                 ... because the run was finished meanwhile
    ├── EncodeError (TypeError)         an argument of ``emit`` cannot travel
    ├── DecodeError (ValueError)        bytes from the bus are not an event of ours
    ├── WorkerFailed (RuntimeError)     a local worker process ended with an error
    └── BusError (ConnectionError)      Redis, or our place on it
        ├── BusUnavailable              not reachable, frozen, full, loading ...: heals by itself, retried
        ├── NotAcknowledged             written, but not confirmed as strongly as asked for
        ├── BusDenied                   login, rights, a key of the wrong type, TLS, protocol: does not heal by itself
        ├── Fenced                      another process holds this node's id now
        └── NodeIdTaken                 a live node holds the id that was asked for

Branch by what the caller can do. Each error has one sentence as its message and its data as attributes
(``event=``, ``timeout=``, ``node=``, ``path=`` ...), and survives pickling as it is.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "BusDenied",
    "BusError",
    "BusUnavailable",
    "ConfigError",
    "DecodeError",
    "EncodeError",
    "Fenced",
    "NodeIdTaken",
    "NotAcknowledged",
    "NotStarted",
    "RunFinished",
    "TaskbusError",
    "WaitTimeout",
    "WorkerFailed",
]


class TaskbusError(Exception):
    """Base of all errors of taskbus; keyword arguments become attributes."""

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(message)
        self.__dict__.update(data)

    def __getattr__(self, name: str) -> Any:
        # Data that this error does not carry reads as an AttributeError naming the error, typed as Any for callers.
        raise AttributeError(f"{type(self).__name__} carries no {name!r}")

    def anew(self) -> Self:
        """Another one like it, for each who raises it: tracebacks grow in the one that is raised."""
        return type(self)(str(self), **self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__


class ConfigError(TaskbusError, ValueError):
    """A setting, an argument or a combination of them makes no sense; the message names it."""


class NotStarted(TaskbusError, RuntimeError):
    """The call needs a started task or router."""


class WaitTimeout(TaskbusError, TimeoutError):
    """What was waited for did not come in time."""


class RunFinished(WaitTimeout):
    """The run was finished while waiting."""


class EncodeError(TaskbusError, TypeError):
    """An argument of ``emit`` cannot travel; ``path`` says which."""


class DecodeError(TaskbusError, ValueError):
    """Bytes from the bus are not an event of ours; ``reason`` is one of a few fixed words."""


class WorkerFailed(TaskbusError, RuntimeError):
    """A local worker process ended with an error; the message holds its traceback."""


class BusError(TaskbusError, ConnectionError):
    """Redis, or our place on it."""


class BusUnavailable(BusError):
    """Redis cannot be used right now; retried, heals by itself."""


class NotAcknowledged(BusError):
    """Written, but not confirmed by as many replicas as asked for."""


class BusDenied(BusError):
    """Login, rights, a key of the wrong type, TLS or protocol: does not heal by itself."""


class Fenced(BusError):
    """Another process holds this node's id now; nothing can be written any more."""


class NodeIdTaken(BusError):
    """A live node holds the id that was asked for; ``holder`` is ``host:pid``, ``expires_in`` the rest of its lease."""
