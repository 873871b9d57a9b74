"""What scripts/hosts runs, inside namespaces of its own: the network, a Redis, and the story."""

from __future__ import annotations

import argparse
import faulthandler
import secrets
import sys
import tempfile
from pathlib import Path

from network import Host, Network
from node import Maker
from story import Broken, Story

from taskbus.bus.server import ServerProcess, find_server
from taskbus.errors import TaskbusError

_PORT = 6379
_LAST_RESORT = 240.0  # seconds; whatever hangs, it ends


def main() -> int:
    options = _options()
    faulthandler.dump_traceback_later(_LAST_RESORT, exit=True)
    with tempfile.TemporaryDirectory(prefix="taskbus-hosts-") as directory:
        logs = options.logs or Path(directory)
        logs.mkdir(parents=True, exist_ok=True)
        network = Network()
        password = secrets.token_hex(8)
        redis_host = network.host("redis")
        server = _start_redis(redis_host, password, Path(directory))
        print(f"Redis, with a password and an append-only log, on host redis ({redis_host.address})", flush=True)
        maker = Maker(f"redis://:{password}@{redis_host.address}:{_PORT}/0", logs, options.image)
        try:
            Story(network, maker, maker.url).tell()
        except (Broken, TaskbusError) as error:
            _show(logs)
            print(f"scripts/hosts: {error}", file=sys.stderr)
            return 1
        finally:
            maker.close()
            server.stop()
    print("all of it held")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/hosts", description="A run on several hosts, on one machine.")
    parser.add_argument("--image", nargs="?", const="taskbus", help="run the nodes from this image (default: taskbus)")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep what the nodes write")
    return parser.parse_args()


def _start_redis(host: Host, password: str, directory: Path) -> ServerProcess:
    """As in docker/compose.yml, with the server that there is here."""
    settings = ["--requirepass", password, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
    command = [str(find_server()), "--bind", host.address, "--port", str(_PORT), "--dir", str(directory), *settings]
    return ServerProcess(host.command(*command), directory, (host.address, _PORT)).start()


def _show(logs: Path) -> None:
    for log in sorted(logs.glob("*.log")):
        print(f"--- {log.name}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))


if __name__ == "__main__":
    sys.exit(main())
