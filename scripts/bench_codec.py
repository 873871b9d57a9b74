"""Encode and decode payloads, against pickle protocol 5 and raw orjson, in one run.

Usage: .venv/bin/python scripts/bench_codec.py [SECONDS PER MEASUREMENT]

``codec`` is ``encode`` and ``decode``; ``bus`` is what an event goes through from ``emit`` to a listener but for Redis:
encode, pack into one frame (large ones: beside it, in one value), unpack, check, decode. Figures are microseconds of
processor time for one event, there + back, in the best of several rounds in which all take turns. Tensors are torch's
where torch is installed, else NumPy's arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pickle
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import orjson

from taskbus import frame
from taskbus.codec import decode, encode

BLOB_THRESHOLD = 256 << 10
LARGEST = 1 << 30


class Case(NamedTuple):
    name: str
    kwargs: dict[str, Any]
    batch: int = 1  # events in one frame


def cases() -> list[Case]:
    chance = random.Random(1)
    small = {"step": 1, "reward": 1.0, "obs": [0.1] * 4}
    lists = {f"k{i}": [chance.random() if j % 2 else j for j in range(10)] for i in range(100)}
    table = [{"id": i, "x": chance.random(), "name": "abc", "done": False} for i in range(250)]
    pixels = np.random.default_rng(1).random(1 << 24, dtype=np.float32)
    return [
        Case("(a) small event", small),
        Case("(a) small event, 100 in a frame", small, 100),
        Case("(b) 1000 scalars in lists", lists),
        Case("(b) 1000 scalars in dicts", {"table": table}),
        Case("(c) 1 MiB float32", {"x": pixels[: 1 << 18].copy()}),
        Case("(d) 64 MiB float32", {"x": pixels}),
        Case(f"(e) 50 tensors, 12.5 MiB, {TENSORS}", {"state": state(pixels)}),
        Case("(f) array of 4, two numbers", {"obs": np.zeros(4, np.float32), "reward": 1.0, "done": False}),
        Case("(g) 1000 pairs", {"pairs": [(i, float(i)) for i in range(500)]}),
    ]


TENSORS = "torch" if importlib.util.find_spec("torch") else "numpy"


def state(pixels: Any) -> Any:
    parts = [pixels[i << 16 : (i + 1) << 16].reshape(256, 256).copy() for i in range(50)]
    if TENSORS == "torch":
        torch: Any = importlib.import_module("torch")
        parts = [torch.from_numpy(part) for part in parts]
    return OrderedDict((f"layer{i}.weight", part) for i, part in enumerate(parts))


Run = Callable[[], Any]


def codec(case: Case) -> tuple[Run, Run]:
    encoded = [encode((), case.kwargs) for _ in range(case.batch)]
    text = b"[" + b",".join(text for text, _ in encoded) + b"]"
    buffers = [buffer.toreadonly() for _, own in encoded for buffer in own]
    return repeated(lambda: encode((), case.kwargs), case.batch), lambda: decode(text, buffers)


def bus(case: Case) -> tuple[Run, Run]:
    def send() -> tuple[bytes, bytes | None]:
        encoded = [encode((), case.kwargs) for _ in range(case.batch)]
        text = b"[" + b",".join([text for text, _ in encoded]) + b"]"
        buffers = [buffer for _, own in encoded for buffer in own]
        if frame.body_size(text, buffers) <= BLOB_THRESHOLD:
            return frame.pack("0123456789abcdef", 1, case.batch, text, buffers), None
        data, chunks = frame.pack_blob("0123456789abcdef", 1, text, buffers, blob="0123456789abcdef-1")
        return data, b"".join(chunks)

    data, blob = send()
    return send, lambda: frame.events(frame.unpack(data, max_size=LARGEST), blob)


def by_pickle(case: Case) -> tuple[Run, Run]:
    event = ((), case.kwargs)
    data = pickle.dumps(event, protocol=5)
    there, back = (lambda: pickle.dumps(event, protocol=5)), (lambda: pickle.loads(data))
    return repeated(there, case.batch), repeated(back, case.batch)


def by_orjson(case: Case) -> tuple[Run, Run]:
    kwargs = case.kwargs
    if "state" in kwargs:
        kwargs = {name: np.asarray(value) for name, value in kwargs["state"].items()}
    option = orjson.OPT_SERIALIZE_NUMPY if case.name[1] in "cdef" else 0
    event = [(), kwargs]
    data = b"[" + b",".join([orjson.dumps(event, option=option)] * case.batch) + b"]"
    return repeated(lambda: orjson.dumps(event, option=option), case.batch), lambda: orjson.loads(data)


def repeated(run: Run, times: int) -> Run:
    return run if times == 1 else lambda: [run() for _ in range(times)]


def best(runs: list[Run]) -> list[float]:
    """CPU microseconds of one call of each, in the best of several rounds that take turns."""
    numbers = [calls_for(run, SECONDS / 20) for run in runs]
    found = [math.inf] * len(runs)
    end = time.perf_counter() + SECONDS * len(runs)
    while time.perf_counter() < end or math.inf in found:
        for index, (run, number) in enumerate(zip(runs, numbers, strict=True)):
            found[index] = min(found[index], timed(run, number) / number * 1e6)
    return found


def calls_for(run: Run, seconds: float) -> int:
    number = 1
    while timed(run, number) < seconds:
        number *= 2
    return number


def timed(run: Run, number: int) -> float:
    start = time.thread_time()
    for _ in range(number):
        run()
    return time.thread_time() - start


SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0


def main() -> None:
    print(f"Python {sys.version.split()[0]}, orjson {orjson.__version__}, numpy {np.__version__}\n")
    head = ["", "codec", "bus", "pickle 5", "orjson", "codec/orjson", "bus/orjson", "codec/pickle", "bus/pickle"]
    rows = [head, ["---"] * len(head)]
    for case in cases():
        runs = [run for make in (codec, bus, by_pickle, by_orjson) for run in make(case)]
        took = [each / case.batch for each in best(runs)]
        there_and_back = list(zip(took[::2], took[1::2], strict=True))
        ours, whole, pickled, raw = map(sum, there_and_back)
        ratios = [ours / raw, whole / raw, ours / pickled, whole / pickled]
        rows.append([case.name, *map(shown, there_and_back), *(f"{ratio:.2g}" for ratio in ratios)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def shown(times: tuple[float, float]) -> str:
    return " + ".join(f"{each:.2f}" if each < 100 else f"{each:.0f}" for each in times)


if __name__ == "__main__":
    main()
