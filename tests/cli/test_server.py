"""``taskbus server``: a Redis in the foreground."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskbus.bus.server import find_server
from taskbus.cli import main
from taskbus.errors import ConfigError
from tests.cli.conftest import Shell


@pytest.fixture
def shell() -> Iterator[Shell]:
    """One that knows no Redis but the one that the test starts."""
    try:
        find_server()
    except ConfigError as error:
        pytest.skip(str(error))
    shell = Shell("")
    yield shell
    shell.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def serve(shell: Shell, port: int, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start it, and return it with its first line once it answers."""
    process = shell.start("server", "--port", str(port), *arguments)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"export TASKBUS_URL=(\S+)  # ", line)
    assert found is not None, process.communicate()
    shell.url = found[1]
    shell.ok("run", "tests.cli.jobs:say")  # which is patient: the server may not listen yet
    return process, line


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_server_serves_until_a_signal_and_keeps_nothing(shell: Shell, tmp_path: Path) -> None:
    port = free_port()
    process, line = serve(shell, port)
    assert line == f"export TASKBUS_URL=redis://127.0.0.1:{port}/0  # nothing is kept on disk; Ctrl-C ends it\n"
    shell.ok("emit", "x", "[1]")
    assert json.loads(shell.ok("wait", "x", "--since", "start", "--timeout", "10"))["args"] == [1]
    second = shell.run("server", "--port", str(port))
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == f"taskbus server: port {port} of 127.0.0.1 is in use; give another one as --port\n"
    end(process, signal.SIGINT)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_with_a_directory_keeps_its_runs(shell: Shell, tmp_path: Path) -> None:
    directory, port = tmp_path / "a" / "b", free_port()
    process, line = serve(shell, port, "--dir", str(directory))
    assert f"# kept in {directory}; Ctrl-C ends it" in line
    shell.ok("emit", "x", "[1]")
    end(process, signal.SIGTERM)
    process, _ = serve(shell, port, "--dir", str(directory))
    assert json.loads(shell.ok("wait", "x", "--since", "start", "--timeout", "10"))["args"] == [1]
    end(process, signal.SIGTERM)


def test_what_no_server_can_use_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["server", "--dir", str(file)]) == 2
    assert main(["server", "--port", "0"]) == 2
    monkeypatch.setattr("taskbus.bus.server._candidates", lambda: iter(()))
    assert main(["server"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"taskbus server: --dir {file} cannot be used: File exists"
    assert "1 to 65535" in said[1] and "install" in said[2] and len(said) == 3
