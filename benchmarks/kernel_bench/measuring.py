"""Seconds, memory and speed of a call, and the machine that they are of.

Seconds are the best of several rounds, contenders taking turns: other work on the machine can only make a round slower.
Beside the clock's stand seconds of processor time: with `--threads 1` these hold on a busy machine too. GFLOP/s count
the products with x and u alone, and the peak is the rate of a product of square matrices with as many threads. On CUDA
the clock is that of its events, processor time is what launching takes, memory is what the allocator handed out beyond
the inputs, and products are in the inputs' dtype.
"""

from __future__ import annotations

import gc
import math
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from kernel_bench.problems import CPU
from torch import Tensor

from cae.kernels.exact import exact_products
from cae.kernels.tiles import kept_rows

# What to call, how many iterations' work that is, and the megabytes that it is handed ready-made.
Contender = tuple[Callable[[], Any], float, float]
# Products with x and u in one call; `ours_products` has those of our iteration.
PRODUCTS = {
    "matrix product": 1,
    "flash-sinkhorn, iteration": 2,
    "ours, counterparts": 2,
    "flash-sinkhorn, counterparts": 3,
    "TAC softmax counterpart": 2,
}
PACKAGES = ("torch", "triton", "POT", "geomloss", "pykeops", "flash-sinkhorn")


@dataclass(frozen=True)
class Cost:
    """What one call took."""

    clock_s: float
    processor_s: float
    peak_mb: float | None


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


def quiet(call: Callable[[], Any]) -> Callable[[], Any]:
    """Without the warning that a few iterations do not converge."""

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    return run


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
    """GFLOP/s of a product of square matrices into memory that is there, by the ops' library; the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    left, right, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
    contender: Contender = (lambda: torch.mm(left, right, out=out), 1, 0)
    with exact_products(device):
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


def commit() -> str:
    """The commit that is measured, where git and the history are there to tell."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
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
