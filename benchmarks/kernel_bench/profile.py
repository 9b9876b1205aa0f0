"""Where the time of an iteration and of counterparts goes, by kernel: `python -m kernel_bench.profile N,M,D DEVICE`.

The last line is JSON: for each op its kernels with calls and milliseconds, from torch.profiler.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from kernel_bench.measuring import quiet
from kernel_bench.problems import inputs
from torch.profiler import ProfilerActivity, profile

from cae.kernels import cosine_sinkhorn, counterparts

ROWS = 12  # kernels shown


def main() -> None:
    shape, device = tuple(map(int, sys.argv[1].split(","))), torch.device(sys.argv[2])
    x, u = inputs("clustered", *shape, device=device)
    leaf = x.detach().requires_grad_()
    # At the end a second sweep makes the potentials of the best iterate, so two iterations are two sweeps here.
    calls = {
        "cosine_sinkhorn, 2 iterations": quiet(lambda: cosine_sinkhorn(x, u, epsilon=0.02, tol=1e-12, max_iter=2)),
        "counterparts": lambda: counterparts(x, u, None, epsilon=0.02),
        "counterparts and gradient": lambda: counterparts(leaf, u, None, epsilon=0.02).sum().backward(),
    }
    found = {name: profiled(call, device) for name, call in calls.items()}
    for name, kernels in found.items():
        print(f"{name}, N, M, D = {shape}")
        for kernel in kernels:
            print(f"  {kernel['ms']:9.3f} ms  {kernel['calls']:5d} x  {kernel['kernel']}")
    print(json.dumps(found))


def profiled(call: Callable[[], Any], device: torch.device) -> list[dict[str, Any]]:
    """The kernels of a call that take longest, after one call that compiles them."""
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as run:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(run.key_averages(), key=lambda event: -getattr(event, field))[:ROWS]
    return [
        {"kernel": event.key[:80], "calls": event.count, "ms": round(getattr(event, field) / 1e3, 3)}
        for event in events
        if getattr(event, field) > 0
    ]


if __name__ == "__main__":
    main()
