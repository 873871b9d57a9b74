"""Every key and channel of a run; the braces keep a run in one cluster slot."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Keys"]


class Keys:
    """The names in Redis of one run, as bytes ready to be sent."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.prefix = f"taskbus:{{{run_id}}}:"
        self.nodes = self._key("nodes")
        self.labels = self._key("labels")
        self.epoch = self._key("epoch")
        self.finish = self._key("finish")
        self.streams = self._key("streams")
        self.swept = self._key("swept")
        self._events = self._key("events:")
        self._channels = self._key("transient:")

    def _key(self, name: str) -> bytes:
        return f"{self.prefix}{name}".encode()

    def events(self, event: str) -> bytes:
        """The stream of an event name."""
        return self._events + event.encode()

    def channel(self, event: str) -> bytes:
        """The pub/sub channel of an event name."""
        return self._channels + event.encode()

    def event_of(self, key: bytes) -> str:
        """The event name of a stream's key or a channel's name."""
        prefix = self._events if key.startswith(self._events) else self._channels
        return key[len(prefix) :].decode()

    def label(self, label: str) -> bytes:
        """The set of the node ids that carry a label."""
        return self._key(f"label:{label}")

    def node(self, node_id: str) -> bytes:
        """The leased hash of a node."""
        return self._key(f"node:{node_id}")

    def inbox(self, node_id: str) -> bytes:
        """The control stream of a node; also the name of its own probe channel."""
        return self._key(f"node:{node_id}:inbox")

    def owner(self, node_id: str) -> bytes:
        """The token of the life that took a node id last; it outlasts the lease."""
        return self._key(f"node:{node_id}:owner")

    def producer(self, producer: str) -> bytes:
        """What the append script remembers of one life of a node."""
        return self._key(f"producer:{producer}")

    def blob(self, blob: str) -> bytes:
        """A large payload, beside the stream."""
        return self._key(f"blob:{blob}")

    def barrier(self, name: str) -> bytes:
        """The generation and the arrivals of a barrier."""
        return self._key(f"barrier:{name}")

    def types(self, node_id: str, producer: str, labels: Iterable[str], events: Iterable[str]) -> dict[bytes, bytes]:
        """What type of value each key holds that a node with these uses; without an id, the first that are free."""
        nodes = [node_id] if node_id else [str(number) for number in range(10)]
        return {
            self.nodes: b"set",
            self.labels: b"set",
            self.epoch: b"string",
            self.finish: b"hash",
            self.streams: b"hash",
            self.producer(producer): b"hash",
            **{self.label(label): b"set" for label in labels},
            **{self.node(node): b"hash" for node in nodes},
            **{self.owner(node): b"string" for node in nodes},
            **{self.inbox(node): b"stream" for node in nodes},
            **{self.events(event): b"stream" for event in events},
        }
