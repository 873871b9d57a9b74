"""``taskbus server``: a Redis in the foreground, for whoever has none, without root."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from pathlib import Path

from taskbus.bus.server import find_server
from taskbus.cli.common import Commands, add_command, clean
from taskbus.errors import BusUnavailable, ConfigError

__all__ = ["add_to"]

_HOST = "127.0.0.1"

_EXAMPLES = """\
  taskbus server                              # nothing is kept on disk: runs end with it
  taskbus server --dir ~/taskbus-data         # an append-only log: runs outlive a restart
  taskbus server --port 6400 &

Runs redis-server or valkey-server from the PATH, else the one of the extra 'embedded', for the processes of this
machine. The first line on stdout is for other shells; the server's own log goes to stderr. Ctrl-C and SIGTERM end it.
exit codes: 0 ended by a signal; 1 the port is in use; 2 DIR cannot be used, or there is no server to run."""


def add_to(commands: Commands) -> None:
    """The parser of the command."""
    parser = add_command(
        commands, "server", _server, "run a Redis in the foreground, for this machine", _EXAMPLES, of_bus=False
    )
    parser.add_argument("--port", type=int, default=6379, help="on 127.0.0.1 (default: 6379)")
    parser.add_argument("--dir", metavar="DIR", type=Path, help="keep everything there (default: keep nothing)")


def _server(options: argparse.Namespace) -> int:
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port must be 1 to 65535, not {options.port}")
    binary = find_server()
    kept, flags = "nothing is kept on disk", {"--appendonly": "no"}
    if options.dir is not None:
        directory = _make(options.dir)
        kept, flags = f"kept in {directory}", {"--appendonly": "yes", "--dir": directory}
    _check_free(options.port)
    flags |= {"--bind": _HOST, "--port": str(options.port), "--save": "", "--daemonize": "no", "--loglevel": "warning"}
    print(clean(f"export TASKBUS_URL=redis://{_HOST}:{options.port}/0  # {kept}; Ctrl-C ends it"), flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.execv(binary, [str(binary), *(word for flag in flags.items() for word in flag)])


def _make(directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"--dir {directory} cannot be used: {error.strerror}") from None
    return str(directory.resolve())


def _check_free(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise BusUnavailable(f"port {port} of {_HOST} {why}; give another one as --port") from None
