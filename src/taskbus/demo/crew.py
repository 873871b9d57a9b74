"""The processes of the job, each started by ``taskbus run``, as it would be in a container, and watched from here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic

__all__ = ["Crew", "Member"]


class Member:
    """One process; ``on_end`` is called once, from a thread of its own, when it has ended."""

    def __init__(
        self,
        role: str,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        on_end: Callable[[Member], None],
    ) -> None:
        self.role = role
        self.name = name
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._on_end = on_end
        self._thread = threading.Thread(target=self._watch, name=f"taskbus-demo-{name}", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        self._process.wait()
        self._on_end(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    @property
    def is_well(self) -> bool:
        """Whether it ended without an error."""
        return self._process.returncode == 0

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "running"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def last_words(self) -> str:
        """The last line that it wrote, which says why it failed; empty if it wrote nothing."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def wait(self, deadline: float) -> bool:
        """Whether it ended before ``deadline`` (monotonic clock)."""
        self._thread.join(max(0.0, deadline - monotonic()))
        return not self._thread.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended:
            self._process.send_signal(number)


class Crew:
    """All the processes that the demo started, by name.

    Args:
        url: The bus that they join; told by their environment, for a command line shows its password to everybody.
        run_id: The run.
        logs: The directory for what each of them writes.
        on_end: Called for each that ended, from a thread of its own.
    """

    def __init__(self, url: str, run_id: str, logs: Path, on_end: Callable[[Member], None]) -> None:
        self._environment = {**os.environ, "TASKBUS_URL": url, "TASKBUS_RUN_ID": run_id}
        self._logs = logs
        self._on_end = on_end
        self.members: dict[str, Member] = {}

    def start(self, role: str, name: str, *arguments: str) -> None:
        """Start ``taskbus.demo.<role>`` as node ``name`` with its role as label, and arguments for ``main``."""
        command = [sys.executable, "-m", "taskbus", "run", f"taskbus.demo.{role}:main"]
        command += ["--labels", role, "--node-ids", name, "--", *arguments]
        self.members[name] = Member(role, name, command, self._environment, self._logs / f"{name}.log", self._on_end)

    def stop(self, timeout: float) -> None:
        """Wait until all have ended by themselves; those that take longer than ``timeout`` are asked, then made to."""
        for number, patience in ((None, timeout), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            deadline = monotonic() + patience
            for member in self.members.values():
                if number is not None:
                    member.send(number)
            if all(member.wait(deadline) for member in self.members.values()):
                return
