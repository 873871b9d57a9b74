"""What Redis tells a node of its own keys, and what it does without that."""

from __future__ import annotations

import threading
from typing import Any

from taskbus import Router
from taskbus.bus.keys import Keys
from taskbus.testing import RedisServer, until
from tests.faults.conftest import FAST, MakeNode
from tests.faults.node import LogLines

PAUSE = threading.Event()


def claims(client: Any, run_id: str, node: str) -> int:
    """How often a node has registered."""
    return sum(fields[b"k"] == b"claim" for _, fields in client.xrange(Keys(run_id).inbox(node)))


def test_a_node_with_labels_by_the_hundred_hears_transient_events(nodes: MakeNode) -> None:
    """It asks about each of them when it opens the connection."""
    a = nodes("a", **FAST)
    b = nodes("b", "numbers", labels={f"label{number}" for number in range(600)}, **FAST)
    until(lambda: a.emit(transient=True) and b.heard["numbers"], 5)


def test_a_label_that_it_is_taken_from_comes_back_at_once(
    redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    """Whichever it is of many, and again and again; by turns it would take a minute."""
    labels = [f"label{number}" for number in range(30)]
    nodes("b", "numbers", labels=set(labels), **FAST)
    with redis_server.client() as client:
        for label in labels[::7]:
            key = Keys(run_id).label(label)
            until(lambda key=key: client.sismember(key, "b"), 5)  # type: ignore[misc]
            client.srem(key, "b")
            until(lambda key=key: client.sismember(key, "b"), 6 * FAST["heartbeat"] + 2, label)  # type: ignore[misc]


def test_a_finish_is_no_reason_to_register_again(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    a, *others = (nodes(name, "numbers", **FAST) for name in "abcd")
    PAUSE.wait(4 * FAST["heartbeat"])
    a.router.finish("completed")
    until(lambda: all(node.router.finished for node in others), 3)
    PAUSE.wait(6 * FAST["heartbeat"])
    with redis_server.client() as client:
        assert [claims(client, run_id, node.name) for node in (a, *others)] == [1, 1, 1, 1]


def test_who_only_emits_needs_no_right_to_subscribe(
    redis_server: RedisServer, run_id: str, log_lines: LogLines
) -> None:
    """Its keys are looked after by turns then; once it listens, it is told what is missing, each time."""
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "node", "on", ">sesame", f"~taskbus:{{{run_id}}}:*", "+@all")
        settings: dict[str, Any] = dict(FAST)
        with Router(redis_server.url.replace("redis://", "redis://node:sesame@"), run_id=run_id, **settings) as router:
            for number in range(20):
                router.emit("numbers", number)
                router.sync()
                PAUSE.wait(0.15)
            assert not log_lines.texts("WARNING") + log_lines.texts("ERROR")
            for _ in range(2):
                try:
                    router.on("numbers", print)
                except Exception as error:  # noqa: BLE001
                    assert "NOPERM" in str(error)
                else:
                    raise AssertionError("it listens without the right to")
            for number in range(20):
                router.emit("numbers", number)
                PAUSE.wait(0.1)
            router.sync()
            client.execute_command("ACL", "SETUSER", "node", f"&taskbus:{{{run_id}}}:*")
            router.on("numbers", print)
