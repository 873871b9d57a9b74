"""A frame that is not packed yet."""

from __future__ import annotations

__all__ = ["OpenFrame"]


class OpenFrame:
    """A frame that still takes events."""

    count = size = 0
    most = until = 0
    """Up to how many events, and below how many bytes, the next is added without a question."""

    def __init__(
        self, event: str, key: str, first: int, only_to: tuple[str, ...], transient: bool, elsewhere: bool
    ) -> None:
        self.event = event
        self.key = key
        self.first = first
        self.only_to = only_to
        self.transient = transient
        self.elsewhere = elsewhere
        self.text = bytearray(b"[")
        self.buffers: list[memoryview] = []
