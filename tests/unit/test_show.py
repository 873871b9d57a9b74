"""Every value that can travel has a plain JSON form and a short text."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from taskbus.bus.follower import Sighting
from taskbus.cli.show import as_json, as_line, plain


class Colour(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 9


@dataclass
class Episode:
    reward: float
    path: list[int]


class Pair(NamedTuple):
    left: int
    right: Any


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, None),
        (True, True),
        (2**80, 2**80),
        (float("inf"), "inf"),
        ("ü", "ü"),
        (b"\x00", {"bytes": 1, "base64": "AA=="}),
        ((1, (2,)), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({1: "a", None: 2, (1, 2): 3}, {"1": "a", "None": 2, "[1, 2]": 3}),
        (Colour.RED, "RED"),
        (Size.LARGE, "LARGE"),
        (Episode(0.5, [1]), {"reward": 0.5, "path": [1]}),
        (Pair(1, Pair(2, None)), {"left": 1, "right": {"left": 2, "right": None}}),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (np.float32(0.5), 0.5),
        (np.array(["a", "b"]), {"dtype": "<U1", "shape": [2], "data": ["a", "b"]}),
        (np.array([np.nan]), {"dtype": "float64", "shape": [1], "data": ["nan"]}),
        (np.array(7), 7),
    ],
)
def test_values_in_the_words_of_json(value: Any, said: Any) -> None:
    assert plain(value) == said
    json.dumps(plain(value), allow_nan=False)


def test_large_values_are_cut_and_deep_ones_end() -> None:
    assert plain(np.zeros(1001))["first"] == [0.0] * 10
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert "..." in json.dumps(plain(deep))


def test_a_line_is_short_and_a_problem_is_told() -> None:
    sighting = Sighting("x", "5-1", 1, 1.5, "p", args=("a" * 500, list(range(100))), kwargs={"k": np.zeros((2, 3))})
    line = as_line(sighting, "0", 12)
    assert len(line) < 300 and "float64[2, 3]" in line and "..." in line
    broken = Sighting("x", "5-1", 1, 1.5, "", problem="not a frame", only_to=("a*",))
    assert as_line(broken, "0", 1).endswith("x  0        to a*  <not a frame>")
    assert json.loads(as_json(broken, "0"))["problem"] == "not a frame"
