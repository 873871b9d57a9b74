"""The bell: one thread waits for a word from another one, or for a socket."""

from __future__ import annotations

import socket
import threading
import time

from taskbus.bus.bell import Bell


def test_a_ring_before_the_wait_is_not_lost_and_counts_once() -> None:
    bell = Bell()
    bell.open()
    bell.ring()
    bell.ring()
    assert bell.wait() is False
    timer = threading.Timer(0.05, bell.ring)
    timer.start()
    began = time.monotonic()
    assert bell.wait() is False
    assert time.monotonic() - began > 0.02
    timer.join()
    bell.close()


def test_it_says_when_it_was_the_socket() -> None:
    bell = Bell()
    bell.open()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        assert bell.wait(ours.fileno()) is True
        ours.recv(1)
        bell.ring()
        assert bell.wait(ours.fileno()) is False
    bell.close()
    bell.close()


def test_a_ring_while_it_is_closed_is_harmless() -> None:
    bell = Bell()
    bell.ring()
    bell.open()
    bell.close()
    bell.ring()
