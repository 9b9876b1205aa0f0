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
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "missing": [name for name in OPTIONAL if not find_spec(name)],
        "commit": commit(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
