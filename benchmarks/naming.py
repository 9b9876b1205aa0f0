r"""How well clusters are named: our rule beside the nearest noun to each cluster's mean image.

    python benchmarks/naming.py --encoder lite DIR …        # folders of class folders; needs WordNet (NLTK_DATA)

Each way names the same clusters, with one noun a cluster and five more beside it. A name fits the majority class of its
cluster if it is the class (or a synonym), or at most two hypernyms below it; or, more leniently, if one of the five
nouns is the class (`cae.evaluation.naming`). Writes naming.json and naming.md with a table of names beside classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae import evaluation, pipeline
from cae.clustering import image_kmeans
from cae.config import CAEConfig
from cae.encoders import load_encoder
from cae.evaluation.naming import NamedCluster, name_clusters
from cae.evaluation.study import machine
from cae.module import provenance
from cae.naming import distinct_names, name_scores, transport_mass, typicality
from cae.state import FittedCAE
from cae.text import TextBank

N_NOUNS = 5
Banks = Mapping[str, TextBank]
Scores = Callable[[Tensor, Tensor, FittedCAE, Banks], tuple[Tensor, list[str]]]


def by_our_rule(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """The project's rule for names, over the whole bank (cae/naming.py)."""
    return name_scores(mean_images(x, labels, fitted), banks["noun"], banks["caption"]), banks["noun"].texts


def by_typicality(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """The transport mass that goes to a selected noun from this cluster and not from others (cae/naming.py)."""
    selected = fitted.selected["noun"]
    return typicality(transport_mass(x, labels, selected, fitted.config)), selected.texts


def by_nearest(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """Cosine of each noun of the whole bank to the cluster's mean image."""
    means = normalize(mean_images(x, labels, fitted), dim=1)
    return means @ normalize(banks["noun"].embeddings.float(), dim=1).T, banks["noun"].texts


def mean_images(x: Tensor, labels: Tensor, fitted: FittedCAE) -> Tensor:
    return torch.stack([x[labels == k].mean(dim=0) for k in range(fitted.config.n_clusters)])


WAYS: dict[str, Scores] = {"our rule": by_our_rule, "typicality alone": by_typicality, "nearest noun": by_nearest}


def main() -> None:
    options = parse_arguments()
    encoder = load_encoder(options.encoder)
    banks = evaluation.load_banks(["default"], encoder, nouns=options.nouns, captions=options.captions)
    tables = {}
    for folder in options.folders:
        data = evaluation.embed(evaluation.load_dataset(folder), encoder)
        for seed in range(options.seeds):
            for clustering, way, table in name(data, banks, seed):
                tables.setdefault((data.name, clustering, way), []).append(table)
                print(data.name, seed, clustering, way, f"{share(table, 'among'):.0%}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        **provenance(encoder, banks),
        "machine": machine(),
        "seeds": options.seeds,
        "clusters": [
            {"dataset": dataset, "clustering": clustering, "way": way, "seed": seed, **cluster._asdict()}
            for (dataset, clustering, way), runs in tables.items()
            for seed, table in enumerate(runs)
            for cluster in table
        ],
    }
    (options.out / "naming.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (options.out / "naming.md").write_text(markdown(tables, record), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--encoder", default="open_clip:ViT-B-32/openai")
    parser.add_argument("--nouns", default="imagenet22k")
    parser.add_argument("--captions", default="glosses")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("naming-results"))
    return parser.parse_args()


def name(data: evaluation.LabelledEmbeddings, banks: Banks, seed: int) -> Iterator[tuple[str, str, list[NamedCluster]]]:
    """(clustering, way, table) for the method's own clusters and for those of k-means on the images alone."""
    config = CAEConfig(n_clusters=len(data.labels.unique()), seed=seed)
    fitted, prediction = pipeline.fit(data.x, banks, config)
    kmeans = image_kmeans(
        data.x, config.n_clusters, n_init=config.n_init, max_iter=config.kmeans_iter, seed=config.seed
    )
    for clustering, labels in (("CAE", prediction.cluster), ("image k-means", kmeans)):
        for way, scores in WAYS.items():
            score, texts = scores(data.x, labels, fitted, banks)
            nouns = [[texts[j] for j in row] for row in score.topk(N_NOUNS).indices.tolist()]
            yield (
                clustering,
                way,
                name_clusters(labels, data.labels, data.class_names, distinct_names(score, texts), nouns),
            )


def share(table: list[NamedCluster], kind: str) -> float:
    return sum(getattr(cluster, kind) for cluster in table) / len(table)


def markdown(tables: dict[tuple[str, str, str], list[list[NamedCluster]]], record: dict[str, Any]) -> str:
    corpora = ", ".join(f"{corpus['name']} ({corpus['rows']:,} texts)" for corpus in record["corpora"].values())
    lines = [
        "# Names of clusters",
        "",
        f"Encoder {record['encoder']['spec']}"
        + (" (not CLIP)" if record["encoder"]["spec"] == "lite" else "")
        + f"; texts: {corpora}; mean share of clusters over seeds 0 to {record['seeds'] - 1}.",
        "",
        "| set | clusters of | named by | is the class | or ≤ 2 hypernyms below | or one of 5 nouns is |",
        "|---|---|---|---|---|---|",
    ]
    for (dataset, clustering, way), runs in tables.items():
        means = [sum(share(table, kind) for table in runs) / len(runs) for kind in ("exact", "special", "among")]
        lines.append(f"| {dataset} | {clustering} | {way} | " + " | ".join(f"{mean:.0%}" for mean in means) + " |")
    lines += [
        "",
        "Names beside classes, seed 0:",
        "",
        "| set | clusters of | majority class | " + " | ".join(WAYS) + " |",
    ]
    lines.append("|---|---|---|" + "---|" * len(WAYS))
    for dataset, clustering in dict.fromkeys(key[:2] for key in tables):
        for rows in zip(*(tables[dataset, clustering, way][0] for way in WAYS), strict=True):
            label = f"{rows[0].label} ({rows[0].purity:.0%})"
            names = " | ".join(f"{'**' if row.special else ''}{row.name}{'**' if row.special else ''}" for row in rows)
            lines.append(f"| {dataset} | {clustering} | {label} | {names} |")
    return "\n".join([*lines, "", "Bold: fits by the second column.", ""])


if __name__ == "__main__":
    main()
