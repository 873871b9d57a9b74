"""The seam between a node and its connections, where a test cuts or freezes them; in process as over a real socket."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from taskbus.bus.connect import Target
from taskbus.errors import BusDenied, BusUnavailable, ConfigError

if TYPE_CHECKING:
    from redis import Connection

__all__ = ["Seam", "SeamTarget"]

State = Literal["open", "cut", "frozen", "ended"]

_OWN = {f"taskbus-{part}" for part in ("channels", "connect", "heart", "reader", "writer")}
"""The threads of a node that stand still with it."""


class Seam:
    """All connections of one node.

    ``cut``: those that are open break, and none can be opened. ``frozen``: they stay open, but nothing passes in either
    direction, as if the process or the network stood still. When a call returns, nothing passes that should not.
    The node's own threads stand still for as long as that lasts, a test that calls it for ``patience`` seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._connections: WeakSet[Any] = WeakSet()
        self.state: State = "open"
        self.generation = 0
        """How often connections were cut: one that was opened before the last cut never works again."""

    def cut(self) -> None:
        self._break_all("cut")

    def end(self) -> None:
        """Cut for good, so that nobody even tries again."""
        self._break_all("ended")

    def _break_all(self, state: State) -> None:
        with self._changed:
            self.state = state
            self.generation += 1
            self._changed.notify_all()
            broken = list(self._connections)
        for connection in broken:
            connection.break_off()

    def freeze(self) -> None:
        with self._changed:
            if self.state == "open":
                self.state = "frozen"

    def open(self) -> None:
        """Let everything pass again; after a cut, new connections. Nothing comes after the end."""
        with self._changed:
            if self.state != "ended":
                self.state = "open"
            self._changed.notify_all()

    def join(self, connection: Any) -> int:
        """A connection is about to be opened; returns the generation that it belongs to."""
        with self._changed:
            self._connections.add(connection)
            generation = self.generation
        self.check(generation)
        return generation

    def check(self, generation: int) -> None:
        """Wait while nothing passes; raise when the connection was cut."""
        patience = None if threading.current_thread().name in _OWN else self._patience
        with self._changed:
            if not self._changed.wait_for(lambda: self.state != "frozen", patience):
                raise BusUnavailable("the test has frozen this node: thaw() it first")
            if self.state == "ended":
                raise BusDenied("the test has killed this node")
            if self.state == "cut" or generation != self.generation:
                raise ConnectionError("the test has cut this connection")


class SeamTarget(Target):
    """A target whose connections all go through one seam."""

    def __init__(self, url: str, connect_timeout: float, seam: Seam) -> None:
        super().__init__(url, connect_timeout)
        if not self.shared_socket:
            raise ConfigError("a node that tests can hurt needs a connection without TLS")
        self._kind = _seamed(self._kind, seam)
        self._checked.clear()


class _SeamSocket(socket.socket):
    """A socket taken over from the driver."""

    seam: Seam
    generation: int

    def sendall(self, *arguments: Any) -> None:
        self.seam.check(self.generation)
        super().sendall(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        count = super().recv_into(*arguments)
        self.seam.check(self.generation)
        return count


def _seamed(kind: type[Connection], seam: Seam) -> type[Connection]:
    """The class of connections ``kind`` with the seam in every way in and out."""

    class Seamed(kind):  # type: ignore[misc, valid-type]
        def _connect(self) -> Any:
            self._generation = seam.join(self)
            sock = super()._connect()
            if not isinstance(sock, socket.socket):
                return sock
            timeout = sock.gettimeout()
            taken = _SeamSocket(sock.family, sock.type, sock.proto, sock.detach())
            taken.seam, taken.generation = seam, self._generation
            taken.settimeout(timeout)
            return taken

        def send_packed_command(self, *arguments: Any, **settings: Any) -> Any:
            if hasattr(self, "_generation"):
                seam.check(self._generation)
            return super().send_packed_command(*arguments, **settings)

        def read_response(self, *arguments: Any, **settings: Any) -> Any:
            response = super().read_response(*arguments, **settings)
            seam.check(self._generation)
            return response

        def break_off(self) -> None:
            """Wake whoever reads; what he gets is refused at the seam."""
            sock = self._sock
            if isinstance(sock, socket.socket):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected any more
            elif sock is not None:
                sock.responses.put(None)

    return Seamed
