r"""The accuracy study in one command: methods, ablations and the top-K sweep, on simulation and on image sets.

    python benchmarks/accuracy.py                             # the simulator at three severities
    python benchmarks/accuracy.py --encoder lite DIR …        # folders of class folders as well
    python benchmarks/accuracy.py --fit-on train --encoder open_clip:ViT-B-32/openai --nouns wordnet \
        --captions flickr30k --data-root ROOT stl10 cifar10 cifar20 imagenet10 imagenet-dogs dtd ucf101 imagenet
                                                              # Tables 1 and 2 of the paper

Each set gets a folder with results.json, results.md and plots; summary.md puts the accuracies of all sets side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulation import NOUN_VECTORS, SEVERITIES, load_noun_vectors, simulate

from cae import evaluation
from cae.devices import find_device
from cae.evaluation.study import machine, peak_memory
from cae.evaluation.tables import percent, write_study

MAIN = ("kmeans", "zero-shot", "tac", "paper", "default")
ABLATIONS = ("noun-only", "caption-only", "texts-only", "concat", "sum", "softmax")
SWEEP = tuple(f"default:top_k={k}" for k in (1, 2, 5, 10, 20, 30))


def main() -> None:
    options = parse_arguments()
    methods = options.methods.split(",") if options.methods else [*MAIN, *ABLATIONS, *SWEEP]
    studies = {}
    if options.noun_vectors.is_file():
        for severity in options.severities.split(","):
            print(f"simulation, {severity}", flush=True)
            studies[f"simulation, {severity}"] = study_simulation(severity, methods, options)
    else:
        print(f"no noun vectors in {options.noun_vectors}: the simulator is left out")
    for dataset in options.datasets:
        print(dataset, flush=True)
        studies[Path(dataset).name] = evaluation.evaluate(
            dataset,
            methods,
            options.out / Path(dataset).name,
            encoder=options.encoder,
            nouns=options.nouns,
            captions=options.captions,
            seeds=range(options.seeds),
            fit_on=options.fit_on,
            root=options.data_root,
            tsne=True,
            device=find_device(options.device),
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "summary.md").write_text(summary(studies), encoding="utf-8")
    print(summary(studies))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="as `cae evaluate --dataset` takes them")
    parser.add_argument("--methods", help="separated by commas; all rows, ablations and the sweep by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("accuracy-results"))
    parser.add_argument("--noun-vectors", type=Path, default=NOUN_VECTORS, help="text vectors for the simulator")
    parser.add_argument("--severities", default=",".join(SEVERITIES))
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai")
    parser.add_argument("--nouns", default="imagenet22k")
    parser.add_argument("--captions", default="glosses")
    parser.add_argument("--fit-on", choices=("test", "train"), default="test")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def study_simulation(severity: str, methods: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A new world for every seed: the spread tells of worlds, where `cae evaluate` tells of k-means alone."""
    nouns = load_noun_vectors(options.noun_vectors)
    worlds = [simulate(nouns, SEVERITIES[severity], seed=seed) for seed in range(options.seeds)]
    results = evaluation.run_study(worlds, methods, range(options.seeds))
    problem = worlds[0]
    conditions = {
        "dataset": {
            "name": f"SIMULATION, {severity}",
            "images": len(problem.x),
            "classes": problem.n_clusters,
            "texts_selected_on": "test",
            "severity": vars(SEVERITIES[severity]),
        },
        "encoder": {"spec": f"none: simulated images, noun vectors from {options.noun_vectors.name}"},
        "corpora": {modality: bank.provenance() for modality, bank in problem.banks.items()},
        "seeds": list(range(options.seeds)),
        "machine": machine(),
        "peak_memory_bytes": peak_memory(),
    }
    write_study(results, conditions, options.out / f"simulation-{severity}")
    return results


def summary(studies: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """ACC of every method on every set, as Markdown."""
    methods = dict.fromkeys(result["method"] for results in studies.values() for result in results)
    lines = ["ACC in percent, mean ± standard deviation over seeds", ""]
    lines += ["| method | " + " | ".join(studies) + " |", "|---|" + "---|" * len(studies)]
    for method in methods:
        cells = [
            next((percent(result["acc"]) for result in results if result["method"] == method), "")
            for results in studies.values()
        ]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
