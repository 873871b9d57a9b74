"""The bench: every workload beside the raw loop on the same server, and a table at the end."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict

from stage import Row, Stage, progress

WORKLOADS = [
    "wakeup",
    "throughput",
    "transient",
    "arrays",
    "load",
    "idle",
    "steps",
    "local",
    "footprint",
    "growth",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: one small round of everything")
    parser.add_argument("--json", action="store_true", help="the rows as JSON, with every sample, instead of a table")
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="this workload; can be given several times")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each workload (default 5)")
    given = parser.parse_args()
    stage = Stage(quick=given.quick, rounds=given.rounds)
    begun = time.monotonic()
    rows: list[Row] = []
    for name in given.only or WORKLOADS:
        rows += importlib.import_module(name).run(stage)
    progress(f"all in {time.monotonic() - begun:.0f} s")
    print(json.dumps(_as_json(rows), indent=1) if given.json else _table(rows))
    return 0


def _as_json(rows: list[Row]) -> dict[str, object]:
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    return {"machine": machine, "rows": [{**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows]}


def _table(rows: list[Row]) -> str:
    lines = [
        "| workload | taskbus | raw loop | ratio | reach | | bare socket | the least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = ">=" if row.more_is_better else "<="
        ratio = f"{row.ratio:.2f}x" if row.ratio is not None else ""
        reach = f"{sign} {row.reach:g}x" if row.reach is not None else ""
        if row.bound is not None:
            reach = f"{sign} {row.bound:g} {row.unit}"
        mark = {True: "yes", False: "no", None: ""}[row.reached]
        cells = [row.workload, _shown(row.ours, row.unit), _shown(row.raw, row.unit), ratio, reach, mark]
        least = _shown(row.least, row.unit)
        if row.least and row.raw:
            least += f" {statistics.median(row.least) / statistics.median(row.raw):.2f}x"
        lines.append(f"| {' | '.join([*cells, _shown(row.bare, row.unit), least])} |")
    notes = [f"{row.workload}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes])


def _shown(samples: list[float], unit: str) -> str:
    """The median and the spread, ``12.3 us (11.9-14)``."""
    if not samples:
        return ""
    middle = _number(statistics.median(samples))
    spread = f" ({_number(min(samples))}-{_number(max(samples))})" if len(samples) > 1 else ""
    return f"{middle} {unit}{spread}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
