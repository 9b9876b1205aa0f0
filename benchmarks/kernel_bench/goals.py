"""What was measured on CUDA beside the goals, which are for the largest shape in float16 on an H200."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]
GOAL_DEVICE, GOAL_INPUTS = "H200", "N=1281167, M=20000, D=512, float16"


@dataclass(frozen=True)
class Goal:
    """A figure of a report, and where it should lie."""

    what: str
    figure: Callable[[Report], float]
    at_most: float | None = None
    at_least: float | None = None

    def row(self, report: Report) -> str:
        """Found, goal and verdict as cells of a table."""
        goal = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        try:
            found = self.figure(report)
        except KeyError:
            return f"| {self.what} | not measured | {goal} | |"
        met = found <= self.at_most if self.at_most is not None else found >= (self.at_least or 0)
        return f"| {self.what} | {found:.3g} | {goal} | {'met' if met else 'MISSED'} |"


def times_faster(ratio: str) -> Callable[[Report], float]:
    """The inverse of one of the report's ratios, ours / peer."""
    return lambda report: 1 / report["ratios"][ratio]["clock"]


GOALS = [
    Goal("one iteration, ms", lambda report: 1e3 * report["costs"]["ours, iteration"]["clock_s"], at_most=80),
    Goal(
        "times faster than flash-sinkhorn, one iteration",
        times_faster("ours / flash-sinkhorn, one iteration"),
        at_least=4,
    ),
    Goal("times faster than flash-sinkhorn, to 1e-3", times_faster("ours / flash-sinkhorn, to 1e-3"), at_least=8),
    Goal(
        "counterparts: times faster than mat5_sqeuclid", times_faster("ours / flash-sinkhorn, counterparts"), at_least=5
    ),
    Goal(
        "Sinkhorn: memory beyond inputs, GB",
        lambda report: report["costs"]["ours, to 1e-3"]["peak_mb"] / 2**10,
        at_most=2,
    ),
]


def goal_table(folder: Path) -> str:
    """Tables in Markdown, one for each report `kernels_cuda*.json` of a folder."""
    lines = []
    for file in sorted(folder.glob("kernels_cuda*.json"), key=_entries):
        report = json.loads(file.read_text())
        conditions = report["conditions"]
        lines += [f"**{conditions['inputs']}, on {conditions['device']}**"]
        if GOAL_DEVICE not in conditions["device"] or GOAL_INPUTS not in conditions["inputs"]:
            lines[-1] += f": the goals are for {GOAL_INPUTS} on an {GOAL_DEVICE}"
        lines += ["", "| | found | goal | |", "|---|---:|---:|---|", *(goal.row(report) for goal in GOALS), ""]
    return "\n".join(lines) or "Nothing was measured on CUDA.\n"


def _entries(file: Path) -> float:
    """N times M, which the name of a report may leave out: then it is the largest."""
    sizes = re.search(r"_(\d+)x(\d+)x\d+$", file.stem)
    return float(sizes[1]) * float(sizes[2]) if sizes else float("inf")
