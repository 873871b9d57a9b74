"""How a listener is called: with what was emitted, in whatever way it takes its arguments."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from taskbus import Router
from taskbus.frame import PIECE
from taskbus.testing import RedisServer, until


class Seen(list[Any]):
    """What a listener of each kind was called with."""

    def function(self) -> Any:
        def fn(a: Any, b: Any) -> None:
            self.append((a, b))

        return fn

    def method(self) -> Any:
        class Holder:
            def take(holder, a: Any, b: Any) -> None:  # noqa: N805
                self.append((type(holder).__name__, a, b))

        return Holder().take

    def instance(self) -> Any:
        class Callee:
            def __call__(callee, a: Any, b: Any) -> None:  # noqa: N805
                self.append((type(callee).__name__, a, b))

        return Callee()

    def heir(self) -> Any:
        class Heir(type(self.instance())):  # type: ignore[misc]
            pass

        return Heir()

    def static(self) -> Any:
        class Callee:
            @staticmethod
            def __call__(a: Any, b: Any) -> None:
                self.append((a, b))

        return Callee()

    def of_class(self) -> Any:
        class Callee:
            @classmethod
            def __call__(cls, a: Any, b: Any) -> None:
                self.append((cls.__name__, a, b))

        return Callee()

    def disguised(self) -> Any:
        fn = self.instance()
        fn.__call__ = lambda b, a: self.append("disguise")
        return fn

    def constructor(self) -> Any:
        class Made:
            def __init__(made, a: Any, b: Any) -> None:  # noqa: N805
                self.append((a, b))

            def __call__(made, b: Any, a: Any) -> None:  # noqa: N805
                self.append("an instance")

        return Made

    def partial(self) -> Any:
        return functools.partial(self.function(), b=2)

    def wrapper(self) -> Any:
        @functools.wraps(self.function())
        def fn(*args: Any, **kwargs: Any) -> None:
            self.append((args, sorted(kwargs.items())))

        return fn

    def defaults(self) -> Any:
        def fn(a: Any, b: Any = 7, c: Any = 8) -> None:
            self.append((a, b, c))

        return fn

    def by_position(self) -> Any:
        def fn(a: Any, /, b: Any) -> None:
            self.append((a, b))

        return fn

    def by_name(self) -> Any:
        def fn(a: Any, *, b: Any) -> None:
            self.append((a, b))

        return fn

    def with_an_option(self) -> Any:
        def fn(a: Any, b: Any, *, c: Any = 9) -> None:
            self.append((a, b, c))

        return fn

    def others(self) -> Any:
        def fn(a: Any, b: Any, **kwargs: Any) -> None:
            self.append((a, b, kwargs))

        return fn

    def rest(self) -> Any:
        def fn(a: Any, b: Any, *args: Any) -> None:
            self.append((a, b, args))

        return fn


@pytest.mark.parametrize("kind", [name for name in vars(Seen) if not name.startswith("_")])
def test_many_events_call_a_listener_of_any_kind_as_one_does(
    redis_server: RedisServer, run_id: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    here, there = Seen(), Seen()
    direct = getattr(here, kind)()
    events: list[dict[str, Any]] = [{"b": number, "a": -number} for number in range(PIECE)]
    for odd in {"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}, {}, {"b": 5, "a": 4}:
        events += [{"a": number, "b": [number]} for number in range(PIECE - 1)]
        events.append(odd)  # one in each piece that is decoded at once
    failed = 0
    for event in events:
        try:
            direct(**event)
        except TypeError:
            failed += 1

    def logged() -> int:
        return len([each for each in caplog.records if "failed on event" in each.message])

    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        b.on("x", getattr(there, kind)())
        redis_server.freeze()
        for event in events:
            a.emit("x", **event)
        redis_server.thaw()
        until(lambda: len(there) + logged() >= len(events))
    assert there == here
    assert logged() == failed == len(events) - len(here)
