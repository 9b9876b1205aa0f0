"""A fit on more embeddings than fit in memory: `python benchmarks/scale.py` writes results/scale_<rows>.{json,md}.

Synthetic embeddings go to a store on disk (`cae.data.embedding_store`), block by block. Then processes of their own,
1 and more by `--ranks`, open it, fit (`cae.method.pipeline.fit`) and say how much memory they had at most, how long
each stage took, how many bytes they handed to collective operations, and whether all counts of processes gave the same
labels. Memory is the resident set; `anonymous` is what a process cannot give back, the rest is the mapped store and
code, which the system can drop.

Expected beforehand, for N rows of width D on R ranks: N·D·4 bytes mapped and N·D·4 anonymous on one rank, of which each
of R has an R-th; 0.6 GB for torch and the libraries; traffic that does not grow with N but for the sample of k-means.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import resource
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.data.embedding_store import EmbeddingStore
from cae.kernels.sinkhorn import solver
from cae.method import pipeline
from cae.metrics import clustering_scores
from cae.text import Corpus, TextBank
from cae.utils.progress import stopwatch

RESULTS = Path(__file__).parent / "results"
TEXTS = 20_000
BLOCK = 8192
IDENTITY = {"data": "synthetic"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--images-per-center", type=int, default=20_000)
    parser.add_argument("--n-init", type=int, default=20)
    parser.add_argument("--kmeans-iter", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process")
    parser.add_argument("--folder", type=Path, help="where the embeddings go; a temporary folder by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"writing {args.rows:,} embeddings", flush=True)
        write_store(args, Path(folder))
        runs = []
        for ranks in args.ranks:
            load = os.getloadavg()[0]
            rendezvous = Path(folder) / f"rendezvous-{ranks}"
            torch.multiprocessing.spawn(fit_share, (ranks, rendezvous, args, Path(folder)), nprocs=ranks)
            found = [pickle.loads((Path(folder) / f"{ranks}-{rank}.pickle").read_bytes()) for rank in range(ranks)]
            runs.append({"ranks": ranks, "load average before": round(load, 1), **summary(found, runs)})
            print(json.dumps(runs[-1], indent=2), flush=True)
            write(runs, args)


def write_store(args: argparse.Namespace, folder: Path) -> None:
    """K groups around random directions, all shifted by one, with noise as long as what tells the groups apart."""
    generator = torch.Generator().manual_seed(0)
    centers = concepts(args)
    store = EmbeddingStore(args.dim, dtype=getattr(torch, args.dtype), folder=folder / "store", identity=IDENTITY)
    for start in range(0, args.rows, BLOCK):
        index = torch.arange(start, min(start + BLOCK, args.rows))
        noise = torch.randn(len(index), args.dim, generator=generator) / args.dim**0.5
        store.append(index, normalize(centers[index % args.clusters] + noise, dim=1))
    store.close()


def concepts(args: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    gap = normalize(torch.randn(args.dim, generator=generator), dim=0)
    return 0.5 * normalize(torch.randn(args.clusters, args.dim, generator=generator), dim=1) + gap


def bank(kind: str, args: argparse.Namespace) -> TextBank:
    """Texts of which every tenth is near a group."""
    generator = torch.Generator().manual_seed(len(kind))
    vectors = torch.randn(TEXTS, args.dim, generator=generator) / args.dim**0.5
    vectors[::10] += concepts(args)[torch.arange(TEXTS // 10) % args.clusters]
    corpus = Corpus(kind, "synthetic", [f"{kind} {i}" for i in range(TEXTS)], None, source_rows=TEXTS)  # type: ignore[arg-type]
    return TextBank(corpus, normalize(vectors, dim=1).half(), prompt="{}", encoder="synthetic", fingerprint="0")


def fit_share(rank: int, ranks: int, rendezvous: Path, args: argparse.Namespace, folder: Path) -> None:
    """One process: its share of the rows, every R-th."""
    torch.set_num_threads(args.threads)
    group, sent = None, Counter[str]()
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
        group = dist.group.WORLD
        count_traffic(sent)
    at_start = memory()
    if ranks == 1:
        store = EmbeddingStore(args.dim, dtype=getattr(torch, args.dtype), folder=folder / "store", identity=IDENTITY)
        x, index = store.rows, store.index
    else:  # as each rank would have a store of its own
        kind = np.float16 if args.dtype == "float16" else np.float32
        rows = np.memmap(folder / "store/embeddings.bin", dtype=kind, mode="r", shape=(args.rows, args.dim))
        index = torch.arange(args.rows * rank // ranks, args.rows * (rank + 1) // ranks)
        x = torch.from_numpy(np.array(rows[index[0] : index[-1] + 1]))
        del rows
    banks = {"noun": bank("noun", args), "caption": bank("caption", args)}
    config = CAEConfig(
        n_clusters=args.clusters,
        images_per_center=args.images_per_center,
        n_init=args.n_init,
        kmeans_iter=args.kmeans_iter,
    )
    peak = Counter[str]()
    watch = threading.Thread(target=watch_memory, args=(peak, done := threading.Event()), daemon=True)
    watch.start()
    start, processor = time.perf_counter(), time.process_time()
    with stopwatch() as stages:
        fitted, prediction = pipeline.fit(x, banks, config, index=index, group=group)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    done.set()
    watch.join()
    result = {
        "labels": prediction.cluster.numpy(),
        "index": index.numpy(),
        "texts": {modality: len(selected.texts) for modality, selected in fitted.selected.items()},
        "acc": clustering_scores(prediction.cluster, index % args.clusters)["acc"],
        "seconds": seconds,
        "processor seconds": processor,
        "stages": dict(stages),
        "resident before": at_start["VmRSS"],
        "peak resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak anonymous": peak["RssAnon"],
        "bytes to collective operations": dict(sent),
    }
    (folder / f"{ranks}-{rank}.pickle").write_bytes(pickle.dumps(result))
    if group is not None:
        dist.barrier()
        dist.destroy_process_group()


def count_traffic(sent: Counter[str]) -> None:
    """Count the bytes that this process puts into each kind of collective operation."""
    for name, argument in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0), ("all_to_all_single", 1)):
        operation = getattr(dist, name)

        def counted(*args: Any, _name: str = name, _at: int = argument, _run: Any = operation, **options: Any) -> Any:
            sent[_name] += args[_at].numel() * args[_at].element_size()
            return _run(*args, **options)

        setattr(dist, name, counted)
    solver.all_reduce = dist.all_reduce  # imported by name there


def memory() -> dict[str, int]:
    """Bytes of this process as Linux tells them."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith(" kB")}


def watch_memory(peak: Counter[str], done: threading.Event) -> None:
    while not done.wait(0.05):
        for key, value in memory().items():
            peak[key] = max(peak[key], value)


def summary(found: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst rank, and whether the labels are those of the first run."""
    labels = np.empty(sum(len(each["index"]) for each in found), dtype=np.int64)
    for each in found:
        labels[each["index"]] = each["labels"]
    if not runs:
        summary.first = labels  # type: ignore[attr-defined]
    gib = 2**30
    return {
        "texts": found[0]["texts"],
        "acc": round(float(np.mean([each["acc"] for each in found])), 2),
        "labels equal to the first run's": float((labels == summary.first).mean()),  # type: ignore[attr-defined]
        "seconds": round(max(each["seconds"] for each in found), 1),
        "processor seconds a rank": round(max(each["processor seconds"] for each in found), 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in found[0]["stages"].items()},
        "GiB resident before": round(max(each["resident before"] for each in found) / gib, 2),
        "GiB resident at most": round(max(each["peak resident"] for each in found) / gib, 2),
        "GiB anonymous at most": round(max(each["peak anonymous"] for each in found) / gib, 2),
        "MB to collective operations a rank": {
            name: round(n / 1e6, 1) for name, n in found[0]["bytes to collective operations"].items()
        },
    }


def write(runs: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """JSON with everything, and a table."""
    conditions = {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "faiss-cpu", "numpy")},
        "python": platform.python_version(),
        "data": f"{args.clusters} groups around random directions; {TEXTS} nouns and captions, a tenth near a group",
    }
    stem = RESULTS / f"scale_{args.rows}_{args.dtype}"
    stem.with_suffix(".json").write_text(json.dumps({"runs": runs, "conditions": conditions}, indent=2) + "\n")
    keys = list(runs[0])
    lines = [f"# A fit on {args.rows:,} × {args.dim} embeddings", "", "| | " + " | ".join(["run"] * len(runs)) + " |"]
    lines += ["| --- |" + " ---: |" * len(runs)]
    for key in keys:
        cells = (run[key] for run in runs)
        shown = (", ".join(f"{k} {v}" for k, v in cell.items()) if isinstance(cell, dict) else cell for cell in cells)
        lines.append(f"| {key} | " + " | ".join(map(str, shown)) + " |")
    lines += ["", *(f"- {key}: {value}" for key, value in conditions.items())]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
