"""What was emitted against what came: every event carries its producer, its number, and a body equal to the number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Heard", "Ledger", "Verdict", "judge", "table"]

Heard = tuple[str, int, object]
"""One event as it came: producer, number, body."""


@dataclass
class Ledger:
    """The numbers that one producer emitted, by what it was told of each.

    ``unknown`` were taken by ``emit`` and not acknowledged yet; ``failed`` raised in ``emit``, so they must never come.
    """

    producer: str
    acked: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    longest: float = 0.0
    """Seconds of the longest call."""

    def settle(self) -> None:
        """A ``sync`` returned: all that was taken before is acknowledged."""
        self.acked |= self.unknown
        self.unknown.clear()

    def as_json(self) -> dict[str, object]:
        return {
            "producer": self.producer,
            "acked": sorted(self.acked),
            "unknown": sorted(self.unknown),
            "failed": sorted(self.failed),
            "longest": self.longest,
        }

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Ledger:
        def numbers(name: str) -> set[int]:
            found = data[name]
            assert isinstance(found, list)
            return set(found)

        return cls(
            str(data["producer"]),
            numbers("acked"),
            numbers("unknown"),
            numbers("failed"),
            float(str(data["longest"])),
        )


@dataclass(frozen=True)
class Verdict:
    """How many events of each kind one listener, or one stream, shows."""

    heard: int
    lost: Sequence[tuple[str, int]]
    repeated: Sequence[tuple[str, int]]
    ghosts: Sequence[Heard]
    disorder: Sequence[tuple[str, int, int]]
    unknown_present: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.repeated or self.ghosts or self.disorder)

    def __str__(self) -> str:
        def some(name: str, found: Sequence[object]) -> str:
            return f"{name} {len(found)}" + (f" {list(found[:5])}" if found else "")

        return ", ".join(
            (
                f"heard {self.heard}",
                some("lost", self.lost),
                some("repeated", self.repeated),
                some("never emitted", self.ghosts),
                some("out of order", self.disorder),
                f"unknown but there {self.unknown_present}",
            )
        )


def judge(ledgers: Iterable[Ledger], heard: Sequence[Heard], *, ignore: Iterable[str] = ()) -> Verdict:
    """Hold what came at one listener against the ledgers; ``ignore`` names producers that it was not to hear."""
    books = {ledger.producer: ledger for ledger in ledgers if ledger.producer not in set(ignore)}
    counts = Counter((producer, number) for producer, number, _ in heard)
    ghosts = [
        (producer, number, body)
        for producer, number, body in heard
        if body != number
        or producer not in books
        or (number not in books[producer].acked and number not in books[producer].unknown)
    ]
    disorder = []
    last: dict[str, int] = {}
    for producer, number, _ in heard:
        if number < last.get(producer, 0):
            disorder.append((producer, last[producer], number))
        last[producer] = number
    return Verdict(
        heard=len(heard),
        lost=[
            (name, number) for name, book in books.items() for number in sorted(book.acked) if not counts[name, number]
        ],
        repeated=[key for key, count in counts.items() if count > 1],
        ghosts=ghosts,
        disorder=disorder,
        unknown_present=sum(1 for name, book in books.items() for number in book.unknown if counts[name, number]),
    )


def table(verdicts: dict[str, Verdict]) -> str:
    """The verdicts as lines of text, one for each listener."""
    head = f"{'listener':<24}{'heard':>8}{'lost':>7}{'repeated':>10}{'ghosts':>8}{'disorder':>10}{'unknown':>9}"
    rows = [
        f"{name:<24}{v.heard:>8}{len(v.lost):>7}{len(v.repeated):>10}{len(v.ghosts):>8}{len(v.disorder):>10}"
        f"{v.unknown_present:>9}"
        for name, v in verdicts.items()
    ]
    return "\n".join((head, *rows))
