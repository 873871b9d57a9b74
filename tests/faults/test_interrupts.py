"""Signal handlers that raise, at any moment: what they interrupt is over, and the node goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from taskbus import Router, Task
from taskbus.bus.turn import GRACE
from taskbus.errors import BusUnavailable, ConfigError
from taskbus.testing import RedisServer, until
from tests.faults.conftest import scaled


class Interrupt(Exception):
    """As a handler of SIGALRM raises that bounds some work."""


class Trap:
    """A signal handler that raises once each time that it is armed."""

    armed = False
    raises: type[BaseException] = Interrupt

    def __call__(self, *_: Any) -> None:
        if self.armed:
            self.armed = False
            raise self.raises


@contextmanager
def trapping(number: signal.Signals) -> Iterator[Trap]:
    trap = Trap()
    before = signal.signal(number, trap)
    try:
        yield trap
    finally:
        signal.signal(number, before)


@contextmanager
def interrupting(after: Callable[[], float]) -> Iterator[Callable[[Callable[[], object]], None]]:
    """What is given to the function runs until a signal handler raises, ``after()`` seconds later."""
    main = threading.get_ident()
    with trapping(signal.SIGUSR1) as trap:

        def interrupt(work: Callable[[], object]) -> None:
            with suppress(Interrupt):
                trap.armed = True
                timer = threading.Timer(after(), signal.pthread_kill, (main, signal.SIGUSR1))
                timer.start()
                while trap.armed:
                    work()
            trap.armed = False
            timer.join()

        yield interrupt


def test_an_emit_that_waits_for_room_ends_with_what_the_handler_raises(redis_server: RedisServer, run_id: str) -> None:
    """Also where the lock of the outbox is just not held; and no event is lost or repeated."""
    tried: list[int] = []
    accepted: list[int] = []
    many: dict[str, Any] = {"run_id": run_id, "retention_events": 1_000_000}
    with Router(redis_server.url, **many) as b, Router(redis_server.url, **many, outbox_events=50) as a:
        heard: list[int] = []
        b.on("numbers", heard.append)
        with trapping(signal.SIGALRM) as trap:
            signal.setitimer(signal.ITIMER_REAL, 0.0013, 0.0017)  # by the clock, whatever this thread is at
            try:
                while len(tried) - len(accepted) < scaled(1500, 15_000):
                    tried.append(len(tried))
                    with suppress(Interrupt):
                        trap.armed = True
                        a.emit("numbers", tried[-1])
                        trap.armed = False
                        accepted.append(tried[-1])
                    trap.armed = False
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        a.sync()
        until(lambda: heard[-1] >= accepted[-1])
        assert heard == sorted(set(heard))
        assert set(accepted) <= set(heard)


def test_an_emit_in_the_middle_of_an_emit_is_refused(redis_server: RedisServer, run_id: str) -> None:
    """By a ``__del__`` or a handler on the same thread: else both events would get the same number, and one be lost."""

    class Meddling(dict[str, int]):
        def get(self, event: str, *default: Any) -> Any:
            if event == "outer":
                a.emit("inner")
            return super().get(event, *default)

    with Router(redis_server.url, run_id=run_id) as b, Router(redis_server.url, run_id=run_id) as a:
        heard: list[str] = []
        for event in ("outer", "inner", "after"):
            b.on(event, lambda event=event: heard.append(event))
        a.life.writer.sequence = Meddling(a.life.writer.sequence)
        with pytest.raises(ConfigError, match="in the middle of an emit"):
            a.emit("outer")
        a.emit("after")
        a.sync()
        until(lambda: heard == ["after"], 3)
        assert a.stats().emitted == a.stats().acknowledged


@pytest.fixture
def task(redis_server: RedisServer, run_id: str) -> Iterator[Task]:
    task = Task().start(router=Router(redis_server.url, run_id=run_id))
    yield task
    task.request_leave()
    task.stop()


def test_what_a_signal_handler_raises_ends_the_wait_that_it_interrupts(task: Task) -> None:
    task.wait_for("answer", timeout=0.05, since="last")
    with interrupting(lambda: 0.2) as interrupt:
        begin = time.monotonic()
        interrupt(lambda: task.wait_for("answer", timeout=3, since="last"))
        assert time.monotonic() - begin < 1


def test_a_wait_that_is_interrupted_anywhere_leaves_no_deaf_node(
    task: Task, redis_server: RedisServer, run_id: str
) -> None:
    dice = random.Random(7)
    stopping = threading.Event()
    with Router(redis_server.url, run_id=run_id) as other:

        def talk() -> None:
            while not stopping.wait(0.0005):
                other.emit("answer")

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            with interrupting(lambda: dice.uniform(0.0002, 0.003)) as interrupt:
                for _ in range(scaled(100, 3000)):
                    interrupt(lambda: task.wait_for("answer", timeout=3, since="last"))
                    assert task.wait_for("answer", timeout=3) is not None
        finally:
            stopping.set()
            talker.join()


def test_a_wait_in_a_handler_leaves_the_wait_that_it_interrupts_as_it_was(
    task: Task, redis_server: RedisServer, run_id: str
) -> None:
    """The thread reads by itself for the outer one, and goes on, whatever ends the inner one."""

    def emit() -> None:
        threading.Event().wait(0.3)  # for who else may read to begin
        for number in range(1000):
            other.emit("x", number)
            other.sync()

    emitter = threading.Thread(target=emit)
    with Router(redis_server.url, run_id=run_id) as other:
        task.wait_for("x", 0, since="last")
        task.wait_for("nothing", 0.01, since="last")
        inner: list[str] = []

        def wait_too(*_: Any) -> None:
            with trapping(signal.SIGUSR1) as trap:
                trap.armed = True
                signal.setitimer(signal.ITIMER_REAL, 0)
                threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1)).start()
                with suppress(Interrupt):
                    task.wait_for("nothing", 5, since="last")
                inner.append("no" if trap.armed else "interrupted")
            emitter.start()

        before = signal.signal(signal.SIGALRM, wait_too)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            heard = [task.wait_for("x", 10, since="last") for _ in range(1000)]
        finally:
            signal.signal(signal.SIGALRM, before)
            emitter.join(10)
    assert inner == ["interrupted"]
    assert heard == [((number,), {}) for number in range(1000)]


def test_an_emit_that_is_interrupted_anywhere_holds_nothing_up_and_gives_nothing_twice(
    task: Task, redis_server: RedisServer, run_id: str
) -> None:
    dice = random.Random(8)
    heard: list[int] = []
    emitted = 0

    def emit() -> None:
        nonlocal emitted
        time.sleep(0.0004)  # by themselves, for those of a burst are sent by the writer's thread
        emitted += 1
        task.emit("x", emitted)

    with Router(redis_server.url, run_id=run_id) as other, interrupting(lambda: dice.uniform(0, 0.002)) as interrupt:
        other.on("x", heard.append)
        kept: set[int] = set()
        for _ in range(scaled(300, 3000)):
            before = emitted
            interrupt(emit)
            kept.update(range(before + 1, emitted))  # the last one was interrupted, perhaps
            begin = time.monotonic()
            task.sync()
            assert time.monotonic() - begin < 1
        until(lambda: kept <= set(heard))
    assert heard == sorted(set(heard))


def test_a_signal_that_comes_again_and_again_prolongs_no_call(redis_server: RedisServer, run_id: str) -> None:
    over = threading.Event()
    main = threading.get_ident()

    def tick() -> None:
        while not over.wait(0.2):
            signal.pthread_kill(main, signal.SIGUSR1)

    with Router(redis_server.url, run_id=run_id, op_timeout=1) as router, interrupting(lambda: 0.0):
        ticker = threading.Thread(target=tick)
        thaw = threading.Timer(6, redis_server.thaw)
        redis_server.freeze()
        ticker.start()
        thaw.start()
        try:
            begin = time.monotonic()
            with pytest.raises(BusUnavailable):
                router.nodes()
            assert time.monotonic() - begin < 3
        finally:
            over.set()
            ticker.join()
            thaw.cancel()
            redis_server.thaw()


def test_an_emit_that_is_held_up_while_it_sends_shares_the_connection_with_nobody(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, held_up = threading.get_ident(), threading.Event()
    with Router(redis_server.url, run_id=run_id, op_timeout=0.5) as router:
        writer = router.life.writer
        pack = writer._packer.lone

        def pack_slowly(*event: Any) -> bytes:
            command = pack(*event)
            if threading.get_ident() == main and not held_up.is_set():
                held_up.set()
                time.sleep(1)
            return command

        for number in range(5):  # one by one, so that the thread rests and looks after the next one soon
            router.emit("x", number)
            time.sleep(0.005)
        monkeypatch.setattr(writer._packer, "lone", pack_slowly)
        while not held_up.is_set():
            router.emit("x")
            time.sleep(0.005)
        router.sync(5)
        assert (router.stats().reconnects, router.stats().suppressed) == (0, 0)


def test_an_emit_that_is_interrupted_refuses_nobody_elses(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the signal and what puts the interrupted one in order, another thread may come."""
    with Router(redis_server.url, run_id=run_id) as router, ThreadPoolExecutor(1) as pool:
        router.on("x", lambda number: None)
        writer = router.life.writer
        mend = writer._mend

        def interrupt(event: str) -> Any:
            monkeypatch.undo()
            monkeypatch.setattr(writer, "_mend", mend_late)
            raise Interrupt

        def mend_late() -> None:
            pool.submit(router.emit, "x", 2).result(10)
            mend()

        monkeypatch.setattr(writer, "look", interrupt)
        with pytest.raises(Interrupt):
            router.emit("x", 1)
        router.sync(5)
        assert router.stats().acknowledged == router.stats().emitted


def test_a_sync_that_is_interrupted_leaves_the_outbox_to_the_others(redis_server: RedisServer, run_id: str) -> None:
    with Router(redis_server.url, run_id=run_id) as router, ThreadPoolExecutor(1) as pool:
        with trapping(signal.SIGALRM) as trap:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
            try:
                for _ in range(scaled(1000, 10_000)):
                    with suppress(Interrupt):
                        trap.armed = True
                        while True:
                            router.sync(5)
            finally:
                trap.armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        pool.submit(router.emit, "x").result(10)


PACKS = """
import signal, time
from taskbus.bus.packing import pack

class Interrupt(Exception):
    pass

def interrupt(*about):
    raise Interrupt

signal.signal(signal.SIGALRM, interrupt)
end, interrupts = time.monotonic() + 2, 0
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003)
        while True:
            pack(b"XREAD", b"COUNT", 64, b"BLOCK", 4000, "name", 1.5)
    except Interrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(interrupts)
"""


def test_an_interrupt_while_a_command_is_packed_ends_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", PACKS], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_an_interrupt_between_a_command_and_its_reply_gives_nobody_the_reply_of_another(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Router(redis_server.url, run_id=run_id) as router:
        calls = router.life.calls
        calls.call(b"SET", f"taskbus:{{{run_id}}}:x", b"1", b"PX", 60000)
        send = calls._wire.send

        def interrupted(parts: Any) -> None:
            send(parts)
            monkeypatch.undo()
            raise Interrupt

        monkeypatch.setattr(calls._wire, "send", interrupted)
        with pytest.raises(Interrupt):
            calls.call(b"GET", f"taskbus:{{{run_id}}}:x")
        assert calls.call(b"GET", f"taskbus:{{{run_id}}}:y") is None


# What the handler raises while Python collects something is told and ignored by Python itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_listener_goes_on_whatever_emit_was_interrupted() -> None:
    """What such an emit has left in the mailbox comes with the next, at the latest."""
    dice = random.Random(9)
    got: list[int] = []
    emitted = 0
    with Task().start() as task, trapping(signal.SIGALRM) as trap:
        trap.raises = KeyboardInterrupt  # what is an Exception has threading itself lose a thread that it starts
        task.on("x", got.append)
        task.emit("x", emitted)  # has its thread started, which threading would lose where that is interrupted
        for _ in range(scaled(3000, 30_000)):
            with suppress(KeyboardInterrupt):
                trap.armed = True
                # By the clock, whatever this thread is at; a thread that sends it runs only where this one waits.
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00002, 0.0003))
                while trap.armed:
                    emitted += 1
                    task.emit("x", emitted)
                    time.sleep(0.00001)  # the listener goes to sleep, too, and has to be given a thread
        emitted += 1
        task.emit("x", emitted)
        until(lambda: got[-1:] == [emitted], 5, "a listener that nobody runs")
    assert got == sorted(set(got))


def test_what_a_handler_raises_while_a_listener_gets_its_thread_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the complaint of a lock in threading, which was not held again before it."""
    main = threading.main_thread()
    take_again = threading.Condition._acquire_restore  # type: ignore[attr-defined]
    trap = Trap()
    got: list[int] = []

    def interrupted(condition: threading.Condition, *state: Any) -> None:
        if threading.current_thread() is main:
            trap()
        take_again(condition, *state)

    def is_told() -> bool:
        got.clear()
        with Task().start() as task:
            task.on("x", got.append)
            trap.armed, was_told = True, False
            try:
                task.emit("x", 1)
            except Interrupt:
                was_told = True
            assert was_told is not trap.armed
            trap.armed = False
            task.emit("x", 2)
            until(lambda: got == [1, 2])
        return was_told

    monkeypatch.setattr(threading.Condition, "_acquire_restore", interrupted)
    assert any(is_told() for _ in range(50)), "the thread was always there before `start` waited for it"


@pytest.mark.parametrize("handler", ["emits while a sync reads an answer", "raises before an emit has heard one"])
def test_what_the_thread_is_about_to_send_is_not_overtaken(
    handler: str, redis_server: RedisServer, run_id: str
) -> None:
    """Its batch has a number already: with one of a later number before it Redis would take it for a repeat."""
    got: list[tuple[int, str]] = []
    with Router(redis_server.url, run_id=run_id) as a, Router(redis_server.url, run_id=run_id) as b:
        b.on("x", lambda turn, what: got.append((turn, what)))
        writer: Any = a.life.writer
        exchange, read_now = writer._exchange, writer._wire.read_now
        begun = threading.Event()

        def slowly(batch: Any) -> Any:
            begun.set()
            time.sleep(0.005)
            return exchange(batch)

        def emits(turn: int) -> Any:
            writer._wire.read_now = read_now
            a.emit("x", turn, "handler")
            return read_now()

        def raises() -> bool:
            del writer._hear
            raise Interrupt

        def others(turn: int) -> None:
            begun.wait(1)
            a.emit("x", turn, "other")

        writer._exchange = slowly
        for turn in range(10):
            for what in ("first", "second"):  # the answer to the second is left to the next emit, or sync
                a.sync()
                time.sleep(0.003)
                a.emit("x", turn, what)
                time.sleep(0.003)
            begun.clear()
            if handler.startswith("emits"):
                writer._wire.read_now = partial(emits, turn)
            else:
                writer._hear = raises
                with pytest.raises(Interrupt):
                    a.emit("x", turn, "handler", only_remote=True)  # not alone, or it would not be in the outbox
            other = threading.Thread(target=others, args=(turn,))
            other.start()
            a.sync()
            other.join()
            a.sync()
        until(lambda: len(got) == 40, 10)
        whats = ("first", "second", "handler", "other")
        assert sorted(got) == sorted((turn, what) for turn in range(10) for what in whats)
        assert a.stats().suppressed == a.stats().lost == 0


@pytest.mark.alone
def test_an_emit_that_waits_for_room_has_the_answer_read(redis_server: RedisServer, run_id: str) -> None:
    with Router(redis_server.url, run_id=run_id, outbox_events=1) as router:
        router.sync()
        took = []
        for number in range(40):
            began = time.monotonic()
            router.emit("x", number)
            took.append(time.monotonic() - began)
            time.sleep(0.005)
        late = sum(each > GRACE / 2 for each in took)
        assert late < 10, "every other emit has waited for the thread to look"


def test_what_the_inbox_brought_is_all_taken_although_one_of_it_fails(redis_server: RedisServer, run_id: str) -> None:
    """The thread of a wait leaves it to the reader's thread, which takes it up again after an error."""
    taken: list[bytes] = []
    with Router(redis_server.url, run_id=run_id) as a, redis_server.client() as client:
        reader: Any = a.life.reader
        inbox = a.life.intake.on_inbox

        def fails_first(fields: dict[bytes, bytes]) -> None:
            if b"test" not in fields:
                inbox(fields)
                return
            taken.append(fields[b"test"])
            if len(taken) == 1:
                raise BusUnavailable("as if Redis were away at that moment")

        a.life.intake.on_inbox = fails_first
        with Task().start(router=a) as task, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(task.wait_for, "x", 20)
            until(lambda: reader._is_lent and reader._blocked)
            with client.pipeline() as at_once:
                for number in (1, 2, 3):
                    at_once.xadd(reader.inbox, {"k": "none", "test": number})
                at_once.execute()
            until(lambda: taken == [b"1", b"2", b"3"], 5)
            task.emit("x")
            assert waiting.result(10) is not None
            task.request_leave()
