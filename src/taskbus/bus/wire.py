"""One connection, driven directly: packed commands out, replies in, errors in our words.

redis-py opens the connection (TLS, login, any socket); then its socket is read with hiredis, without the layers
of the client, which cost three times the round trip itself. Nothing here retries.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import exceptions as driver
from redis.connection import DefaultParser

from taskbus.bus.connect import Target, explain
from taskbus.bus.opening import Opening
from taskbus.bus.packing import Arg, Part, pack
from taskbus.bus.room import make_room
from taskbus.bus.scripts import load
from taskbus.errors import BusError

__all__ = ["NOTHING", "Wire"]

_PIECE = 1 << 20
_TOGETHER = 256  # parts; the system takes 1024
_READ_SIZE = 1 << 16
_AT_ONCE = socket.MSG_DONTWAIT  # for each event sent and read, and so not looked up there
NOTHING = object()
"""What is read where no whole reply has come yet."""
_BULK = ord("$")


class Wire:
    """A connection that is open or not; used by one thread at a time, except :meth:`abort`.

    ``timeout`` bounds every silence of the server. ``deadline`` (monotonic), where set, bounds all that is done until
    it is set anew.
    """

    def __init__(self, target: Target, timeout: float | None) -> None:
        self.target = target
        self.timeout = timeout
        self.deadline: float | None = None
        self._opening: Opening | None = None
        self._begun: Opening | None = None
        """To be gone on with by the next :meth:`open`."""
        self._moves = 0
        self._connection: Any = None
        self._socket: Any = None
        self._is_plain = False  # no TLS, and nothing of a test's in between
        self._descriptor = -1
        self._poll: Any = None
        self._limit: float | None = -1.0  # of the socket; none yet
        self._reader: Any = None
        self._is_inside = False  # the parser has had the begin of a reply
        self._buffer = bytearray()
        self.heard = 0.0
        """When something of an answer last came (monotonic)."""

    @property
    def is_open(self) -> bool:
        """Whether the last use of it did not fail, and the server is still the one to talk to."""
        return self._connection is not None and self._moves == self.target.moves

    @property
    def descriptor(self) -> int:
        """What to poll for news from the server: the plain socket, if the connection is open over one; else -1."""
        return self._descriptor if self._moves == self.target.moves else -1

    def begin_to_open(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Hand what connects to ``start``, which has a thread for it; :meth:`open` goes on from there."""
        if not self.target.in_process:  # where it takes no time
            self._begun = Opening(self.target)
            start(self._begun.run)

    def forget_failure(self) -> None:
        """Where what was begun has failed meanwhile, :meth:`open` begins anew."""
        if self._begun is not None and self._begun.error is not None:
            self._begun = None

    def open(self) -> None:
        """Connect and log in; raises ``BusUnavailable`` or ``BusDenied``."""
        late, self._opening, self._begun = self._opening, self._begun, None
        if late is not None:
            late.abandon()
        self._disconnect()
        self._moves = self.target.moves
        if self.target.in_process:
            connection: Any = self.target.connection()
            try:
                connection.connect()
            except Exception as error:
                connection.disconnect()
                raise explain(error, self.target.where) from error
            self._connection = connection
        else:
            self._wait_for_opening()
        sock = self._connection._sock
        if isinstance(sock, socket.socket):
            self._is_plain = type(sock) is socket.socket
            self._socket = sock
            if self._is_plain:
                sock.settimeout(None)
            self._set_timeout(self.timeout)
            if self._is_plain:
                self._descriptor = sock.fileno()
                self._poll = select.poll()
                self._poll.register(self._descriptor, select.POLLIN)
            self._reader = hiredis.Reader(
                protocolError=driver.InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=NOTHING
            )
            self._buffer = self._buffer or bytearray(_READ_SIZE)

    def take_over(self, other: Wire) -> None:
        """Go on with the connection of another one, from which no reply is to come; harmless if that is not open."""
        self.close()
        if other.is_open:
            self._moves, self._socket, self._descriptor = other._moves, other._socket, other._descriptor
            self._is_plain, self._poll, self._limit = other._is_plain, other._poll, other._limit
            self._reader = other._reader
            self._buffer, other._buffer = other._buffer, self._buffer
            self._connection, other._connection = other._connection, None
            if self._socket is not None:
                self._set_timeout(self.timeout)
        other.close()

    def _wait_for_opening(self) -> None:
        opening = self._opening
        if opening is None:
            opening = self._opening = Opening(self.target)
            opening.start()
        patience = self.target.patience
        if self.deadline is not None:
            patience = max(0.0, min(patience, self.deadline - time.monotonic()))
        if not opening.over.wait(patience):
            raise opening.late(patience)
        if opening.error is not None:
            self._opening = None
            raise explain(opening.error, self.target.where) from opening.error
        self._connection, self._opening = opening.connection, None

    def send(self, parts: Sequence[Part]) -> None:
        """Send packed commands; the timeout bounds the silence, not the size."""
        try:
            if self._is_plain and len(parts) == 1:
                try:
                    sent = self._socket.send(parts[0], _AT_ONCE)  # a timeout is two calls of the system
                except BlockingIOError:
                    sent = 0
                if sent < len(parts[0]):
                    self._mind_deadline()
                    self._socket.sendall(memoryview(parts[0])[sent:])
            elif self._is_plain:
                self._mind_deadline()
                self._send_together(parts)
            elif self._socket is not None:
                self._send_by_pieces(parts)
            else:
                self._connection.send_packed_command(list(parts), check_health=False)
        except Exception as error:  # noqa: BLE001 the in-process server lets errors of all kinds through
            self._broken(error)
        except BaseException:
            self.close()  # half a command may be on its way: no reply can be trusted any more
            raise

    def send_now(self, packed: bytes) -> bool:
        """Send, if it can be done at once, and say whether it was; over a plain socket, on any thread."""
        try:
            return bool(self._socket.send(packed, _AT_ONCE) == len(packed))
        except AttributeError:
            return False  # the owner has closed it
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's
            return False  # the end of the connection, which the owner finds out

    def _send_together(self, parts: Sequence[Part]) -> None:
        for start in range(0, len(parts), _TOGETHER):
            some = parts[start : start + _TOGETHER]
            sent = self._socket.sendmsg(some)
            for part in some:
                if sent < len(part):
                    self._socket.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))

    def _send_by_pieces(self, parts: Sequence[Part]) -> None:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), _PIECE):
                self._mind_deadline()
                self._socket.sendall(view[start : start + _PIECE])

    def read(self) -> Any:
        """The next reply; an error reply is returned, not raised, for it belongs to its command."""
        try:
            if self._reader is None:
                return self._read_slowly()
            reply = self._parse() if self._reader.has_data() else NOTHING
            while reply is NOTHING:
                count = self._receive(self._buffer)
                if self._buffer[0] == _BULK and not self._is_inside:
                    value = self._read_large(count)
                    if value is not None:
                        return value
                reply = self._parse(count)
        except Exception as error:  # noqa: BLE001 the in-process server lets errors of all kinds through
            self._broken(error)
        except BaseException:
            self.close()
            raise
        return reply

    def read_now(self) -> Any:
        """The next reply if it is there already, an error reply returned as it is; else ``NOTHING``. Never blocks.

        Over a plain socket; an end of the connection is left for :meth:`read` to find.
        """
        try:
            count = self._socket.recv_into(self._buffer, 0, _AT_ONCE)
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's
            return NOTHING
        if not count:
            return NOTHING
        self._reader.feed(self._buffer, 0, count)
        reply = self._reader.gets(False)
        self._is_inside = reply is NOTHING
        return reply

    def _parse(self, count: int = 0) -> Any:
        if count:
            self._reader.feed(self._buffer, 0, count)
        reply = self._reader.gets(False)
        self._is_inside = reply is NOTHING
        return reply

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come; over a plain socket."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | _AT_ONCE)
        except BlockingIOError:
            return False
        except (OSError, AttributeError):
            return True

    def _receive(self, room: bytearray | memoryview, flags: int = 0) -> int:
        if self.deadline is not None and self._is_plain:
            self._await_news(self.deadline - time.monotonic())
            if flags:
                self._mind_deadline()
            else:
                flags = _AT_ONCE
        else:
            self._mind_deadline()
        count: int = self._socket.recv_into(room, 0, flags)
        if not count:
            raise driver.ConnectionError("the connection was closed")
        self.heard = time.monotonic()
        return count

    def _await_news(self, left: float) -> None:
        """Each signal that comes to this thread would begin the system's timeout anew, but not that of a poll."""
        limit = left if self.timeout is None else min(left, self.timeout)
        if limit <= 0 or not self._poll.poll(limit * 1000):
            raise driver.TimeoutError("timed out")

    def _read_large(self, count: int) -> memoryview | None:
        """The value of which the first ``count`` bytes are in the buffer, if that is but a part of one large value.

        It is received where it stays: by way of the parser it would be copied twice, at half the bandwidth.
        """
        start = self._buffer.find(b"\r\n", 0, min(count, 24)) + 2
        size = int(self._buffer[1 : start - 2]) if start > 2 else -1
        if start + size + 2 <= _READ_SIZE:
            return None
        value = make_room(size + 2)
        have = count - start
        value[:have] = memoryview(self._buffer)[start:count]
        flags = socket.MSG_WAITALL if self._is_plain else 0
        while have < len(value):
            have += self._receive(value[have:], flags)
        return value[:-2].toreadonly()

    def _mind_deadline(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise driver.TimeoutError("timed out")
            self._set_timeout(left if self.timeout is None else min(left, self.timeout))

    def _set_timeout(self, seconds: float | None) -> None:
        """A plain socket blocks, and the system watches the time: Python would ask it before each call with a poll."""
        if seconds == self._limit:
            return
        self._limit = seconds
        if not self._is_plain:
            self._socket.settimeout(seconds)
            return
        limit = struct.pack("ll", *divmod(0 if seconds is None else max(1, int(seconds * 1_000_000)), 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _read_slowly(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True)
        except driver.ResponseError as reply:
            return reply

    def call(self, *args: Arg) -> Any:
        """One command, one reply; raises what an error reply means."""
        self.send([pack(*args)])
        reply = self.read()
        return self.check(reply, " ".join(_shown(arg) for arg in args[:2]) if isinstance(reply, Exception) else "")

    def check(self, reply: Any, what: str = "") -> Any:
        """The reply, or what it means raised when it is an error; ``what`` was asked for."""
        if isinstance(reply, Exception):
            if isinstance(reply, driver.ReadOnlyError):
                self.target.moves += 1  # no primary any more: every wire looks for the new one
            raise self.explain(reply, what) from reply
        return reply

    def explain(self, reply: Exception, what: str = "") -> BusError:
        """What an error reply means."""
        return explain(reply, self.target.where, what)

    def script(self, name: str, keys: Sequence[Arg], args: Sequence[Arg]) -> Any:
        """Run a script by its digest, and by its text when the server has forgotten it."""
        script = load(name, self.target.in_process)
        tail = (len(keys), *keys, *args)
        self.send([pack(b"EVALSHA", script.sha, *tail)])
        reply = self.read()
        if isinstance(reply, driver.NoScriptError):
            self.send([pack(b"EVAL", script.text, *tail)])
            reply = self.read()
        if isinstance(reply, Exception):
            raise self.explain(reply, script.culprit(str(reply), keys)) from reply
        return reply

    def abort(self) -> None:
        """From another thread: end a read that blocks. The owner sees ``BusUnavailable`` and closes."""
        opening, begun, sock = self._opening, self._begun, self._socket
        if opening is not None:
            opening.abandon()
        if begun is not None:
            begun.abandon()
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    def close(self) -> None:
        """Close; harmless when closed."""
        opening, begun, self._opening, self._begun = self._opening, self._begun, None, None
        if opening is not None:
            opening.abandon()
        if begun is not None:
            begun.abandon()
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection, self._socket, self._reader = self._connection, None, None, None
        self._is_plain, self._is_inside, self._descriptor, self._limit = False, False, -1, -1.0
        if connection is not None:
            try:
                connection.disconnect()
            except ValueError:
                pass  # the in-process server is still inside a blocking call of this connection

    def _broken(self, error: Exception) -> None:
        self.close()
        if isinstance(error, BlockingIOError):
            error = driver.TimeoutError("timed out")
        raise explain(error, self.target.where) from error


def _shown(arg: Arg) -> str:
    return arg.decode(errors="replace") if isinstance(arg, bytes) else str(arg)
