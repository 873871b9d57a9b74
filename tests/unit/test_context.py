"""What a step carries, and what survives into the next."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field

from taskbus.context import Context


@dataclass
class Training(Context):
    episodes: list[int] = field(default_factory=list)
    best: float = 0.0

    def __post_init__(self) -> None:
        self.keep("best")


class Plain(Context):
    """Not decorated: it has attributes of its own all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "default"


def test_renew_counts_steps_and_puts_fields_back() -> None:
    ctx = Context(total_step=3)
    ctx.anything = 1
    new = ctx.renew()
    assert (type(new), new.total_step, new.has_attr("anything")) == (Context, 4, False)
    assert new is not ctx


def test_fields_of_a_subclass_begin_anew_and_are_not_shared() -> None:
    ctx = Training()
    ctx.episodes.append(1)
    new = ctx.renew()
    assert new.episodes == []
    assert ctx.episodes == [1]


def test_what_is_kept_in_post_init_is_kept_for_ever() -> None:
    ctx = Training(best=2.5)
    for _ in range(3):
        ctx = ctx.renew()
    assert (ctx.best, ctx.total_step) == (2.5, 3)


def test_what_is_kept_later_is_kept_once() -> None:
    ctx = Training()
    ctx.episodes = [1, 2]
    ctx.seed = 7
    ctx.keep("episodes", "seed", "never_set")
    once = ctx.renew()
    assert (once.episodes, once.seed, once.has_attr("never_set")) == ([1, 2], 7, False)
    twice = once.renew()
    assert (twice.episodes, twice.has_attr("seed")) == ([], False)


def test_keeping_in_one_context_says_nothing_about_another() -> None:
    one, other = Context(), Context()
    one.keep("x")
    other.x = 1
    assert not other.renew().has_attr("x")


def test_has_attr_knows_fields_and_what_was_set() -> None:
    ctx = Training()
    assert not ctx.has_attr("loss")
    ctx.loss = 0.1
    assert ctx.has_attr("loss")
    assert ctx.has_attr("best")


def test_a_class_with_an_init_of_its_own() -> None:
    ctx = Plain()
    ctx.name = "other"
    new = ctx.renew()
    assert (new.name, new.total_step) == ("default", 1)


def test_it_survives_pickling_with_what_it_keeps() -> None:
    ctx = Training(total_step=5, best=1.0)
    ctx.extra = [1]
    ctx.keep("extra")
    for twin in (pickle.loads(pickle.dumps(ctx)), copy.deepcopy(ctx)):
        assert twin == ctx
        assert twin.extra == [1]
        new = twin.renew()
        assert (new.total_step, new.best, new.extra) == (6, 1.0, [1])
