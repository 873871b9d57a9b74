"""Who reads a stream from where, and when one that lags behind has caught up."""

from __future__ import annotations

from typing import Any

from taskbus.bus.cursor import Cursor
from taskbus.bus.streams import Laggard, Stream
from taskbus.types import Event, Page
from taskbus.waiting import Trail, Waiter


class Node:
    """Takes whoever has caught up."""

    def __init__(self) -> None:
        self.merged: list[object] = []

    def merge(self, sink: object, cursor: Cursor) -> bool:
        self.merged.append(sink)
        return True


def test_who_was_full_in_the_middle_of_a_page_has_not_caught_up_although_it_has_room_again() -> None:
    node: Any = Node()
    stream = Stream("x", b"events:x")
    event: Event = ((), {})
    trail = Trail("x", max_bytes=50)
    stream.laggards = [Laggard(trail, Cursor((0, 0)))]
    readers = stream.readers()
    [(laggard, cursor)] = readers.laggards
    laggard.offer(Page([event], (1, 1)), 0, 60)  # the first of two entries fills it
    cursor.at = (1, 1)
    assert not readers.with_room().laggards, "so it is not given the second"
    trail.join(Waiter("x"))
    stream.merge(node, readers, (2, 2))
    assert not node.merged
    laggard.offer(Page([event], (2, 2)), 0, 60)
    cursor.at = (2, 2)
    trail.join(Waiter("x"))
    stream.merge(node, readers, (2, 2))
    assert node.merged == [trail]
