"""Speed and memory of the kernels: `python benchmarks/kernels.py` writes benchmarks/results/kernels_<geometry>.*.

Correctness first: nothing is timed before the ops agree with the float64 reference. Then, on the same inputs:

- Sinkhorn to an L1 marginal error of 1e-3, against loops that do the plain iteration: a dense torch loop in the log
  domain, POT (log domain, and lazy) and KeOps' online log-sum-exp, which is what GeomLoss runs. They share one
  iteration and so one number of iterations to that error, which the plain iteration gives; their time to it is that
  number times their time for one, from calls of a few iterations. The product that a dense peer starts from is free.
- Counterparts against TAC's dense softmax counterpart.

Seconds are the best of several rounds, contenders taking turns: other work on the machine can only make a round slower.
Beside the clock's stand seconds of processor time: with `--threads 1` these hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from simulation import SEVERITIES, load_noun_vectors, simulate
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts
from cae.kernels.tiles import panel_rows

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-3
EXPECTED = {
    "ours / matrix product, one iteration": "about 0.9: one product in panels that stay in the cache; at most 1.5",
    "ours / dense loop, to 1e-3": "about 0.3 clustered, 0.8 clip: the same time for one iteration, since what the "
    "product costs is saved in memory traffic; a third of the iterations where there are many; at most 0.5. "
    "(Revised from 0.15 after a run at N=2000, M=300.)",
    "ours / POT log, to 1e-3": "about 0.1; at most 0.2",
    "ours / POT lazy, to 1e-3": "about 0.1; at most 0.2",
    "ours / KeOps (GeomLoss), to 1e-3": "below 0.02: KeOps has no fast matrix product on a CPU",
    "ours / dense loop, memory": "about 0.02: one panel; at most 0.1",
    "ours / TAC softmax counterpart": "about 0.9: the same two products",
}


@dataclass(frozen=True)
class Cost:
    """What one call took."""

    clock_s: float
    processor_s: float
    peak_mb: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=["clustered", "clip"], default="clustered")
    parser.add_argument("--rows", type=int, default=40_000, help="N")
    parser.add_argument("--columns", type=int, default=2_000, help="M")
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    x, u = inputs(args.geometry, args.rows, args.columns)
    gate(x[:2000], u[:500], args.epsilon)
    figures, missing = measure(x, u, args.epsilon, args.rounds)
    conditions = {
        "device": "cpu; no GPU was at hand: every figure for CUDA, and flash-sinkhorn, is outstanding",
        "inputs": f"{args.geometry}, N={len(x)}, M={len(u)}, D={x.shape[1]}, float32",
        "epsilon": args.epsilon,
        "threads": args.threads,
        "rounds": args.rounds,
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load average before and after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "versions": {name: installed(name) for name in ("torch", "POT", "geomloss", "pykeops", "flash-sinkhorn")},
        "missing": missing,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=RESULTS.parent
        ).stdout.strip(),
    }
    report = figures | {"expected": EXPECTED, "conditions": conditions}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"kernels_{args.geometry}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"kernels_{args.geometry}.md").write_text(markdown(report))
    print(markdown(report))


def inputs(geometry: str, N: int, M: int) -> tuple[Tensor, Tensor]:
    """(N, 512) images and (M, 512) texts with unit rows.

    "clip" is benchmarks/simulation.py's, where few iterations are enough: all texts are about as far from all images.
    "clustered" is 100 Gaussian clusters that hold other shares of the images than of the texts, so that mass has to
    move from cluster to cluster, which takes many.
    """
    if geometry == "clip":
        problem = simulate(load_noun_vectors(), SEVERITIES["default"], n_images=N)
        return problem.x, normalize(problem.banks["noun"].embeddings[:M].float(), dim=1)
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(100, 512, generator=generator), dim=1)

    def sample(rows: int) -> Tensor:
        cluster = torch.multinomial(torch.rand(100, generator=generator) ** 2, rows, True, generator=generator)
        return normalize(0.9 * centers[cluster] + normalize(torch.randn(rows, 512, generator=generator), dim=1), dim=1)

    return sample(N), sample(M)


def gate(x: Tensor, u: Tensor, epsilon: float) -> None:
    """Stop here if the ops are wrong."""
    result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=5000)
    cost = 1 - x.double() @ u.double().T
    plan = ((result.f.double()[:, None] + result.g.double() - cost) / epsilon).exp() / len(x)
    uniform = torch.full((len(u),), 1 / len(u), dtype=torch.float64)
    torch.testing.assert_close(plan.sum(dim=1) * len(x), torch.ones(len(x)).double(), atol=1e-4, rtol=0)
    assert float((plan.sum(dim=0) - uniform).abs().sum()) <= 1.1 * TOLERANCE
    y = counterparts(x, u, result.g, epsilon=epsilon)
    torch.testing.assert_close(
        y.double(), counterparts(x, u, result.g, epsilon=epsilon, backend="reference"), atol=1e-5, rtol=0
    )


def measure(x: Tensor, u: Tensor, epsilon: float, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """All figures, and the peers that could not be had."""
    accelerated = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE)
    plain = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, acceleration=False)
    g, steps = accelerated.g, 5
    scores = x @ u.T / epsilon
    matrix_mb = scores.nbytes / 2**20
    few = {"epsilon": epsilon, "tol": 1e-12, "max_iter": steps}
    # What to call, how many iterations' work that is, and the memory that it is handed ready-made.
    contenders: dict[str, tuple[Callable[[], object], float, float]] = {
        "matrix product": (lambda: x @ u.T, 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, **few)), steps, 0),
        "ours, to 1e-3": (lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE), 1, 0),
        "dense loop, iteration": (lambda: dense_loop(scores, steps), steps, matrix_mb),
        "ours, counterparts": (lambda: counterparts(x, u, g, epsilon=epsilon), 1, 0),
        "TAC softmax counterpart": (lambda: torch.softmax(x @ u.T / epsilon, dim=1) @ u, 1, 0),
    }
    missing = ["flash-sinkhorn: CUDA only"]
    if find_spec("ot"):
        import ot

        a, b = torch.full((len(x),), 1 / len(x)), torch.full((len(u),), 1 / len(u))
        contenders["POT log, iteration"] = (
            quiet(lambda: ot.sinkhorn(a, b, -scores, 1.0, method="sinkhorn_log", numItermax=steps, stopThr=0)),
            steps,
            matrix_mb,
        )
        # Its cost is |x - u|^2 = 2 (1 - x·u), so its regularisation is 2 epsilon.
        contenders["POT lazy, iteration"] = (
            quiet(
                lambda: ot.bregman.empirical_sinkhorn(
                    x, u, 2 * epsilon, numIterMax=steps, stopThr=0, isLazy=True, batchSize=1000
                )
            ),
            steps,
            0,
        )
    else:
        missing.append("POT: not installed")
    try:
        from pykeops.torch import LazyTensor

        share = len(x) // 40  # KeOps' work is linear in N, and all of it would take minutes
        contenders["KeOps (GeomLoss), iteration"] = (
            lambda: keops_iteration(LazyTensor, x[:share], u, epsilon),
            share / len(x),
            0,
        )
        contenders["KeOps (GeomLoss), iteration"][0]()  # compiles
    except Exception as error:  # a compiler that is absent or fails shows up as one of many types
        contenders.pop("KeOps (GeomLoss), iteration", None)
        missing.append(f"KeOps: {type(error).__name__}: {error}")

    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, (call, work, held_mb) in contenders.items():
            costs[name] = best(costs.get(name), cost(call, work, held_mb))
            print(name, costs[name], flush=True)
    ours = costs["ours, to 1e-3"]
    ratios = {
        "ours / matrix product, one iteration": ratio(costs["ours, iteration"], costs["matrix product"], 1),
        "ours / TAC softmax counterpart": ratio(costs["ours, counterparts"], costs["TAC softmax counterpart"], 1),
    }
    for peer in ("dense loop", "POT log", "POT lazy", "KeOps (GeomLoss)"):
        if f"{peer}, iteration" in costs:
            ratios[f"ours / {peer}, to 1e-3"] = ratio(ours, costs[f"{peer}, iteration"], plain.n_iter)
    dense = costs["dense loop, iteration"]
    if ours.peak_mb is not None and dense.peak_mb:
        # A panel that fits into memory freed before does not show in the process: take at least what it is known to be.
        scratch_mb = max(ours.peak_mb, 4 * panel_rows(len(u), u.device) * len(u) / 2**20)
        ratios["ours / dense loop, memory"] = {"memory": scratch_mb / dense.peak_mb}
    iterations = {"ours": accelerated.n_iter, "plain": plain.n_iter}
    return {"costs": {k: asdict(v) for k, v in costs.items()}, "iterations": iterations, "ratios": ratios}, missing


def dense_loop(scores: Tensor, steps: int) -> Tensor:
    """Log-domain Sinkhorn on the (N, M) matrix of x·u / epsilon, with the stopping test that ours has."""
    N, M = scores.shape
    log_v = torch.full((M,), -math.log(M))
    for _ in range(steps):
        log_u = -torch.logsumexp(scores + log_v, dim=1)
        log_columns = torch.logsumexp(scores + (log_u - math.log(N))[:, None], dim=0) + log_v
        if float((log_columns.exp() - 1 / M).abs().sum()) <= 0:
            break
        log_v = log_v - math.log(M) - log_columns
    return log_v


def keops_iteration(lazy: Any, x: Tensor, u: Tensor, epsilon: float) -> Tensor:
    """The two reductions of one iteration, without an (N, M) matrix."""
    scores = (lazy(x[:, None]) | lazy(u[None])) / epsilon
    log_u = -scores.logsumexp(dim=1)
    return (scores + lazy(log_u[:, None])).logsumexp(dim=0)


def quiet(call: Callable[[], object]) -> Callable[[], object]:
    """Without the warning that a few iterations do not converge."""

    def run() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    return run


def cost(call: Callable[[], object], work: float, held_mb: float) -> Cost:
    """Time of one iteration's work, and the memory that the call adds at its peak."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
    except OSError:
        before = None
    clock, processor = time.perf_counter(), time.process_time()
    call()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    peak = None if before is None else round((resident("VmHWM") - before) / 2**10 + held_mb, 1)
    return Cost(clock / work, processor / work, peak)


def resident(field: str) -> int:
    """Kilobytes from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def best(first: Cost | None, second: Cost) -> Cost:
    """Field by field: the least time, and the most memory, since a later round reuses what an earlier one freed."""
    if first is None:
        return second
    peak = None if first.peak_mb is None or second.peak_mb is None else max(first.peak_mb, second.peak_mb)
    return Cost(min(first.clock_s, second.clock_s), min(first.processor_s, second.processor_s), peak)


def ratio(ours: Cost, peer: Cost, iterations: int) -> dict[str, float]:
    """Our time over the peer's for so many iterations."""
    return {
        "clock": ours.clock_s / (iterations * peer.clock_s),
        "processor": ours.processor_s / (iterations * peer.processor_s),
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Kernels", "", "| | seconds | processor seconds | peak MB |", "|---|---:|---:|---:|"]
    for name, row in report["costs"].items():
        lines.append(f"| {name} | {row['clock_s']:.3g} | {row['processor_s']:.3g} | {row['peak_mb']} |")
    counts = report["iterations"]
    lines += ["", f"Iterations to a marginal error of 1e-3: {counts['ours']} (ours), {counts['plain']} (plain)."]
    lines += ["", "| ratio | clock | processor | expected beforehand |", "|---|---:|---:|---|"]
    for name, row in report["ratios"].items():
        values = (row["memory"], row["memory"]) if "memory" in row else (row["clock"], row["processor"])
        lines.append(f"| {name} | {values[0]:.3g} | {values[1]:.3g} | {report['expected'][name]} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
