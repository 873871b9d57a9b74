"""Large payloads: memory for them, and values that the wire receives where they stay."""

from __future__ import annotations

import os

import pytest

from taskbus.bus.connect import Target
from taskbus.bus.room import make_room, snapshot
from taskbus.bus.wire import Wire
from taskbus.testing import RedisServer


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (4 << 20) - 1, (5 << 20) + 5])
def test_room_has_the_size_asked_for_and_a_snapshot_stays_as_it_was(size: int) -> None:
    room = make_room(size)
    assert room.nbytes == size and not room.readonly
    original = bytearray(os.urandom(size))
    expected = bytes(original)
    copy = snapshot(memoryview(original))
    original[:] = bytes(size)
    assert copy == expected


def test_values_of_all_sizes_come_as_they_are_between_other_replies() -> None:
    with RedisServer() as server, server.client() as client:
        wire = Wire(Target(server.url, 2.0), 2.0)
        wire.open()
        for size in (0, 1, 65_520, 65_524, 65_525, 65_526, 65_530, 65_536, 70_000, 1 << 20, (5 << 20) + 3):
            value = os.urandom(size)
            client.set("value", value)
            assert wire.call("ECHO", "before") == b"before"
            assert wire.call("GET", "value") == value
            assert wire.call("GET", "nothing") is None
        wire.close()
