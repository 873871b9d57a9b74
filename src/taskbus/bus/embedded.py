"""The server that taskbus brings along when nobody gave a URL."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import quote

from taskbus.bus.server import ServerProcess, find_server
from taskbus.errors import ConfigError, NotStarted

__all__ = ["EmbeddedServer", "private_directory"]

_LOG = logging.getLogger(__name__)
_LONGEST_PATH = 100  # of a unix socket; the kernels' limits are 104 to 108 bytes
_SOCKET = "redis.sock"


def private_directory() -> Path:
    """A new directory that only this user can enter, short enough for the path of a socket in it."""
    bases = [os.path.abspath(tempfile.gettempdir()), "/tmp"]
    for base in bases:
        if len(os.fsencode(f"{base}/taskbus-12345678/{_SOCKET}")) < _LONGEST_PATH:
            return Path(tempfile.mkdtemp(prefix="taskbus-", dir=base))
    raise ConfigError(f"the temporary directory {bases[0]} is too long for a unix socket; set TMPDIR to a shorter one")


class EmbeddedServer:
    """A private Redis (or Valkey) on a unix socket: for the processes of one machine, as long as this process lives.

    It keeps nothing on disk. However this process ends, also by SIGKILL, the server ends with it and its directory is
    removed; Ctrl-C in the terminal does not reach it.

    Not for processes that were forked without exec: they hold the server alive for as long as they live themselves.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    def start(self, timeout: float = 10.0) -> Self:
        """Start it, if it does not run yet, and return when it answers.

        Raises:
            ConfigError: There is no server to start; says how to get one.
            BusUnavailable: It did not answer within ``timeout`` seconds, or ended; shows the end of its log.
        """
        if self._process is not None:
            return self
        binary = find_server()
        directory = private_directory()
        path = str(directory / _SOCKET)
        process = ServerProcess([str(binary), *_flags(directory, path)], directory, path)
        try:
            process.start(timeout)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._directory, self._process = directory, process
        _LOG.info("embedded server %s with pid %d on %s: nothing in it outlives this process", binary, self.pid, path)
        return self

    def stop(self) -> None:
        """End it and remove its directory; twice is harmless."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        if process is not None:
            process.stop()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._running.address))}"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> ServerProcess:
        if self._process is None:
            raise NotStarted("the embedded server is not running")
        return self._process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.url if self._process else 'stopped'}>"


def _flags(directory: Path, path: str) -> list[str]:
    flags = {
        "--dir": str(directory),
        "--port": "0",
        "--unixsocket": path,
        "--unixsocketperm": "700",
        "--save": "",
        "--appendonly": "no",
        "--hz": "100",  # blocking reads end on its tick; the default ends them up to 100 ms late
    }
    return [word for flag in flags.items() for word in flag]
