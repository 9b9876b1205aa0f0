"""Seconds that the trained methods take: `python benchmarks/training.py` writes results/training.md.

10,000 simulated images of width 512 in ten groups, 20 epochs; the training-free `default` beside. The goal, from before
it was measured: less than 2 minutes on 2 cores.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path

import torch
from simulation import SEVERITIES, load_noun_vectors, simulate

from cae import evaluation
from cae.evaluation.study import machine

RESULTS = Path(__file__).parent / "results"
METHODS = ("default", "tac-heads", "cae-heads", "mca")
N = 10_000


def main() -> None:
    world = simulate(load_noun_vectors(), SEVERITIES["default"], n_images=N)
    busy = os.getloadavg()[0]
    lines = ["| method | seconds | of which training | seconds of processor time |", "|---|---:|---:|---:|"]
    for method in METHODS:
        clock, processor = time.perf_counter(), time.process_time()
        (result,) = evaluation.run_study([world], [method], [0])
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        training = f"{result['seconds']['training']:.1f}" if "training" in result["seconds"] else ""
        lines.append(f"| `{method}` | {clock:.1f} | {training} | {processor:.1f} |")
        print(lines[-1], flush=True)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning"))
    lines += [
        "",
        f"{N:,} x {world.x.shape[1]}, {world.n_clusters} clusters; {machine()}; {torch.get_num_threads()} threads;",
    ]
    lines += [f"load of the machine beforehand {busy:.1f}; {versions}. Goal: less than 120 seconds."]
    (RESULTS / "training.md").write_text("\n".join(["# What training costs", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
