"""What tests of programs on taskbus need: waiting for a condition, nodes and real servers that can be hurt."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis

from taskbus.bus.embedded import private_directory
from taskbus.bus.server import ServerProcess, find_server, server_version
from taskbus.errors import BusUnavailable, ConfigError, NotStarted
from taskbus.linked import Emitted, LinkedNode, LinkedNodes
from taskbus.until import until

__all__ = ["Emitted", "LinkedNode", "LinkedNodes", "RedisServer", "until"]

_SERVER = "TASKBUS_TEST_REDIS_SERVER"
_PORTS_TO_TRY = 5


class RedisServer:
    """A real server of a test's own, on a free port of 127.0.0.1 or on a unix socket; its address never changes.

    The binary is that of ``TASKBUS_TEST_REDIS_SERVER``, else the one that an embedded server would use.

    Args:
        config: More arguments for the server, as ``"--maxmemory", "5mb"``.
        unix: Listen on a unix socket instead of a port.
        appendonly: Keep every write on disk, so that it survives :meth:`kill`.
        binary: Another server binary.
    """

    def __init__(self, *config: str, unix: bool = False, appendonly: bool = False, binary: Path | None = None) -> None:
        self._config = config
        self._unix = unix
        self._appendonly = appendonly
        self._binary = binary
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    def start(self, timeout: float = 10.0) -> Self:
        """Start it, also again after :meth:`kill`, with what is on disk; return when it answers."""
        if self._process is not None:
            if not self._process.alive:
                self._process.stop()
                self._process.start(timeout)
            return self
        binary = self._binary or _binary()
        self._directory = private_directory()
        try:
            for attempt in range(_PORTS_TO_TRY):
                self._process = self._prepare(binary, self._directory)
                try:
                    self._process.start(timeout)
                    break
                except BusUnavailable as error:
                    if self._unix or "in use" not in str(error) or attempt == _PORTS_TO_TRY - 1:
                        raise
        except BaseException:
            self.stop()
            raise
        return self

    def _prepare(self, binary: Path, directory: Path) -> ServerProcess:
        address: str | tuple[str, int]
        if self._unix:
            address = str(directory / "redis.sock")
            where = ["--port", "0", "--unixsocket", address]
        else:
            address = ("127.0.0.1", _free_port())
            where = ["--port", str(address[1]), "--bind", "127.0.0.1"]
        keep = ["--save", "", "--appendonly", "yes" if self._appendonly else "no"]
        debug = ["--enable-debug-command", "local"] if (server_version(binary) or (0, 0)) >= (7, 0) else []
        return ServerProcess(
            [str(binary), "--dir", str(directory), *where, *keep, *debug, *self._config], directory, address
        )

    @property
    def url(self) -> str:
        address = self._running.address
        return f"unix://{quote(address)}" if isinstance(address, str) else f"redis://{address[0]}:{address[1]}/0"

    @property
    def port(self) -> int:
        """Its port; 0 with a unix socket."""
        address = self._running.address
        return 0 if isinstance(address, str) else address[1]

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists; a frozen one does."""
        return self._process is not None and self._process.alive

    @property
    def log(self) -> str:
        """The end of the server's log."""
        return self._running.tail(100)

    def client(self) -> redis.Redis:
        """A plain client, for looking at keys and for ``CLIENT KILL``, ``CONFIG SET`` and the like."""
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        """SIGKILL: it is gone when this returns, with everything that ``appendonly`` does not keep."""
        self._running.send_signal(signal.SIGKILL)
        self._running.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and new ones are still accepted, but nothing answers."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def restart(self, *, empty: bool = False, timeout: float = 10.0) -> None:
        """End it and start it again on the same address: with all its data, or ``empty``."""
        directory = self._directory
        if directory is None:
            raise NotStarted("the server is not running")
        dump = directory / "dump.rdb"
        if empty:
            self.kill()
            shutil.rmtree(directory / "appendonlydir", ignore_errors=True)
            (directory / "appendonly.aof").unlink(missing_ok=True)
        else:
            self.thaw()
            with self.client() as client:
                client.shutdown(save=True)
            self._running.wait(timeout)
        self.start(timeout)
        dump.unlink(missing_ok=True)  # a later kill() must not bring back what was saved now

    def stop(self) -> None:
        """End it and remove all it wrote; twice is harmless."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        if process is not None:
            process.stop()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def _running(self) -> ServerProcess:
        if self._process is None:
            raise NotStarted("the server is not running")
        return self._process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<RedisServer {self.url if self._process else 'stopped'}>"


def _binary() -> Path:
    chosen = os.environ.get(_SERVER)
    if not chosen:
        return find_server()
    path = shutil.which(chosen)
    if path is None:
        raise ConfigError(f"{_SERVER}={chosen} is no program")
    return Path(path).absolute()


def _free_port() -> int:
    # Below the ports that kernels hand out to clients: a client that keeps trying a dead port among those may one day
    # be given that very port as its own, and be connected to itself.
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
