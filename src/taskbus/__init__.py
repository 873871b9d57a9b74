"""Tasks in containers that wait for one another over a shared Redis."""

from taskbus._version import __version__
from taskbus.codec import register_type
from taskbus.context import Context
from taskbus.dispatch import EventLoop
from taskbus.errors import (
    BusDenied,
    BusError,
    BusUnavailable,
    ConfigError,
    DecodeError,
    EncodeError,
    Fenced,
    NodeIdTaken,
    NotAcknowledged,
    NotStarted,
    RunFinished,
    TaskbusError,
    WaitTimeout,
    WorkerFailed,
)
from taskbus.parallel import Parallel
from taskbus.router import Router
from taskbus.task import Role, Task, VoidMiddleware, enable_async, task
from taskbus.types import FinishInfo, NodeInfo, RouterStats

__all__ = [
    "BusDenied",
    "BusError",
    "BusUnavailable",
    "ConfigError",
    "Context",
    "DecodeError",
    "EncodeError",
    "EventLoop",
    "Fenced",
    "FinishInfo",
    "NodeIdTaken",
    "NodeInfo",
    "NotAcknowledged",
    "NotStarted",
    "Parallel",
    "Role",
    "Router",
    "RouterStats",
    "RunFinished",
    "Task",
    "TaskbusError",
    "VoidMiddleware",
    "WaitTimeout",
    "WorkerFailed",
    "__version__",
    "enable_async",
    "register_type",
    "task",
]
