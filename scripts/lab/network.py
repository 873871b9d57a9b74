"""Hosts with addresses of their own on one bridge: network namespaces inside the one that we were started in."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

__all__ = ["Host", "Network"]

_PREFIX = "10.77.0"
_BRIDGE = "bridge0"


class Network:
    """A bridge that this process is on too, as ``.254``, and the hosts on it."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        for command in (
            "link set lo up",
            f"link add {_BRIDGE} type bridge",
            f"link set {_BRIDGE} up",
            f"address add {_PREFIX}.254/24 dev {_BRIDGE}",
        ):
            _ip(command)

    def host(self, name: str) -> Host:
        """Switch on a host; one of the same name that was switched off comes back with its old address."""
        old = self.hosts.get(name)
        host = self.hosts[name] = Host(name, old.number if old else len(self.hosts) + 1)
        return host


class Host:
    """A host on the network: its name, its address, and a cable that can be pulled.

    The namespaces live as long as a process in them does, which is a shell that waits for the end of its input.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.address = f"{_PREFIX}.{number}"
        self._cable = f"cable{number}"
        script = 'hostname "$1" && ip link set lo up && echo up && read -r _'
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", script, "host", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"up\n":
            raise RuntimeError(f"host {name} did not come up")
        _ip(f"link add {self._cable} type veth peer name eth0 netns {self._keeper.pid}")
        self._inside(f"address add {self.address}/24 dev eth0")
        self._inside("link set eth0 up")
        _ip(f"link set {self._cable} up")
        self.plug()

    @property
    def is_up(self) -> bool:
        return self._keeper.poll() is None

    def command(self, *words: str) -> list[str]:
        """What runs ``words`` on this host; the process that is started becomes it."""
        return ["nsenter", "--target", str(self._keeper.pid), "--net", "--uts", "--", *words]

    def plug(self) -> None:
        """Connect it with the bridge."""
        _ip(f"link set {self._cable} master {_BRIDGE}")

    def unplug(self) -> None:
        """Cut it off, silently: the link stays up, packets vanish, and no connection is closed or reset."""
        _ip(f"link set {self._cable} nomaster")

    def kill(self) -> None:
        """The power fails: cut off, and every process on it gone at once."""
        self.unplug()
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        self._keeper.wait()
        _ip(f"link delete {self._cable}")

    def _pids(self) -> list[int]:
        """All processes on this host, those of containers too."""
        here = os.readlink(f"/proc/{self._keeper.pid}/ns/net")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/net") == here:
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def _inside(self, command: str) -> None:
        subprocess.run(self.command("ip", *command.split()), check=True)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)
