"""Where somebody stands in a stream, and what it has seen: repeats are dropped, and gaps are counted."""

from __future__ import annotations

import re

from taskbus.errors import ConfigError

__all__ = ["Cursor", "EntryId", "Gaps", "format_id", "parse_id"]

EntryId = tuple[int, int]

_ID = re.compile(r"(\d{1,20})-(\d{1,20})\Z")
_PRODUCERS = 10_000
_GAPS = 100


def parse_id(entry_id: bytes) -> EntryId:
    """An entry id as a pair that compares as Redis does."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)


def format_id(entry_id: EntryId) -> bytes:
    """The pair as Redis writes it."""
    return b"%d-%d" % entry_id


class Cursor:
    """One position in one stream.

    The second half of an entry's id is the ordinal of its first event in the stream, so a jump between the end of one
    entry and the begin of the next is the exact number of events that were trimmed before they were read.
    """

    __slots__ = ("after", "at", "began", "doubted", "expected", "first", "seen")

    def __init__(self, at: EntryId, expected: int | None = None, after: EntryId = (0, 0)) -> None:
        self.at = self.began = at
        self.expected = expected
        self.first: int | None = None  # the ordinal of the first event that is wanted, until there has been an entry
        self.after = after
        self.doubted: int | None = None  # from where on entries may have been forged, which have no number
        self.seen: dict[str, int] = {}

    @classmethod
    def since(cls, since: str, joined: tuple[EntryId, int | None] = ((0, 0), None)) -> Cursor:
        """A cursor for ``"start"``, ``"joined"`` or the id of an event.

        ``joined``: the id up to which all is older than the join, and the number of the next event where it is known.

        An event's id is that of its entry, whose ordinal is the event's own: the events of an entry share the time.
        """
        if since == "start":
            return cls((0, 0))
        if since == "joined":
            return cls(*joined)
        if not isinstance(since, str) or not (match := _ID.match(since)):
            raise ConfigError(
                "since must be 'now', 'start', 'last' (in the wait_for of a task), or the id of an event such as "
                f"'1718000000000-42', not {since!r}"
            )
        after = int(match[1]), int(match[2])
        cursor = cls((after[0], 0), after=after)
        cursor.first = after[1] + 1 if after[1] else None  # 0 is no event's
        return cursor

    def first_wanted(self, at: EntryId, count: int) -> int:
        """The index of the first event of an entry that stands behind the id at which this cursor began."""
        return min(count, max(0, self.after[1] - at[1] + 1)) if at[0] == self.after[0] else 0

    def pass_rejected(self, ordinal: int, count: int | None) -> int:
        """Note an entry that was rejected, of so many events if that is known; else one out of turn has no place here.

        Returns how many events are missing before it.
        """
        missing = 0
        if count is not None and self.expected is not None and ordinal > self.expected:
            missing, self.expected = ordinal - self.expected, ordinal
        if self.expected == ordinal:
            self.expected = None if count is None else ordinal + count
            self.doubted = ordinal if self.doubted is None else self.doubted
        return missing

    def pass_over(self, ordinal: int, count: int) -> int:
        """Note an entry's place in the numbering.

        Returns how many events are missing before it; negative if the numbering went back.
        """
        missing = 0 if self.expected is None else ordinal - self.expected
        if self.first is not None:
            missing, self.first = max(0, ordinal - self.first), None
        if missing < 0 and self.doubted is not None and ordinal >= self.doubted:
            missing = 0  # what was rejected was somebody else's, and had no number
        self.expected, self.doubted = ordinal + count, None
        return missing

    def is_new(self, producer: str, first: int, count: int) -> bool:
        """Whether a frame has an event that this cursor has not seen."""
        return first + count - 1 > self.seen.get(producer, 0)

    def first_new(self, producer: str, first: int, count: int) -> int:
        """The index of the first event of a frame that this cursor has not seen; ``count`` when it is a repeat."""
        last = self.seen.get(producer, 0)
        if first + count - 1 <= last:
            return count
        if producer not in self.seen and len(self.seen) >= _PRODUCERS:
            del self.seen[next(iter(self.seen))]
        self.seen[producer] = first + count - 1
        return max(0, last - first + 1)

    def has_passed(self, number: int) -> bool:
        """Whether the event of that number lies behind; true for a cursor that has seen no entry yet."""
        return self.expected is None or self.expected > number

    def parted(self, at: EntryId, producer: str, own: int) -> Cursor:
        """A cursor that goes on by itself from the entry ``at``, and has seen ``own`` events of that producer."""
        cursor = Cursor(at, self.expected, self.after)
        cursor.began = self.began
        cursor.seen = dict(self.seen)
        cursor.seen[producer] = max(own, self.seen.get(producer, 0))
        return cursor

    def rewound(self, last: EntryId | None = None) -> Cursor:
        """A cursor that reads all again that is there, knowing what was seen.

        Where the stream is still the same and was found to end at ``last``, what stood there before this cursor began
        stays out. A new one, so that whoever still goes through a page from before does not move it.
        """
        cursor = Cursor((0, 0) if last is None else min(self.began, last), after=self.after)
        cursor.began = self.began
        cursor.seen = self.seen
        return cursor


class Gaps:
    """Which ordinals of a stream were counted as missing, by whoever stands in it."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: list[tuple[int, int]] = []  # which do not touch

    def tell(self, start: int, end: int) -> int:
        """How many of those from ``start`` to before ``end`` were not counted before; now they are."""
        apart = [(a, b) for a, b in self._told if b < start or a > end]
        near = [gap for gap in self._told if gap not in apart]
        known = sum(min(end, b) - max(start, a) for a, b in near)
        whole = min([start, *[a for a, _ in near]]), max([end, *[b for _, b in near]])
        self._told = [*apart[-_GAPS:], whole]
        return end - start - known
