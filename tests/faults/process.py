"""The parent's end of a node in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from tests.faults.oracle import Heard, Ledger

__all__ = ["NodeProcess", "RemoteError"]

ROOT = Path(__file__).parents[2]


class RemoteError(Exception):
    """What a command raised in the node's process; ``kind`` is the name of its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class NodeProcess:
    """A node in a process of its own; it does not outlive the ``with`` block, whatever state it is in.

    ``prefix`` is a command that runs another one, as ``("ip", "netns", "exec", "b")``.
    """

    def __init__(
        self, url: str, run_id: str, name: str, directory: Path, prefix: Sequence[str] = (), **settings: Any
    ) -> None:
        self.name = name
        self._prefix = prefix
        self.log_file = directory / f"{name}-{id(self)}.log"
        self._given = ((url, run_id, name), settings)
        self._process: subprocess.Popen[str] | None = None
        self._waiting: dict[int, Future[Any]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "tests.faults.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        args, settings = self._given
        self.call("make", *args, **settings)
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def send(self, do: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have it done, without waiting; see :mod:`tests.faults.worker` for what can be asked for."""
        future: Future[Any] = Future()
        assert self._process is not None
        assert self._process.stdin is not None
        with self._lock:
            self._next += 1
            self._waiting[self._next] = future
            self._process.stdin.write(json.dumps({"id": self._next, "do": do, "args": args, "kwargs": kwargs}) + "\n")
            self._process.stdin.flush()
        return future

    def call(self, do: str, *args: Any, timeout_of_call: float = 30.0, **kwargs: Any) -> Any:
        """Have it done; raises ``RemoteError`` for what it raised there."""
        return self.send(do, *args, **kwargs).result(timeout_of_call)

    def ledger(self) -> Ledger:
        return Ledger.from_json(self.call("ledger"))

    def heard(self, event: str = "numbers") -> list[Heard]:
        return [(producer, number, body) for producer, number, body in self.call("heard").get(event, [])]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to its standard error."""
        return self.log_file.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout)

    def quit(self, timeout: float = 10.0) -> int:
        """Close its standard input, and return its exit code."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: it is gone when this returns; harmless when it is already."""
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait()
        self._reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # there was more to say to it

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            reply = json.loads(line)
            with self._lock:
                future = self._waiting.pop(reply["id"])
            if "error" in reply:
                future.set_exception(RemoteError(*reply["error"]))
            else:
                future.set_result(reply.get("value"))
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(RemoteError("Gone", f"the process of node {self.name!r} has ended"))
