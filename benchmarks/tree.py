r"""How good the levels of one fit's tree of groups are, beside a fit of their own.

    python benchmarks/tree.py --nouns nouns.npy dtd.npy ucf101.npy …               # vectors made elsewhere
    python benchmarks/tree.py --study wordnet --nouns nouns.npy imagenet4.npy      # whose classes are WordNet's nouns
    python benchmarks/tree.py --study cost
    python benchmarks/tree.py --study cut

`levels`: ACC of a fit at the true K, and of cuts at the true K from fits at half and twice as many clusters and at the
number that was found out. `wordnet`: NMI of each level with the hypernyms of the classes at each depth, and the names
on the way down to some leaves. `cost`: processor seconds and memory of a fit's clustering, of the tree over it, and of
the names of all groups, on made-up clusters of three parts each. `cut`: seconds that cuts of one take on disk.
Classes lie beside NAME.npy, in NAME.labels.npy and NAME.classes.txt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_bench.measuring import cost
from torch.nn.functional import normalize

from cae import CAE, Result, evaluation
from cae.config import CAEConfig
from cae.encoders.deferred import deferred
from cae.evaluation.study import command, machine
from cae.method import pipeline
from cae.method.blocks import blockwise
from cae.method.fitted import FittedCAE
from cae.method.hierarchy import grow
from cae.method.naming import describe_tree
from cae.method.partition import partition
from cae.metrics.functional import clustering_scores
from cae.results import run_source, write_result
from cae.text.corpora import load_corpus
from cae.text.vectors import bank_of_vectors
from cae.utils.devices import find_device
from cae.utils.files import write_json

METHOD = "default:modalities=noun"
SHOWN = 12
"""Paths of names that are printed."""

CUT_FROM, FITTED = 37, 20_000
"""Clusters and images of the fit that is cut."""


def main() -> None:
    options = parse_arguments()
    results: dict[str, Any] = {}
    lines: list[str] = []
    if options.study == "cost":
        results["cost"] = costs(lines)
    elif options.study == "cut":
        results["cut"] = cuts(lines)
    elif options.study == "levels":
        lines += ["| set | K | fit at K | cut from auto | cut from K/2 | cut from 2K |", "|---|---|---|---|---|---|"]
    for file in options.datasets:
        problem, names = load(file, options.nouns)
        if options.study == "wordnet":
            results[file.stem] = against_wordnet(problem, names, lines)
            continue
        results[file.stem] = row = levels(problem, options.seeds)
        cells = " | ".join(f"{row[source]['acc']:.1f} ({row[source]['from']})" for source in ("auto", "half", "twice"))
        lines.append(f"| {file.stem} | {problem.n_clusters} | {row['true']['acc']:.1f} | {cells} |")
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    conditions = {"command": command(), "machine": machine(), "results": results}
    write_json(conditions, options.out / f"{options.study}.json")
    text = "\n".join([*lines, "", f"    {command()}", ""])
    (options.out / f"{options.study}.md").write_text(text, encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", type=Path)
    parser.add_argument(
        "--study", choices=("levels", "wordnet", "cost", "cut"), default="levels", help="what is measured"
    )
    parser.add_argument("--nouns")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tree-results"))
    return parser.parse_args()


def load(file: Path, nouns: str | None) -> tuple[evaluation.Problem, list[str]]:
    """A set with its nouns, and the names of its classes."""
    device = find_device("cpu")
    data = evaluation.load_dataset(str(file), labels=file.with_suffix(".labels.npy"))
    encoder = deferred("open_clip:ViT-B-32/openai", dim=data.x.shape[1], given=str(file))
    banks = evaluation.load_banks([METHOD], encoder, nouns=nouns, captions=None)
    problem = evaluation.make_problem(evaluation.embed(data, encoder), encoder, banks, device=device)
    return problem, file.with_suffix(".classes.txt").read_text(encoding="utf-8").splitlines()


def fit(problem: evaluation.Problem, k: int | str, seed: int) -> FittedCAE:
    return pipeline.fit(problem.x, problem.banks, evaluation.parse_method(METHOD, k, seed=seed)[1])[0]


def levels(problem: evaluation.Problem, seeds: int) -> dict[str, Any]:
    """ACC at the true K of a fit, and of cuts of fits at other K; None where no tree holds it."""
    k = problem.n_clusters
    sources = {"true": k, "auto": "auto", "half": k // 2, "twice": min(2 * k, len(problem.x) // 3)}
    found: dict[str, Any] = {}
    for source, asked in sources.items():
        scores, counts = [], []
        for seed in range(seeds):
            fitted = fit(problem, asked, seed)
            counts.append(fitted.config.n_clusters)
            assert fitted.hierarchy is not None  # by the fit
            if k in fitted.hierarchy.levels:
                labels = pipeline.predict(problem.x, fitted.cut(k)).cluster
                scores.append(clustering_scores(labels, problem.labels)["acc"])
        held = len(scores) == seeds
        found[source] = {"acc": statistics.fmean(scores) if held else float("nan"), "from": counts[0]}
    return found


def against_wordnet(problem: evaluation.Problem, classes: Sequence[str], lines: list[str]) -> dict[str, Any]:
    """NMI of levels with the classes' hypernyms at each depth, and paths of names."""
    from nltk.corpus import wordnet

    paths: list[list[str] | None] = []
    for name in classes:
        senses = wordnet.synsets(name.replace(" ", "_"), pos="n")
        ways = [[step.name() for step in way] for sense in senses[:1] for way in sense.hypernym_paths()]
        paths.append(min(ways, key=lambda way: (len(way), way), default=None))
    label = np.unique(problem.labels.numpy(), return_inverse=True)[1]
    known = np.array([paths[each] is not None for each in label])
    fitted = fit(problem, "auto", 0)
    tree = fitted.hierarchy
    assert tree is not None  # by the fit
    leaf = pipeline.predict(problem.x, fitted).leaf
    shown = sorted({tree.levels[0], 10, 20, fitted.config.n_clusters, *(2**i for i in range(5, 9)), tree.levels[-1]})
    shown = [n for n in shown if n in tree.levels]
    depths = range(3, 10)
    named = f"{known.sum():,} images of {sum(path is not None for path in paths)} classes that WordNet has"
    lines += [
        "",
        f"NMI of levels with hypernyms of the classes by depth, {named}; fit at {fitted.config.n_clusters}:",
        "",
    ]
    lines += ["| groups | " + " | ".join(f"depth {depth}" for depth in depths) + " |", "|---|" + "---|" * len(depths)]
    of_depth = {}
    for depth in depths:
        steps = [path[min(depth, len(path) - 1)] for each in label[known] if (path := paths[each]) is not None]
        of_depth[depth] = torch.from_numpy(np.unique(steps, return_inverse=True)[1])
    lines.append("| hypernyms | " + " | ".join(f"{int(of_depth[depth].max()) + 1}" for depth in depths) + " |")
    found: dict[str, Any] = {}
    for n in shown:
        labels = tree.cluster_of_leaf(n)[leaf][torch.from_numpy(known)]
        found[str(n)] = {depth: clustering_scores(labels, of_depth[depth])["nmi"] for depth in depths}
        lines.append(f"| {n} | " + " | ".join(f"{found[str(n)][depth]:.1f}" for depth in depths) + " |")
    lines += ["", "Names down to some leaves, with the commonest class of each:", ""]
    for own in range(0, len(tree.leaves), max(len(tree.leaves) // SHOWN, 1)):
        commonest = np.bincount(label[(leaf == own).numpy()]).argmax() if (leaf == own).any() else 0
        names = " › ".join(fitted.nodes[node].name for node in tree.path(tree.leaves[own]))
        lines.append(f"- {names}: {classes[commonest]}")
    return found


def costs(lines: list[str]) -> list[dict[str, Any]]:
    """Processor seconds and memory of a fit's clustering, of the tree over it, of placing images in leaves, of names.

    Names are out of ImageNet-22k's nouns with made-up vectors.
    """
    nouns = load_corpus("noun", "imagenet22k").texts
    heads = ["images", "K", "leaves", "clustering", "tree", "placing", "names of all groups"]
    lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    rows = []
    for n, k in ((10_000, 10), (10_000, 100), (100_000, 10), (100_000, 100)):
        z, u = made_up(n, 3 * k, len(nouns))
        config = CAEConfig(n_clusters=k, modalities=("noun",))
        banks = {"noun": bank_of_vectors("noun", nouns, u)}
        took = {}
        took["clustering"], found = cost(lambda z=z, config=config: partition(z, config), 1, 0)
        took["tree"], tree = cost(lambda z=z, config=config, found=found: grow(z, found, config), 1, 0)
        labels = found.assign(z).labels
        took["placing"], (leaf,) = cost(
            lambda z=z, tree=tree, labels=labels: blockwise(lambda *rows: (tree.leaf(*rows),), z, labels), 1, 0
        )
        took["names"], _ = cost(partial(describe_tree, z, leaf, tree, banks, config), 1, 0)
        rows.append({"images": n, "clusters": k, "leaves": len(tree.leaves)})
        rows[-1] |= {step: asdict(each) for step, each in took.items()}
        cells = " | ".join(f"{each.processor_s:.2f} s, {each.peak_mb:.0f} MB" for each in took.values())
        lines.append(f"| {n:,} | {k} | {len(tree.leaves)} | {cells} |")
        print(lines[-1], flush=True)
    return rows


def made_up(n: int, n_groups: int, n_nouns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (n, 512) and (n_nouns, 512) of vectors around the same centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n_groups, 512, generator=generator)

    def around(n: int) -> torch.Tensor:
        of = torch.randint(n_groups, (n,), generator=generator)
        return normalize(centres[of] + 1.5 * torch.randn(n, 512, generator=generator), dim=1)

    return around(n), around(n_nouns)


def cuts(lines: list[str]) -> list[dict[str, Any]]:
    """Seconds that cuts of a result take, from files to files, and megabytes that they write.

    The result is of a fit on the first of the images, which has placed the others.
    """
    nouns = load_corpus("noun", "imagenet22k").texts
    lines += ["", "| images | leaves | to | clock | processor | written |", "|---" * 6 + "|"]
    x, u = made_up(100_000, 8 * CUT_FROM, len(nouns))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        file, banks = Path(scratch, "images.npy"), {"noun": bank_of_vectors("noun", nouns, u)}
        module = CAE(CUT_FROM, preset="default", modalities=("noun",), return_embeddings=True)
        module.fitted = pipeline.fit(x[:FITTED], banks, module.config)[0]
        assert module.fitted.hierarchy is not None  # by the fit
        leaves = len(module.fitted.hierarchy.leaves)
        for n in (10_000, 100_000):
            np.save(file, x[:n].numpy())
            out = Path(scratch, str(n))
            out.mkdir()
            write_result(run_source(module, file, device=find_device("cpu"), batch_size=64, workers=0), out, {})
            for to in (10, leaves, 100, CUT_FROM):
                start = time.time()
                took, _ = cost(partial(Result(out).cut, to), 1, 0)
                files = [file.stat() for file in out.rglob("*") if file.is_file()]
                written = sum(file.st_size for file in files if file.st_mtime >= start) / 1e6
                rows.append({"images": n, "leaves": leaves, "to": to, **asdict(took), "mb": written})
                cells = f"{to} | {took.clock_s:.2f} s | {took.processor_s:.2f} s | {written:.0f} MB"
                lines.append(f"| {n:,} | {leaves} | {cells} |")
                print(lines[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
