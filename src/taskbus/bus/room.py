"""Memory for large payloads."""

from __future__ import annotations

import mmap

__all__ = ["make_room", "snapshot"]

_HUGE = 4 << 20  # below that the allocator hands out the same pages again


def make_room(size: int) -> memoryview:
    """Fresh memory to write ``size`` bytes into; it lives as long as a view of it does.

    Page faults, one for each 4 kB, cost seven times what the bytes themselves do: filling 64 MiB takes 24 ms so, and
    4 ms with huge pages.
    """
    if size < _HUGE:
        return memoryview(bytearray(size))
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them
    return memoryview(pages)


def snapshot(buffer: memoryview) -> memoryview:
    """A copy of what is in ``buffer`` now."""
    if buffer.nbytes < _HUGE:
        return memoryview(bytes(buffer))  # which does not fill the memory with zeros first
    copy = make_room(buffer.nbytes)
    copy[:] = buffer.cast("B")
    return copy
