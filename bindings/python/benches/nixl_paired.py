#!/usr/bin/env python3
"""kvrail.nixl beside the real nixl: the same calls through the same Python API, in turns, in fresh
processes.

    nixl_paired.py --nixl VENV/bin/python --kvrail VENV/bin/python [--kvrail-path SITE] [--check]

Each pair runs every workload once on each side, the order changing from pair to pair; a row's
figure is the median over the pairs, its ratio the median of the ratios within them, and its spread
the lowest and highest. A bandwidth counts only when every byte was verified: a pattern of position
and iteration at the source, poison at the target. stdout is the table (--json FILE writes
everything); with --check the exit status is 1 when a target is missed, and it is 2 whenever a side
could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nixl_paired_worker.py")
RESULT = "RESULT "


@dataclass(frozen=True)
class Row:
    """One line of the table, and what kvrail owes in it."""

    name: str
    text: str
    unit: str
    scale: float  # from the unit of the workers (seconds, or bytes per second) to that of the table
    higher_is_better: bool = False
    ratio: float = 1.0  # kvrail is at least this many times as good as nixl
    limit: float | None = None  # and, in the table's unit, no worse than this


GB_S = {"unit": "GB/s", "scale": 1e-9, "higher_is_better": True, "ratio": 1.25}
MS = {"unit": "ms", "scale": 1e3}
US = {"unit": "µs", "scale": 1e6}
NS = {"unit": "ns", "scale": 1e9}

ROWS = [
    Row("peers_read", "READ 12,800 × 32 KiB, two processes", **GB_S),
    Row("peers_write", "WRITE 12,800 × 32 KiB, two processes", **GB_S),
    Row("local_read", "READ 12,800 × 32 KiB, two agents of one process", **GB_S),
    Row("local_write", "WRITE 12,800 × 32 KiB, two agents of one process", **GB_S),
    Row("initialize_xfer", "initialize_xfer, 12,800 descriptors", **US, limit=300),
    Row("prep_strided", "prep_xfer_dlist, N×5 that expands to 112,000", **US),
    Row("prepped_runs", "make_prepped_xfer, 12,800 int64 indices in runs", **US),
    Row("prepped_shuffled", "make_prepped_xfer, 12,800 int64 indices shuffled", **US),
    Row("transfer", "transfer (the call), 12,800 × 32 KiB", **US),
    Row("transfer_one", "transfer (the call), one descriptor of 4 KiB", **US),
    Row("check_xfer_state", "check_xfer_state", **NS),
    Row("get_new_notifs", "get_new_notifs, nothing new", **NS),
    Row("agent", "nixl_agent, the first of a process", **MS, limit=20),
    Row("import", "import", **MS, limit=50),
]
WORKLOADS = ["import", "calls", "local", "peers"]


@dataclass(frozen=True)
class Side:
    """One implementation: which interpreter imports which package."""

    label: str
    python: str
    module: str
    path: str | None

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ, NIXL_LOG_LEVEL="ERROR", PYTHONDONTWRITEBYTECODE="")
        environment.pop("PYTHONPATH", None)
        if self.path:
            environment["PYTHONPATH"] = self.path
        return environment

    def measure(self, workload: str, timeout: float) -> dict[str, float]:
        """Run a workload in a fresh process. RuntimeError when it fails, with what it said."""
        command = [self.python, WORKER, workload, self.module]
        try:
            done = subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.label}: {workload} took more than {timeout:.0f} s") from None
        except OSError as error:
            raise RuntimeError(f"{self.label}: {self.python}: {error}") from None
        results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
        if done.returncode or not results:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise RuntimeError(f"{self.label}: {workload} ended with {done.returncode}:\n{said}")
        return json.loads(results[-1][len(RESULT) :])


def measure_pairs(
    sides: tuple[Side, Side], workloads: list[str], pairs: int, timeout: float
) -> dict[str, list[list[float]]]:
    """For each row the figures of both sides, one couple for each pair."""
    figures: dict[str, list[list[float]]] = {}
    for pair in range(pairs):
        for workload in workloads:
            order = sides if pair % 2 == 0 else sides[::-1]
            found = {side.label: side.measure(workload, timeout) for side in order}
            for name in found[sides[0].label]:
                figures.setdefault(name, []).append([found[side.label][name] for side in sides])
        print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
    return figures


def summarise(row: Row, couples: list[list[float]]) -> dict[str, Any]:
    """A row's medians, spreads, ratio and verdict."""
    kvrail = [couple[0] * row.scale for couple in couples]
    nixl = [couple[1] * row.scale for couple in couples]
    # Above 1 kvrail is the better one, whichever way the figure goes.
    ratios = [k / n if row.higher_is_better else n / k for k, n in zip(kvrail, nixl, strict=True)]
    median = statistics.median(kvrail)
    ratio = statistics.median(ratios)
    missed = []
    if ratio < row.ratio:
        missed.append(f"{ratio:.2f}× of nixl, {row.ratio:.2f}× wanted")
    if row.limit is not None and median > row.limit:
        missed.append(f"{median:.3g} {row.unit}, {row.limit:g} allowed")
    return {
        "row": row.name,
        "text": row.text,
        "unit": row.unit,
        "kvrail": {"median": median, "low": min(kvrail), "high": max(kvrail), "all": kvrail},
        "nixl": {
            "median": statistics.median(nixl),
            "low": min(nixl),
            "high": max(nixl),
            "all": nixl,
        },
        "ratio": {"median": ratio, "low": min(ratios), "high": max(ratios)},
        "missed": missed,
    }


def table(summaries: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def figure(value: dict[str, float], unit: str) -> str:
        return f"{value['median']:,.4g} {unit} ({value['low']:,.4g}–{value['high']:,.4g})"

    lines = [
        "| | kvrail.nixl | nixl | better by | target |",
        "|---|---|---|---|---|",
    ]
    for row in summaries:
        ratio = row["ratio"]
        lines.append(
            f"| {row['text']} | {figure(row['kvrail'], row['unit'])} "
            f"| {figure(row['nixl'], row['unit'])} "
            f"| {ratio['median']:.2f}× ({ratio['low']:.2f}–{ratio['high']:.2f}) "
            f"| {'; '.join(row['missed']) or 'kept'} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            names = [
                line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")
            ]
        model = names[0] if names else model
    except OSError:
        pass
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--nixl", required=True, metavar="PYTHON", help="an interpreter that has the real nixl"
    )
    parser.add_argument("--nixl-module", default="nixl", metavar="NAME")
    parser.add_argument(
        "--kvrail", required=True, metavar="PYTHON", help="an interpreter that has kvrail"
    )
    parser.add_argument("--kvrail-module", default="kvrail.nixl", metavar="NAME")
    parser.add_argument("--kvrail-path", metavar="DIR", help="PYTHONPATH of kvrail's side")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--workload", action="append", choices=WORKLOADS, help="these only; may be repeated"
    )
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds for one workload of one side"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")

    sides = (
        Side("kvrail", arguments.kvrail, arguments.kvrail_module, arguments.kvrail_path),
        Side("nixl", arguments.nixl, arguments.nixl_module, None),
    )
    try:
        figures = measure_pairs(
            sides, arguments.workload or WORKLOADS, arguments.pairs, arguments.timeout
        )
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    summaries = [summarise(row, figures[row.name]) for row in ROWS if row.name in figures]
    print(table(summaries))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {"machine": machine(), "pairs": arguments.pairs, "rows": summaries}, file, indent=2
            )
            file.write("\n")
    missed = [row for row in summaries if row["missed"]]
    for row in missed:
        print(f"missed: {row['text']}: {'; '.join(row['missed'])}", file=sys.stderr)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
