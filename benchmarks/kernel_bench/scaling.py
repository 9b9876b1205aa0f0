"""One iteration and one call as N, M and D change around a base point, and every solver run to its end there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from kernel_bench.measuring import (
    PRODUCTS,
    Contender,
    Cost,
    best,
    cost,
    matrix_peak,
    matrix_product,
    ours_products,
    quiet,
    rate,
)
from kernel_bench.peers import dense_loop, softmax_counterpart
from kernel_bench.problems import TOLERANCE, column_error, inputs
from torch import Tensor

from cae.kernels import cosine_sinkhorn, counterparts

WIDTHS = (64, 128, 256, 512, 768, 1280)
FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of the base point's N and M
STEPS = 10  # iterations whose mean is one: ours makes some of its products in the first alone
# Runs a solver to its end; g, and how many iterations that took where it tells.
Solver = Callable[[], tuple[Tensor, int | None]]


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
            products = PRODUCTS | {"ours, iteration": ours_products(STEPS, shape) / STEPS}
            print(count, shape, {name: round(took.clock_s, 4) for name, took in costs.items()}, flush=True)
            points += [
                {"threads": count, "N": shape[0], "M": shape[1], "D": shape[2], "op": name}
                | asdict(took)
                | rate(took, products.get(name), shape, peaks[count])
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
    scores, g = x @ u.T / epsilon, torch.zeros(len(u))
    few = {"epsilon": epsilon, "tol": 1e-12, "max_iter": STEPS, "init": g}  # g: without the sweeps of a sample
    contenders: dict[str, Contender] = {
        "matrix product": (lambda: matrix_product(x, u), 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, **few)), STEPS, 0),
        "dense loop, iteration": (lambda: dense_loop(scores, STEPS), STEPS, scores.nbytes / 2**20),
        "ours, counterparts": (lambda: counterparts(x, u, g, epsilon=epsilon), 1, 0),
        "TAC softmax counterpart": (lambda: softmax_counterpart(x, u, epsilon), 1, 0),
    }
    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, call in contenders.items():
            costs[name] = best(costs.get(name), cost(*call)[0])
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
    rows: list[dict[str, Any]] = []

    def run(name: str, call: Solver) -> int | None:
        took, (g, iterations) = cost(quiet(call), 1, 0)
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
    for name, call in pot_solvers(x, u, epsilon, plain, missing).items():
        run(name, call)
    try:
        for name, call in geomloss_solvers(x, u, epsilon, online):
            run(name, call)
    except Exception as error:  # a package, compiler or memory that is not there shows up as one of many types
        missing.append(f"GeomLoss: {type(error).__name__}: {error}")
    return rows


def pot_solvers(x: Tensor, u: Tensor, epsilon: float, plain: int, missing: list[str]) -> dict[str, Solver]:
    """POT by its own test, and lazy with the dense loop's number of iterations."""
    if not find_spec("ot"):
        missing.append("POT: not installed")
        return {}
    import ot

    N, M = len(x), len(u)
    a, b = torch.full((N,), 1 / N), torch.full((M,), 1 / M)

    def log_domain() -> tuple[Tensor, int]:
        # Its test is on the Euclidean norm, every tenth iteration: this one is enough for the L1 norm.
        options = {"method": "sinkhorn_log", "numItermax": 5000, "stopThr": TOLERANCE / math.sqrt(M), "log": True}
        _, log = ot.sinkhorn(a, b, 1 - x @ u.T, epsilon, **options)
        return epsilon * log["log_v"], log["niter"] + 1

    def lazy() -> tuple[Tensor, int]:
        options = {"numIterMax": plain, "stopThr": 0, "isLazy": True, "batchSize": 1000}
        _, log_v = ot.bregman.empirical_sinkhorn(x, u, 2 * epsilon, **options)
        return epsilon * log_v, plain

    return {"POT log": log_domain, "POT lazy": lazy}


def geomloss_solvers(x: Tensor, u: Tensor, epsilon: float, online: bool) -> Iterator[tuple[str, Solver]]:
    """GeomLoss, which has no stopping test, at three speeds of its schedule."""
    from geomloss import SamplesLoss

    # Half the squared distance of unit rows is 1 - x·u, so blur^2 is epsilon.
    for backend in ("tensorized", "online") if online else ("tensorized",):
        options = {"p": 2, "blur": epsilon**0.5, "debias": False, "potentials": True, "backend": backend}
        SamplesLoss("sinkhorn", **options)(x[:64], u[:64])  # compiles
        for factor in (0.5, 0.9, 0.97):
            solver = SamplesLoss("sinkhorn", scaling=factor, **options)
            yield f"GeomLoss {backend}, scaling {factor}", lambda solver=solver: (solver(x, u)[1].flatten(), None)
