"""What every way of stopping needs."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from taskbus.errors import TaskbusError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attempt", "left_until"]

log = logging.getLogger(__name__)


def left_until(deadline: float) -> float:
    """The seconds left, but never so few that what is left to do cannot even be tried."""
    return max(0.05, deadline - monotonic())


def attempt(call: Callable[..., Any], *args: Any) -> None:
    """A part of stopping: its error is logged, so that the other parts follow and the user's own error stays."""
    try:
        call(*args)
    except Exception as error:
        log.error("stopping: %s failed: %s", call.__name__, error, exc_info=not isinstance(error, TaskbusError))
