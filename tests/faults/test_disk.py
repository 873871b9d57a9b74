"""The disk of Redis is full."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskbus.bus.server import find_server
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, FAST, MakeNode, nobody_is_deaf, scaled
from tests.faults.test_redis_away import PAUSE, seconds

_ON_A_SMALL_DISK = """#!/bin/sh
exec unshare --mount sh -ec 'mount -t tmpfs -o size=16m none "$0"; exec "$@"' "{disk}" "{server}" "$@"
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(disk)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    return disk


@pytest.fixture
def redis_server(disk: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server whose log is on a disk of 16 MB, that nobody else sees."""
    binary = tmp_path / "redis-server"
    binary.write_text(_ON_A_SMALL_DISK.format(disk=disk, server=find_server()), encoding="utf-8")
    binary.chmod(0o755)
    with RedisServer("--dir", str(disk), "--appendfsync", "everysec", appendonly=True, binary=binary) as server:
        yield server


def test_p1_33_the_disk_of_the_append_only_file_is_full(
    redis_server: RedisServer, disk: Path, nodes: MakeNode, run_id: str
) -> None:
    """Writes are refused and reported for as long as it is, and go on by themselves."""
    a, b = nodes("a", "numbers", **FAST), nodes("b", "numbers", **FAST)
    a.pour(50)
    threads = {thread.name for thread in threading.enumerate()}
    junk = Path(f"/proc/{redis_server.pid}/root{disk}/junk")
    with junk.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))

    def is_refused() -> bool:
        for _ in range(50):
            a.emit(pad="x" * 200)
        return not a.sync(1) and "MISCONF" in a.errors[-1]

    until(is_refused, 10)
    PAUSE.wait(scaled(2, 10))
    junk.unlink()
    assert seconds(lambda: until(lambda: a.sync(1), 5)) <= 3 + BUSY
    assert threads <= {thread.name for thread in threading.enumerate()}
    a.pour(50)
    until(lambda: len(b.heard["numbers"]) == len(a.ledger.acked), 5)
    nobody_is_deaf([a, b])
