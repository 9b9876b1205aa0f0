r"""How well clusters are named: our rule beside parts of it, and the nearest noun to each cluster's mean image.

    python benchmarks/naming.py RESULT …     # of `cae cluster` on folders of class folders
    python benchmarks/naming.py --features X.npy --nouns NOUNS.npy [--kinds dog bird … | --clusters K]

The second names true groups: the classes of features that CLIP made (X.labels.npy, X.classes.txt), or, with `--kinds`,
what the classes are kinds of; or, with `--clusters`, K clusters of them. Both need WordNet (NLTK_DATA). Each way names
the same groups, with one noun a group and five more beside it. A name fits the majority class if it is the class, a
synonym, or at most two hypernyms from it, and is true of the images whose class is a kind of it
(`cae.evaluation.naming`). Writes a .json and a .md with a table of names beside classes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae import CAE, evaluation
from cae.data import EmbeddingData
from cae.encoders import load_encoder
from cae.evaluation.naming import NamedCluster, is_a, name_clusters
from cae.method.fitted import FittedCAE, SelectedTexts
from cae.method.kmeans import cluster_sums
from cae.method.names import MIXED, NameScores, cluster_names, name_scores
from cae.method.naming import texts_of_groups
from cae.method.pipeline import predict
from cae.method.typicality import spread_mass, typicality
from cae.results.saved import SavedResult
from cae.text import TextBank

N_NOUNS = 5
MOST_CLUSTERS = 100
"""Of the fit that selects nouns for true groups; naming them does not depend on its clusters."""
MOST = 0.5
"""Least share of its images that the name of a cluster is true of most of."""
FALSE = 0.25
"""Share of its images below which a name is false."""
Banks = Mapping[str, TextBank]


class Groups(NamedTuple):
    """Images in groups that are to be named, and what is known of them.

    Attributes:
        title: what the images are.
        x: (N, D) float32 unit embeddings.
        labels: (N,) the groups.
        truth: (N,) classes.
        classes: their names.
        fitted: a fit on x, with a tree over its clusters.
        banks: the texts.
        record: conditions for the tables.
    """

    title: str
    x: Tensor
    labels: Tensor
    truth: Tensor
    classes: list[str]
    fitted: FittedCAE
    banks: Banks
    record: dict[str, Any]


Scores = Callable[[Groups, SelectedTexts], tuple[NameScores, list[str]]]


def by_our_rule(groups: Groups, selected: SelectedTexts) -> tuple[NameScores, list[str]]:
    """The project's rule for names, over the whole bank (cae/method/names.py)."""
    mass = spread_mass(groups.x, groups.labels, selected, groups.fitted.config.n_clusters)
    nouns, captions = groups.banks["noun"], groups.banks.get("caption")
    return name_scores(mean_images(groups), nouns, captions, mass, selected), nouns.texts


def without_mixed(groups: Groups, selected: SelectedTexts) -> tuple[NameScores, list[str]]:
    """The same, but a noun need not hold for a cluster."""
    scores, nouns = by_our_rule(groups, selected)
    return all_hold(scores.score), nouns


def without_kinds(groups: Groups, selected: SelectedTexts) -> tuple[NameScores, list[str]]:
    """The same without what is known of kinds, too: likeness and commonness."""
    nouns, captions = groups.banks["noun"], groups.banks.get("caption")
    return name_scores(mean_images(groups), nouns, captions), nouns.texts


def by_typicality(groups: Groups, selected: SelectedTexts) -> tuple[NameScores, list[str]]:
    """What goes to a selected noun from this cluster and not from others (typicality.py)."""
    mass = spread_mass(groups.x, groups.labels, selected, groups.fitted.config.n_clusters)
    return all_hold(typicality(mass)), selected.texts


def selected_nouns(groups: Groups) -> SelectedTexts:
    """Those that describe the groups of a fit: what its leaves select."""
    leaf, n_leaves = predict(groups.x, groups.fitted).leaf, len(groups.fitted.hierarchy.leaves)
    return texts_of_groups(*cluster_sums(groups.x, leaf, n_leaves), groups.banks, groups.fitted.config)["noun"]


def by_nearest(groups: Groups, selected: SelectedTexts) -> tuple[NameScores, list[str]]:
    """Cosine of each noun of the whole bank to the cluster's mean image."""
    means, nouns = normalize(mean_images(groups), dim=1), groups.banks["noun"]
    return all_hold(means @ normalize(nouns.embeddings.float(), dim=1).T), nouns.texts


def all_hold(score: Tensor) -> NameScores:
    return NameScores(score, torch.ones_like(score))


def mean_images(groups: Groups) -> Tensor:
    return torch.stack([groups.x[groups.labels == k].mean(dim=0) for k in range(groups.fitted.config.n_clusters)])


WAYS: dict[str, Scores] = {
    "our rule": by_our_rule,
    "nothing mixed": without_mixed,
    "without kinds": without_kinds,
    "typicality alone": by_typicality,
    "nearest noun": by_nearest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--features", type=Path, help="embeddings, with X.labels.npy and X.classes.txt beside them")
    parser.add_argument("--nouns", type=Path, help="vectors of nouns in the features' space, with NOUNS.txt")
    parser.add_argument("--kinds", nargs="+", help="merge the classes that are kinds of these, and leave out others")
    parser.add_argument("--clusters", type=int, help="name so many clusters of a fit in place of true groups")
    parser.add_argument("--out", type=Path, default=Path("naming"), help="the files to write, without their endings")
    options = parser.parse_args()
    sources = [of_result(SavedResult.load(folder)) for folder in options.results]
    if options.features:
        sources.append(of_features(options.features, options.nouns, options.kinds, options.clusters))
    tables, records = {}, []
    for groups in sources:
        records.append({"pictures": groups.title, "images": len(groups.x), **groups.record})
        for way, table in name(groups).items():
            tables[groups.title, way] = table
            print(groups.title, way, f"{share(table, 'exact'):.0%} exact, {share(table, 'fits'):.0%} fit", flush=True)
    for record in records:
        record["clusters"] = {way: [each._asdict() for each in tables[record["pictures"], way]] for way in WAYS}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    options.out.with_suffix(".json").write_text(document, encoding="utf-8")
    options.out.with_suffix(".md").write_text(markdown(tables, records), encoding="utf-8")


def of_result(result: SavedResult) -> Groups:
    """The clusters of a result of `cae cluster`."""
    corpora = {kind: corpus["name"] for kind, corpus in result.run["corpora"].items()}
    encoder = load_encoder(result.run["encoder"]["spec"])
    banks = evaluation.load_banks(["default"], encoder, nouns=corpora["noun"], captions=corpora["caption"])
    folders = [path.split("/")[0] for path in result.assignments["path"].to_pylist()]
    classes = sorted(set(folders))
    truth = torch.tensor([classes.index(folder) for folder in folders])
    labels = torch.tensor(result.assignments["cluster"].to_pylist())
    x = normalize(result.embeddings.float(), dim=1)
    record = {key: result.run[key] for key in ("encoder", "corpora", "config", "versions")}
    return Groups(result.root.name, x, labels, truth, classes, result.fitted, banks, record)


def of_features(file: Path, nouns: Path, kinds: Sequence[str] | None, n_clusters: int | None) -> Groups:
    """The true classes of features, or what they are kinds of, or clusters."""
    data = EmbeddingData(file)
    classes = file.with_suffix(".classes.txt").read_text(encoding="utf-8").splitlines()
    x, truth = normalize(data.x.float(), dim=1), data.labels
    if kinds:
        of_class = torch.tensor([next((i for i, kind in enumerate(kinds) if is_a(c, kind, 99)), -1) for c in classes])
        inside = of_class[truth] >= 0
        x, truth, classes = x[inside], of_class[truth][inside], list(kinds)
    module = CAE(n_clusters or min(len(classes), MOST_CLUSTERS), nouns=nouns)
    prediction = module.fit_embeddings(x)
    banks, fitted = module.load_banks(), module.fitted
    labels = prediction.cluster if n_clusters else truth
    fitted = replace(fitted, config=replace(fitted.config, n_clusters=n_clusters or len(classes)))
    corpus = {"name": nouns.name, "rows": len(banks["noun"].texts)}
    spec = f"CLIP, {'clusters' if n_clusters else 'true groups'}"
    record = {"encoder": {"spec": spec}, "corpora": {"noun": corpus}, "config": asdict(fitted.config)}
    title = f"{file.stem}, {len(kinds)} kinds" if kinds else file.stem
    return Groups(title, x, labels, truth, classes, fitted, banks, record)


def name(groups: Groups) -> dict[str, list[NamedCluster]]:
    """The groups, named each way."""
    tables, selected = {}, selected_nouns(groups)
    for way, scores in WAYS.items():
        scored, texts = scores(groups, selected)
        nouns = [[texts[j] for j in row] for row in scored.score.topk(N_NOUNS).indices.tolist()]
        names = [str(name) for name in cluster_names(scored, texts)]
        tables[way] = name_clusters(groups.labels, groups.truth, groups.classes, names, nouns)
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
    lines += [
        "",
        f"Share of clusters whose name … (true of {MOST:.0%} of the images or more; false: of less than {FALSE:.0%}),",
    ]
    lines += ['and the mean depth of names in WordNet: "entity" has 0, "animal" 6, "dog" 8.', ""]
    lines += [
        "| pictures | named by | is the class | or ≤ 2 hypernyms below | or above | one of 5 nouns "
        "| is true of most | is false | mixed | depth |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (pictures, way), table in tables.items():
        shares = " | ".join(f"{share(table, kind):.0%}" for kind in ("exact", "special", "fits", "among"))
        true, mixed = sum(each.true >= MOST for each in table), sum(each.name.startswith(MIXED) for each in table)
        false = sum(each.true < FALSE for each in table) - mixed
        shares += "".join(f" | {count / len(table):.0%}" for count in (true, false, mixed))
        depth = statistics.mean([each.depth for each in table if each.depth >= 0] or [math.nan])
        lines.append(f"| {pictures} | {way} | {shares} | {depth:.1f} |")
    lines += ["", "Names beside classes (and the class's share of the cluster); bold: at most two hypernyms away.", ""]
    lines += ["| pictures | class | " + " | ".join(WAYS) + " |", "|---|---|" + "---|" * len(WAYS)]
    for record in records:
        for rows in zip(*(tables[record["pictures"], way] for way in WAYS), strict=True):
            names = (f"**{row.name}**" if row.fits else row.name for row in rows)
            lines.append(f"| {record['pictures']} | {rows[0].label} ({rows[0].purity:.0%}) | {' | '.join(names)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
