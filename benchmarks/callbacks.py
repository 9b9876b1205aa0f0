"""What `ClusteringCallback` costs: `python benchmarks/callbacks.py` writes benchmarks/results/callbacks.{json,md}.

Two questions, each with its goal from before it was measured:
1. the share of an epoch that goes into the callback's hooks where it does nothing,
2. seconds at the end of a validation run in which 10,000 embeddings of width 512 become 10 clusters.

Each hook is timed through Lightning's profiler interface, by the clock and by processor time: with `--threads 1` the
second holds on a busy machine too, as no thread then spins waiting for another. The model is small and so are its
batches, which makes the share in question 1 larger than in most projects. The embeddings of question 2 have no
structure that would let k-means stop early.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cae.callbacks import ClusteringCallback

RESULTS = Path(__file__).parent / "results"
N, D, K = 10_000, 512, 10
GOALS = {"share of an epoch it skips": "less than 1%", "seconds to cluster": "less than 3 on 2 idle cores"}

HOOKS = ("on_validation_epoch_start", "on_validation_batch_end", "on_validation_epoch_end")


class TwoClocks(Profiler):
    """Seconds of each action, by the clock and by processor time."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._started: dict[str, tuple[float, float]] = {}

    def start(self, action_name: str) -> None:
        """Called by the trainer."""
        self._started[action_name] = time.perf_counter(), time.process_time()

    def stop(self, action_name: str) -> None:
        """Called by the trainer."""
        clock, processor = self._started.pop(action_name)
        self.seconds[action_name].append((time.perf_counter() - clock, time.process_time() - processor))


class Model(pl.LightningModule):
    """Two layers on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)), nn.Linear(D, K)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One batch of training."""
        return cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """One batch of embeddings."""
        return {"embedding": self.body(batch[0]), "label": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    skipped = seconds(ClusteringCallback(K, label="label", every_n_epochs=10**6), args.epochs)
    clustered = seconds(ClusteringCallback(K, label="label", strict=True), args.epochs)
    results = {}
    for clock, name in enumerate(("", " (processor time)")):
        epochs = sum(times[clock] for times in skipped["run_training_epoch"])
        hooks = sum(times[clock] for action in HOOKS for times in skipped[action])
        results["share of an epoch it skips" + name] = hooks / epochs
        results["seconds of that epoch" + name] = epochs / args.epochs
        results["seconds to collect" + name] = sum(times[clock] for times in clustered[HOOKS[1]]) / args.epochs
        results["seconds to cluster" + name] = max(times[clock] for times in clustered[HOOKS[2]])
    conditions = {
        "samples, width, clusters": [N, D, K],
        "device": "cpu",
        "cpus": os.cpu_count(),
        "load average before and after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "versions": {name: version(name) for name in ("torch", "lightning", "faiss-cpu")},
        "python": platform.python_version(),
        "arguments": vars(args),
    }
    write(results, conditions)


def seconds(callback: ClusteringCallback, epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each call of each action of a training run; the callback's hooks go by their own names."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(N, D, generator=generator), torch.arange(N) % K
    profiler = TwoClocks()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[callback],
            profiler=profiler,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        data = TensorDataset(x, labels)
        trainer.fit(Model(), DataLoader(data, batch_size=64, shuffle=True), DataLoader(data, batch_size=64))
    return {
        action.rpartition(".")[2] if action.startswith("[Callback]ClusteringCallback") else action: times
        for action, times in profiler.seconds.items()
    }


def write(results: dict[str, float], conditions: dict[str, object]) -> None:
    """Write the results as JSON and as a table, with their conditions."""
    (RESULTS / "callbacks.json").write_text(
        json.dumps({"results": results, "goals": GOALS, "conditions": conditions}, indent=2) + "\n"
    )
    rows = [f"| {what} | {value:.3g} | {GOALS.get(what, '')} |" for what, value in results.items()]
    lines = ["# What the clustering callback costs", "", "| what | measured | goal |", "|---|---:|---|", *rows, ""]
    lines += [f"- {name}: {value}" for name, value in conditions.items()]
    (RESULTS / "callbacks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
