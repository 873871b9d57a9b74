"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["PAUSE_WHEN_DENIED", "Backoff"]

PAUSE_WHEN_DENIED: Final = 5.0
"""Seconds before an attempt that only helps when somebody has given this node a right meanwhile."""


class Backoff:
    """Full jitter between nothing and a bound that doubles from 50 ms to 1 s."""

    def __init__(self, cap: float = 1.0) -> None:
        self._cap = cap
        self._bound = 0.05

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        delay = random.uniform(self._bound / 2, self._bound)
        self._bound = min(self._cap, self._bound * 2)
        return delay

    def reset(self) -> None:
        """The last attempt succeeded."""
        self._bound = 0.05
