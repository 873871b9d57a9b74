"""What is sent for a batch, and the short way for an event that goes alone."""

from __future__ import annotations

import pytest

from taskbus.bus.batch import Batch, Packer
from taskbus.bus.keys import Keys
from taskbus.bus.openframe import OpenFrame
from taskbus.config import RouterConfig

SCRIPT = b"0" * 40


def packer(**settings: object) -> Packer:
    return Packer(RouterConfig.from_env(url="redis://host", run_id="run", **settings), Keys("run"), "producer")


def opened(text: bytes = b"{}", event: str = "x", first: int = 1) -> OpenFrame:
    item = OpenFrame(event, event, first, (), transient=False, elsewhere=False)
    item.text += text + b"]"
    item.count, item.size = 1, len(text)
    return item


def by_the_long_way(packing: Packer, batch: Batch) -> bytes:
    packing.pack(batch)
    return b"".join(batch.parts(packing.command(b"EVALSHA", SCRIPT, batch)))


@pytest.mark.parametrize("text", [b"{}", b"[[1,2.5]]", b'[["\xc3\xa9"],{"a":null}]', b"[[" + b"1," * 2000 + b"1]]"])
@pytest.mark.parametrize(("first", "last_number"), [(1, 0), (9, 9), (10**12, 10**9)])
def test_an_event_that_goes_alone_is_sent_as_it_would_be_by_the_long_way(
    text: bytes, first: int, last_number: int
) -> None:
    packing = packer()
    for event in ("x", "a.longer:name", "x"):
        batch = Batch([opened(text, event, first)], last_number)
        assert packing.lone(SCRIPT, batch) == by_the_long_way(packing, batch)


def test_more_names_than_are_remembered() -> None:
    packing = packer()
    for number in range(2500):
        batch = Batch([opened(event=f"x{number}")], number)
        assert packing.lone(SCRIPT, batch) == by_the_long_way(packing, batch)
