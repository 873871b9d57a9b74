"""Names for logs, and errors on their way to the caller."""

from __future__ import annotations

import functools

import pytest

from taskbus.mailbox import ErrorBox, function_name


class Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


def function() -> None: ...


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (function, "tests.unit.test_mailbox.function"),
        (Callable().method, "tests.unit.test_mailbox.Callable.method"),
        (Callable(), "tests.unit.test_mailbox.Callable instance"),
        (Callable, "tests.unit.test_mailbox.Callable"),
        (functools.partial(functools.partial(function)), "partial(tests.unit.test_mailbox.function)"),
        (print, "builtins.print"),
        ([].append, "?.list.append"),
    ],
)
def test_functions_have_a_name_that_finds_them(fn: object, name: str) -> None:
    assert function_name(fn) == name  # type: ignore[arg-type]


def test_lambdas_are_named_after_where_they_are() -> None:
    assert function_name(lambda: None).endswith("test_lambdas_are_named_after_where_they_are.<locals>.<lambda>")


def test_the_first_error_is_raised_as_it_is_when_there_is_no_other() -> None:
    box = ErrorBox()
    box.raise_first()
    box.add(ValueError("one"))
    with pytest.raises(ValueError, match="one") as raised:
        box.raise_first()
    assert not hasattr(raised.value, "__notes__")
    box.raise_first()


def test_others_are_counted_beyond_the_bound() -> None:
    box = ErrorBox(limit=2)
    for number in range(5):
        box.add(ValueError(number))
    assert len(box.kept) == 2
    with pytest.raises(ValueError, match="0") as raised:
        box.raise_first()
    assert raised.value.__notes__ == ["and 4 more error(s), see the log"]
