"""Replies that come in parts, cut where it is most awkward."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskbus.bus.connect import Target
from taskbus.bus.wire import NOTHING, Wire
from taskbus.errors import BusUnavailable
from taskbus.testing import RedisServer

LARGE = b"x" * 200_000
REPLY = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n"


@pytest.mark.parametrize("by", ["read", "read_now"])
def test_a_large_value_inside_a_reply_is_no_reply_of_its_own(by: str) -> None:
    """Also where the first part ends between two values, so that the parser has nothing left over."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = threading.Event()

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.recv(100)
                link.sendall(b"+OK\r\n" + REPLY)
                seen.wait(5)
                link.sendall(b"$%d\r\n%b\r\n+PONG\r\n" % (len(LARGE), LARGE))
                link.recv(100)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        wire = Wire(Target(f"redis://127.0.0.1:{server.getsockname()[1]}", 2.0), 5.0)
        wire.open()
        wire.send([b"*1\r\n$4\r\nPING\r\n"])
        assert wire.read() == b"OK"
        if by == "read_now":
            assert wire.read_now() is NOTHING
        threading.Timer(0.1, seen.set).start()
        assert wire.read() == [b"message", b"c", LARGE]
        assert wire.read() == b"PONG"
        wire.close()
        thread.join(5)


def test_a_wire_that_goes_on_with_the_connection_of_another_shares_nothing_with_it() -> None:
    with RedisServer() as server, ThreadPoolExecutor(2) as pool:
        target = Target(server.url, 2.0)
        first, second = Wire(target, 5.0), Wire(target, 5.0)
        first.open()
        connection = first.call("CLIENT", "ID")
        second.take_over(first)
        assert not first.is_open
        assert second.call("CLIENT", "ID") == connection
        first.open()
        assert first.call("CLIENT", "ID") != connection

        def ask(wire: Wire, letter: bytes) -> None:
            value = letter * 40_000  # of which much is read at once, and a part later
            wire.call("SET", letter, value)
            for _ in range(200):
                assert wire.call("GET", letter) == value

        for asking in [pool.submit(ask, first, b"a"), pool.submit(ask, second, b"b")]:
            asking.result(30)
        first.close()
        second.take_over(first)
        assert not second.is_open


def test_what_was_begun_is_gone_on_with_once_and_forgotten_where_it_failed() -> None:
    with RedisServer() as server:
        wire = Wire(Target(server.url, 2.0), 5.0)
        wire.begin_to_open(lambda connect: connect())
        server.kill()
        wire.open()
        with pytest.raises(BusUnavailable):
            wire.call("PING")
        wire.begin_to_open(lambda connect: connect())
        server.start()
        with pytest.raises(BusUnavailable, match="refused"):
            wire.open()
        wire.open()
        wire.close()
        server.kill()
        wire.begin_to_open(lambda connect: connect())
        server.start()
        wire.forget_failure()
        wire.open()
        assert wire.call("PING") == b"PONG"
        wire.close()
