"""How a node comes and goes: with which threads and connections, and what may come in between."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from taskbus import Router
from taskbus.bus.writer import Writer
from taskbus.errors import BusUnavailable, NotStarted
from taskbus.proxy import Proxy
from taskbus.testing import RedisServer, until
from taskbus.threads import Thread
from tests.faults.conftest import BUSY, scaled
from tests.faults.node import LogLines


def writers() -> int:
    return sum(thread.name == "taskbus-writer" for thread in threading.enumerate())


def test_who_only_listens_has_no_thread_that_writes(redis_server: RedisServer, run_id: str) -> None:
    """If Redis answers soon when it comes, and knows the script: that is what it asks of one of many."""
    Router(redis_server.url, run_id=run_id).start().stop()
    counts = []
    for _ in range(20):
        with Router(redis_server.url, run_id=run_id) as router:
            heard: list[Any] = []
            router.on("x", heard.append)
            counts.append(writers())
            router.emit("x", 1)
            until(lambda: writers() == 1)
            router.sync()
            until(lambda: heard == [1])  # noqa: B023 it is called here only
        until(lambda: not writers())
    assert 0 in counts


def test_the_first_events_of_many_threads_start_one(redis_server: RedisServer, run_id: str) -> None:
    many = 8
    heard: list[Any] = []
    listening = Router(redis_server.url, run_id=run_id).start()
    listening.on("x", heard.append)
    with listening, ThreadPoolExecutor(many) as pool:
        others = writers()
        for turn in range(scaled(20, 200)):
            gate = threading.Barrier(many)

            def emit(router: Router, number: int, gate: threading.Barrier = gate) -> None:
                gate.wait(10)
                router.emit("x", number)

            with Router(redis_server.url, run_id=run_id) as router:
                for sent in [pool.submit(emit, router, many * turn + n) for n in range(many)]:
                    sent.result(10)
                router.sync()
                until(lambda: writers() == others + 1)
        until(lambda: len(heard) == many * scaled(20, 200))
        assert sorted(heard) == list(range(len(heard)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_first_event_that_is_interrupted_holds_nothing_up(
    when: str, redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``when`` the thread was started, or not."""
    heard: list[Any] = []
    Router(redis_server.url, run_id=run_id).start().stop()
    with Router(redis_server.url, run_id=run_id) as b, quiet_node(redis_server.url, run_id) as a:
        b.on("x", heard.append)
        others = writers()
        start = Thread.start

        def interrupted(thread: Thread) -> None:
            if when == "after":
                start(thread)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                a.emit("x", 1)
        for number in (2, 3):
            a.emit("x", number)
        a.sync()
        until(lambda: writers() <= others + 1)
        until(lambda: heard == [2, 3])
    until(lambda: not writers())


def test_a_node_that_comes_and_goes_makes_two_connections(redis_server: RedisServer, run_id: str) -> None:
    with redis_server.client() as client:

        def connections() -> int:
            return int(client.info("stats")["total_connections_received"])

        counts = []
        for _ in range(10):
            before = connections()
            Router(redis_server.url, run_id=run_id).start().stop()
            counts.append(connections() - before)
        assert min(counts) == 2, counts  # one more where an answer was late
        assert client.xlen(f"taskbus:{{{run_id}}}:events:taskbus.node_left") == 10
        assert not client.exists(f"taskbus:{{{run_id}}}:nodes")


def test_nothing_is_said_of_attempts_that_were_made_before_redis_was_there(
    redis_server: RedisServer, run_id: str, log_lines: LogLines
) -> None:
    redis_server.kill()
    router = Router(redis_server.url, run_id=run_id, op_timeout=20.0)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(router.start)
        time.sleep(0.5)
        redis_server.start()
        started.result(20)
    with router, Router(redis_server.url, run_id=run_id) as other:
        heard: list[Any] = []
        router.on("x", heard.append)
        other.emit("x", 1)
        until(lambda: heard == [1])
    assert not log_lines.texts("WARNING") + log_lines.texts("ERROR")


def test_a_stop_does_not_wait_for_a_call_that_gets_no_answer(redis_server: RedisServer, run_id: str) -> None:
    router = Router(redis_server.url, run_id=run_id, heartbeat=60.0, lease=200.0).start()
    router.nodes()
    redis_server.freeze()
    try:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(router.nodes)
            time.sleep(0.2)  # until the call is under way
            began = time.monotonic()
            router.stop(timeout=0.5)
            assert time.monotonic() - began <= 0.6 + BUSY
            with pytest.raises(BusUnavailable):
                call.result(10)
    finally:
        redis_server.thaw()


INTERRUPTED = """
import gc, os, random, signal, sys, threading, time
from taskbus import Router

class Interrupt(Exception):
    pass

def interrupt(*about):
    raise Interrupt

def open_sockets():
    gc.collect()
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith(("socket:", "pipe:")) for link in links if os.path.islink(link))

url, run_id, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGALRM, interrupt)
Router(url, run_id=run_id).start().stop()  # imports, and the scripts are known
dice, interrupts, before = random.Random(7), 0, open_sockets()
for turn in range(times):
    router = Router(url, run_id=f"{run_id}-{turn}", lease=2.0, heartbeat=0.5)
    try:
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.003))
        router.start()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (Interrupt, RuntimeError):  # that of a lock of Python's own that was interrupted
        interrupts += 1
    router.stop()
ends = time.monotonic() + 5
while time.monotonic() < ends:
    left = [t.name for t in threading.enumerate() if t.is_alive() and t.name.startswith("taskbus-")]
    if not left and open_sockets() <= before:
        break
print(interrupts, left, open_sockets() - before)
"""


def test_a_start_that_is_interrupted_anywhere_leaves_nothing_behind(redis_server: RedisServer, run_id: str) -> None:
    arguments = (redis_server.url, run_id, str(scaled(200, 2000)))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    interrupts, _, left = done.stdout.partition(" ")
    assert int(interrupts) > 20
    assert left.strip() == "[] 0", done.stderr
    with redis_server.client() as client:
        until(lambda: not client.keys("*:node:0"), 4, "what was claimed and not known to be is given up with its lease")


def quiet_node(url: str, run_id: str, **settings: Any) -> Router:
    """A node that has no thread that writes: the answer to what it said as it came was there soon."""
    before = writers()
    for _ in range(50):
        router = Router(url, run_id=run_id, **settings).start()
        if writers() == before:
            return router
        router.stop()
    pytest.fail("no answer ever came soon")


def test_where_no_thread_can_be_started_any_more_a_node_leaves_all_the_same(
    redis_server: RedisServer, proxy: Proxy, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of an interpreter, from 3.12 on; over a network where answers take longer than an emit waits."""
    router = quiet_node(proxy.url, run_id)
    proxy.delay(0.02)

    def refused(thread: Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with redis_server.client() as client:
        left, said = (f"taskbus:{{{run_id}}}:events:{event}" for event in ("taskbus.node_left", "x"))
        before = client.xlen(left)
        monkeypatch.setattr(Thread, "start", refused)
        for number in range(3):
            router.emit("x", number)
            assert client.xlen(said) == number + 1
        client.script_flush()
        assert router.stop() == 0
        assert client.xlen(left) == before + 1
        assert not client.exists(f"taskbus:{{{run_id}}}:nodes")


@pytest.mark.parametrize("then", ["emits", "leaves"])
def test_who_only_listens_writes_although_its_connection_has_ended_meanwhile(
    then: str, redis_server: RedisServer, run_id: str, log_lines: LogLines
) -> None:
    """As a server does with ``timeout``, and proxies do: nobody has noticed, and nobody is told."""
    router = quiet_node(redis_server.url, run_id, heartbeat=60.0, lease=200.0)
    with redis_server.client() as client:
        mine = [c["id"] for c in client.client_list() if c["cmd"] == "evalsha"]
        assert len(mine) == 1
        client.client_kill_filter(_id=mine[0])
        until(lambda: router.life.writer._wire.has_ended)
        if then == "emits":
            router.emit("x", 1)
            router.sync()
        assert router.stop() == 0
    assert not log_lines.texts("WARNING") + log_lines.texts("ERROR")


def test_an_emit_that_a_restart_overtakes_leaves_the_router_alive(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_held, over = threading.Event(), threading.Event()
    start = Writer.start

    def held(writer: Writer) -> None:
        start(writer)
        if threading.current_thread() is not threading.main_thread() and not is_held.is_set():
            is_held.set()
            over.wait(10)

    with Router(redis_server.url, run_id=run_id) as router, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Writer, "start", held)
        emit = pool.submit(router.emit, "x", 1)
        assert is_held.wait(10)
        router.stop()
        router.start()
        over.set()
        with pytest.raises(NotStarted):
            emit.result(10)
        router.emit("x", 2)
        router.sync()


def test_a_first_event_waits_for_no_thread_that_looks_at_all_threads(redis_server: RedisServer, run_id: str) -> None:
    """That one holds a lock of Python's, and may emit by a ``__del__`` or a handler just then."""
    router = quiet_node(redis_server.url, run_id)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(10)  # its thread is there
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            first = pool.submit(router.emit, "x", 1)
            time.sleep(0.2)  # until it is about to start the thread
            assert router.life.writer.numbering.acquire(timeout=5)
            router.life.writer.numbering.release()
        first.result(10)
    router.sync()
    router.stop()


def test_a_start_is_tried_again_while_redis_takes_no_more_clients(redis_server: RedisServer, run_id: str) -> None:
    with redis_server.client() as client, ExitStack() as others:
        for _ in range(5):
            others.enter_context(redis_server.client()).ping()
        client.config_set("maxclients", 6)
        began = int(client.info("stats")["rejected_connections"])
        router = Router(redis_server.url, run_id=run_id, op_timeout=1.0, start_timeout=10.0)
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(router.start)
            time.sleep(2)
            assert not started.done()
            attempts = int(client.info("stats")["rejected_connections"]) - began
            client.config_set("maxclients", 1000)
            started.result(10)
        assert attempts <= 30
        router.stop()
