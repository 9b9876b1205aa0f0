"""What the steps of benchmarks/gpu.py run on, as one line of JSON: `python -m kernel_bench.environment DEVICE`."""

from __future__ import annotations

import json
import platform
import sys
from importlib.util import find_spec

import torch
from kernel_bench.measuring import PACKAGES, commit, device_name, installed

# What a step needs beside torch: tests, and peers of the benchmarks.
OPTIONAL = ("triton", "pytest", "xdist", "hypothesis", "flash_sinkhorn", "pykeops")


def main() -> None:
    device = torch.device(sys.argv[1])
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device here; `--device cpu` rehearses with Triton's interpreter")
    found = {
        "device": device_name(device),
        "memory_gb": memory_gb(device),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "missing": [name for name in OPTIONAL if not find_spec(name)],
        "commit": commit(),
    }
    print(json.dumps(found))


def memory_gb(device: torch.device) -> float | None:
    """Of the GPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)


if __name__ == "__main__":
    main()
