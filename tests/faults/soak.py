"""A seeded mix of faults for a given time, and what the oracle says of it.

Five nodes emit all the time, two of them in processes of their own and one that waits for events where the others
listen, while one fault after another is drawn from the seed: the same seed draws the same faults. All of them are of
the kind under which nothing acknowledged may be lost.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from taskbus.bus.keys import Keys
from taskbus.errors import WaitTimeout
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.node import EVENT, LogLines, Node, WaitingNode
from tests.faults.oracle import Ledger, Verdict, judge, table
from tests.faults.process import NodeProcess

__all__ = ["Soak", "main"]

_UNSAID = 1000  # events that a node may have emitted between its last word and its death


class Soak:
    """One run of it."""

    def __init__(self, seed: int, seconds: float, directory: Path) -> None:
        self._dice = random.Random(seed)
        self._seconds = seconds
        self._directory = directory
        self._run_id = f"soak-{uuid.uuid4().hex[:8]}"
        self._keys = Keys(self._run_id)
        self._pause = threading.Event()
        self._stack = ExitStack()
        self._nodes: list[Node] = []
        self._processes: list[NodeProcess] = []
        self._born = 0
        self._floors: dict[str, dict[str, int]] = {}
        self._stopped: dict[str, float] = {}  # the longest pause of each process, in seconds
        self._dead: list[Ledger] = []
        self.faults: Counter[str] = Counter()
        self.history: list[str] = []
        self.verdicts: dict[str, Verdict] = {}
        self.problems: list[str] = []
        self.counts: dict[str, int] = {}
        self.log = LogLines()

    def run(self) -> bool:
        """Whether everything held."""
        with self._stack, self.log:
            options = ("--appendfsync", "always")
            self._server = self._stack.enter_context(RedisServer(*options, appendonly=True))
            self._proxy = self._stack.enter_context(Proxy(("127.0.0.1", self._server.port)))
            for kind, name in ((WaitingNode, "w"), (Node, "a"), (Node, "b")):
                self._nodes.append(kind(self._proxy.url, self._run_id, name).start(EVENT))
            talking = [threading.Thread(target=node.chatter, daemon=True) for node in self._nodes]
            for thread in talking:  # when all of them listen
                thread.start()
            for _ in range(2):
                self._processes.append(self._make_process())
            self._hurt(time.monotonic() + self._seconds)
            self._quiet(talking)
            self._judge()
            for node in self._nodes:
                node.stop()
        return not self.problems and all(verdict.clean for verdict in self.verdicts.values())

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _make_process(self) -> NodeProcess:
        self._born += 1
        process = NodeProcess(self._proxy.url, self._run_id, f"p{self._born}", self._directory, start_timeout=60.0)
        self._stack.enter_context(process)
        process.call("start", EVENT, timeout_of_call=90)
        # What it may have missed, for it was emitted before it listened.
        self._floors[process.name] = {node.name: node.emitted() for node in self._nodes}
        self._floors[process.name] |= {other.name: other.call("emitted") for other in self._processes}
        process.send("chatter")
        return process

    # Faults ----------------------------------------------------------------------------------------------------------

    def _hurt(self, end: float) -> None:
        faults: list[tuple[str, Callable[[float], object]]] = [
            ("redis killed", self._kill_redis),
            ("redis frozen", self._freeze_redis),
            ("connections killed", self._kill_connections),
            ("reset", lambda length: self._proxy.reset()),
            ("black hole", lambda length: self._while(length, self._proxy.blackhole)),
            ("stall", lambda length: self._while(length, self._proxy.stall)),
            ("refused", self._refuse),
            ("slow", lambda length: self._while(length, lambda: self._proxy.delay(0.05, 0.03))),
            ("throttled", lambda length: self._while(length, lambda: self._proxy.throttle(30_000))),
            ("cut", lambda length: self._while(length, lambda: self._proxy.cut_after(int(2000 * length)))),
            ("replies dropped", lambda length: self._while(1.0, lambda: self._proxy.drop_reply(b"events:", 5))),
            ("memory full", self._fill),
            ("writes refused", self._refuse_writes),
            ("scripts forgotten", lambda length: self._with_client("SCRIPT", "FLUSH")),
            ("garbage", self._garbage),
            ("key deleted", self._delete_key),
            ("node paused", self._pause_node),
            ("node killed", self._kill_node),
        ]
        while time.monotonic() < end:
            name, hurt = self._dice.choice(faults)
            length, rest = self._dice.uniform(0.2, 3.0), self._dice.uniform(0.1, 1.5)
            self.faults[name] += 1
            self.history.append(f"{name} {length:.2f}")
            hurt(length)
            self._pause.wait(rest)

    def _while(self, length: float, begin: Callable[[], object]) -> None:
        begin()
        self._pause.wait(length)
        self._proxy.heal()

    def _with_client(self, *command: str | bytes | int) -> None:
        with self._server.client() as client:
            client.execute_command(*command)

    def _kill_redis(self, length: float) -> None:
        self._server.kill()
        self._pause.wait(length / 3)
        self._server.start()

    def _freeze_redis(self, length: float) -> None:
        self._server.freeze()
        self._pause.wait(length)
        self._server.thaw()

    def _refuse(self, length: float) -> None:
        self._proxy.refuse()
        self._proxy.reset()
        self._pause.wait(length)
        self._proxy.heal()

    def _kill_connections(self, length: float) -> None:
        with self._server.client() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    def _fill(self, length: float) -> None:
        self._with_client("CONFIG", "SET", "maxmemory", 1_000_000)
        self._pause.wait(length)
        self._with_client("CONFIG", "SET", "maxmemory", 0)

    def _refuse_writes(self, length: float) -> None:
        self._with_client("CONFIG", "SET", "min-replicas-to-write", 1)
        self._pause.wait(length)
        self._with_client("CONFIG", "SET", "min-replicas-to-write", 0)

    def _garbage(self, length: float) -> None:
        junk = self._dice.randbytes(int(length * 1000))
        self._with_client("XADD", self._keys.events(EVENT), "*", "f", junk)
        self._with_client("PUBLISH", self._keys.channel(EVENT), junk)

    def _delete_key(self, length: float) -> None:
        name = self._dice.choice("abw")
        ours = (self._keys.node(name), self._keys.inbox(name), self._keys.nodes, self._keys.streams)
        self._with_client("DEL", self._dice.choice(ours))

    def _pause_node(self, length: float) -> None:
        process = self._dice.choice(self._processes)
        process.freeze()
        began = time.monotonic()
        self._pause.wait(length)
        process.thaw()
        self._stopped[process.name] = max(self._stopped.get(process.name, 0.0), time.monotonic() - began)

    def _kill_node(self, length: float) -> None:
        """One is gone without a word, and another one joins."""
        process = self._processes.pop(self._dice.randrange(len(self._processes)))
        self._judge_process(process)
        book = process.ledger()
        process.kill()
        last = max((*book.acked, *book.unknown, *book.failed, 0))
        book.unknown |= set(range(last + 1, last + _UNSAID))
        self._dead.append(book)
        self._processes.append(self._make_process())

    # The end ---------------------------------------------------------------------------------------------------------

    def _quiet(self, talking: list[threading.Thread]) -> None:
        for node in self._nodes:
            node.hush()
        for process in self._processes:
            process.call("hush")
        for thread in talking:
            thread.join(15)
        synced = {node.name: node.sync(15) for node in self._nodes}
        synced |= {process.name: process.call("sync", 15) for process in self._processes}
        self.problems += [f"{name} cannot sync after all is healed" for name, done in synced.items() if not done]
        probe = "probe"
        for node in self._nodes:
            node.listen(probe)
        self._pause.wait(3.0)
        for process in self._processes:
            process.call("emit", probe)
        for node in self._nodes:
            try:
                until(lambda node=node: len(node.heard[probe]) == len(self._processes), 5)  # type: ignore[misc]
            except WaitTimeout:
                self.problems.append(f"{node.name} is deaf")

    def _books(self) -> list[Ledger]:
        return [*(node.ledger for node in self._nodes), *(process.ledger() for process in self._processes), *self._dead]

    def _judge_process(self, process: NodeProcess) -> None:
        """One that is about to be killed need not have heard the latest: only what it heard is held against it."""
        heard = process.heard()
        numbers: dict[str, set[int]] = {}
        for producer, number, _ in heard:
            numbers.setdefault(producer, set()).add(number)
        books = [Ledger(producer, unknown=known) for producer, known in numbers.items()]
        self.verdicts[f"{process.name} (killed)"] = judge(books, heard)

    def _judge(self) -> None:
        books = self._books()
        for node in self._nodes:
            self.verdicts[node.name] = judge(books, node.heard[EVENT])
        for process in self._processes:
            floors = self._floors[process.name]
            seen = []
            for book in books:
                floor = floors.get(book.producer, _UNSAID * 100 if book in self._dead else 0)
                early = {number for number in book.acked if number <= floor}
                seen.append(Ledger(book.producer, book.acked - early, book.unknown | early, book.failed))
            self.verdicts[process.name] = judge(seen, process.heard())
        for book in books:  # a stopped process ends no call
            if book.longest > 6.5 + (stopped := self._stopped.get(book.producer, 0.0)):
                self.problems.append(
                    f"a call of {book.producer} took {book.longest:.1f} s, {stopped:.1f} s of it stopped"
                )
        self._count(books, max(book.longest for book in books))

    def _count(self, books: list[Ledger], longest: float) -> None:
        stats = [node.router.stats() for node in self._nodes]
        self.counts = {
            "acknowledged": sum(len(book.acked) for book in books),
            "failed": sum(len(book.failed) for book in books),
            "reconnects": sum(one.reconnects for one in stats),
            "suppressed": sum(one.suppressed for one in stats),
            "rejected": sum(sum(one.rejected.values()) for one in stats),
            "missed": sum(one.missed for one in stats),
            "lost": sum(one.lost for one in stats),
            "state losses": sum(one.state_losses for one in stats),
            "log lines": len(self.log.lines),
            "longest call in ms": int(1000 * longest),
        }
        for name in ("missed", "lost", "state losses"):
            if self.counts[name]:
                self.problems.append(f"{name}: {self.counts[name]}")
        self.problems += [text for text in self.log.texts("ERROR") if "unforeseen" in text]

    def report(self) -> str:
        """What happened, as text."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        problems = "\n".join(f"PROBLEM: {problem}" for problem in self.problems)
        return "\n".join(filter(None, (table(self.verdicts), f"faults: {faults}", counts, problems)))


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to hurt (default: five minutes)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    args = parser.parse_args(given)
    print(f"seed {args.seed}, {args.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(args.seed, args.seconds, Path(directory))
        held = soak.run()
        print(soak.report())
        if not held:
            for verdict in soak.verdicts.values():
                print(verdict)
            print("\n".join(text for _, _, text in soak.log.lines[-200:]))
    print("all held" if held else f"NOT held; replay: scripts/soak --seed {args.seed} --seconds {args.seconds:g}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
