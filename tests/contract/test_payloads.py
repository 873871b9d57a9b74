"""Payloads between two processes over a real server: type for type; and what does not belong is skipped."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from taskbus import frame
from taskbus.bus.keys import Keys
from taskbus.codec import encode
from taskbus.router import Router
from taskbus.testing import until
from tests.contract.conftest import Collected, Join
from tests.unit.payload_values import ARRAYS, CONTAINERS, LIBRARY, NUMPY_SCALARS, REGISTERED, SCALARS
from tests.unit.payloads import Bomb, ran, same
from tests.unit.payloads import join as joined

VALUES = [*SCALARS, *LIBRARY, *CONTAINERS, *REGISTERED, *ARRAYS, *NUMPY_SCALARS]
LARGE = [np.arange(1 << 18, dtype="f4").reshape(512, 512), b"x" * (1 << 20), np.asfortranarray(np.ones((300, 200)))]

# Says whether a value is the one that its number stands for, and sends it back.
ECHO = """
import sys, threading
import tests.contract.test_payloads as payloads
from taskbus.router import Router
from tests.unit.payloads import same

left = threading.Event()
values = [*payloads.VALUES, *payloads.LARGE]
with Router(sys.argv[1], run_id=sys.argv[2], **payloads.settings(sys.argv[3])) as router:
    def echo(number, value, **kwargs):
        router.emit("back", number, value, right=same(value, values[number]), **kwargs)
    router.on("there", echo)
    router.on("leave", lambda: left.set())
    router.emit("ready")
    left.wait(60)
"""


def settings(secret: str) -> dict[str, Any]:
    return {"secret": secret} if secret else {}


@contextmanager
def echo(url: str, run_id: str, secret: str) -> Iterator[None]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    process = subprocess.Popen([sys.executable, "-c", ECHO, url, run_id, secret], env=env, cwd=root)
    try:
        yield
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("secret", ["", "a secret"], ids=["unsigned", "signed"])
def test_every_kind_of_value_arrives_in_another_process_as_it_was(real_redis_url: str, secret: str) -> None:
    run_id = uuid.uuid4().hex[:12]
    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    ready = threading.Event()

    def take(number: int, value: Any, **kwargs: Any) -> None:
        found[number] = value, kwargs

    values = [*VALUES, *LARGE]
    with Router(real_redis_url, run_id=run_id, **settings(secret)) as router:
        router.on("ready", ready.set)
        router.on("back", take)
        with echo(real_redis_url, run_id, secret):
            assert ready.wait(20)
            for number, value in enumerate(values):
                router.emit("there", number, value, key=value, nested=[(value,), {"k": {1: value}}])
            until(lambda: len(found) == len(values), 30)
            router.emit("leave")
            router.sync()
        assert [values[number] for number in found if not found[number][1]["right"]] == []
        for number, value in enumerate(values):
            back, kwargs = found[number]
            assert same((back, kwargs["key"], kwargs["nested"]), (value, value, [(value,), {"k": {1: value}}]))
        assert not router.stats().rejected


def misfits(scope: str) -> dict[str, bytes]:
    """A frame for every reason to skip it; the secret is ``right``."""
    text, buffers = joined(encode((1,), {}))
    whole = frame.pack("p", 1, 1, text, buffers, secret=b"right", scope=scope)
    bomb = pickle.dumps(Bomb())
    return {
        "foreign": bomb,
        "version": whole[:4] + b"\x63" + whole[5:],
        "truncated": whole[:-1],
        "malformed": whole + b"x",
        "checksum": whole[:-1] + b"x",
        "signature": frame.pack("p", 1, 1, text, buffers, secret=b"wrong", scope=scope),
        "oversized": whole + bytes(1 << 20),
        "unknown type": frame.pack("p", 2, 1, b'[[[["!x","Nobody",1]],{},0]]', secret=b"right", scope=scope),
        "pickle": frame.pack("p", 3, 1, b'[[[],{},1,"pickle"]]', [memoryview(bomb)], secret=b"right", scope=scope),
    }


def test_what_does_not_belong_is_counted_and_skipped(real_redis_url: str) -> None:
    run_id = uuid.uuid4().hex[:12]
    made: dict[str, Any] = {"run_id": run_id, "secret": "right", "max_payload": 1 << 15, "blob_threshold": 1 << 14}
    with Router(real_redis_url, **made) as a, Router(real_redis_url, **made) as b:
        got = Collected()
        b.on("number", got)
        a.emit("number", 1)
        until(lambda: got == [1])
        stream = Keys(run_id).events("number")
        wrong = misfits(stream.decode())
        with redis.Redis.from_url(real_redis_url) as client:
            for data in wrong.values():
                client.xadd(stream, {b"f": data})
            client.xadd(stream, {b"data": b"{}"})
        until(lambda: sum(b.stats().rejected.values()) == len(wrong) + 1)
        a.emit("number", 2)
        until(lambda: got == [1, 2])
        assert b.stats().rejected == {reason: 2 if reason == "foreign" else 1 for reason in wrong}
        assert ran == []


def test_an_event_that_cannot_travel_is_an_error_at_emit_and_the_next_one_goes_out(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    b.on("value", got)
    with pytest.raises(TypeError, match=r"kwargs\['batch'\]\[1\]: function is not encodable"):
        a.emit("value", batch=[1, lambda: None])
    a.emit("value", "next")
    until(lambda: got == ["next"])


def test_later_changes_change_nothing(join: Join) -> None:
    a, b = join(), join()
    got = Collected()
    b.on("value", got)
    array, table, data = np.zeros(1000), {"a": [1]}, bytearray(b"abc")
    a.emit("value", [array, table, data])
    array[:], table["a"][0], data[0] = 1, 2, 0
    until(lambda: len(got) == 1)
    assert same(got[0], [np.zeros(1000), {"a": [1]}, bytearray(b"abc")])
