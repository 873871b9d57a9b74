"""The turn: its owner lends it, whoever borrows it gives it back, and the owner comes when called or left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from taskbus.bus.turn import GRACE, Turn
from taskbus.until import until


class Owner:
    """A thread that has the turn and lends it whenever somebody wants it."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.returns = 0
        self.over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = threading.Event()
        self._thread.start()
        self._began.wait()

    def _run(self) -> None:
        pause = threading.Event()
        self.turn.take()
        self._began.set()
        while not self.over:
            if self.turn.is_wanted:
                self.turn.lend()
                self.returns += 1
            pause.wait(0.001)

    def end(self) -> None:
        self.over = True
        self.turn.call()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.end()


def borrow(owner: Owner) -> None:
    owner.turn.is_wanted = True
    assert owner.turn.borrow(5.0)


def test_it_is_lent_only_to_who_wants_it(owner: Owner) -> None:
    assert not owner.turn.borrow_now()
    borrow(owner)
    owner.turn.give_back(at_once=True)


def test_the_owner_comes_at_once_when_it_is_given_back_so(owner: Owner) -> None:
    borrow(owner)
    owner.turn.give_back(at_once=True)
    until(lambda: owner.returns == 1)


def test_who_comes_again_soon_finds_it_free_and_the_owner_away(owner: Owner) -> None:
    borrow(owner)
    for _ in range(100):
        owner.turn.give_back(at_once=False)
        if not owner.turn.borrow_now():  # a machine that stood still for longer than the grace
            borrow(owner)
    assert owner.returns < 50
    owner.turn.give_back(at_once=False)
    until(lambda: owner.returns > 0, what="the owner is back when nobody has come for a while")


def test_the_owner_is_back_after_a_use_that_was_longer_than_the_grace(owner: Owner) -> None:
    borrow(owner)
    threading.Event().wait(3 * GRACE)
    assert owner.returns == 0
    owner.turn.give_back(at_once=False)
    until(lambda: owner.returns == 1)


def test_a_call_brings_the_owner_back_as_soon_as_it_is_free(owner: Owner) -> None:
    borrow(owner)
    owner.turn.call()
    assert owner.returns == 0
    began = time.monotonic()
    owner.turn.give_back(at_once=False)
    until(lambda: owner.returns == 1)
    assert time.monotonic() - began < 5.0


def test_giving_back_what_one_does_not_hold_is_harmless(owner: Owner) -> None:
    owner.turn.give_back(at_once=False)
    assert not owner.turn.borrow_now()
    borrow(owner)
    owner.turn.give_back(at_once=True)
    owner.turn.give_back(at_once=True)
