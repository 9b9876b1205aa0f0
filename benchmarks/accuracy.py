r"""The accuracy study in one command: methods, ablations and the top-K sweep, on files of embeddings and on image sets.

    python benchmarks/accuracy.py --nouns nouns.npy dtd.npy …    # embeddings made elsewhere; classes in dtd.labels.npy
    python benchmarks/accuracy.py --encoder lite DIR …           # folders of class folders
    python benchmarks/accuracy.py --study defaults …             # each default against its alternatives
    python benchmarks/accuracy.py --study count …                # the number of clusters, found out, of all classes
    python benchmarks/accuracy.py --study count --classes 5 10 … # the same, of so many classes drawn at random
    python benchmarks/accuracy.py --fit-on train --encoder open_clip:ViT-B-32/openai --nouns wordnet \
        --captions flickr30k --data-root ROOT stl10 cifar10 cifar20 imagenet10 imagenet-dogs dtd ucf101 imagenet
                                                                 # Tables 1 and 2 of the paper

Each set gets a folder with results.json, results.md and plots; summary.md puts the accuracies of all sets in the output
folder side by side, whichever run they come from, and summary.json keeps what the folders say.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cae import evaluation
from cae.encoders import load_encoder
from cae.encoders.deferred import deferred
from cae.evaluation.datasets import LabelledEmbeddings
from cae.evaluation.study import command, machine
from cae.evaluation.tables import percent
from cae.method import pipeline
from cae.metrics import clustering_scores
from cae.utils.devices import find_device
from cae.utils.files import write_json

MAIN = ("kmeans", "zero-shot", "spectral", "image-only", "ntk-sc", "tac", "paper", "default-kmeans", "default", "auto")
ABLATIONS = ("noun-only", "caption-only", "texts-only", "concat", "sum", "softmax")
SWEEP = tuple(f"default:top_k={k}" for k in (1, 2, 5, 10, 20, 30))
DEFAULTS = (
    "default",
    *(f"default:epsilon={value}" for value in (0.005, 0.02)),
    *(f"default:balance={value}" for value in (0, 0.25, 0.75, 1)),
    *(f"default:text_weight={value}" for value in (0.1, 0.5, 1)),
    *(f"default:gamma={value}" for value in (0.01, 1)),
    "default:similarity_weight=true",
    "default:unit_counterparts=false",
    "default:center_modalities=false",
    "default:fusion=sum",
    "default:fusion=concat",
    "default:spherical=false",
    "default:clustering=kmeans",
    "default:retrieval=assigned",
    *(f"default:top_k={value}" for value in (2, 10)),
    *(f"default:images_per_center={value}" for value in (50, 100)),
)
STUDIES = {"methods": (*MAIN, *ABLATIONS, *SWEEP), "defaults": DEFAULTS}


def main() -> None:
    options = parse_arguments()
    if options.study == "count":
        count_clusters(options)
        return
    methods = options.methods.split(",") if options.methods else STUDIES[options.study]
    for dataset in options.datasets:
        print(dataset, flush=True)
        evaluation.evaluate(
            dataset,
            methods,
            options.out / Path(dataset).name,
            encoder=options.encoder,
            nouns=options.nouns,
            captions=options.captions,
            seeds=range(options.seeds),
            fit_on=options.fit_on,
            root=options.data_root,
            labels=labels_of(dataset),
            tsne=options.study == "methods",
            device=find_device(options.device),
        )
    studies = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(options.out.glob("*/results.json"))]
    write_json(studies, options.out / "summary.json")
    (options.out / "summary.md").write_text(summary(studies), encoding="utf-8")
    print(summary(studies))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="as `cae evaluate --dataset` takes them")
    parser.add_argument("--study", choices=(*STUDIES, "count"), default="methods", help="what is compared")
    parser.add_argument("--methods", help="separated by commas, in place of a study's")
    parser.add_argument("--classes", type=int, nargs="+", help="with --study count: numbers of classes to draw")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("accuracy-results"))
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai")
    parser.add_argument("--nouns")
    parser.add_argument("--captions")
    parser.add_argument("--fit-on", choices=("test", "train"), default="test")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def labels_of(dataset: str) -> Path | None:
    """The classes beside a file of embeddings, NAME.labels.npy to NAME.npy."""
    file = Path(dataset).with_suffix(".labels.npy")
    return file if file.is_file() else None


def count_clusters(options: argparse.Namespace) -> None:
    """The number of clusters that `n_clusters="auto"` finds, seed by seed, as JSON and Markdown."""
    rows = []
    device = find_device(options.device)
    for dataset in options.datasets:
        data = evaluation.load_dataset(dataset, root=options.data_root, labels=labels_of(dataset))
        if isinstance(data, LabelledEmbeddings):
            encoder = deferred(options.encoder, dim=data.x.shape[1], given=dataset).to(device)
        else:
            encoder = load_encoder(options.encoder, device=device)
        method = "auto:modalities=noun" if options.captions is None and options.nouns else "auto"
        banks = evaluation.load_banks([method], encoder, nouns=options.nouns, captions=options.captions)
        problem = evaluation.make_problem(evaluation.embed(data, encoder), encoder, banks, device=device)
        for n_classes in options.classes or [problem.n_clusters]:
            problems = [some_classes(problem, n_classes, seed) for seed in range(options.seeds)]
            rows.append(_counted(Path(dataset).name, problems, method))
    lines = [
        "| set | true K | found, seed by seed | NMI, ARI at the true K | at the found K |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        found = ", ".join(map(str, row["found"]))
        scores = (f"{row[source]['nmi']:.1f}, {row[source]['ari']:.1f}" for source in ("true", "auto"))
        lines.append(f"| {row['set']} | {row['classes']} | {found} | {' | '.join(scores)} |")
        print(lines[-1], flush=True)
    ratios = torch.tensor([k / row["classes"] for row in rows for k in row["found"]])
    lines += ["", f"Found K / true K, root mean square of the logarithm: {ratios.log().square().mean().sqrt():.3f}"]
    print(lines[-1])
    conditions = {"command": command(), "machine": machine(), "results": rows}
    write_json(conditions, options.out / "count.json")
    (options.out / "count.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def some_classes(problem: evaluation.Problem, n_classes: int, seed: int) -> evaluation.Problem:
    """The images of some classes, which are drawn at random."""
    classes = problem.labels.unique()
    drawn = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))[:n_classes]]
    kept = torch.isin(problem.labels, drawn)
    return replace(problem, x=problem.x[kept.to(problem.x.device)], labels=problem.labels[kept], n_clusters=len(drawn))


def _counted(name: str, problems: Sequence[evaluation.Problem], method: str) -> dict[str, Any]:
    """What is found in problems of equally many classes, one for each seed, and its scores beside the true K's."""
    found: list[int] = []
    scores: dict[str, list[Mapping[str, float]]] = {"auto": [], "true": []}
    for seed, problem in enumerate(problems):
        for source, k in (("auto", "auto"), ("true", problem.n_clusters)):
            config = evaluation.parse_method(method, k, seed=seed)[1]
            fitted, prediction = pipeline.fit(problem.x, problem.banks, config)
            scores[source].append(clustering_scores(prediction.cluster.cpu(), problem.labels))
            if k == "auto":
                found.append(fitted.config.n_clusters)
    means = {
        source: {score: statistics.fmean(run[score] for run in runs) for score in ("nmi", "ari")}
        for source, runs in scores.items()
    }
    return {"set": name, "classes": problems[0].n_clusters, "found": found, **means}


def summary(studies: Sequence[Mapping[str, Any]]) -> str:
    """ACC of every method on every set, as Markdown, and the commands that measured it."""
    methods = dict.fromkeys(result["method"] for study in studies for result in study["results"])
    names = [study["dataset"]["name"] for study in studies]
    lines = ["ACC in percent, mean ± standard deviation over seeds", ""]
    lines += ["| method | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for method in methods:
        cells = [
            next((percent(result["acc"]) for result in study["results"] if result["method"] == method), "")
            for study in studies
        ]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    lines += ["", "What each set is, and how it was measured:", ""]
    for study in studies:
        data = study["dataset"]
        size = f"{data['images']:,} images, {data['classes']} classes, {len(study['seeds'])} seeds"
        lines.append(f"- {data['name']}: {size}; encoder {study['encoder']['spec']}")
    lines += ["", *(f"    {line}" for line in dict.fromkeys(study["command"] for study in studies))]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
