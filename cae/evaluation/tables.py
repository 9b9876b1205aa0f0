"""A study on disk: results.json for programs, results.md and plots for people."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cae.encoders.deferred import NO_ENCODER
from cae.evaluation.paper import PAPER, PAPER_ENCODER
from cae.evaluation.study import METRICS
from cae.utils.files import write_json

TSNE_IMAGES = 2000


def write_study(results: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], out: Path) -> list[Path]:
    """Write results.json, results.md and, where matplotlib is installed, accuracy.png and a plot per sweep.

    Args:
        results: records from `cae.evaluation.run_study`.
        conditions: record from `cae.evaluation.conditions`.
        out: a folder; made if need be.

    Returns:
        The files written.

    Examples:
        >>> from cae.evaluation import LabelledEmbeddings, Problem, conditions, run_study
        >>> from cae.encoders import load_encoder
        >>> labels = torch.arange(2).repeat_interleave(10)
        >>> data = LabelledEmbeddings("two", torch.eye(4)[labels], labels, None, identity="two")
        >>> problem = Problem(data.x, banks={}, n_clusters=2, labels=labels)
        >>> record = conditions(problem, data, load_encoder("lite"), seeds=[0], fit_on="test")
        >>> files = write_study(run_study(problem, ["kmeans"], seeds=[0]), record, Path("study"))
        >>> [file.name for file in files][:2]
        ['results.json', 'results.md']
    """
    out.mkdir(parents=True, exist_ok=True)
    name = conditions["dataset"]["name"]
    document = {**conditions, "results": list(results), f"paper ({PAPER_ENCODER})": PAPER.get(name)}
    write_json(document, out / "results.json")
    (out / "results.md").write_text(markdown(results, conditions), encoding="utf-8")
    return [out / "results.json", out / "results.md", *_plots(results, name, out)]


def markdown(results: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> str:
    """The table of a study with its conditions, as Markdown."""
    dataset, seeds = conditions["dataset"], conditions["seeds"]
    paper = PAPER.get(dataset["name"], {})
    header = ["method", *(metric.upper() for metric in METRICS), "seconds"]
    if paper:
        header.append(f"paper ({PAPER_ENCODER}): NMI / ACC / ARI")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for result in results:
        cells = [f"{result['about']} (`{result['method']}`)", *(percent(result[metric]) for metric in METRICS)]
        cells.append(f"{result['seconds']['total']:.1f}")
        if paper:
            row = paper.get(result["method"])
            cells.append(" / ".join(f"{row[metric]:.1f}" for metric in METRICS) if row else "")
        lines.append("| " + " | ".join(cells) + " |")
    corpora = [f"{kind}s {bank['name']} ({bank['rows']:,})" for kind, bank in conditions["corpora"].items()]
    encoder = conditions["encoder"]["spec"]
    machine = conditions["machine"]
    notes = [
        f"# {dataset['name']}: {dataset['images']:,} images, {dataset['classes']} classes",
        "",
        f"Percent, mean ± standard deviation over {len(seeds)} seeds. {_made_by(encoder)}",
        f"Texts: {'; '.join(corpora) or 'none'}; selected on the {dataset['texts_selected_on']} split. "
        f"Seconds are of one run after embedding, on {machine['gpu'] or str(machine['cores']) + ' CPU cores'}.",
    ]
    return "\n".join([*notes, "", *lines, ""])


def _made_by(encoder: str) -> str:
    if encoder == NO_ENCODER:
        return "Embeddings and texts came as vectors, without their encoder."
    remark = "; it is not CLIP, and its results are not comparable to the paper's" if encoder == "lite" else ""
    return f"Encoder {encoder}{remark}."


def percent(spread: Mapping[str, float]) -> str:
    """`81.2 ± 0.4`."""
    return f"{spread['mean']:.1f} ± {spread['std']:.1f}"


def sweeps(results: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Methods that differ in one number, as in `default:top_k=1`, `default:top_k=5`; by what they share, in order."""
    groups: dict[str, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    for result in results:
        if match := re.fullmatch(r"(.*:\w+)=([\d.e+-]+)", result["method"]):
            groups[match[1]].append((float(match[2]), result))
    return {shared: sorted(points, key=lambda point: point[0]) for shared, points in groups.items() if len(points) > 1}


def _plots(results: Sequence[Mapping[str, Any]], name: str, out: Path) -> list[Path]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    files = []
    # Figure, not pyplot: no display, no global state.
    figure = Figure(figsize=(7, 1 + 0.35 * len(results)), layout="constrained")
    axes = figure.subplots()
    means = [result["acc"]["mean"] for result in results]
    axes.barh(
        [result["method"] for result in results], means, xerr=[result["acc"]["std"] for result in results], color="C0"
    )
    axes.invert_yaxis()
    axes.set(xlabel="ACC, %", title=name, xlim=(0, 100))
    files.append(_save(figure, out / "accuracy.png"))
    for shared, points in sweeps(results).items():
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        for metric in METRICS:
            axes.errorbar(
                [value for value, _ in points],
                [result[metric]["mean"] for _, result in points],
                [result[metric]["std"] for _, result in points],
                label=metric.upper(),
                marker="o",
            )
        axes.set(xlabel=shared, ylabel="%", title=name)
        axes.legend()
        files.append(_save(figure, out / f"sweep-{shared.replace(':', '-')}.png"))
    return files


def plot_tsne(representations: Mapping[str, Tensor], labels: Tensor, out: Path) -> Path:
    """Figure 5 of the paper: t-SNE of the images as each step sees them, coloured by class.

    Args:
        representations: name to (N, D) float32, from `cae.method.pipeline.representations`.
        labels: (N,) int64 classes.
        out: a folder.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> x = torch.randn(40, 8)
        >>> plot_tsne({"images": x}, torch.arange(4).repeat_interleave(10), Path()).name
        'tsne.png'
    """
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:TSNE_IMAGES]
    figure = Figure(figsize=(4 * len(representations), 4), layout="constrained")
    drawn = figure.subplots(1, len(representations), squeeze=False)
    for axes, (name, rows) in zip(drawn[0], representations.items(), strict=True):
        # Perplexity 30 as usual, less where the sample is too small for it.
        tsne = TSNE(metric="cosine", init="random", perplexity=min(30, (len(chosen) - 1) / 3), random_state=0)
        points = tsne.fit_transform(rows.cpu()[chosen].numpy())
        axes.scatter(points[:, 0], points[:, 1], c=labels[chosen].numpy(), s=4, cmap="tab20")
        axes.set(title=name, xticks=[], yticks=[])
    return _save(figure, out / "tsne.png")


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=150)
    return file
