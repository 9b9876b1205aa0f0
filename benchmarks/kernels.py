"""Speed and memory of the kernels: `python benchmarks/kernels.py` writes benchmarks/results/kernels_<geometry>*.

**Outstanding: every figure on CUDA.** One command makes them, benchmarks/results/kernels_cuda.*:

    python benchmarks/kernels.py --device cuda

It takes 1,281,167 x 20,000 x 512 in float16 (`--shape N,M,D` for less, such as a matrix that a dense loop can hold) and
some minutes, of which flash-sinkhorn is the most; `pip install '.[bench]'` has the peers, and those that are missing
are passed over. The files are written anew after every figure: what was measured survives a run that is cut short.

Correctness first: nothing is timed before the ops agree with the float64 reference. Then Sinkhorn to an L1 marginal
error of 1e-3 and counterparts against their peers (`kernel_bench/contenders.py`) on the same inputs. Whoever runs to
the end has the marginal error of what it returns measured in float64.

`--scaling` writes benchmarks/results/kernels_scaling.* instead: one iteration and one call as N, M and D change around
a base point, with one thread and with `--threads`; and at the base point every peer, GeomLoss too, run to its end with
its product included. There the marginal error is measured for the potentials that each returns.

What a second is, and what counts as memory: `kernel_bench/measuring.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_bench.contest import measure
from kernel_bench.expected import EXPECTED, EXPECTED_CUDA, EXPECTED_SCALING
from kernel_bench.measuring import PACKAGES, commit, device_name, installed
from kernel_bench.problems import DEFAULT_SHAPE, gate, inputs
from kernel_bench.report import markdown, plot, scaling_markdown
from kernel_bench.scaling import scaling

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    x, u = inputs(args.geometry, *args.shape, device)
    gate(x[:2000], u[:500], args.epsilon)
    conditions = {
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
        figures, missing = scaling(*args.shape[:2], args.epsilon, args.rounds, args.threads)
        report = write("kernels_scaling", figures | {"expected": EXPECTED_SCALING}, missing, scaling_markdown)
        print(scaling_markdown(report))
        plot(report, args.out / "kernels_scaling.png")
        return
    expected = EXPECTED | (EXPECTED_CUDA if device.type == "cuda" else {})
    for figures, missing in measure(x, u, args.epsilon, args.rounds):
        report = write(args.stem, figures | {"expected": expected}, missing, markdown)
    print(markdown(report))


def arguments() -> argparse.Namespace:
    """The command line, checked, with the shape filled in and the stem of the files."""
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
    if args.device == "cuda" and args.scaling:
        parser.error("--scaling is for the CPU")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    args.stem = stem(args)
    args.shape = args.shape or DEFAULT_SHAPE["scaling" if args.scaling else args.device]
    if args.geometry == "clip" and args.shape[2] != 512:
        parser.error(f"--shape: CLIP's vectors have D = 512, not {args.shape[2]}")
    if args.scaling and args.shape[2] != 512:
        parser.error(f"--shape: the base point of --scaling has D = 512, not {args.shape[2]}")
    return args


def stem(args: argparse.Namespace) -> str:
    """What the result files are called."""
    name = f"kernels_{args.geometry}"
    if args.device == "cuda":
        name = "kernels_cuda" if args.geometry == "clustered" else "kernels_cuda_clip"
    elif args.threads > 1:
        name += f"_{args.threads}_threads"
    return name + (f"_{'x'.join(map(str, args.shape))}" if args.shape else "")


def shape(text: str) -> tuple[int, int, int]:
    """N,M,D as given on the command line."""
    try:
        N, M, D = (int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected three numbers N,M,D, got {text!r}") from None
    if min(N, M, D) < 1:
        raise argparse.ArgumentTypeError(f"N, M and D have to be positive, got {text!r}")
    return N, M, D


if __name__ == "__main__":
    main()
