"""A key of ours that holds a value of another type: whoever needs it names it, and whoever only sits there does too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.errors import BusDenied
from taskbus.testing import RedisServer, until
from tests.faults.conftest import BUSY, FAST, FULL
from tests.faults.node import LogLines, Node, Steps
from tests.faults.test_redis_away import PAUSE, seconds

TYPES: dict[str, Callable[[Any, Any], object]] = {
    "string": lambda client, key: client.set(key, "x"),
    "list": lambda client, key: client.rpush(key, "x"),
    "hash": lambda client, key: client.hset(key, "x", "y"),
    "set": lambda client, key: client.sadd(key, "x"),
    "zset": lambda client, key: client.zadd(key, {"x": 1}),
    "stream": lambda client, key: client.xadd(key, {"x": "y"}),
}


def replace(client: Any, key: bytes, kind: str) -> None:
    """At one stroke, for the node writes anew what it finds missing."""
    with client.pipeline() as at_once:
        at_once.delete(key)
        TYPES[kind](at_once, key)
        at_once.expire(key, 600)
        at_once.execute()


OURS: dict[str, tuple[str, Callable[[Keys, str], bytes]]] = {
    "nodes": ("set", lambda keys, producer: keys.nodes),
    "labels": ("set", lambda keys, producer: keys.labels),
    "label": ("set", lambda keys, producer: keys.label("red")),
    "epoch": ("string", lambda keys, producer: keys.epoch),
    "finish": ("hash", lambda keys, producer: keys.finish),
    "node": ("hash", lambda keys, producer: keys.node("a")),
    "owner": ("string", lambda keys, producer: keys.owner("a")),
    "inbox": ("stream", lambda keys, producer: keys.inbox("a")),
    "streams": ("hash", lambda keys, producer: keys.streams),
    "producer": ("hash", lambda keys, producer: keys.producer(producer)),
    "events": ("stream", lambda keys, producer: keys.events("numbers")),
}


@pytest.mark.parametrize("which", OURS)
def test_p0_40_a_key_of_ours_has_the_wrong_type(which: str, redis_server: RedisServer, log_lines: LogLines) -> None:
    """At start it is refused and named; in mid-run it is named, nothing crashes or hangs, and ``stop`` works."""
    right, choose = OURS[which]
    wrong = [kind for kind in TYPES if kind != right]
    dice = random.Random(which)
    for number, kind in enumerate(wrong if FULL else dice.sample(wrong, 2)):
        client = redis_server.client()
        run = f"{which}{number}"
        keys = Keys(run)
        settings: dict[str, Any] = {"labels": {"red"}, **FAST, "heartbeat": 0.05, "stop_timeout": 1.0}
        if which not in ("streams", "producer", "events"):
            key = choose(keys, "")
            replace(client, key, kind)
            router = Router(redis_server.url, run_id=run, node_id="a", **settings)
            with pytest.raises(BusDenied, match=key.decode().replace("{", r"\{")):
                router.start()
            client.delete(key)
        a, b = Node(redis_server.url, run, "a", **settings), Node(redis_server.url, run, "b", **settings)
        a.start("numbers")
        b.start("numbers", "other")
        a.pour(5)
        key = choose(keys, a.router.life.producer)
        log_lines.lines.clear()
        replace(client, key, kind)
        a.emit()
        name = key.decode()
        until(lambda name=name: any(name in text for text in log_lines.texts()), 6, f"{name} is named")  # type: ignore[misc]
        until(lambda a=a, name=name: not a.sync(1) and name in a.errors[-1], 6, "the caller is told")  # type: ignore[misc]
        if which == "events":
            for count in range(1, 4):
                PAUSE.wait(0.6)  # in the end it is another read than that which was blocked when the key changed
                a.sync(1)  # each report of it is raised once
                a.router.emit("other", "a", count, count)
                until(lambda b=b, count=count: len(b.heard["other"]) == count, 2, "other streams are read on")  # type: ignore[misc]
        assert not [text for text in log_lines.texts() if "unforeseen" in text]
        for node in (a, b):
            assert seconds(node.stop) <= 1.5 + BUSY
        client.delete(key)
        for left in client.scan_iter(f"taskbus:{{{run}}}:*"):
            assert client.ttl(left) > 0, left
        client.close()


AT_ONCE = 4
"""Beats of the heart within which it is named, 6 s by default."""

BY_TURNS = 18
"""The same for what an idle node looks at by turns, where Redis does not tell it: every fourth beat one of four."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("life", ["idle", "at work", "idle and not told"])
def test_p0_40_a_node_that_asks_for_nothing_names_it_too(
    life: str, redis_server: RedisServer, log_lines: LogLines
) -> None:
    """Nobody emits, nobody asks; each run has one key of the wrong type, and a node that takes steps or only lives."""
    at_once = OURS if life != "idle and not told" else ("node", "inbox", "events")
    bounds = {which: AT_ONCE if which in at_once else BY_TURNS for which in OURS}
    for which in ("streams", "producer"):
        del bounds[which]  # an idle node has no use for them: they are named when it emits
    cases = [(which, kind) for which in bounds for kind in TYPES if kind != OURS[which][0]]
    if not FULL:
        cases = list({*random.sample(cases, 12), ("node", "string"), ("label", "hash"), ("finish", "set")})
    pace: dict[str, Any] = {} if FULL else FAST
    url = redis_server.url
    if life == "idle and not told":
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "node", "on", ">sesame", "~*", "&*", "+@all", "-client|tracking")
        url = url.replace("redis://", "redis://node:sesame@")
    made = [Node(url, f"{which}-{kind}", "a", labels={"red"}, **pace) for which, kind in cases]
    with ExitStack() as stack:
        for node, (which, _) in zip(made, cases, strict=True):
            stack.callback(node.stop)
            if which == "events" or random.random() < 0.5:
                node.start("numbers")
                node.pour(1)
            else:
                node.router.start()  # it does not even listen
        if life != "at work":
            for node in made[::2]:
                node.router.on("taskbus.node_failed", lambda node, reason: None)  # which has them watch the others, too
        if life == "at work":
            stack.enter_context(Steps(*made))
        PAUSE.wait(4 * FAST["heartbeat"])
        replaced: dict[str, float] = {}
        with redis_server.client() as client:
            for node, (which, kind) in zip(made, cases, strict=True):
                key = OURS[which][1](Keys(node.router.config.run_id), node.router.life.producer)
                replace(client, key, kind)
                replaced[f"key {key.decode()} holds a {kind}"] = time.monotonic()

        def named() -> dict[str, float]:
            found: dict[str, float] = {}
            for at, _, text in list(log_lines.lines):
                for words in replaced:
                    if words in text:
                        found.setdefault(words, at - replaced[words])
            return found

        beat = made[0].router.config.heartbeat
        until(lambda: len(named()) == len(cases), BY_TURNS * beat + BUSY + 2, "all are named")
        late = [
            (words, after)
            for (which, _), (words, after) in zip(cases, ((words, named()[words]) for words in replaced), strict=True)
            if after > bounds[which] * beat + BUSY
        ]
        assert not late
        assert not [text for text in log_lines.texts() if "unforeseen" in text]


def test_p0_40_a_node_whose_inbox_has_the_wrong_type_hears_what_it_subscribes_to(
    redis_server: RedisServer, run_id: str
) -> None:
    """To take in another stream it has to be woken, by its inbox, or else by a new connection."""
    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        got: list[int] = []
        with redis_server.client() as client:
            replace(client, a.life.reader.inbox, "string")
            a.on("x", got.append)
            b.emit("x", 1)
            until(lambda: got == [1], 4)
            client.delete(a.life.reader.inbox)
