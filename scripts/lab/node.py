"""What an engine does with a container: it runs a command on a host, stops it with SIGTERM and sees its exit code."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

from network import Host

__all__ = ["Container", "Maker", "compose_command"]

_COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yml"


def compose_command(service: str) -> list[str]:
    """The command that docker/compose.yml gives the containers of a service."""
    found = re.search(rf"^  {service}:\n(?:    .*\n)*?    command: (taskbus .*)$", _COMPOSE.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"docker/compose.yml has no service {service} with a command of taskbus")
    return shlex.split(found[1])


class Maker:
    """Starts containers, of ``image``, or without one with the packages of this Python."""

    def __init__(self, url: str, logs: Path, image: str | None) -> None:
        self.url = url
        self._logs = logs
        self._image = image
        self._containers: dict[str, str] = {}
        self.started: list[Container] = []

    def start(self, host: Host, service: str, run_id: str) -> Container:
        """Start a container of a service of the compose file; its output goes to a file named after the host."""
        if self._image is not None and host.name not in self._containers:
            self._containers[host.name] = _make_container(self._image)
        words, environment = self._words(host, command := compose_command(service), run_id)
        with (self._logs / f"{host.name}.log").open("ab") as out:
            out.write(f"$ {shlex.join(command)}\n".encode())
            out.flush()
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.started.append(Container(process))
        return self.started[-1]

    def health(self, host: Host, run_id: str) -> str:
        """The word of the containers' health check on that host: empty when healthy, else why it is not."""
        words, environment = self._words(host, ["taskbus", "check"], run_id)
        check = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=20)
        return "" if check.returncode == 0 else check.stderr.partition("\n")[0] or f"exit code {check.returncode}"

    def _words(self, host: Host, command: list[str], run_id: str) -> tuple[list[str], dict[str, str]]:
        """What runs ``command`` in a container on ``host``, and its environment."""
        settings = {"TASKBUS_URL": self.url, "TASKBUS_RUN_ID": run_id, "PYTHONUNBUFFERED": "1"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        inside = command
        if self._image is not None:
            inside = ["buildah", "run", "--isolation", "chroot", "--hostname", host.name]
            for name, value in settings.items():
                inside += ["--env", f"{name}={value}"]
            inside += [self._containers[host.name], "--", *command]
        return host.command(*inside), {**os.environ, **settings, "PATH": path}

    def close(self) -> None:
        """End whatever still runs, and remove what was made."""
        for container in self.started:
            container.kill()
        if self._containers:
            subprocess.run(["buildah", "rm", *self._containers.values()], check=False, stdout=subprocess.DEVNULL)


def _make_container(image: str) -> str:
    made = subprocess.run(["buildah", "from", "--pull-never", image], check=True, stdout=subprocess.PIPE, text=True)
    return made.stdout.strip()


class Container:
    """A command that runs on a host."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, timeout: float) -> int | None:
        """Its exit code, as an engine shows it (137: SIGKILL); ``None`` if it still runs after ``timeout`` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def stop(self, pid: int, timeout: float) -> tuple[int | None, float]:
        """SIGTERM for the node with that pid; returns the exit code and how many seconds it took."""
        began = monotonic()
        os.kill(pid, signal.SIGTERM)
        return self.wait(timeout), monotonic() - began

    def kill(self) -> None:
        if not self.ended:
            self._process.kill()
            self._process.wait()
