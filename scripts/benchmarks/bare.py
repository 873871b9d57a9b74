"""The floor: a socket, packed commands, and the hiredis parser; nothing else of any client."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import hiredis

_SIZE = 1 << 16


class Bare:
    """One connection."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._buffer = bytearray(_SIZE)

    def send(self, *command: Any) -> None:
        self.socket.sendall(hiredis.pack_command(command))

    def read(self) -> Any:
        reply = self._reader.gets()
        while reply is Ellipsis:
            count = self.socket.recv_into(self._buffer)
            self._reader.feed(self._buffer, 0, count)
            reply = self._reader.gets()
        return reply

    def call(self, *command: Any) -> Any:
        self.send(*command)
        return self.read()
