"""A node in a process of its own, driven over its standard input: one JSON object a line in, one a line out.

``{"id": 1, "do": "emit", "args": [], "kwargs": {}}`` calls a method of the :class:`~tests.faults.node.Node`, or with
``"do": "module:function"`` a function of a test module, with the node as its first argument. Commands run on threads of
their own, so that one that blocks does not keep the next one away; ``{"do": "quit"}`` ends the process.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from typing import Any

from tests.faults.node import LogLines, Node

__all__ = ["main"]


class Worker:
    """Answers the commands of one parent."""

    def __init__(self) -> None:
        self._out = threading.Lock()
        self.node: Node | None = None
        self.log = LogLines()

    def serve(self) -> int:
        with self.log:
            for line in sys.stdin:
                command = json.loads(line)
                if command["do"] == "quit":
                    break
                threading.Thread(target=self._answer, args=(command,), daemon=True).start()
        self._out.acquire()  # an interpreter that ends while a thread is in the midst of writing aborts
        return 0

    def _answer(self, command: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"id": command["id"]}
        try:
            reply["value"] = self._call(command["do"], command["args"], command["kwargs"])
        except BaseException as error:  # noqa: BLE001 whatever it is, the parent has to know
            reply["error"] = [type(error).__name__, str(error)]
        with self._out:
            sys.stdout.write(json.dumps(reply, default=repr) + "\n")
            sys.stdout.flush()

    def _call(self, do: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if do == "make":
            self.node = Node(*args, **kwargs)
            return None
        if do == "log":
            return self.log.lines
        assert self.node is not None, "make the node first"
        if ":" in do:
            module, _, name = do.partition(":")
            return getattr(importlib.import_module(module), name)(self.node, *args, **kwargs)
        if do == "start":
            self.node.start(*args, **kwargs)
            return self.node.router.node_id
        if do == "ledger":
            return self.node.ledger.as_json()
        if do in ("heard", "errors", "state_losses"):
            return getattr(self.node, do)
        if do == "stats":
            stats = self.node.router.stats()
            return {name: getattr(stats, name) for name in stats.__slots__}
        if do == "finished":
            info = self.node.router.finished
            return None if info is None else [info.node, info.reason, info.at]
        method = getattr(self.node, do, None) or getattr(self.node.router, do)
        return method(*args, **kwargs)


def main() -> int:
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    return Worker().serve()


if __name__ == "__main__":
    sys.exit(main())
