"""Seconds and memory of each op as its rows grow, beside the same in plain dense torch: `python benchmarks/ops.py`.

Writes benchmarks/results/ops.json and ops.md, and a plot for each page of docs/kernels; `--plot` draws these anew from
the figures that are there. One thread, the best of some rounds in seconds of processor time, which hold on a busy
machine, too. Memory is the high-water mark of a process of its own in which no freed block is used again. Beside these
stand the least time that the products can take, their FLOPs at the rate of a square matrix product (for fuse, bytes at
the rate of a copy), and the arrays that are held at once, as counted in the code.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_bench.measuring import PACKAGES, commit, cost, installed, ours_products, quiet
from kernel_bench.peers import dense_loop
from kernel_bench.problems import inputs
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from cae.kernels import cosine_sinkhorn, counterparts, fuse, nearest, retrieve, sinkhorn_divergence
from cae.kernels.exact import exact_products

RESULTS = Path(__file__).parent / "results"
PAGES = Path(__file__).parents[1] / "docs" / "kernels"
EPSILON, WIDTH, STEPS, PARTS = 0.05, 512, 10, 3
SIZES = (2500, 5000, 10_000, 20_000, 40_000)
Run = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Case:
    """An op, with or without its gradient."""

    op: str
    call: str
    ours: Run
    dense: Run
    columns: Callable[[int], int]
    """M for N rows."""
    products: Callable[[int, int], tuple[float, float]]
    """How many products of N, M and D ours and the dense one make."""
    megabytes: Callable[[float, float], tuple[float, float]]
    """The arrays that both hold at once, from the megabytes of (N, D) and of (N, M) in float32."""
    sizes: tuple[int, ...] = SIZES
    gradient: bool = False


def dense_counterparts(x: Tensor, u: Tensor) -> Tensor:
    s = x @ u.T
    return torch.nn.functional.normalize((torch.softmax(s / EPSILON, dim=1) * s) @ u, dim=1)


def dense_divergence(x: Tensor, u: Tensor) -> Tensor:
    """By autograd through the iterations."""

    def value(x: Tensor, u: Tensor) -> Tensor:
        scores = x @ u.T / EPSILON
        log_v, _ = dense_loop(scores, STEPS)
        return EPSILON * (log_v.mean() - torch.logsumexp(scores + log_v, dim=1).mean())

    return value(x, u) - (value(x, x) + value(u, u)) / 2


def dense_fuse(x: Tensor, _: Tensor) -> Tensor:
    parts = torch.stack([x, x.flip(0), x.roll(1, 0)], dim=1)
    alpha = torch.nn.functional.cosine_similarity(parts, parts.mean(dim=1, keepdim=True), dim=2)
    return (torch.softmax(alpha / 0.1, dim=1)[:, :, None] * parts).sum(dim=1)


def with_gradient(run: Run) -> Run:
    def both(x: Tensor, u: Tensor) -> None:
        run(x, u).sum().backward()

    return both


def solve(x: Tensor, u: Tensor) -> None:
    cosine_sinkhorn(x, u, epsilon=EPSILON, tol=1e-12, max_iter=STEPS, init=torch.zeros(len(u)))


def diverge(x: Tensor, u: Tensor) -> Tensor:
    return sinkhorn_divergence(x, u, epsilon=EPSILON, tol=1e-12, max_iter=STEPS)


def mean_texts(x: Tensor, u: Tensor) -> Tensor:
    return counterparts(x, u, None, epsilon=EPSILON)


def fuse_parts(x: Tensor, _: Tensor) -> Tensor:
    return fuse([x, x.flip(0), x.roll(1, 0)], gamma=0.1)[0]


PANEL, KEPT = 4.0, 64.0  # megabytes of a panel, and of scores that an iteration keeps
CASES = [
    Case(
        "cosine_sinkhorn",
        f"{STEPS} iterations",
        solve,
        lambda x, u: dense_loop(x @ u.T / EPSILON, STEPS),
        lambda N: 1000,
        lambda N, M: (ours_products(STEPS, (N, M, WIDTH)), 1),
        lambda rows, entries: (PANEL + min(KEPT, entries), 3 * entries),
    ),
    Case(
        "sinkhorn_divergence",
        f"{STEPS} iterations and gradient",
        with_gradient(diverge),
        with_gradient(dense_divergence),
        lambda N: N,
        lambda N, M: (3 * (1 + 3), 3 * 3),
        lambda rows, entries: (2 * rows + 4 * min(PANEL, entries), 3 * (2 * STEPS + 2) * entries),
        sizes=(125, 250, 500, 1000, 2000),
        gradient=True,
    ),
    Case(
        "counterparts",
        "forward",
        mean_texts,
        dense_counterparts,
        lambda N: 1000,
        lambda N, M: (2, 2),
        lambda rows, entries: (rows + 4 * PANEL, 3 * entries),
    ),
    Case(
        "counterparts",
        "with gradient",
        with_gradient(mean_texts),
        with_gradient(dense_counterparts),
        lambda N: 1000,
        lambda N, M: (2 + 6, 2 + 4),
        lambda rows, entries: (rows + 8 * PANEL, rows + 5 * entries),
        gradient=True,
    ),
    Case(
        "retrieve",
        "forward",
        lambda x, u: retrieve(x, u, top_k=5),
        lambda x, u: torch.log_softmax(x @ u.T, dim=1).topk(5, dim=0).indices.unique(),
        lambda N: 500,
        lambda N, M: (1, 1),
        lambda rows, entries: (5 * min(PANEL, entries), 2 * entries),
    ),
    Case(
        "fuse",
        "forward",
        fuse_parts,
        dense_fuse,
        lambda N: 1,
        lambda N, M: (0, 0),
        # The call makes two of its parts itself.
        lambda rows, entries: (3 * rows + PANEL, 13 * rows),
    ),
    Case(
        "fuse",
        "with gradient",
        with_gradient(fuse_parts),
        with_gradient(dense_fuse),
        lambda N: 1,
        lambda N, M: (0, 0),
        lambda rows, entries: (5 * rows + 6 * PANEL, 25 * rows),
        gradient=True,
    ),
    Case(
        "nearest",
        "k = 10",
        lambda x, u: nearest(x, u, k=10),
        lambda x, u: (x @ u.T).topk(10, dim=1),
        lambda N: 5000,
        lambda N, M: (1, 1),
        lambda rows, entries: (5 * PANEL, entries),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", action="store_true", help="draw from the figures that are there")
    args = parser.parse_args()
    file = RESULTS / "ops.json"
    if not args.plot:
        file.write_text(json.dumps(measure(args.rounds), indent=1) + "\n")
    report = json.loads(file.read_text())
    (RESULTS / "ops.md").write_text(markdown(report))
    for op in dict.fromkeys(case.op for case in CASES):
        plot(op, [point for point in report["points"] if point["op"] == op]).savefig(PAGES / f"{op}.png", dpi=100)


def measure(rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    load = os.getloadavg()
    points = []
    for case in CASES:
        for N in case.sizes:
            for who in ("ours", "dense"):
                took = alone(seconds, CASES.index(case), who, N, rounds)
                peak = alone(megabytes, CASES.index(case), who, N)
                points.append({"op": case.op, "call": case.call, "who": who, "N": N, "M": case.columns(N)})
                points[-1] |= {"processor_s": took, "peak_mb": round(peak, 1)}
                print(points[-1], flush=True)
    rates = {"gflop_per_s": alone(multiplied), "copied_gb_per_s": alone(copied)}
    for point in points:
        point |= expected(point, rates)
    conditions = {
        "D": WIDTH,
        "epsilon": EPSILON,
        "inputs": "clustered, float32",
        "threads": 1,
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "versions": {name: installed(name) for name in PACKAGES[:1]},
        "commit": commit(),
        "load average before and after": [round(value, 1) for value in (load[0], os.getloadavg()[0])],
    }
    return {"points": points, "rates": rates, "conditions": conditions}


def alone(call: Callable[..., Any], *args: Any) -> Any:
    """In a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(call, args)


def contender(index: int, who: str, N: int) -> Callable[[], Any]:
    case = CASES[index]
    x, u = (part.requires_grad_(case.gradient) for part in inputs("clustered", N, case.columns(N), WIDTH))
    run = case.ours if who == "ours" else case.dense
    return quiet(lambda: run(x, u))


def seconds(index: int, who: str, N: int, rounds: int) -> float:
    call = contender(index, who, N)
    return min(cost(call, 1, 0)[0].processor_s for _ in range(rounds))


def megabytes(index: int, who: str, N: int) -> float:
    # Blocks of 64 KB and more go back to the system when they are freed.
    ctypes.CDLL(None).mallopt(-3, 2**16)
    contender(index, who, 64)()  # what a first call loads stays
    return float(cost(contender(index, who, N), 1, 0)[0].peak_mb or math.nan)


def multiplied() -> float:
    """GFLOP/s of a product of square matrices into memory that is there, by the ops' library."""
    left, right, out = torch.rand(3, 2048, 2048)
    with exact_products(torch.device("cpu")):
        took = [cost(lambda: torch.mm(left, right, out=out), 1, 0)[0].processor_s for _ in range(15)]
    return 2e-9 * 2048**3 / min(took)


def copied() -> float:
    """GB/s read and written by a copy that no cache holds."""
    source, target = torch.ones(2, 2**26)
    return 2e-9 * source.nbytes / min(cost(lambda: target.copy_(source), 1, 0)[0].processor_s for _ in range(15))


def expected(point: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    (case,) = (case for case in CASES if (case.op, case.call) == (point["op"], point["call"]))
    (N, M), side = (point["N"], point["M"]), ("ours", "dense").index(point["who"])
    # Every part is read and the sum written; two parts are copies made in the call; the gradient reads all once more.
    moved = 4e-9 * N * WIDTH * (PARTS + 1 + 4 + (2 * PARTS + 1) * case.gradient)
    products = case.products(N, M)[side]
    least = 2e-9 * products * N * M * WIDTH / rates["gflop_per_s"] if products else moved / rates["copied_gb_per_s"]
    held = case.megabytes(4 * N * WIDTH / 2**20, 4 * N * M / 2**20)[side]
    return {"least_s": least, "held_mb": round(held, 1)}


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Ops", "", "| op | | | N | M | processor seconds | at least | peak MB | arrays held |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for point in report["points"]:
        named = f"{point['op']} | {point['call']} | {point['who']} | {point['N']} | {point['M']}"
        figures = f"{point['processor_s']:.3g} | {point['least_s']:.3g} | {point['peak_mb']} | {point['held_mb']}"
        lines.append(f"| {named} | {figures} |")
    lines += ["", *(f"- {name}: {value:.3g}" for name, value in report["rates"].items())]
    lines += [f"- {name}: {value}" for name, value in report["conditions"].items()]
    return "\n".join(lines) + "\n"


def plot(op: str, points: list[dict[str, Any]]) -> Figure:
    """Seconds and megabytes over N; the least time and the arrays held as thin lines."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    calls = list(dict.fromkeys(point["call"] for point in points))
    for key, expected_key, label in (
        ("processor_s", "least_s", "seconds of processor time"),
        ("peak_mb", "held_mb", "peak MB beside the inputs"),
    ):
        axes = figure.add_subplot(1, 2, len(figure.axes) + 1)
        for colour, who in (("C0", "ours"), ("C3", "dense")):
            for marker, call in zip("os", calls, strict=False):
                curve = [point for point in points if (point["who"], point["call"]) == (who, call)]
                sizes = [point["N"] for point in curve]
                axes.plot(sizes, [point[key] for point in curve], color=colour, marker=marker, label=f"{who}, {call}")
                axes.plot(sizes, [point[expected_key] for point in curve], color=colour, lw=0.8, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="N", ylabel=label, xticks=sizes)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].plot([], [], color="0.4", lw=0.8, ls=":", label="least time, arrays held")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


if __name__ == "__main__":
    main()
