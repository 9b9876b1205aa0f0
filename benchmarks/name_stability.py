r"""Whether the same images get the same names in other runs, which differ in their seed.

    python benchmarks/name_stability.py RESULT …     # of `cae cluster`
    python benchmarks/name_stability.py --features X.npy --nouns NOUNS.npy --clusters 100

For each pair of runs: how alike the groups are (ARI), the share of images that have the same name in both, and of
groups that are in both (Jaccard index of at least a half) the share that have the same name. Writes a .json and a .md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import naming
import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from cae import evaluation
from cae.config import CAEConfig
from cae.data import EmbeddingData
from cae.encoders.deferred import deferred
from cae.evaluation.study import command, machine
from cae.method import pipeline
from cae.metrics.functional import ari_from_contingency, contingency_matrix
from cae.results.saved import SavedResult
from cae.text import TextBank
from cae.utils.files import write_json

SAME_GROUP = 0.5
"""Least Jaccard index of two groups that count as one."""


class Run(NamedTuple):
    """Labels (N,) of a run, and the names of its clusters."""

    labels: Tensor
    names: list[str]


def main() -> None:
    options = parse_arguments()
    rows = {folder.name: study(*of_result(SavedResult.load(folder)), options.seeds) for folder in options.results}
    if options.features:
        rows[options.features.stem] = study(*of_features(options), options.seeds)
    write_json({"command": command(), "machine": machine(), "results": rows}, options.out.with_suffix(".json"))
    lines = [
        "| images | clusters | ARI of two runs | images with the same name | groups in both | with the same name |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        cells = (f"{row[key]:.0%}" for key in ("images", "found_again", "same_name"))
        lines.append(f"| {title} | {row['clusters']} | {row['ari']:.1f} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", f"    {command()}", ""])
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--nouns", help="vectors of nouns in the features' space, with NOUNS.txt")
    parser.add_argument("--clusters", type=int, default=100, help="of the features")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("name_stability"), help="the files to write, without endings")
    return parser.parse_args()


def of_result(result: SavedResult) -> tuple[Tensor, Mapping[str, TextBank], CAEConfig]:
    groups = naming.of_result(result)
    return groups.x, groups.banks, groups.fitted.config


def of_features(options: argparse.Namespace) -> tuple[Tensor, Mapping[str, TextBank], CAEConfig]:
    x = normalize(EmbeddingData(options.features).x.float(), dim=1)
    encoder = deferred("open_clip:ViT-B-32/openai", dim=x.shape[1], given=str(options.features))
    method = "default:modalities=noun"
    banks = evaluation.load_banks([method], encoder, nouns=options.nouns, captions=None)
    return x, banks, evaluation.parse_method(method, options.clusters)[1]


def study(x: Tensor, banks: Mapping[str, TextBank], config: CAEConfig, seeds: int) -> dict[str, Any]:
    """Figures of all pairs of runs, averaged; shares are of all images and of all groups."""
    runs = []
    for seed in range(seeds):
        fitted, prediction = pipeline.fit(x, banks, replace(config, seed=seed))
        runs.append(Run(prediction.cluster, [cluster.name for cluster in fitted.clusters]))
    pairs = [compare(a, b) for a, b in combinations(runs, 2)]
    means = {key: statistics.fmean(pair[key] for pair in pairs) for key in pairs[0]}
    return {"clusters": config.n_clusters, "seeds": seeds, **means}


def compare(a: Run, b: Run) -> dict[str, float]:
    contingency = contingency_matrix(a.labels, b.labels).numpy()
    union = contingency.sum(axis=1, keepdims=True) + contingency.sum(axis=0) - contingency
    again = [(int(i), int(j)) for i, j in np.argwhere(contingency / np.maximum(union, 1) >= SAME_GROUP)]
    same = [a.names[i] == b.names[j] for i, j in again]
    return {
        "ari": 100 * ari_from_contingency(contingency),
        "images": statistics.fmean(image_names(a) == image_names(b)),
        "found_again": len(again) / len(a.names),
        "same_name": statistics.fmean(same) if same else float("nan"),
    }


def image_names(run: Run) -> Any:
    return np.array(run.names)[run.labels.numpy()]


if __name__ == "__main__":
    main()
