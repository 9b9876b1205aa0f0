"""Seconds of `nearest` beside FAISS' flat index and the matrix product: writes benchmarks/results/neighbours.*.

    python benchmarks/neighbours.py --threads 1

The k most similar of 50,000 vectors of width 512 for the first of them (`--queries`; all take time in proportion to
those), as the neighbour graph of the spectral stage asks for. The contenders take turns, and what is compared is the
best of several rounds; with one thread seconds of processor time hold on a busy machine, too. The product is written
to memory that is there, 512 rows of scores at a time. Nothing is timed before both give the same neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import faiss
import torch
from kernel_bench.measuring import Contender, Cost, best, commit, cost, installed, ratio
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import nearest

RESULTS = Path(__file__).parent / "results"
KS = (1, 16, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    x = normalize(torch.randn(args.vectors, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    queries = x[: args.queries]
    report = {
        "costs": measure(x, queries, args.rounds),
        "conditions": {
            "vectors": f"N={len(x)}, D=512, random directions, float32, {len(queries)} queries",
            "threads": args.threads,
            "rounds": args.rounds,
            "processor": processor(),
            "cpus": os.cpu_count(),
            "versions": {name: installed(name) for name in ("torch", "faiss-cpu")},
            "commit": commit(),
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "neighbours.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "neighbours.md").write_text(markdown(report))
    print(markdown(report))


def measure(x: Tensor, queries: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds and ratios to the product and to FAISS, for each k."""
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x.numpy())
    few = queries[:200]
    same = nearest(few, x, k=max(KS)).labels == torch.from_numpy(index.search(few.numpy(), max(KS))[1])
    assert same.float().mean() > 0.999, "FAISS finds other neighbours"
    scores = torch.empty(512, len(x))

    def product() -> None:
        for rows in queries.split(512):
            torch.mm(rows, x.T, out=scores[: len(rows)])

    contenders: dict[str, Contender] = {"matrix product": (product, 1, 0)}
    for k in KS:
        contenders[f"nearest, k = {k}"] = (lambda k=k: nearest(queries, x, k=k), 1, 0)
        contenders[f"FAISS, k = {k}"] = (lambda k=k: index.search(queries.numpy(), k), 1, 0)
    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            costs[name] = best(costs.get(name), cost(*contender)[0])
            print(name, costs[name], flush=True)
    rows = {}
    for name, took in costs.items():
        peer = costs[f"FAISS, k = {name.rpartition(' ')[2]}"] if name != "matrix product" else None
        rows[name] = {
            "clock_s": took.clock_s,
            "processor_s": took.processor_s,
            "peak_mb": took.peak_mb,
            "of_product": ratio(took, costs["matrix product"], 1)["processor"],
            "of_faiss": ratio(took, peer, 1)["processor"] if peer else None,
        }
    return rows


def processor() -> str:
    """The model, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Neighbours", "", "| | seconds | processor seconds | peak MB | / product | / FAISS |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, row in report["costs"].items():
        of_faiss = "" if row["of_faiss"] is None else f"{row['of_faiss']:.2f}"
        times = f"{row['clock_s']:.2f} | {row['processor_s']:.2f} | {row['peak_mb']}"
        lines.append(f"| {name} | {times} | {row['of_product']:.2f} | {of_faiss} |")
    lines += ["", "Ratios are of processor time.", ""]
    lines += [f"- {key}: {value}" for key, value in report["conditions"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
