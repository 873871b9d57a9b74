"""Which key it is that holds a value of the wrong type: Redis says that there is one, not which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskbus.bus.packing import pack
from taskbus.errors import BusDenied

if TYPE_CHECKING:
    from taskbus.bus.keys import Keys
    from taskbus.bus.outbox import Outbox
    from taskbus.bus.registry import Registry
    from taskbus.bus.wire import Wire

__all__ = ["Diagnosis", "wrong_keys"]


def wrong_keys(wire: Wire, expected: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The keys that hold something else than ``expected`` says, each with the type that it holds."""
    wire.send([pack(b"TYPE", key) for key in expected])
    replies = [wire.read() for _ in expected]
    found = {}
    for (key, kind), reply in zip(expected.items(), replies, strict=True):
        held = wire.check(reply, f"TYPE {key.decode()}")
        if held not in (kind, b"none"):
            found[key] = held
    return found


class Diagnosis:
    """Names the key, where an error is about a value of the wrong type in one of those that a node uses."""

    def __init__(self, keys: Keys, registry: Registry, outbox: Outbox) -> None:
        self._keys = keys
        self._registry = registry
        self._outbox = outbox

    def __call__(self, error: BusDenied, wire: Wire) -> BusDenied:
        """``error``, or one that says more."""
        if not error.__dict__.get("wrong") or not wire.is_open:
            return error
        registry = self._registry
        expected = self._keys.types(registry.node_id, registry.producer, registry.labels, list(self._outbox.sequence))
        for key, held in wrong_keys(wire, expected).items():
            return BusDenied(
                f"key {key.decode(errors='replace')} holds a {held.decode()} instead of a {expected[key].decode()} "
                f"in Redis at {wire.target.where}; remove it, or use another run_id",
                where=wire.target.where,
                key=key.decode(errors="replace"),
                wrong=True,
            )
        return error
