"""A batch: frames that leave together, packed once and the same on every attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskbus import frame
from taskbus.bus.packing import Part, bulk, pack, pack_value

if TYPE_CHECKING:
    from taskbus.bus.keys import Keys
    from taskbus.bus.openframe import OpenFrame
    from taskbus.config import RouterConfig

__all__ = ["Batch", "Packer"]


class Batch:
    """What was asked of Redis in one round trip, and what is still to be asked.

    ``number`` counts the batches with durable events; the append script takes each number once.
    """

    # Defaults of the class, for one is made for each event that leaves alone, and has few of these.
    is_packed = is_sent = False
    is_plain = False
    """One small event for all, not signed, which has nothing beside it."""
    answer: Any = None
    """Of the append script, where somebody has read it for the writer's thread."""
    blobs: Sequence[tuple[str, list[Part]]] = ()
    streams: Sequence[bytes] = ()
    values: Sequence[bytes] = ()
    transient: Sequence[tuple[str, bytes]] = ()
    asked: Sequence[tuple[str, bytes]] = ()

    def __init__(self, frames: Sequence[OpenFrame], last_number: int) -> None:
        self.frames = frames
        self.durable: Sequence[OpenFrame] = frames
        if len(frames) > 1 or frames[0].transient:
            self.durable = [item for item in frames if not item.transient]
        self.number = last_number + bool(self.durable)

    def parts(self, command: bytes) -> list[Part]:
        """What to send in the next attempt; ``command`` appends the durable frames."""
        # Kept by nobody: a second attempt could come twice.
        self.asked, self.transient = self.transient, ()
        parts: list[Part] = []
        if self.blobs or self.asked:
            parts += [part for _, blob in self.blobs for part in blob]
            parts += [part for _, part in self.asked]
        if self.durable:
            parts.append(command)
        return parts


_ONE = b"$1\r\n1\r\n"
_LONE = b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$0\r\n\r\n"
_EVENTS_KNOWN = 1000


class Packer:
    """Makes the frames and commands of one producer."""

    def __init__(self, config: RouterConfig, keys: Keys, producer: str) -> None:
        self._config = config
        self._keys = keys
        self._producer = producer
        self._blobs = 0
        self._event_at = len(keys.events(""))
        self._life = int(config.retention_seconds * 1000)
        self._known: dict[str, tuple[bytes, bytes]] = {}
        self._keys_of_all = bulk(keys.producer(producer)) + bulk(keys.streams)
        numbers = (config.retention_events, config.retention_bytes, self._life, config.run_ttl * 1000)
        self._limits = bulk(" ".join([*(str(int(number)) for number in numbers), keys.prefix]).encode())

    def pack(self, batch: Batch) -> None:
        """Make the frames of a batch, unless that was done already."""
        if batch.is_packed:
            return
        streams: list[bytes] = []
        values: list[bytes] = []
        blobs: list[tuple[str, list[Part]]] = []
        transient: list[tuple[str, bytes]] = []
        for item in batch.frames:
            key = self._keys.channel(item.event) if item.transient else self._keys.events(item.event)
            blob = b""
            if item.size > self._config.blob_threshold and item.count == 1 and not item.transient:
                blob, data = self._beside(item, key, blobs)
            else:
                data = frame.pack(
                    self._producer,
                    item.first,
                    item.count,
                    item.text,
                    item.buffers,
                    only_to=item.only_to,
                    elsewhere=item.elsewhere,
                    secret=self._config.secret,
                    scope=key.decode() if self._config.secret is not None else "",
                )
            if item.transient:
                transient.append((key.decode(), pack(b"PUBLISH", key, data)))
            else:
                streams.append(key)
                values += (key[self._event_at :], b"%d" % item.count, b"%d" % item.size, data, blob)
        # At the end, for a signal handler may raise before, and then it is begun anew.
        batch.streams, batch.values, batch.blobs, batch.transient = streams, values, blobs, transient
        batch.is_packed = True

    def command(self, how: bytes, script: bytes, batch: Batch) -> bytes:
        """The call of the append script for a packed batch."""
        values = (b"%d" % batch.number, *batch.values)
        return self._begin(how, script, batch.streams) + b"".join(map(bulk, values))

    def lone(self, script: bytes, batch: Batch) -> bytes:
        """The same, at once, for a plain batch: with what does not change packed once.

        It takes 2.9 us, and :meth:`pack` and the rest, which make the very same, 7.
        """
        item = batch.frames[0]
        known = self._known.get(item.event)
        if known is None:
            if len(self._known) >= _EVENTS_KNOWN:
                self._known.clear()
            event, key = item.event.encode(), self._keys.events(item.event)
            known = self._begin(b"EVALSHA", script, (key,)), bulk(event) + _ONE
            self._known[item.event] = known
        begin, middle = known
        data = frame.pack(self._producer, item.first, 1, item.text)
        number, size = b"%d" % batch.number, b"%d" % item.size
        return _LONE % (begin, len(number), number, middle, len(size), size, len(data), data)

    def _begin(self, how: bytes, script: bytes, streams: Sequence[bytes]) -> bytes:
        count = b"*%d\r\n" % (7 + 6 * len(streams))
        opening = b"".join(map(bulk, (how, script, b"%d" % (2 + len(streams)))))
        return b"".join((count, opening, self._keys_of_all, *map(bulk, streams), self._limits))

    def _beside(self, item: OpenFrame, stream: bytes, blobs: list[tuple[str, list[Part]]]) -> tuple[bytes, bytes]:
        self._blobs += 1
        blob = f"{self._producer}-{self._blobs}"
        data, chunks = frame.pack_blob(
            self._producer,
            item.first,
            item.text,
            item.buffers,
            blob=blob,
            only_to=item.only_to,
            elsewhere=item.elsewhere,
            secret=self._config.secret,
            scope=stream.decode(),
        )
        key = self._keys.blob(blob)
        blobs.append((key.decode(), pack_value((b"SET", key), chunks, (b"PX", b"%d" % self._life))))
        return blob.encode(), data
