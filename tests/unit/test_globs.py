"""Label globs: what they mean, and that nothing but None means everybody."""

from __future__ import annotations

from typing import Any

import pytest

from taskbus.errors import ConfigError
from taskbus.globs import match_globs, parse_globs


def test_none_means_every_node_and_nothing_else_does() -> None:
    assert parse_globs(None) is None
    assert match_globs((), None)
    nothings: list[Any] = [[], (), "", ",", set()]
    for nothing in nothings:
        with pytest.raises(ConfigError, match="label glob"):
            parse_globs(nothing)


def test_a_string_may_hold_several() -> None:
    assert parse_globs("learner, gpu:*") == ("learner", "gpu:*")
    assert parse_globs(["a,b", "c"]) == ("a", "b", "c")
    assert match_globs({"gpu:0"}, parse_globs("learner,gpu:*"))
    assert not match_globs({"cpu"}, parse_globs("learner,gpu:*"))


@pytest.mark.parametrize("wrong", [[3], "a\ud800", "sp ace", "x" * 129, ["a"] * 101, 7, [None]])
def test_what_is_no_glob_is_refused_at_the_call(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="label glob"):
        parse_globs(wrong)
