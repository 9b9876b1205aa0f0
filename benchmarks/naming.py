r"""How well clusters are named: our rule beside the nearest noun to each cluster's mean image.

    python benchmarks/naming.py RESULT …     # of `cae cluster` on folders of class folders; needs WordNet (NLTK_DATA)

Each way names the same clusters, with one noun a cluster and five more beside it. A name fits the majority class of its
cluster if it is the class (or a synonym), or at most two hypernyms below it; or, more leniently, if one of the five
nouns is the class (`cae.evaluation.naming`). Writes naming.json and naming.md with a table of names beside classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae import evaluation
from cae.encoders import load_encoder
from cae.evaluation.naming import NamedCluster, name_clusters
from cae.method.fitted import FittedCAE
from cae.method.naming import assign_names, name_scores, transport_mass, typicality
from cae.results.saved import SavedResult
from cae.text import TextBank

N_NOUNS = 5
Banks = Mapping[str, TextBank]
Scores = Callable[[Tensor, Tensor, FittedCAE, Banks], tuple[Tensor, list[str]]]


def by_our_rule(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """The project's rule for names, over the whole bank (cae/method/naming.py)."""
    mass, selected = transport_mass(x, labels, fitted.selected["noun"], fitted.config), fitted.selected["noun"]
    scores = name_scores(mean_images(x, labels, fitted), banks["noun"], banks["caption"], mass, selected)
    return scores, banks["noun"].texts


def without_kinds(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """The same without what is known of kinds: likeness and commonness."""
    return name_scores(mean_images(x, labels, fitted), banks["noun"], banks["caption"]), banks["noun"].texts


def by_typicality(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """The transport mass that goes to a selected noun from this cluster and not from others (cae/method/naming.py)."""
    selected = fitted.selected["noun"]
    return typicality(transport_mass(x, labels, selected, fitted.config)), selected.texts


def by_nearest(x: Tensor, labels: Tensor, fitted: FittedCAE, banks: Banks) -> tuple[Tensor, list[str]]:
    """Cosine of each noun of the whole bank to the cluster's mean image."""
    means = normalize(mean_images(x, labels, fitted), dim=1)
    return means @ normalize(banks["noun"].embeddings.float(), dim=1).T, banks["noun"].texts


def mean_images(x: Tensor, labels: Tensor, fitted: FittedCAE) -> Tensor:
    return torch.stack([x[labels == k].mean(dim=0) for k in range(fitted.config.n_clusters)])


WAYS: dict[str, Scores] = {
    "our rule": by_our_rule,
    "without kinds": without_kinds,
    "typicality alone": by_typicality,
    "nearest noun": by_nearest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("naming-results"))
    options = parser.parse_args()
    tables, records = {}, []
    for folder in options.results:
        result = SavedResult.load(folder)
        made_of = {key: result.run[key] for key in ("encoder", "corpora", "config", "versions")}
        records.append({"pictures": result.root.name, "images": len(result.assignments), **made_of})
        for way, table in name(result).items():
            tables[result.root.name, way] = table
            print(result.root.name, way, f"{share(table, 'among'):.0%}", flush=True)
    for record in records:
        record["clusters"] = {way: [each._asdict() for each in tables[record["pictures"], way]] for way in WAYS}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "naming.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (options.out / "naming.md").write_text(markdown(tables, records), encoding="utf-8")


def name(result: SavedResult) -> dict[str, list[NamedCluster]]:
    """The result's clusters, named each way."""
    sources = {kind: corpus["name"] for kind, corpus in result.run["corpora"].items()}
    encoder = load_encoder(result.run["encoder"]["spec"])
    banks = evaluation.load_banks(["default"], encoder, nouns=sources["noun"], captions=sources["caption"])
    folders = [path.split("/")[0] for path in result.assignments["path"].to_pylist()]
    classes = sorted(set(folders))
    truth = torch.tensor([classes.index(folder) for folder in folders])
    labels = torch.tensor(result.assignments["cluster"].to_pylist())
    x = normalize(result.embeddings.float(), dim=1)
    tables = {}
    for way, scores in WAYS.items():
        score, texts = scores(x, labels, result.fitted, banks)
        nouns = [[texts[j] for j in row] for row in score.topk(N_NOUNS).indices.tolist()]
        tables[way] = name_clusters(labels, truth, classes, assign_names(score, texts), nouns)
    return tables


def share(table: list[NamedCluster], kind: str) -> float:
    return sum(getattr(cluster, kind) for cluster in table) / len(table)


def markdown(tables: dict[tuple[str, str], list[NamedCluster]], records: list[dict[str, Any]]) -> str:
    lines = ["# Names of clusters", ""]
    for record in records:
        spec = record["encoder"]["spec"] + (" (not CLIP)" if record["encoder"]["spec"] == "lite" else "")
        corpora = ", ".join(f"{corpus['name']} ({corpus['rows']:,} texts)" for corpus in record["corpora"].values())
        config = record["config"]
        lines.append(
            f"- {record['pictures']}: {record['images']:,} pictures, {config['n_clusters']} clusters, seed "
            f"{config['seed']}; encoder {spec}; {corpora}"
        )
    lines += ["", "Share of clusters whose name …", ""]
    lines += [
        "| pictures | named by | is the class | or ≤ 2 hypernyms below | or one of 5 nouns is |",
        "|---|---|---|---|---|",
    ]
    for (pictures, way), table in tables.items():
        shares = " | ".join(f"{share(table, kind):.0%}" for kind in ("exact", "special", "among"))
        lines.append(f"| {pictures} | {way} | {shares} |")
    lines += ["", "Names beside classes (and the class's share of the cluster); bold: fits by the second column.", ""]
    lines += ["| pictures | class | " + " | ".join(WAYS) + " |", "|---|---|" + "---|" * len(WAYS)]
    for record in records:
        for rows in zip(*(tables[record["pictures"], way] for way in WAYS), strict=True):
            names = (f"**{row.name}**" if row.special else row.name for row in rows)
            lines.append(f"| {record['pictures']} | {rows[0].label} ({rows[0].purity:.0%}) | {' | '.join(names)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
