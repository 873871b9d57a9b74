"""Replies that come in parts, cut where it is most awkward."""

from __future__ import annotations

import socket
import threading

import pytest

from taskbus.bus.connect import Target
from taskbus.bus.wire import NOTHING, Wire

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
