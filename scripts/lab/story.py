"""What happens to the run, and what has to hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from network import Host, Network
from node import Container, Maker
from redis import Redis

from taskbus import Router
from taskbus.errors import WaitTimeout
from taskbus.testing import until
from taskbus.types import NodeInfo

__all__ = ["Broken", "Story"]

T = TypeVar("T")

_RUN, _SECOND_RUN = "first", "second"
_REDIS_AWAY = 3.0  # seconds, less than the lease of a node
_SOLVED_WITHIN = 45.0  # seconds; a machine that is slower is not wrong, so the run is then finished from a shell


class Broken(Exception):
    """Something did not hold; the message says what."""


class Story:
    """The acts, in order; each says what it does and how long it took, and raises ``Broken`` where it has to."""

    def __init__(self, network: Network, maker: Maker, url: str) -> None:
        self._network = network
        self._maker = maker
        self._url = url
        self._began = monotonic()
        self._onlooker = Router(url, run_id=_RUN, node_id="onlooker", labels="onlooker")
        self._containers: dict[str, Container] = {}
        self._left: list[str] = []
        self._ids: dict[str, str] = {}
        self._steps = 0
        self._evaluation: dict[str, object] = {}

    def tell(self) -> None:
        self._starts()
        with self._onlooker as router:
            router.on("taskbus.node_left", lambda **about: self._left.append(str(about.get("node"))))
            router.on("progress", self._heard_progress)
            router.on("evaluation", lambda **about: self._evaluation.update(about))
            self._scales_up()
            self._are_cut_off_and_killed()
            self._comes_back()
            self._is_replaced()
            self._loses_redis_for_a_while()
            self._scales_down()
            self._ends()
        self._is_over_for_those_who_come_late()
        self._runs_again()
        self._leaves_nothing_behind()

    # Acts ------------------------------------------------------------------------------------------------------------

    def _starts(self) -> None:
        self._say("the learner starts; the others wait for its health check, as in docker/compose.yml")
        host = self._start("learner", "learner")
        self._until(60.0, lambda: not self._maker.health(host, _RUN), "the learner is healthy")
        for name in ("collector-1", "collector-2"):
            self._start("collector", name)

    def _scales_up(self) -> None:
        self._all_here("learner", "collector-1", "collector-2")
        self._trains("two collectors")
        self._say("scaled up: collector-3 and collector-4 start on new hosts, while the others work")
        for name in ("collector-3", "collector-4"):
            self._start("collector", name)
        self._all_here("learner", "collector-1", "collector-2", "collector-3", "collector-4")

    def _are_cut_off_and_killed(self) -> None:
        away = {"collector-1", "collector-2", "collector-3"}
        ids = self._ids = {name: self._node(name).id for name in away}
        self._say("collector-1 and collector-3 are cut off (nothing is closed), collector-2's host loses its power")
        for name in ("collector-1", "collector-3"):
            self._host(name).unplug()
        self._host("collector-2").kill()
        self._check(self._containers["collector-2"].wait(5.0) == 137, "collector-2's process is gone, exit code 137")
        self._until(30.0, lambda: not away & self._names(), "all three left the registry")
        self._until(15.0, lambda: set(ids.values()) <= set(self._left), "taskbus.node_left named them")
        self._check(not self._containers["collector-1"].ended, "collector-1 still runs and tries to come back")
        why = self._maker.health(self._host("collector-1"), _RUN)
        self._check(bool(why), f"its health check sees that: {why}")
        self._trains("the collector that is left")

    def _comes_back(self) -> None:
        self._say("collector-1's network is back")
        self._host("collector-1").plug()
        self._until(30.0, lambda: "collector-1" in self._names(), "collector-1 is on the run again, by itself")
        step = self._node("collector-1").step
        same = self._node("collector-1").id == self._ids["collector-1"]
        self._check(same, f"as node {self._ids['collector-1']}, as before")
        self._until(60.0, lambda: self._node("collector-1").step > step, "it goes on with its steps")
        self._until(30.0, lambda: not self._maker.health(self._host("collector-1"), _RUN), "and is healthy")

    def _is_replaced(self) -> None:
        self._say("collector-2's host is back, its container starts again; collector-5 is new: they get free ids")
        for name in ("collector-2", "collector-5"):
            self._start("collector", name)
        self._all_here("collector-2", "collector-5")
        self._say("collector-3's network is back too")
        self._host("collector-3").plug()
        code = self._containers["collector-3"].wait(30.0)
        self._check(code == 1, f"its id is somebody else's now: it writes nothing more and ends, exit code {code}")
        self._say("restart: on-failure")
        self._start("collector", "collector-3")
        self._all_here("learner", *(f"collector-{number}" for number in range(1, 6)))

    def _loses_redis_for_a_while(self) -> None:
        lives = {node.producer for node in self._nodes()}
        self._say(f"the host of Redis is cut off for {_REDIS_AWAY:g} s")
        self._host("redis").unplug()
        threading.Event().wait(_REDIS_AWAY)
        self._host("redis").plug()
        self._trains("all of them")
        self._check({node.producer for node in self._nodes()} == lives, "every node kept its place, and none is new")

    def _scales_down(self) -> None:
        gone = ("collector-3", "collector-4", "collector-5")
        self._say(f"scaled down: SIGTERM for {', '.join(gone)}")
        for name in gone:
            code, seconds = self._containers[name].stop(self._node(name).pid, 15.0)
            self._check(code == 0, f"{name} ended its step and left within {seconds:.1f} s, exit code {code}")
        self._until(5.0, lambda: not self._names() & set(gone), "they are off the registry")
        self._check(self._onlooker.finished is None, "the run is not finished by that")
        self._trains("the collectors that stayed")

    def _ends(self) -> None:
        for node in self._nodes():
            self._check(node.missed == 0, f"{node.host} missed no event ({node.reconnects} reconnects)")
        self._say("an evaluator starts, which finishes the run when it is solved, and collector-1 is cut off again")
        self._start("evaluator", "evaluator")
        self._all_here("evaluator")  # before the id of collector-1 is free
        self._host("collector-1").unplug()
        try:
            self._until(_SOLVED_WITHIN, lambda: self._onlooker.finished, "the evaluator has finished the run")
        except Broken:
            self._say("  not solved in time on this machine: the run is finished from a shell instead")
            self._onlooker.finish("stopped")
        finish = self._onlooker.finished
        self._check(finish is not None, f"the onlooker hears it: {finish}")
        if self._evaluation:
            self._say(f"  the last evaluation: {self._evaluation}")
        for name in ("learner", "evaluator", "collector-2"):
            code = self._containers[name].wait(30.0)
            self._check(code == 0, f"{name} sees the finish and ends, exit code {code}")
        self._check(not self._containers["collector-1"].ended, "collector-1 has heard nothing of it yet")
        self._host("collector-1").plug()
        code = self._containers["collector-1"].wait(30.0)
        self._check(code == 0, f"its network is back: collector-1 sees the finish too, exit code {code}")

    def _is_over_for_those_who_come_late(self) -> None:
        self._say("a collector that starts after the end, as an engine would start it again")
        began = monotonic()
        late = self._start("collector", "late")
        code = self._containers[late.name].wait(30.0)
        self._check(code == 0, f"it ends before its first step, exit code {code}, after {monotonic() - began:.1f} s")

    def _runs_again(self) -> None:
        self._say(f"a second run, TASKBUS_RUN_ID={_SECOND_RUN}, on the same Redis and the same hosts")
        with Router(self._url, run_id=_SECOND_RUN, node_id="onlooker", labels="onlooker") as router:
            for service, name in (("learner", "learner"), ("collector", "collector-1")):
                self._start(service, name, _SECOND_RUN)
            self._until(60.0, lambda: len(router.nodes(["learner", "collector"])) == 2, "both nodes are on it")
            self._say("  and it is finished from a shell")
            router.finish("stopped")
            for name in ("learner", "collector-1"):
                code = self._containers[name].wait(30.0)
                self._check(code == 0, f"{name} ends, exit code {code}")

    def _leaves_nothing_behind(self) -> None:
        self._say("what is left in Redis")
        with Redis.from_url(self._url) as client:
            keys = [key.decode() for key in client.scan_iter("*", count=1000)]
            for_ever = [key for key in keys if client.ttl(key) == -1]
            self._check(not for_ever, f"{len(keys)} keys; without an expiry: {', '.join(for_ever) or 'none'}")
            for run in (_RUN, _SECOND_RUN):
                self._check(not client.exists(f"taskbus:{{{run}}}:nodes"), f"no node of run {run!r}")
                reason = (client.hget(f"taskbus:{{{run}}}:finish", "reason") or b"").decode()
                self._check(bool(reason), f"the finish of run {run!r} is kept: {reason}")

    # Words -----------------------------------------------------------------------------------------------------------

    def _start(self, service: str, name: str, run_id: str = _RUN) -> Host:
        host = self._network.hosts.get(name)
        if host is None or not host.is_up:
            host = self._network.host(name)
        self._containers[name] = self._maker.start(host, service, run_id)
        return host

    def _host(self, name: str) -> Host:
        return self._network.hosts[name]

    def _nodes(self) -> list[NodeInfo]:
        return self._onlooker.nodes(["learner", "evaluator", "collector"])

    def _names(self) -> set[str]:
        return {node.host for node in self._nodes()}

    def _node(self, name: str) -> NodeInfo:
        return next(node for node in self._nodes() if node.host == name)

    def _all_here(self, *names: str) -> None:
        self._until(60.0, lambda: set(names) <= self._names(), f"on the run: {', '.join(names)}")

    def _trains(self, who: str) -> None:
        before = self._steps
        self._until(60.0, lambda: self._steps > before, f"the training goes on with {who}")

    def _heard_progress(self, steps: int, **rest: object) -> None:
        self._steps = max(self._steps, steps)

    def _until(self, timeout: float, cond: Callable[[], T], what: str) -> T:
        began = monotonic()
        try:
            value = until(cond, timeout)
        except WaitTimeout:
            raise Broken(f"not within {timeout:g} s: {what}") from None
        self._say(f"  {what}, after {monotonic() - began:.1f} s")
        return value

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(f"does not hold: {what}")
        self._say(f"  {what}")

    def _say(self, text: str) -> None:
        print(f"{monotonic() - self._began:6.1f} s  {text}", flush=True)
