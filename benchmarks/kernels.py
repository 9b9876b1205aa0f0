"""Speed and memory of the kernels: `python benchmarks/kernels.py` writes benchmarks/results/kernels_<geometry>*.

**Outstanding: every figure on CUDA.** One command makes them, benchmarks/results/kernels_cuda.*:

    python benchmarks/kernels.py --device cuda

It takes 1,281,167 x 20,000 x 512 in float16 (`--shape N,M,D` for less, such as a matrix that a dense loop can hold) and
some minutes, of which flash-sinkhorn is the most; `pip install '.[bench]'` has the peers, and those that are missing
are passed over. The files are written anew after every figure: what was measured survives a run that is cut short.

Correctness first: nothing is timed before the ops agree with the float64 reference. Then, on the same inputs:

- Sinkhorn to an L1 marginal error of 1e-3, against loops that do the plain iteration: a dense torch loop in the log
  domain, POT (log domain, and lazy) and KeOps' online log-sum-exp, which is what GeomLoss runs. They share one
  iteration and so one number of iterations to that error. The dense loop runs to it and gives that number; the others'
  time is the number times their time for one, from calls of a few iterations. A dense peer's product is free.
- Counterparts against TAC's dense softmax counterpart.
- On CUDA both against flash-sinkhorn too, which is told the plain iteration's number of iterations; that run to its end
  takes minutes, so it is made once and last. What is dense runs where an (N, M) matrix fits.

Whoever runs to the end has the marginal error of what it returns measured in float64.

`--scaling` writes benchmarks/results/kernels_scaling.* instead: one iteration and one call as N, M and D change around
a base point, with one thread and with `--threads`; and at the base point every peer, GeomLoss too, run to its end with
its product included. There the marginal error is measured for the potentials that each returns.

Seconds are the best of several rounds, contenders taking turns: other work on the machine can only make a round slower.
Beside the clock's stand seconds of processor time: with `--threads 1` these hold on a busy machine too. GFLOP/s count
the products with x and u alone, and the peak is the rate of a product of square matrices with as many threads. On CUDA
the clock is that of its events, processor time is what launching takes, memory is what the allocator handed out beyond
the inputs, and products are in the inputs' dtype.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peers import dense_loop, flash_counterparts, flash_sinkhorn, keops_iteration, softmax_counterpart
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import cosine_sinkhorn, counterparts
from cae.kernels.tiles import kept_rows, panel_rows

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
TOLERANCE = 1e-3
PACKAGES = ("torch", "triton", "POT", "geomloss", "pykeops", "flash-sinkhorn")
HEADER = "| | seconds | processor seconds | peak MB | GFLOP/s | share of peak"
EXPECTED = {
    "ours / matrix product, one iteration": "about 0.8: a fifth of the rows has its scores kept; at most 1.5",
    "ours / dense loop, to 1e-3": "about 0.22 clustered, 0.85 clip: 0.26 and 1.0 were found before scores were kept; "
    "at most 0.5",
    "ours / POT log, to 1e-3": "about 0.1; at most 0.2",
    "ours / POT lazy, to 1e-3": "about 0.1; at most 0.2",
    "ours / KeOps (GeomLoss), to 1e-3": "below 0.02: KeOps has no fast matrix product on a CPU",
    "ours / dense loop, memory": "about 0.08: one panel and eight kept; at most 0.1",
    "ours / TAC softmax counterpart": "about 0.9: the same two products",
}
EXPECTED_CUDA = {
    "ours / matrix product, one iteration": "about 1.9, from 65 ms and 34 ms predicted for an H200",
    "ours / dense loop, to 1e-3": "about 0.1: memory is what a dense loop waits for",
    "ours / flash-sinkhorn, one iteration": "about 0.2: one product in half precision for two in TF32; at most 0.25",
    "ours / flash-sinkhorn, to 1e-3": "about 0.05: and a third of the iterations; at most 0.125",
    "ours / flash-sinkhorn, counterparts": "about 0.15: two products for three; at most 0.2",
    "ours / KeOps (GeomLoss), to 1e-3": "below 0.001: KeOps has no matrix product",
    "ours / TAC softmax counterpart": "about 0.5: memory is what a dense softmax waits for",
    "ours, one iteration / 80 ms": "0.8 on an H200; at most 1",
    "ours, most memory beyond inputs / 2 GB": "about 0.3: a panel of 512 MB; at most 1. Counterparts' result is beside",
}
DEFAULT_SHAPE = {"cpu": (40_000, 2_000, 512), "scaling": (10_000, 1_000, 512), "cuda": (1_281_167, 20_000, 512)}
WIDTHS = (64, 128, 256, 512, 768, 1280)
FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of the base point's N and M
STEPS = 10  # iterations whose mean is one of --scaling: ours makes some of its products in the first alone
# Products with x and u in one call; `ours_products` has those of our iteration.
PRODUCTS = {
    "matrix product": 1,
    "flash-sinkhorn, iteration": 2,
    "ours, counterparts": 2,
    "flash-sinkhorn, counterparts": 3,
    "TAC softmax counterpart": 2,
}
# Minutes on CUDA, so it runs once, after everything else.
LONGEST = "flash-sinkhorn, to 1e-3"
# The most plain iterations that anything waits for on CUDA: a minute and a half of them.
MOST_PLAIN = 1000
# What to call, how many iterations' work that is, and the megabytes that it is handed ready-made.
Contender = tuple[Callable[[], Any], float, float]
EXPECTED_SCALING = {
    "ours, iteration: growth with N": "1.35: of 40,000 rows 42 % have their scores kept, of 16,000 all",
    "ours, iteration: growth with M": "1.35: the same",
    "ours, iteration: growth with D": "0.25: one product in ten iterations, and exponentials",
    "dense loop, iteration: growth with N": "1.0",
    "dense loop, iteration: growth with M": "1.0",
    "dense loop, iteration: growth with D": "0: its product was made before",
    "ours / dense loop, one iteration, least D": "0.2: its temporaries leave the cache",
    "ours / dense loop, one iteration, base": "0.3",
    "ours / dense loop, one iteration, most D": "0.4",
    "ours, iteration: share of peak, least D": "0.1",
    "ours, iteration: share of peak, base": "0.35",
    "ours, iteration: times faster with all threads": "1.7 with two: kept scores come from memory",
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="float32 on a CPU, float16 on CUDA")
    parser.add_argument(
        "--shape",
        type=shape,
        metavar="N,M,D",
        help="40000,2000,512; on CUDA 1281167,20000,512; 10000,1000,512 for the base point of --scaling",
    )
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.scaling and args.geometry != "clustered":
        parser.error("--scaling has the clustered geometry only: CLIP's vectors have one width")
    device = torch.device(args.device)
    if device.type == "cuda" and args.scaling:
        parser.error("--scaling is for the CPU")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    N, M, D = args.shape or DEFAULT_SHAPE["scaling" if args.scaling else args.device]
    if args.geometry == "clip" and D != 512:
        parser.error(f"--shape: CLIP's vectors have D = 512, not {D}")
    if args.scaling and D != 512:
        parser.error(f"--shape: the base point of --scaling has D = 512, not {D}")
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    x, u = inputs(args.geometry, N, M, D, device)
    gate(x[:2000], u[:500], args.epsilon)
    conditions: dict[str, Any] = {
        "device": device_name(device),
        "inputs": f"{args.geometry}, N={len(x)}, M={len(u)}, D={x.shape[1]}, {str(x.dtype).removeprefix('torch.')}",
        "epsilon": args.epsilon,
        "threads": args.threads,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset: NumPy's and KeOps' threads are not held"),
        "rounds": args.rounds,
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: installed(name) for name in PACKAGES},
        "commit": commit(),
    }
    args.out.mkdir(parents=True, exist_ok=True)

    def write(stem: str, figures: dict[str, Any], missing: list[str], render: Callable[..., str]) -> dict[str, Any]:
        load = {"load average before and after": [round(load_before, 1), round(os.getloadavg()[0], 1)]}
        report = figures | {"conditions": conditions | load | {"missing": missing}}
        (args.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / f"{stem}.md").write_text(render(report))
        return report

    if args.scaling:
        figures, missing = scaling(N, M, args.epsilon, args.rounds, args.threads)
        report = write("kernels_scaling", figures | {"expected": EXPECTED_SCALING}, missing, scaling_markdown)
        print(scaling_markdown(report))
        plot(report, args.out / "kernels_scaling.png")
        return
    stem = f"kernels_{args.geometry}"
    if device.type == "cuda":
        stem = "kernels_cuda" if args.geometry == "clustered" else "kernels_cuda_clip"
    elif args.threads > 1:
        stem += f"_{args.threads}_threads"
    if args.shape:
        stem += f"_{N}x{M}x{D}"
    expected = EXPECTED | (EXPECTED_CUDA if device.type == "cuda" else {})
    for figures, missing in measure(x, u, args.epsilon, args.rounds):
        report = write(stem, figures | {"expected": expected}, missing, markdown)
    print(markdown(report))


def shape(text: str) -> tuple[int, int, int]:
    """N,M,D as given on the command line."""
    try:
        N, M, D = (int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers N,M,D, got {text!r}") from None
    if min(N, M, D) < 1:
        raise argparse.ArgumentTypeError(f"N, M and D have to be positive, got {text!r}")
    return N, M, D


def inputs(geometry: str, N: int, M: int, D: int = 512, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """(N, D) images and (M, D) texts with unit rows, float32 or on CUDA float16; D is 512 for "clip".

    "clip" is benchmarks/simulation.py's, where few iterations are enough: all texts are about as far from all images.
    "clustered" is 100 Gaussian clusters that hold other shares of the images than of the texts, so that mass has to
    move from cluster to cluster, which takes many.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if geometry == "clip":
        # Here, since it needs the whole package, where the kernels need torch alone.
        from simulation import SEVERITIES, load_noun_vectors, simulate

        problem = simulate(load_noun_vectors(), SEVERITIES["default"], n_images=N)
        x, u = problem.x, normalize(problem.banks["noun"].embeddings[:M].float(), dim=1)
        return x.to(device, dtype), u.to(device, dtype)
    on = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    centers = normalize(torch.randn(100, D, **on), dim=1)

    def sample(rows: int) -> Tensor:
        shares = torch.rand(100, **on) ** 2
        cluster = torch.multinomial(shares, rows, True, generator=on["generator"])
        return normalize(0.9 * centers[cluster] + normalize(torch.randn(rows, D, **on), dim=1), dim=1).to(dtype)

    return sample(N), sample(M)


def gate(x: Tensor, u: Tensor, epsilon: float) -> None:
    """Stop here if the ops are wrong."""
    half = x.dtype != torch.float32
    result = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=5000)
    cost = 1 - x.double() @ u.double().T
    plan = ((result.f.double()[:, None] + result.g.double() - cost) / epsilon).exp() / len(x)
    rows = plan.sum(dim=1) * len(x)
    torch.testing.assert_close(rows, torch.ones_like(rows), atol=2e-3 if half else 1e-4, rtol=0)
    error = float((plan.sum(dim=0) - 1 / len(u)).abs().sum())
    assert error <= 1.1 * TOLERANCE, f"marginal error {error:.3g}, expected {TOLERANCE}"
    y = counterparts(x, u, result.g, epsilon=epsilon)
    exact = counterparts(x, u, result.g, epsilon=epsilon, backend="reference")
    torch.testing.assert_close(y.double(), exact.double(), atol=1e-4 if half else 1e-5, rtol=1e-3 if half else 0)


def measure(x: Tensor, u: Tensor, epsilon: float, rounds: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """After each call that was timed all figures so far, and the peers that could not be had."""
    device, size = x.device, (len(x), len(u), x.shape[1])
    peak = matrix_peak(device, x.dtype)
    accelerated = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE)
    f, g, steps = accelerated.f, accelerated.g, 5
    few = {"epsilon": epsilon, "tol": 1e-12, "max_iter": steps}
    missing: list[str] = []
    contenders: dict[str, Contender] = {
        "matrix product": (lambda: matrix_product(x, u), 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, **few)), steps, 0),
        "ours, to 1e-3": (lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE).g, 1, 0),
        "ours, counterparts": (lambda: counterparts(x, u, g, epsilon=epsilon), 1, 0),
    }
    costs: dict[str, Cost] = {}
    errors, counts = {}, {"ours": accelerated.n_iter}

    def turn(name: str) -> tuple[dict[str, Any], list[str]]:
        took, answer = cost(*contenders[name], device)
        costs[name] = best(costs.get(name), took)
        if name.endswith("to 1e-3") and name not in errors:
            errors[name] = column_error(x, u, answer, epsilon)
        print(name, costs[name], flush=True)
        products = PRODUCTS | {
            "ours, iteration": ours_products(steps, size, device) / steps,
            "ours, to 1e-3": ours_products(counts["ours"], size, device),
        }
        if "plain" in counts:
            products[LONGEST] = 2 * flash_steps(counts["plain"])
        rows = {name: asdict(took) | rate(took, products.get(name), size, peak) for name, took in costs.items()}
        figures = {"costs": rows, "iterations": counts, "errors": errors, "peak_gflop_per_s": peak}
        return figures | {"ratios": ratios(costs, counts.get("plain"), size, device)}, missing

    # Ours first and alone: some peers compile or tune for minutes before their first figure.
    for name in contenders:
        yield turn(name)
    if device.type == "cuda":
        # A dense loop may not fit, so the plain iteration's number is that of ours.
        counts["plain"] = plain_iterations(x, u, epsilon, missing)
        contenders |= flash_contenders(x, u, f, g, epsilon, steps, counts["plain"], missing)
        if "flash-sinkhorn, counterparts" in contenders:
            theirs = normalize(contenders["flash-sinkhorn, counterparts"][0](), dim=1)
            apart = (theirs - counterparts(x, u, g, epsilon=epsilon)).norm(dim=1).max()
            errors["flash-sinkhorn, counterparts: farthest row from ours"] = float(apart)
            del theirs
    else:
        missing.append("flash-sinkhorn: CUDA only")
    contenders |= dense_contenders(x, u, epsilon, steps, counts, missing)
    contenders |= keops_contender(x, u, epsilon, missing)
    for i in range(rounds):
        for name in contenders:
            if name != LONGEST and (i > 0 or name not in costs):
                yield turn(name)
    if LONGEST in contenders:
        yield turn(LONGEST)


def plain_iterations(x: Tensor, u: Tensor, epsilon: float, missing: list[str]) -> int:
    """How many the plain iteration takes to the tolerance, or how many it was given where they were not enough."""
    plain = quiet(
        lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE, max_iter=MOST_PLAIN, acceleration=False)
    )()
    if not plain.converged:
        missing.append(f"the plain iteration's end: {plain.marginal_error:.2g} from it after {plain.n_iter} iterations")
    return int(plain.n_iter)


def flash_steps(plain: int) -> int:
    """Updates behind the g that the plain iteration accepts: its last sweep is the test alone."""
    return max(1, plain - 1)


def flash_contenders(
    x: Tensor, u: Tensor, f: Tensor, g: Tensor, epsilon: float, steps: int, plain: int, missing: list[str]
) -> dict[str, Contender]:
    """flash-sinkhorn after its autotuning; the conversion to float32 is part of what it does."""
    contenders: dict[str, Contender] = {
        "flash-sinkhorn, iteration": (lambda: flash_sinkhorn(x, u, epsilon, steps), steps, 0),
        LONGEST: (lambda: flash_sinkhorn(x, u, epsilon, flash_steps(plain)), 1, 0),
        "flash-sinkhorn, counterparts": (lambda: flash_counterparts(x, u, f, g, epsilon), 1, 0),
    }
    ready = runnable(contenders["flash-sinkhorn, iteration"], "flash-sinkhorn", missing)
    if not ready:
        return {}
    if not runnable(contenders["flash-sinkhorn, counterparts"], "flash-sinkhorn, counterparts", missing):
        del contenders["flash-sinkhorn, counterparts"]
    return contenders


def runnable(contender: Contender, name: str, missing: list[str]) -> bool:
    """Whether a peer that compiles at its first call comes through it; why not is added to `missing`."""
    try:
        contender[0]()
    except Exception as error:  # a package, compiler or memory that is not there shows up as one of many types
        missing.append(f"{name}: {type(error).__name__}: {error}")
        return False
    return True


def dense_contenders(
    x: Tensor, u: Tensor, epsilon: float, steps: int, counts: dict[str, int], missing: list[str]
) -> dict[str, Contender]:
    """Peers with an (N, M) matrix, and POT; the dense loop's run to the end leaves its iterations in `counts`."""
    N, M = len(x), len(u)
    matrix_mb = 4 * N * M / 2**20
    if x.is_cuda:
        missing.append("POT: measured on the CPU only")
        torch.cuda.empty_cache()  # what the allocator keeps for later is free too
        # The matrix and two temporaries.
        if 3.2 * matrix_mb > (free_mb := torch.cuda.mem_get_info()[0] / 2**20):
            missing.append(f"dense loop, TAC: needs {3.2 * matrix_mb:,.0f} MB of {free_mb:,.0f} free")
            return {}
    scores = x.float() @ u.float().T / epsilon

    def to_the_end() -> Tensor:
        log_v, counts["plain"] = dense_loop(scores, 5000, TOLERANCE)
        return epsilon * log_v

    contenders: dict[str, Contender] = {
        "dense loop, iteration": (lambda: dense_loop(scores, steps), steps, matrix_mb),
        "dense loop, to 1e-3": (to_the_end, 1, matrix_mb),
        "TAC softmax counterpart": (lambda: softmax_counterpart(x, u, epsilon), 1, 0),
    }
    if x.is_cuda:
        return contenders
    if not find_spec("ot"):
        missing.append("POT: not installed")
        return contenders
    import ot

    a, b = torch.full((N,), 1 / N), torch.full((M,), 1 / M)
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
    return contenders


def keops_contender(x: Tensor, u: Tensor, epsilon: float, missing: list[str]) -> dict[str, Contender]:
    """KeOps' work is linear in N, and all of it would take minutes: a 40th, in float32."""
    name, share = "KeOps (GeomLoss), iteration", max(1, len(x) // 40)
    few, texts = x[:share].float(), u.float()

    def iteration() -> Tensor:
        from pykeops.torch import LazyTensor

        return keops_iteration(LazyTensor, few, texts, epsilon)

    contender: Contender = (iteration, share / len(x), 0)
    return {name: contender} if runnable(contender, "KeOps", missing) else {}


def ratios(
    costs: dict[str, Cost], plain: int | None, size: tuple[int, int, int], device: torch.device
) -> dict[str, dict[str, float]]:
    """Ours over each peer that ran so far, and on CUDA over the goals for an H200."""
    iteration, end, texts = (f"ours, {what}" for what in ("iteration", "to 1e-3", "counterparts"))
    pairs = {
        "ours / matrix product, one iteration": (iteration, "matrix product", 1),
        "ours / flash-sinkhorn, one iteration": (iteration, "flash-sinkhorn, iteration", 1),
        "ours / flash-sinkhorn, to 1e-3": (end, LONGEST, 1),
        "ours / flash-sinkhorn, counterparts": (texts, "flash-sinkhorn, counterparts", 1),
        "ours / TAC softmax counterpart": (texts, "TAC softmax counterpart", 1),
        "ours / dense loop, to 1e-3": (end, "dense loop, to 1e-3", 1),
    }
    if plain:
        for peer in ("POT log", "POT lazy", "KeOps (GeomLoss)"):
            pairs[f"ours / {peer}, to 1e-3"] = (end, f"{peer}, iteration", plain)
    found = {
        name: ratio(costs[ours], costs[peer], n)
        for name, (ours, peer, n) in pairs.items()
        if ours in costs and peer in costs
    }
    if not {iteration, end, texts} <= costs.keys():
        return found
    dense, end_mb = costs.get("dense loop, iteration"), costs[end].peak_mb
    if end_mb is not None and dense and dense.peak_mb:
        # What fits into memory freed before does not show in the process: take at least what it is known to be.
        rows = min(size[0], panel_rows(size[1], device)) + min(size[0], kept_rows(size[1], device))
        scratch_mb = max(end_mb, 4 * rows * size[1] / 2**20)
        found["ours / dense loop, memory"] = {"memory": scratch_mb / dense.peak_mb}
    if size == DEFAULT_SHAPE["cuda"] and device.type == "cuda":
        found["ours, one iteration / 80 ms"] = ratio(costs[iteration], Cost(0.08, 0.08, None), 1)
        result_mb = 2 * size[0] * size[2] / 2**20  # counterparts in float16 are an output, not scratch
        most_mb = max(end_mb or 0, (costs[texts].peak_mb or 0) - result_mb)
        found["ours, most memory beyond inputs / 2 GB"] = {"memory": most_mb / 2**11}
    return found


def matrix_product(x: Tensor, u: Tensor) -> None:
    """x·u: whole on a CPU; on CUDA, where it may not fit, panels of rows into the same half gigabyte."""
    if not x.is_cuda:
        x @ u.T
        return
    rows = max(1, 2**28 // len(u))
    out = x.new_empty(min(rows, len(x)), len(u))
    for panel in x.split(rows):
        torch.mm(panel, u.T, out=out[: len(panel)])


def matrix_peak(device: torch.device = CPU, dtype: torch.dtype = torch.float32, rounds: int = 7) -> float:
    """GFLOP/s of a product of square matrices into memory that is there, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    left, right, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
    contender: Contender = (lambda: torch.mm(left, right, out=out), 1, 0)
    return 2e-9 * size**3 / min(cost(*contender, device)[0].clock_s for _ in range(rounds))


def ours_products(steps: int, shape: tuple[int, int, int], device: torch.device = CPU) -> float:
    """Products with x and u in so many iterations: one each, but for the rows whose scores are kept."""
    kept = min(1, kept_rows(shape[1], device) / shape[0])
    return steps - kept * (steps - 1)


def rate(took: Cost, products: float | None, shape: tuple[int, int, int], peak: float) -> dict[str, float]:
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
    contenders: dict[str, Contender] = {
        "matrix product": (lambda: matrix_product(x, u), 1, 0),
        "ours, iteration": (quiet(lambda: cosine_sinkhorn(x, u, epsilon=epsilon, tol=1e-12, max_iter=STEPS)), STEPS, 0),
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
    N, M = len(x), len(u)
    rows: list[dict[str, Any]] = []

    def run(name: str, call: Callable[[], tuple[Tensor, int | None]]) -> int | None:
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
    columns = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for rows in x.split(1000):
        columns += torch.softmax((rows.double() @ u.double().T + g.double()) / epsilon, dim=1).sum(dim=0) / len(x)
    return float((columns - 1 / len(u)).abs().sum())


def quiet(call: Callable[[], Any]) -> Callable[[], Any]:
    """Without the warning that a few iterations do not converge."""

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    return run


def cost(call: Callable[[], Any], work: float, held_mb: float, device: torch.device = CPU) -> tuple[Cost, Any]:
    """Time of one iteration's work, the memory that the call adds at its peak, and what it returns."""
    gc.collect()
    clock, added_mb, processor, answer = (on_cuda if device.type == "cuda" else on_cpu)(call)
    peak = None if added_mb is None else round(added_mb + held_mb, 1)
    return Cost(clock / work, processor / work, peak), answer


def on_cpu(call: Callable[[], Any]) -> tuple[float, float | None, float, Any]:
    """Seconds, megabytes where Linux tells, processor seconds, and what the call returns."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
    except OSError:
        before = None
    clock, processor = time.perf_counter(), time.process_time()
    answer = call()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return clock, None if before is None else (resident("VmHWM") - before) / 2**10, processor, answer


def on_cuda(call: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """As on_cpu; seconds between two events, megabytes of the allocator."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, processor = torch.cuda.memory_allocated(), time.process_time()
    start.record()
    answer = call()
    end.record()
    torch.cuda.synchronize()
    processor = time.process_time() - processor
    return start.elapsed_time(end) / 1e3, (torch.cuda.max_memory_allocated() - before) / 2**20, processor, answer


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


def commit() -> str:
    """The commit that is measured, where git and the history are there to tell."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
        )
    except FileNotFoundError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def markdown(report: dict[str, Any]) -> str:
    unit, gflop = ("TFLOP/s", 1e3) if report["peak_gflop_per_s"] > 1e4 else ("GFLOP/s", 1)
    lines = ["# Kernels", "", f"{HEADER.replace('GFLOP/s', unit)} |", "|---|" + "---:|" * 5]
    lines += [f"| {name} | {cells(row, gflop)} |" for name, row in report["costs"].items()]
    lines += ["", f"Peak of a matrix product: {report['peak_gflop_per_s'] / gflop:.3g} {unit}."]
    counts = report["iterations"]
    plain = counts.get("plain", "not yet known")
    lines += ["", f"Iterations to a marginal error of 1e-3: {counts['ours']} (ours), {plain} (plain)."]
    lines += ["", "| what it returns | L1 marginal error |", "|---|---:|"]
    lines += [f"| {name} | {error:.3g} |" for name, error in report["errors"].items()]
    lines += ["", "| ratio | clock | processor | expected beforehand |", "|---|---:|---:|---|"]
    for name, row in report["ratios"].items():
        values = (row["memory"], row["memory"]) if "memory" in row else (row["clock"], row["processor"])
        lines.append(f"| {name} | {values[0]:.3g} | {values[1]:.3g} | {report['expected'][name]} |")
    lines += ["", *(f"- {key}: {value}" for key, value in report["conditions"].items())]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any], gflop: float = 1) -> str:
    """The columns of HEADER after the first; `gflop` of them are the unit of speed."""
    rates = (f"{row[key] / size:.3g}" if key in row else "" for key, size in (("gflop_per_s", gflop), ("of_peak", 1)))
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
