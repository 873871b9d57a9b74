"""What ``taskbus top`` makes of its samples."""

from __future__ import annotations

from taskbus.bus.guest import StreamState
from taskbus.cli.board import Board, Sample
from taskbus.types import FinishInfo, NodeInfo


def node(
    name: str, step: int, *, producer: str = "", lag: int = 0, healthy: bool = True, seen: float = 0.1
) -> NodeInfo:
    return NodeInfo(
        id=name,
        labels=frozenset({"collector"}),
        host="host",
        pid=1,
        role="",
        step=step,
        started=0.0,
        seen=seen,
        healthy=healthy,
        producer=producer or name,
        lag=lag,
    )


def board(*samples: Sample) -> Board:
    made = Board("nightly", "host:6379")
    for sample in samples:
        made.add(sample)
    return made


def row(made: Board, name: str) -> list[str]:
    [line] = [line for line in made.lines() if line.startswith(f"{name} ")]
    return line.split()


def test_rates_are_taken_over_the_window() -> None:
    made = board(
        *(
            Sample(float(at), [node("a", 10 * at)], {"x": StreamState(100 * at, 1000 * at, 0.0)}, None)
            for at in range(1, 31)
        )
    )
    assert made.steps_per_second(node("a", 0)) == 10.0
    assert made.events_per_second("x") == 100.0
    assert made.samples[-1].at - made.samples[0].at <= 10.0
    assert row(made, "x")[1:3] == ["3000", "100"]


def test_steps_are_counted_between_heartbeats_and_not_between_looks() -> None:
    made = board(Sample(0.0, [node("a", 0, seen=0.2)], {}, None), Sample(2.0, [node("a", 3, seen=0.7)], {}, None))
    assert made.steps_per_second(node("a", 0)) == 2.0
    made = board(Sample(0.0, [node("a", 5, seen=0.2)], {}, None), Sample(1.0, [node("a", 5, seen=1.21)], {}, None))
    assert made.steps_per_second(node("a", 0)) is None, "one heartbeat, looked at twice"


def test_a_restarted_node_and_a_new_event_begin_anew() -> None:
    made = board(
        Sample(0.0, [node("a", 500, producer="first life")], {}, None),
        Sample(2.0, [node("a", 3, producer="second life")], {"x": StreamState(8, 80, 0.0)}, None),
    )
    assert made.steps_per_second(made.samples[-1].nodes[0]) is None
    assert made.events_per_second("x") == 4.0
    assert row(made, "a")[5] == "-"


def test_keys_sort_and_turn_round() -> None:
    made = board(Sample(0.0, [node("2", 5, lag=1), node("10", 7), node("9", 6, lag=3)], {}, None))

    def order() -> list[str]:
        return [line.split()[0] for line in made.lines()[3:6]]

    assert order() == ["2", "9", "10"]
    made.press("s")
    assert order() == ["10", "9", "2"]
    made.press("s")
    assert order() == ["2", "9", "10"]
    made.press("l")
    assert order() == ["9", "2", "10"]
    made.press("R")
    assert order() == ["10", "2", "9"]
    made.press("x")
    assert order() == ["10", "2", "9"]


def test_what_is_wrong_stands_out() -> None:
    made = board(Sample(0.0, [node("a", 1, healthy=False)], {}, FinishInfo("a", "completed", 0.0)))
    made.problem = "NOT REACHABLE: Redis"
    title, _, _, line, *_ = made.lines()
    assert "FINISHED" in title and "completed" in title and "NOT REACHABLE" in title and "0 healthy" in title
    assert line.startswith("a DEAF")
    assert Board("nightly", "host:6379").lines() == ["run nightly on host:6379"]
