"""Where a cursor goes on, and what it does not hand out."""

from __future__ import annotations

import pytest

from taskbus.bus.cursor import Cursor, Gaps
from taskbus.errors import ConfigError


def test_a_stream_that_lost_its_end_is_read_from_there_and_not_from_before_the_subscription() -> None:
    cursor = Cursor((10, 100), 101)
    cursor.at = (20, 200)
    assert cursor.rewound((30, 150)).at == (10, 100)
    assert cursor.rewound((5, 50)).at == (5, 50)
    assert cursor.rewound().at == (0, 0), "another stream under the same name is read from its start"
    assert cursor.rewound().rewound((30, 150)).at == (10, 100)


def test_reading_goes_on_behind_an_event_in_the_middle_of_an_entry() -> None:
    cursor = Cursor.since("10-103")
    assert cursor.at < (10, 100)
    assert cursor.first_wanted((10, 100), 10) == 4
    assert cursor.first_wanted((10, 110), 5) == 0
    assert cursor.first_wanted((10, 90), 10) == 10
    assert cursor.first_wanted((11, 1), 10) == 0


def test_what_is_gone_behind_the_event_that_it_begins_at_is_counted_once() -> None:
    cursor = Cursor.since("10-103")
    assert [cursor.pass_over(120, 5), cursor.pass_over(125, 1)] == [16, 0]
    cursor = Cursor.since("10-103")
    assert [cursor.pass_over(100, 10), cursor.pass_over(110, 1)] == [0, 0]
    assert Cursor.since("10-0").pass_over(120, 5) == 0, "a time is no event"
    assert cursor.rewound().pass_over(115, 1) == 0, "that is what was seen"


def test_a_rejected_entry_has_its_place_if_it_is_the_next_one() -> None:
    cursor = Cursor((0, 0), 5)
    cursor.pass_rejected(9, None)
    assert cursor.expected == 5, "out of turn: not one of ours"
    cursor.pass_rejected(5, 3)
    assert cursor.expected == 8
    assert cursor.pass_rejected(10, 2) == 2, "what is missing before it is no part of it"
    assert cursor.expected == 12
    cursor.pass_rejected(12, None)
    assert cursor.pass_over(20, 1) == 0, "nobody knows how many it held, so nothing is said to be missing"


def test_what_a_forged_entry_took_up_of_the_numbering_is_no_step_back() -> None:
    cursor = Cursor((0, 0), 5)
    cursor.pass_rejected(5, 1)
    assert cursor.pass_over(5, 1) == 0, "the number was not the other one's"
    assert cursor.pass_over(5, 1) == -1, "that is a step back"
    cursor.pass_rejected(6, 2)
    assert cursor.pass_over(8, 1) == 0, "it was one of ours, and damaged"


@pytest.mark.parametrize("wrong", ["", "yesterday", "5", "5-", "-5", "5-x", 5, None])
def test_what_is_no_point_to_begin_at_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"since must be .*'last' \(in the wait_for of a task\), or the id"):
        Cursor.since(wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_gap_counts_once_however_many_find_parts_of_it() -> None:
    gaps = Gaps()
    seen: set[int] = set()
    for start, end in ((10, 20), (10, 20), (30, 40), (15, 35), (1, 5), (0, 50), (50, 50), (49, 60)):
        new = set(range(start, end)) - seen
        assert gaps.tell(start, end) == len(new)
        seen |= new
