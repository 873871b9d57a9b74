"""A shell for the tests: the command line as processes of their own, on a run of the test's own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbus.router import Router

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs ``taskbus`` with the URL and the run of one test in its environment."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.run_id = f"cli-{uuid.uuid4().hex[:8]}"
        self._started: list[subprocess.Popen[str]] = []
        self._routers: list[Router] = []

    def environment(self, **more: str) -> dict[str, str]:
        known = {"TASKBUS_URL": self.url, "TASKBUS_RUN_ID": self.run_id, "PYTHONUNBUFFERED": "1", **more}
        return {name: value for name, value in {**os.environ, **known}.items() if value}

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "taskbus", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
            env=self.environment(**(env or {})),
            check=False,
        )

    def ok(self, *arguments: str) -> str:
        """Run a command that has to succeed; returns its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str, env: dict[str, str] | None = None, **settings: Any) -> subprocess.Popen[str]:
        """Start a command; it is ended with the test."""
        process = subprocess.Popen(
            [sys.executable, "-m", "taskbus", *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **settings},
            text=True,
            cwd=ROOT,
            env=self.environment(**(env or {})),
        )
        self._started.append(process)
        return process

    def node(self, **settings: Any) -> Router:
        """A node of the run, in the test's process."""
        router = Router(self.url, run_id=self.run_id, **{"heartbeat": 0.2, "block": 0.5, **settings}).start()
        self._routers.append(router)
        return router

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def keys(self) -> set[bytes]:
        with self.client() as client:
            return set(client.scan_iter(f"taskbus:{{{self.run_id}}}:*"))

    def nodes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok("nodes", "--json").splitlines()]

    def close(self) -> None:
        for router in self._routers:
            router.stop()
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a command changes in this process, where a test calls it here."""
    logger, last = logging.getLogger("taskbus"), logging.lastResort
    level, formatter = logger.level, None if last is None else last.formatter
    yield
    logger.setLevel(level)
    if last is not None:
        last.setFormatter(formatter)


@pytest.fixture
def shell(real_redis_url: str) -> Iterator[Shell]:
    shell = Shell(real_redis_url)
    yield shell
    shell.close()
