"""Tasks in many processes make one run; here they share a process and ``memory://``, elsewhere a Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from taskbus import Context, Router, Task
from taskbus.testing import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Join = Callable[..., Task]


@pytest.fixture
def join(memory_url: str) -> Iterator[Join]:
    """Start a task as one more node of the run."""
    tasks: list[Task] = []

    def start(*labels: str) -> Task:
        tasks.append(Task().start(router=Router(memory_url), labels=labels))
        return tasks[-1]

    yield start
    for task in tasks:
        task.stop()


def test_what_one_node_emits_the_others_hear(join: Join) -> None:
    """When ``on`` returns the subscription holds: everything emitted after it arrives, in order, each event once."""
    learner, collector = join(), join()
    got: list[int] = []
    learner.on("episode", got.append)
    for number in range(100):
        collector.emit("episode", number)
    until(lambda: got == list(range(100)))


def test_the_answer_may_be_faster_than_the_wait_for_it(join: Join) -> None:
    """With ``since="last"`` a wait takes the first event after the one that the wait before it returned."""
    one, other = join(), join()
    other.on("ask", lambda number: other.emit("answer", number * number))
    for number in range(20):
        one.emit("ask", number)
        assert one.wait_for("answer", timeout=10, since="last") == ((number * number,), {})


def test_who_comes_late_can_have_the_past(join: Join) -> None:
    """The run keeps its events for a while: ``since="start"`` replays them, then goes on with what is new."""
    early = join()
    for number in range(5):
        early.emit("weights", number)
    early.sync()
    late = join()
    got: list[int] = []
    late.on("weights", got.append, since="start")
    early.emit("weights", 5)
    until(lambda: got == [0, 1, 2, 3, 4, 5])


def test_an_event_can_be_for_some_nodes_only(join: Join) -> None:
    """``only_to`` takes globs over the labels of nodes; the emitter hears it too, if it matches."""
    gpu, cpu = join("gpu.a100"), join("cpu")
    got: list[str] = []
    gpu.on("batch", lambda number: got.append(f"gpu {number}"))
    cpu.on("batch", lambda number: got.append(f"cpu {number}"))
    cpu.emit("batch", 1, only_to="gpu.*")
    cpu.emit("batch", 2)
    until(lambda: "gpu 2" in got and "cpu 2" in got)
    assert sorted(got) == ["cpu 2", "gpu 1", "gpu 2"]


def test_one_node_finishes_the_run_for_all(join: Join) -> None:
    """A finish is durable: a node that comes later sees it before its first step."""
    evaluator, collector = join(), join()

    def solved(ctx: Context) -> None:
        evaluator.finish = ctx.total_step == 3

    evaluator.use(solved)
    evaluator.run()
    until(lambda: collector.finish)
    late = join()
    late.use(lambda ctx: pytest.fail("a step after the finish"))
    late.run()


def test_a_wait_ends_when_another_node_finishes_the_run(join: Join) -> None:
    """So nobody waits for ever for a node that is gone: ``None``, or ``RunFinished`` where exceptions are asked for."""
    one, other = join(), join()
    other.finish = True
    assert one.wait_for("never") is None
    assert one.finish


def test_an_exception_ends_the_node_and_not_the_run(join: Join) -> None:
    """The others hear ``taskbus.node_failed`` and why, and go on."""
    learner, collector = join(), join()
    failures: list[str] = []
    learner.on("taskbus.node_failed", lambda node, reason: failures.append(reason))
    with pytest.raises(ZeroDivisionError), collector:
        _ = 1 / 0
    until(lambda: failures == ["ZeroDivisionError: division by zero"])
    assert not learner.finish


def test_nodes_know_who_is_there(join: Join) -> None:
    """By label globs, each node included where it matches; ``wait_for_nodes`` waits until there are enough."""
    one = join("collector")
    join("collector")
    join("learner")
    assert len(one.wait_for_nodes(count=3, timeout=10)) == 3
    assert len(one.nodes("collector")) == 2
    assert one.get_attch_to_len() == 2
