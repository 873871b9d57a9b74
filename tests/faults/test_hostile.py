"""Data that nobody should have written: garbage, wrong types, pickles, giants; and rights that are missing."""

from __future__ import annotations

import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import taskbus
from taskbus import Router, Task, codec, frame
from taskbus.bus.keys import Keys
from taskbus.errors import BusDenied, BusError, EncodeError, WaitTimeout
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from tests.faults.conftest import FAST, MakeNode, nobody_is_deaf, scaled
from tests.faults.node import LogLines
from tests.faults.oracle import judge
from tests.faults.test_redis_away import PAUSE


def test_p0_37_a_slow_reader_behind_the_trimming(
    redis_server: RedisServer, proxy: Proxy, nodes: MakeNode, run_id: str, log_lines: LogLines
) -> None:
    """What was trimmed before it was read is an exact number, said once; then the reader goes on."""
    a = nodes("a", retention_events=1000)
    b = nodes("b", "numbers", url=proxy.url)
    missed = 0
    for _ in range(scaled(4, 20)):
        until(lambda: proxy.find(b"XREAD") is not None)
        reader = proxy.find(b"XREAD")
        proxy.blackhole(connection=reader)
        a.pour(5000, each=500)
        proxy.heal()
        last = max(a.ledger.acked)
        until(lambda last=last: b.heard["numbers"] and b.heard["numbers"][-1][1] == last, 5)  # type: ignore[misc]
        said = [text for text in log_lines.texts("ERROR") if "trimmed before" in text]
        truly = len(a.ledger.acked) - len(b.heard["numbers"])
        assert b.router.stats().missed == truly
        assert truly > missed
        missed = truly
        a.emit()
        assert a.sync()
    assert len(said) == scaled(4, 20)
    verdict = judge([a.ledger], b.heard["numbers"])
    assert not (verdict.repeated or verdict.ghosts or verdict.disorder)
    assert not b.state_losses


class Token:
    def __init__(self, number: int, content: str = "") -> None:
        self.number = number
        self.content = content


def garbage(dice: random.Random) -> Iterator[bytes]:
    """Bodies that are no frame of ours, without end."""
    good = frame.pack("p", 1, 1, b'[[["x",1,1]]]')
    while True:
        yield b""
        yield dice.randbytes(dice.randrange(1, 300))
        yield b'{"event": "numbers", "args": [1, 2, 3]}'
        yield good[: dice.randrange(1, len(good) - 1)]
        yield good[:4] + bytes([99]) + good[5:]  # a version to come
        yield good[:-1] + bytes([good[-1] ^ 1])
        yield good + b"more"
        yield pickle.dumps({"a": 1})
        yield b"\xff\xfe" * 50


def test_p0_38_foreign_garbage_in_our_stream(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Each piece is counted and passed over; what is ours arrives, and the reader never starts anew."""
    a, b = nodes("a", "numbers"), nodes("b", "numbers")
    dice, key = random.Random(38), Keys(run_id).events("numbers")
    bodies = garbage(dice)
    injected = scaled(300, 1000)
    with redis_server.client() as client:
        for number in range(injected):
            fields: dict[Any, Any] = {b"f": next(bodies)}
            if number % 5 == 1:
                fields = {b"other": b"x", b"f": b"y"}
            elif number % 50 == 2:
                fields = {f"field{n}".encode(): b"" for n in range(2000)}
            elif number % 5 == 3:
                fields = {b"\xff\x00\xfe": next(bodies)}
            elif number % 5 == 4:
                fields = {b"f": next(bodies) or b"-", b"\xfe": b""}
            client.xadd(key, fields)
            if number % 10 == 0:
                a.emit()
                a.sync()
    for node in (a, b):
        until(lambda node=node: sum(node.router.stats().rejected.values()) == injected, 5)  # type: ignore[misc]
    until(lambda: len(b.heard["numbers"]) == len(a.ledger.acked), 5)
    assert judge([a.ledger], b.heard["numbers"]).clean
    nobody_is_deaf([a, b])
    for node in (a, b):
        assert node.router.stats().reconnects == 0
        assert not node.state_losses
        assert node.router.stats().missed == 0


@pytest.mark.parametrize("what", ["a copy", "damaged"])
def test_p0_38_a_forged_entry_in_the_place_of_the_next_one(
    what: str, redis_server: RedisServer, nodes: MakeNode, run_id: str
) -> None:
    """It takes up no number: nothing is missing, and nobody believes that Redis has lost anything."""
    a, b = nodes("a"), nodes("b", "numbers")
    key = Keys(run_id).events("numbers")
    a.emit()
    a.sync()
    with redis_server.client() as client:
        [(entry, fields)] = client.xrange(key)
        ms, _, ordinal = entry.partition(b"-")
        forged = fields[b"f"]
        if what == "damaged":
            forged = frame.pack("somebody", 1, 1, b'[{"a":1}]')[:-1] + b"?"
        client.xadd(key, {b"f": forged}, id=b"%b-%d" % (ms, int(ordinal) + 1))
    a.pour(5)
    until(lambda: len(b.heard["numbers"]) == 6)
    stats = b.router.stats()
    assert (stats.repeated, dict(stats.rejected)) == ((1, {}) if what == "a copy" else (0, {"checksum": 1}))
    assert stats.missed == 0 and not b.state_losses and not a.router.stats().state_losses


def test_p0_38_a_part_of_an_entry_that_cannot_be_read(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Found out as it is handed over: each part is counted, and the rest of the entry arrives."""
    node, key = nodes("b", "numbers"), Keys(run_id).events("numbers")
    texts = [b'["a",%d,%d]' % (number, number) for number in range(1, 301)]
    texts[100:102] = [b'{"a":', b"]]"]  # spoils the second piece: 65 to 128
    texts[299] = b'{"a":1},{"a":1}'  # the last piece has one more than it should, from 257 on
    text = b"[" + b"".join(b"[%b]" % t + (b"," if n % 64 else b"\n,") for n, t in enumerate(texts, 1))[:-1] + b"]"
    with redis_server.client() as client:
        client.xadd(key, {b"f": frame.pack("somebody", 1, 300, text)}, id=f"{int(time.time() * 1000)}-1")
        client.expire(key, 600)
    good = [("a", number, number) for number in (*range(1, 65), *range(129, 257))]
    until(lambda: len(node.heard["numbers"]) == len(good))
    assert node.heard["numbers"] == good
    assert dict(node.router.stats().rejected) == {"malformed": 2}
    nobody_is_deaf([node])


@pytest.mark.parametrize("count", [60, 100])
def test_a_reader_of_a_registered_type_is_called_once_for_each_value_however_many_gather(
    count: int, redis_server: RedisServer, nodes: MakeNode
) -> None:
    """And for all listeners and waits: it may use up what it is given a name of."""
    a, b = nodes("a"), nodes("b")
    store = dict.fromkeys(range(count), "content")
    taskbus.register_type(Token, lambda token: token.number, lambda number: Token(number, store.pop(number)), "token")
    heard: list[list[int]] = [[], [], []]
    for each in heard[:2]:
        b.router.on("tokens", lambda token, each=each: each.append(token.number))
    b.router.once("tokens", lambda token: heard[2].append(token.number))
    with Task().start(router=b.router) as task:
        task.wait_for("tokens", timeout=0, since="last")
        redis_server.freeze()  # so that they leave together
        for number in range(count):
            a.router.emit("tokens", Token(number))
        redis_server.thaw()
        waited = [task.wait_for("tokens", 5, since="last") for _ in range(count)]
        assert [event[0][0].number for event in waited if event] == list(range(count))
        until(lambda: [len(each) for each in heard] == [count, count, 1])
        assert b.router.stats().rejected == {}
        task.request_leave()


def test_an_interrupt_while_an_entry_of_many_events_is_decoded_loses_none_of_them(
    redis_server: RedisServer, nodes: MakeNode
) -> None:
    """It is decoded on the thread of the wait, before anything notes it as read: the next wait reads it again."""
    a, b = nodes("a"), nodes("b")
    interrupted: list[int] = []
    found: list[int] = []

    def decode(number: int) -> Token:
        if number % 200 == 90 and not interrupted and threading.current_thread() is threading.main_thread():
            interrupted.append(number)
            raise KeyboardInterrupt
        return Token(number)

    taskbus.register_type(Token, lambda token: token.number, decode, "token")
    with Task().start(router=b.router) as task:
        task.wait_for("tokens", timeout=0, since="last")

        def emit(first: int) -> None:
            PAUSE.wait(0.5)  # until the wait is there
            redis_server.freeze()  # so that they leave together
            for number in range(first, first + 200):
                a.router.emit("tokens", Token(number))
            redis_server.thaw()

        def take(until_there_are: int) -> None:
            while len(found) < until_there_are and (event := task.wait_for("tokens", 10, since="last")) is not None:
                found.append(event[0][0].number)

        told = False
        for first in range(0, 2000, 200):  # the first time will do, but where that wait has not got the turn to read
            with ThreadPoolExecutor() as pool:
                emitting = pool.submit(emit, first)
                for _ in range(2):
                    try:
                        take(first + 200)
                    except KeyboardInterrupt:
                        told = True
                emitting.result()
            assert found == list(range(first + 200))
            if told:
                break
        assert told
        task.request_leave()


def test_p0_39_foreign_garbage_on_our_channel(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """The same over pub/sub, with pieces of 10 MB; transient events between them arrive."""
    a, b = nodes("a"), nodes("b", "numbers")
    bodies, channel = garbage(random.Random(39)), Keys(run_id).channel("numbers")
    injected = scaled(300, 1000)
    heard: list[int] = []
    b.router.on("light", heard.append)
    b.router.on("numbers", lambda *args: heard.append(args[1]))
    with redis_server.client() as client:
        for number in range(injected):
            body = next(bodies)
            client.publish(channel, body if number % 100 else dice_bytes(10_000_000))
            if number % 100 == 0:
                until(lambda number=number: sum(b.router.stats().rejected.values()) == number + 1, 10)  # type: ignore[misc]
            if number % 10 == 0:
                a.router.emit("numbers", "a", number, number, transient=True)
    until(lambda: sum(b.router.stats().rejected.values()) == injected, 5)
    until(lambda: heard == list(range(0, injected, 10)), 5)
    assert b.router.stats().gaps == 0
    assert b.router.stats().reconnects == 0
    nobody_is_deaf([a, b])


def dice_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(1000) * (size // 1000)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_p0_41_a_pickle_bomb(redis_server: RedisServer, nodes: MakeNode, run_id: str, tmp_path: Path) -> None:
    """Pickles in every place of a frame, tagged as such or not: none is ever loaded, each is counted."""
    canary = tmp_path / "canary"
    text, buffers = codec.encode_pickle((Bomb(canary),), {})
    raw = bytes(buffers[0])
    assert pickle.loads(raw.replace(str(canary).encode(), str(canary).encode())) is not None
    canary.rmdir()
    secret = b"the secret of somebody else"
    bodies = [
        raw,
        frame.pack("p", 1, 1, b"[" + text + b"]", buffers),
        frame.pack("p", 1, 1, b"[" + text + b"]", buffers, secret=secret),
        frame.pack("p", 1, 1, b'[[["x"],{},1,"pickle"]]', buffers),
        frame.pack("p", 1, 1, b'[[[{"!pickle":0}],{},1]]', buffers),
        frame.pack("p", 1, 1, b'[[["x"],{},1,"torch"]]', buffers),
        frame.pack("p", 1, 1, raw, ()),
        frame.pack("p", 1, 1, b"[" + raw + b"]", buffers),
    ]
    a = nodes("a", "numbers")
    injected = 100
    with redis_server.client() as client:
        beside, chunks = frame.pack_blob("p", 1, b"[" + text + b"]", buffers, blob="bomb")
        client.set(Keys(run_id).blob("bomb"), b"".join(bytes(chunk) for chunk in chunks), ex=60)
        bodies.append(beside)
        for number in range(injected):
            body = bodies[number // 2 % len(bodies)]
            if number % 2 and body is not beside:
                client.publish(Keys(run_id).channel("numbers"), body)
            else:
                client.xadd(Keys(run_id).events("numbers"), {b"f": body})
        client.expire(Keys(run_id).events("numbers"), 60)
        client.xadd(Keys(run_id).inbox("a"), {b"k": raw, b"token": raw})
    until(lambda: sum(a.router.stats().rejected.values()) == injected, 5, "all are counted")
    assert not canary.exists()
    assert not a.heard["numbers"]
    nobody_is_deaf([a])


def test_p0_42_bad_values_at_emit(nodes: MakeNode) -> None:
    """Each value arrives as it was, or the emit raises and sends nothing: none is changed silently."""
    a, b = nodes("a"), nodes("b")
    got: list[Any] = []
    b.router.on("value", got.append)
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    fair: Any = 1
    for _ in range(60):
        fair = [fair]
    values: list[Any] = [
        float("inf"),
        {"a": [float("-inf"), (1, 2)]},
        2**64,
        -(2**63) - 1,
        "\ud800",
        {b"key": 1},
        {1: "a", "1": "b"},
        {1, 2},
        frozenset("ab"),
        cycle,
        deep,
        fair,
        object(),
        type("Text", (str,), {})("sub"),
        b"\x00\xff",
        10**400,
        {"": None, "\0": True},
        lambda: None,
        (1, (2, [3, {4: 5}])),
        1e-320,
    ]
    raised = 0
    for value in values:
        got.clear()
        try:
            a.router.emit("value", value)
        except EncodeError:
            raised += 1
            continue
        a.router.sync()
        until(lambda: got, 3)
        assert type(got[0]) is type(value)
        assert got == [value]
    assert raised == 6  # the surrogate, the cycle, the depth, the object, the subclass, the function
    got.clear()
    a.router.emit("value", float("nan"))
    until(lambda: got and got[0] != got[0], 3)


def test_p0_44_giant_payloads(redis_server: RedisServer, nodes: MakeNode, run_id: str) -> None:
    """Too large is refused before anything is sent; what is within the limit arrives, and no heartbeat starves."""
    a, b = nodes("a", **FAST), nodes("b", **FAST)
    got: list[Any] = []
    b.router.on("large", got.append)
    b.router.on("light", got.append)
    gone: list[Any] = []
    b.router.on("taskbus.node_left", lambda node, reason: gone.append(node))
    giant = bytes(600 << 20)
    began = time.monotonic()
    with pytest.raises(EncodeError, match="max_payload"):
        a.router.emit("large", giant)
    assert time.monotonic() - began <= 0.5
    with pytest.raises(EncodeError, match="transient"):
        a.router.emit("light", giant[: 40 << 20], transient=True)
    del giant
    for size in (1 << 20, 8 << 20, 64 << 20):
        data = dice_bytes(size)
        began = time.monotonic()
        a.router.emit("large", data)
        until(lambda: got, 30, f"{size} bytes arrive")
        assert size > 8 << 20 or time.monotonic() - began <= 5
        assert got.pop() == data
        assert a.router.stats().heartbeat_age < 2.0
        assert b.router.stats().heartbeat_age < 2.0
    a.router.emit("light", dice_bytes(1 << 20), transient=True)
    until(lambda: got, 5)
    assert not gone
    assert b.router.stats().gaps == 0


RIGHTS = [
    *("hello", "auth", "ping", "select", "eval", "evalsha", "wait", "time", "type", "exists", "get", "set", "del"),
    *("mget", "unlink", "pexpire", "pttl", "hget", "hset", "hsetnx", "hmget", "hgetall", "hdel", "sadd", "srem"),
    *("sismember", "smembers", "sdiff", "xadd", "xread", "xrange", "xrevrange", "xtrim", "xinfo", "lindex", "lpop"),
    *("rpush", "publish", "subscribe", "client|tracking"),
]
NOT_NEEDED = {"hello", "client|tracking", "ping", "select", "wait", "auth", "hdel", "xrevrange"}


def scenario(url: str, run: str) -> None:
    """One of everything, which raises the first thing that stands in the way."""
    settings: dict[str, Any] = {**FAST, "heartbeat": 0.05, "retention_events": 8, "stop_timeout": 1.0}
    got: list[object] = []
    with Router(url, run_id=run, node_id="a", labels={"red"}, **settings) as a:
        a.on("numbers", got.append, since="start")
        for number in range(40):
            a.emit("numbers", number)
            a.sync(2)
        a.on("large", got.append, since="start")
        for _ in range(20):
            a.emit("large", bytes(300_000))
        a.emit("other", 1)
        a.sync(2)
        a.on("other", print)
        a.emit("light", 1, transient=True)
        a.sync(2)
        until(lambda: got and got[-1] == bytes(300_000), 2)
        a.nodes()
        a.barrier("here", 1, 1)
        PAUSE.wait(0.6)  # some ten heartbeats
        a.sync(2)
        a.finish("done")


def test_p0_46_rights_one_by_one(redis_server: RedisServer, log_lines: LogLines) -> None:
    """A user limited to the run's keys and channels works; each right that is missing is named."""
    with redis_server.client() as client:
        for number, missing in enumerate(["", *RIGHTS]):
            run = f"rights{number}"
            client.script_flush()
            client.acl_setuser("node", enabled=True, reset=True, passwords=["+sesame"])
            allowed = [f"+{command}" for command in RIGHTS if command != missing]
            client.execute_command("ACL", "SETUSER", "node", f"~taskbus:{{{run}}}:*", f"&taskbus:{{{run}}}:*", *allowed)
            log_lines.lines.clear()
            said: list[str] = []
            try:
                scenario(f"redis://node:sesame@127.0.0.1:{redis_server.port}/0", run)
            except (BusError, WaitTimeout) as error:
                said = [str(error)]
            said += log_lines.texts()
            assert not any("sesame" in text for text in said)
            assert not any("unforeseen" in text for text in said), said
            if missing and missing not in NOT_NEEDED:
                named = [text for text in said if missing in text.lower() and "taskbus:{" in text]
                assert named, f"{missing} is not named: {said}"
            else:
                words = [text for text in said if "trimmed" not in text and "is gone" not in text]
                assert not words, f"without {missing or 'nothing'}: {said}"
            client.acl_deluser("node")


@pytest.mark.parametrize("who", ["wrong password", "no password", "unknown user"])
def test_p0_46_login(who: str, redis_server: RedisServer, run_id: str, log_lines: LogLines) -> None:
    """Refused at once, with two attempts at most, and without the password in any word of ours."""
    given = {"wrong password": ":swordfish@", "no password": "", "unknown user": "nobody:swordfish@"}[who]
    with redis_server.client() as client:
        client.config_set("requirepass", "sesame")
        client.auth("sesame")
        client.acl_log_reset()
        router = Router(f"redis://{given}127.0.0.1:{redis_server.port}/0", run_id=run_id)
        began = time.monotonic()
        with pytest.raises(BusDenied) as caught:
            router.start()
        assert time.monotonic() - began <= 2.0
        words = [str(caught.value), repr(caught.value), repr(router), repr(router.config), *log_lines.texts()]
        assert not any("swordfish" in word or "sesame" in word for word in words)
        attempts = sum(int(entry["count"]) for entry in client.acl_log() if entry["reason"] == "auth")
        assert attempts <= 2
        client.config_set("requirepass", "")
    router.stop()


def test_p0_46_a_channel_that_is_forbidden(redis_server: RedisServer, run_id: str, log_lines: LogLines) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "node", "on", ">sesame", "allkeys", "allcommands", "resetchannels")
        client.execute_command("ACL", "SETUSER", "node", f"&taskbus:{{{run_id}}}:node:*")
        router = Router(f"redis://node:sesame@127.0.0.1:{redis_server.port}/0", run_id=run_id)
        router.start()
        began = time.monotonic()
        with pytest.raises(BusDenied, match="transient:numbers"):
            router.on("numbers", print)
        assert time.monotonic() - began <= 2.0
        router.emit("other", 1)
        router.sync()
        router.emit("other", 1, transient=True)
        with pytest.raises(BusDenied, match="transient:other"):
            until(lambda: router.sync(1), 2)
        router.stop()
        assert not any("sesame" in text for text in log_lines.texts())
