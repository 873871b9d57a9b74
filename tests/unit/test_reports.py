"""What is said of a main that failed."""

from __future__ import annotations

import pytest

from taskbus.reports import Failure, tell_restart


def failure(error: Exception) -> Failure:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 whatever it is
        return Failure.of(caught)


def test_a_reason_is_one_line_of_reasonable_length() -> None:
    assert failure(ValueError("no\nsuch luck")).reason == "ValueError: no such luck"
    assert failure(ValueError()).reason == "ValueError"
    assert len(failure(ValueError("long " * 1000)).reason) == 200


def test_a_traceback_is_shown_when_it_is_news(caplog: pytest.LogCaptureFixture) -> None:
    told = None
    for start, text in enumerate(["this", "this", "that", "this"], 2):
        one = failure(ValueError(text))
        tell_restart("worker 1 failed", one, told, start)
        told = one
    shown = [record.getMessage().splitlines() for record in caplog.records]
    assert [lines[0] for lines in shown] == [f"worker 1 failed; start {start} of it" for start in (2, 3, 4, 5)]
    assert [lines[-1] for lines in shown if len(lines) > 1] == [
        f"ValueError: {text}" for text in ("this", "that", "this")
    ]
