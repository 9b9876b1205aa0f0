"""Speed and memory of the kernels: `python benchmarks/kernels.py` writes benchmarks/results/kernels_<geometry>*.

Correctness first: nothing is timed before the ops agree with the float64 reference. Then, on the same inputs:

- Sinkhorn to an L1 marginal error of 1e-3, against loops that do the plain iteration: a dense torch loop in the log
  domain, POT (log domain, and lazy) and KeOps' online log-sum-exp, which is what GeomLoss runs. They share one
  iteration and so one number of iterations to that error. The dense loop runs to it and gives that number; the others'
  time is the number times their time for one, from calls of a few iterations. A dense peer's product is free.
- Counterparts against TAC's dense softmax counterpart.

`--scaling` writes benchmarks/results/kernels_scaling.* instead: one iteration and one call as N, M and D change around
a base point, with one thread and with `--threads`; and at the base point every peer, GeomLoss too, run to its end with
its product included. There the marginal error is measured for the potentials that each returns.

Seconds are the best of several rounds, contenders taking turns: other work on the machine can only make a round slower.
Beside the clock's stand seconds of processor time: with `--threads 1` these hold on a busy machine too. GFLOP/s count
the products with x and u alone, and the peak is the rate of a product of square matrices with as many threads.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
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
HEADER = "| | seconds | processor seconds | peak MB | GFLOP/s | share of peak"
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
WIDTHS = (64, 128, 256, 512, 768, 1280)
FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of the base point's N and M
# Products with x and u in one call.
PRODUCTS = {"matrix product": 1, "ours, iteration": 1, "ours, counterparts": 2, "TAC softmax counterpart": 2}
EXPECTED_SCALING = {
    "ours, iteration: growth with N": "1.0",
    "ours, iteration: growth with M": "1.0",
    "ours, iteration: growth with D": "0.7: the exponentials do not depend on D",
    "dense loop, iteration: growth with N": "1.0",
    "dense loop, iteration: growth with M": "1.0",
    "dense loop, iteration: growth with D": "0: its product was made before",
    "ours / dense loop, one iteration, least D": "0.3",
    "ours / dense loop, one iteration, base": "1.1",
    "ours / dense loop, one iteration, most D": "2.5",
    "ours, iteration: share of peak, least D": "0.5",
    "ours, iteration: share of peak, base": "0.85",
    "ours, iteration: times faster with all threads": "1.8 with two",
    "dense loop, iteration: times faster with all threads": "1.6 with two: memory is shared",
    "ours, counterparts: times faster with all threads": "1.8 with two",
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
    parser.add_argument("--scaling", action="store_true", help="sweep N, M and D of the clustered geometry instead")
    parser.add_argument("--rows", type=int, help="N; 40,000, or 10,000 for the base point of --scaling")
    parser.add_argument("--columns", type=int, help="M; 2,000, or 1,000 for the base point of --scaling")
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.scaling and args.geometry != "clustered":
        parser.error("--scaling has the clustered geometry only: CLIP's vectors have one width")
    N, M = args.rows or (10_000 if args.scaling else 40_000), args.columns or (1_000 if args.scaling else 2_000)
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    x, u = inputs(args.geometry, N, M)
    gate(x[:2000], u[:500], args.epsilon)
    if args.scaling:
        stem, render = "kernels_scaling", scaling_markdown
        figures, missing = scaling(N, M, args.epsilon, args.rounds, args.threads)
    else:
        stem, render = f"kernels_{args.geometry}", markdown
        if args.threads > 1:
            stem += f"_{args.threads}_threads"
        figures, missing = measure(x, u, args.epsilon, args.rounds)
    conditions = {
        "device": "cpu; no GPU was at hand: every figure for CUDA, and flash-sinkhorn, is outstanding",
        "inputs": f"{args.geometry}, N={len(x)}, M={len(u)}, D={x.shape[1]}, float32",
        "epsilon": args.epsilon,
        "threads": args.threads,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset: NumPy's and KeOps' threads are not held"),
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
    report = figures | {"expected": EXPECTED_SCALING if args.scaling else EXPECTED, "conditions": conditions}
    args.out.mkdir(exist_ok=True)
    (args.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{stem}.md").write_text(render(report))
    print(render(report))
    if args.scaling:
        plot(report, args.out / f"{stem}.png")


def inputs(geometry: str, N: int, M: int, D: int = 512) -> tuple[Tensor, Tensor]:
    """(N, D) images and (M, D) texts with unit rows; D is 512 for "clip".

    "clip" is benchmarks/simulation.py's, where few iterations are enough: all texts are about as far from all images.
    "clustered" is 100 Gaussian clusters that hold other shares of the images than of the texts, so that mass has to
    move from cluster to cluster, which takes many.
    """
    if geometry == "clip":
        problem = simulate(load_noun_vectors(), SEVERITIES["default"], n_images=N)
        return problem.x, normalize(problem.banks["noun"].embeddings[:M].float(), dim=1)
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(100, D, generator=generator), dim=1)

    def sample(rows: int) -> Tensor:
        cluster = torch.multinomial(torch.rand(100, generator=generator) ** 2, rows, True, generator=generator)
        return normalize(0.9 * centers[cluster] + normalize(torch.randn(rows, D, generator=generator), dim=1), dim=1)

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
    g, steps = accelerated.g, 5
    scores = x @ u.T / epsilon
    matrix_mb = scores.nbytes / 2**20
    few = {"epsilon": epsilon, "tol": 1e-12, "max_iter": steps}
    plain = dense_loop(scores, 1, TOLERANCE)[1]
    peak = matrix_peak()

    def dense_to_the_end() -> None:
        nonlocal plain
        plain = dense_loop(scores, 5000, TOLERANCE)[1]

    # What to call, how many iterations' work that is, and the memory that it is handed ready-made.
    contenders: dict[str, tuple[Callable[[], object], float, float]] = {
        "matrix product": (lambda: x @ u.T, 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, **few)), steps, 0),
        "ours, to 1e-3": (lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE), 1, 0),
        "dense loop, iteration": (lambda: dense_loop(scores, steps), steps, matrix_mb),
        "dense loop, to 1e-3": (dense_to_the_end, 1, matrix_mb),
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
    ratios["ours / dense loop, to 1e-3"] = ratio(ours, costs["dense loop, to 1e-3"], 1)
    for peer in ("POT log", "POT lazy", "KeOps (GeomLoss)"):
        if f"{peer}, iteration" in costs:
            ratios[f"ours / {peer}, to 1e-3"] = ratio(ours, costs[f"{peer}, iteration"], plain)
    dense = costs["dense loop, iteration"]
    if ours.peak_mb is not None and dense.peak_mb:
        # A panel that fits into memory freed before does not show in the process: take at least what it is known to be.
        scratch_mb = max(ours.peak_mb, 4 * panel_rows(len(u), u.device) * len(u) / 2**20)
        ratios["ours / dense loop, memory"] = {"memory": scratch_mb / dense.peak_mb}
    iterations = {"ours": accelerated.n_iter, "plain": plain}
    products = PRODUCTS | {"ours, to 1e-3": accelerated.n_iter}
    rows = {
        name: asdict(took) | rate(took, products.get(name), (len(x), len(u), x.shape[1]), peak)
        for name, took in costs.items()
    }
    return {"costs": rows, "iterations": iterations, "peak_gflop_per_s": peak, "ratios": ratios}, missing


def matrix_peak(size: int = 2048, rounds: int = 7) -> float:
    """GFLOP/s of a product of square float32 matrices into memory that is there, the best of several."""
    left, right, out = (torch.rand(size, size) for _ in range(3))
    return 2e-9 * size**3 / min(cost(lambda: torch.mm(left, right, out=out), 1, 0).clock_s for _ in range(rounds))


def rate(took: Cost, products: int | None, shape: tuple[int, int, int], peak: float) -> dict[str, float]:
    """GFLOP/s of the products in a call, and their share of the peak."""
    if products is None:
        return {}
    achieved = 2e-9 * products * math.prod(shape) / took.clock_s
    return {"gflop_per_s": achieved, "of_peak": achieved / peak}


def scaling(N: int, M: int, epsilon: float, rounds: int, threads: int) -> tuple[dict[str, Any], list[str]]:
    """One iteration and one call over N, M and D; then every peer to its end at two sizes."""
    sweeps = {
        "N": [(int(N * factor), M, 512) for factor in FACTORS],
        "M": [(N, int(M * factor), 512) for factor in FACTORS],
        "D": [(N, M, width) for width in WIDTHS],
    }
    points, peaks = [], {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        peaks[count] = matrix_peak()
        for shape in dict.fromkeys(shape for shapes in sweeps.values() for shape in shapes):
            costs = one_shape(shape, epsilon, rounds)
            print(count, shape, {name: round(took.clock_s, 4) for name, took in costs.items()}, flush=True)
            points += [
                {"threads": count, "N": shape[0], "M": shape[1], "D": shape[2], "op": name}
                | asdict(took)
                | rate(took, PRODUCTS.get(name), shape, peaks[count])
                for name, took in costs.items()
            ]
    missing = [
        "flash-sinkhorn: CUDA only",
        "GeomLoss to a given marginal error: it has no stopping test, only a schedule of epsilon set by `scaling`",
    ]
    ends = {}
    # KeOps takes minutes at the base point on a CPU.
    for shape, online in (((N, M, 512), False), ((N // 10, M // 4, 64), True)):
        ends["N={}, M={}, D={}".format(*shape)] = to_the_end(*inputs("clustered", *shape), epsilon, online, missing)
    report = {"points": points, "peak_gflop_per_s": peaks, "ends": ends}
    return report | {"found": found(points, sweeps, (N, M, 512), threads)}, missing


def one_shape(shape: tuple[int, int, int], epsilon: float, rounds: int) -> dict[str, Cost]:
    x, u = inputs("clustered", *shape)
    scores, g, steps = x @ u.T / epsilon, torch.zeros(len(u)), 3
    contenders: dict[str, tuple[Callable[[], object], float, float]] = {
        "matrix product": (lambda: x @ u.T, 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=1e-12, max_iter=steps)), steps, 0),
        "dense loop, iteration": (lambda: dense_loop(scores, steps), steps, scores.nbytes / 2**20),
        "ours, counterparts": (lambda: counterparts(x, u, g, epsilon=epsilon), 1, 0),
        "TAC softmax counterpart": (lambda: torch.softmax(x @ u.T / epsilon, dim=1) @ u, 1, 0),
    }
    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, call in contenders.items():
            costs[name] = best(costs.get(name), cost(*call))
    return costs


def found(
    points: list[dict[str, Any]],
    sweeps: dict[str, list[tuple[int, int, int]]],
    base: tuple[int, int, int],
    threads: int,
) -> dict[str, float]:
    """What EXPECTED_SCALING names, with one thread where it does not say otherwise.

    Growth is p in seconds ~ size^p, between the first and the last point of a sweep.
    """
    table = {(point["threads"], point["op"], point["N"], point["M"], point["D"]): point for point in points}

    def seconds(op: str, shape: tuple[int, int, int], count: int = 1) -> float:
        return float(table[(count, op, *shape)]["clock_s"])

    ours, dense = "ours, iteration", "dense loop, iteration"
    values = {}
    for op in (ours, dense):
        for axis, (name, shapes) in enumerate(sweeps.items()):
            first, last = shapes[0], shapes[-1]
            growth = math.log(seconds(op, last) / seconds(op, first)) / math.log(last[axis] / first[axis])
            values[f"{op}: growth with {name}"] = growth
    least, most = sweeps["D"][0], sweeps["D"][-1]
    for where, shape in (("least D", least), ("base", base), ("most D", most)):
        values[f"ours / dense loop, one iteration, {where}"] = seconds(ours, shape) / seconds(dense, shape)
    for where, shape in (("least D", least), ("base", base)):
        values[f"{ours}: share of peak, {where}"] = table[(1, ours, *shape)]["of_peak"]
    if threads > 1:
        for op in (ours, dense, "ours, counterparts"):
            values[f"{op}: times faster with all threads"] = seconds(op, base) / seconds(op, base, threads)
    return values


def to_the_end(x: Tensor, u: Tensor, epsilon: float, online: bool, missing: list[str]) -> list[dict[str, Any]]:
    """One run of each solver with all that it does, and the L1 marginal error of what it returns."""
    N, M = len(x), len(u)
    rows: list[dict[str, Any]] = []

    def run(name: str, call: Callable[[], tuple[Tensor, int | None]]) -> int | None:
        answers: list[tuple[Tensor, int | None]] = []
        took = cost(quiet(lambda: answers.append(call())), 1, 0)
        g, iterations = answers[0]
        error = column_error(x, u, g, epsilon)
        rows.append({"solver": name, "iterations": iterations, "marginal_error": error} | asdict(took))
        print(rows[-1], flush=True)
        return iterations

    def ours(acceleration: bool) -> tuple[Tensor, int]:
        result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=5000, acceleration=acceleration)
        return result.g, result.n_iter

    def dense() -> tuple[Tensor, int]:
        log_v, iterations = dense_loop(x @ u.T / epsilon, 5000, TOLERANCE)
        return epsilon * log_v, iterations

    run("ours", lambda: ours(True))
    run("ours, without acceleration", lambda: ours(False))
    plain = run("dense loop", dense) or 1
    if find_spec("ot"):
        import ot

        a, b = torch.full((N,), 1 / N), torch.full((M,), 1 / M)

        # Its test is on the Euclidean norm, every tenth iteration: this one is enough for the L1 norm.
        def pot_log() -> tuple[Tensor, int]:
            stop = TOLERANCE / math.sqrt(M)
            _, log = ot.sinkhorn(
                a, b, 1 - x @ u.T, epsilon, method="sinkhorn_log", numItermax=5000, stopThr=stop, log=True
            )
            return epsilon * log["log_v"], log["niter"] + 1

        # It is given the dense loop's number of iterations.
        def pot_lazy() -> tuple[Tensor, int]:
            _, log_v = ot.bregman.empirical_sinkhorn(
                x, u, 2 * epsilon, numIterMax=plain, stopThr=0, isLazy=True, batchSize=1000
            )
            return epsilon * log_v, plain

        run("POT log", pot_log)
        run("POT lazy", pot_lazy)
    else:
        missing.append("POT: not installed")
    try:
        from geomloss import SamplesLoss

        # Half the squared distance of unit rows is 1 - x·u, so blur^2 is epsilon.
        for backend in ("tensorized", "online") if online else ("tensorized",):
            options = {"p": 2, "blur": epsilon**0.5, "debias": False, "potentials": True, "backend": backend}
            SamplesLoss("sinkhorn", **options)(x[:64], u[:64])  # compiles
            for factor in (0.5, 0.9, 0.97):
                solver = SamplesLoss("sinkhorn", scaling=factor, **options)
                run(f"GeomLoss {backend}, scaling {factor}", lambda solver=solver: (solver(x, u)[1].flatten(), None))
    except Exception as error:  # as for KeOps above
        missing.append(f"GeomLoss: {type(error).__name__}: {error}")
    return rows


def column_error(x: Tensor, u: Tensor, g: Tensor, epsilon: float) -> float:
    """L1 error of the columns after the row update for g; weights are uniform."""
    columns = torch.zeros(len(u), dtype=torch.float64)
    for rows in x.split(1000):
        columns += torch.softmax((rows.double() @ u.double().T + g.double()) / epsilon, dim=1).sum(dim=0) / len(x)
    return float((columns - 1 / len(u)).abs().sum())


def dense_loop(scores: Tensor, steps: int, tol: float = 0) -> tuple[Tensor, int]:
    """Log-domain Sinkhorn on the (N, M) matrix of x·u / epsilon, with the stopping test that ours has."""
    N, M = scores.shape
    log_v = torch.full((M,), -math.log(M))
    for step in range(1, steps + 1):  # noqa: B007 it is returned
        log_u = -torch.logsumexp(scores + log_v, dim=1)
        log_columns = torch.logsumexp(scores + (log_u - math.log(N))[:, None], dim=0) + log_v
        if float((log_columns.exp() - 1 / M).abs().sum()) <= tol:
            break
        log_v = log_v - math.log(M) - log_columns
    return log_v, step


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
    lines = ["# Kernels", "", f"{HEADER} |", "|---|" + "---:|" * 5]
    lines += [f"| {name} | {cells(row)} |" for name, row in report["costs"].items()]
    lines += ["", f"Peak of a matrix product: {report['peak_gflop_per_s']:.3g} GFLOP/s."]
    counts = report["iterations"]
    lines += ["", f"Iterations to a marginal error of 1e-3: {counts['ours']} (ours), {counts['plain']} (plain)."]
    lines += ["", "| ratio | clock | processor | expected beforehand |", "|---|---:|---:|---|"]
    for name, row in report["ratios"].items():
        values = (row["memory"], row["memory"]) if "memory" in row else (row["clock"], row["processor"])
        lines.append(f"| {name} | {values[0]:.3g} | {values[1]:.3g} | {report['expected'][name]} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> str:
    """The columns of HEADER after the first."""
    rates = (f"{row[key]:.3g}" if key in row else "" for key in ("gflop_per_s", "of_peak"))
    return " | ".join([f"{row['clock_s']:.3g}", f"{row['processor_s']:.3g}", str(row["peak_mb"]), *rates])


def scaling_markdown(report: dict[str, Any]) -> str:
    lines = ["# Kernels: scaling", "", "![curves](kernels_scaling.png)", ""]
    lines += ["| | found | expected beforehand |", "|---|---:|---|"]
    lines += [f"| {name} | {value:.3g} | {report['expected'][name]} |" for name, value in report["found"].items()]
    lines += ["", "Growth: p in seconds ~ size^p, between a sweep's ends. One thread unless it says otherwise.", ""]
    peaks = (f"{peak:.3g} GFLOP/s ({count})" for count, peak in report["peak_gflop_per_s"].items())
    lines += ["Peak of a matrix product (threads): " + ", ".join(peaks) + ".", "", "## To the end, one run each"]
    for shape, rows in report["ends"].items():
        lines += ["", f"{shape}, {report['conditions']['threads']} thread(s), products included:", ""]
        lines += ["| solver | iterations | L1 marginal error | seconds | processor seconds | peak MB |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for row in rows:
            shown = f"{row['iterations'] or ''} | {row['marginal_error']:.3g} | {row['clock_s']:.3g}"
            lines.append(f"| {row['solver']} | {shown} | {row['processor_s']:.3g} | {row['peak_mb']} |")
    lines += ["", "## All points", "", f"| threads | N | M | D {HEADER} |", "|---:|---:|---:|---:|---|" + "---:|" * 5]
    for row in report["points"]:
        lines.append(f"| {row['threads']} | {row['N']} | {row['M']} | {row['D']} | {row['op']} | {cells(row)} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], file: Path) -> None:
    """Seconds and share of the peak over each size, the others at the base point."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{file.name} is not written: matplotlib is not installed (pip install '.[bench]')")
        return
    points = report["points"]
    base = {axis: statistics.mode(point[axis] for point in points) for axis in "NMD"}
    counts, ops = sorted({point["threads"] for point in points}), list(dict.fromkeys(point["op"] for point in points))
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    for row, (key, label) in enumerate((("clock_s", "seconds"), ("of_peak", "products' share of the peak"))):
        for column, axis in enumerate("NMD"):
            axes = figure.add_subplot(2, 3, 3 * row + column + 1)
            others = {name: value for name, value in base.items() if name != axis}
            for index, op in enumerate(ops):
                for count in counts:
                    curve = sorted(
                        (point[axis], point[key])
                        for point in points
                        if (point["op"], point["threads"]) == (op, count)
                        and key in point
                        and all(point[name] == value for name, value in others.items())
                    )
                    if curve:
                        style = "-" if count == 1 else "--"
                        axes.plot(*zip(*curve, strict=True), style, color=f"C{index}", marker="o", markersize=3)
            ticks = sorted({point[axis] for point in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.set(
                xlabel=axis, ylabel=label, title=", ".join(f"{name} = {value:,}" for name, value in others.items())
            )
            axes.set(**({"yscale": "log"} if key == "clock_s" else {"ylim": (0, 1.1)}))
            axes.grid(alpha=0.3)
    axes = figure.axes[0]
    handles = [axes.plot([], color=f"C{index}", label=op)[0] for index, op in enumerate(ops)]
    handles += [axes.plot([], color="0.4", ls="-" if n == 1 else "--", label=f"{n} thread(s)")[0] for n in counts]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
