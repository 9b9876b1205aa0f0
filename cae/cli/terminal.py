"""What a person sees in the terminal: progress bars, tables, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from cae.utils.console import WarningLines as WarningLines
from cae.utils.console import err as err
from cae.utils.console import out as out
from cae.utils.console import progress_bars as progress_bars
from cae.utils.words import counted, few

if TYPE_CHECKING:  # needs torch, which `cae --help` should not wait for
    from cae.results.compare import Comparison
    from cae.results.duplicates import Duplicates
    from cae.results.folder import FolderResult
    from cae.results.saved import SavedResult
    from cae.results.search import Hit
    from cae.results.update import FolderDiff

SHOWN, MOVES = 5, 12
"""How many of a long list are named, and how many moves of pictures between clusters."""


def print_document(value: Any) -> None:
    """One JSON document, in ASCII: what a name holds gives the terminal no orders, and every program reads it."""
    out.print_json(data=value, default=str, ensure_ascii=True)


def print_error(error: BaseException) -> None:
    """One line, whatever characters the message holds."""
    err.print("error:", style="bold red", end=" ")
    err.print(str(error), highlight=False, soft_wrap=True)


def print_found(found: FolderResult, saved: SavedResult) -> None:
    """What a fit found: its clusters, their scores, and how it decided."""
    run = saved.run
    print_clusters(found)
    if run["scores"]:
        print_scores(run["scores"], found.labels_are)
    for kind in ("noun", "caption"):
        if kind not in found.fitted.provenance["corpora"] and found.fitted.provenance["corpora"]:
            out.print(f"{kind}s: none, as none are given beside the vectors of the other texts")
    print_choices(found)
    if run["method"] == "cae":
        print_weights(found)
    if found.fitted.provenance["encoder"]["spec"] == "lite":
        warn("the lite encoder is for trying things out offline; it is not CLIP")
    what = counted(len(found.embeddings), "picture" if saved.has_images else "embedding")
    out.print(f"{what} in {run['seconds']:.0f} s; result: {saved.folder}", soft_wrap=True)


def print_clusters(result: FolderResult) -> None:
    """The table of clusters: name, size, what it is about, and the commonest sub-folder or label if there are any."""
    folders = result.folder_labels()
    table = _table()
    table.add_column("#", justify="right")
    table.add_column("name", style="cyan")
    table.add_column("size", justify="right")
    table.add_column("typical nouns")
    if folders is not None:
        table.add_column({"sub-folders": "mostly from folder", "labels": "mostly of label"}[result.labels_are])
    for cluster in result.clusters():
        row = [str(cluster["id"]), cluster["name"], f"{cluster['size']:,}", ", ".join(cluster["nouns"])]
        if folders is not None:
            names, labels = folders
            inside = labels[result.groups.cluster == cluster["id"]]
            if len(inside):
                commonest = int(inside.mode().values)
                row.append(f"{names[commonest]} ({(inside == commonest).float().mean():.0%})")
        table.add_row(*row)
    out.print(table)


def print_scores(scores: Mapping[str, Mapping[str, float]], labels_are: str) -> None:
    """Agreement of each method with the sub-folders or labels."""
    table = _table()
    table.add_column("method")
    for metric in ("acc", "nmi", "ari"):
        table.add_column(metric.upper(), justify="right")
    for method, row in scores.items():
        table.add_row(method, *(f"{row[metric]:.1f}" for metric in ("acc", "nmi", "ari")))
    out.print()
    out.print(f"agreement with the {labels_are}, in percent")
    out.print(table)


def print_study(results: Sequence[Mapping[str, Any]]) -> None:
    """Mean and standard deviation over seeds of each method of a study."""
    table = _table()
    table.add_column("method")
    for column in ("NMI", "ACC", "ARI", "seconds"):
        table.add_column(column, justify="right")
    for result in results:
        scores = (f"{result[metric]['mean']:.1f} ± {result[metric]['std']:.1f}" for metric in ("nmi", "acc", "ari"))
        table.add_row(result["method"], *scores, f"{result['seconds']['total']:.1f}")
    out.print("agreement with the classes, in percent; seconds of one run after embedding")
    out.print(table)


def print_choices(result: FolderResult) -> None:
    """What was decided from the data: the number of groups, and how much the texts may weigh."""
    provenance = result.fitted.provenance
    if "cluster_count" in provenance:
        count = provenance["cluster_count"]
        curve = count["curves"][count["from"]]
        # The counts that were tried next to it: beyond 20 they lie a tenth apart.
        tried, k = list(curve), str(count["chosen"])
        place = tried.index(k)
        around = ", ".join(f"{j}: {curve[j]:.3f}" for j in tried[max(place - 2, 0) : place + 3] if j != k)
        chosen = f"{k}, modularity {curve[k]:.3f}"
        why = f"{chosen}, the most of those about as good (with {around})"
        out.print(f"number of groups: {why}", highlight=False)
    if "auto" in provenance:
        scores = provenance["auto"]["scores"]
        table = "; ".join(f"{name} {score:.0f}" for name, score in scores.items())  # a name may hold a comma
        chosen = provenance["auto"]["chosen"]
        if provenance["auto"]["undecided"]:
            chosen = f"undecided, so {chosen}"
        out.print(f"how much the texts weigh: {chosen}", highlight=False)
        what = "how well groups made this way can be predicted for held-out pictures, in percent"
        out.print(f"  {what}: {table}", highlight=False)


_VIEWS = {"image": "the pictures themselves", "noun": "their nouns", "caption": "their captions"}


def print_weights(result: FolderResult) -> None:
    """What the fused embedding is made of on average."""
    mean = {modality: float(weight.mean()) for modality, weight in result.weights().items()}
    shares = ", ".join(f"{_VIEWS[view]} {weight:.0%}" for view, weight in mean.items())
    out.print(f"what the groups rest on: {shares}", highlight=False)


def print_skipped(skipped: Mapping[Path, str], root: Path) -> None:
    """Count and name what looks like a picture but could not be used, with the reason."""
    from cae.data.images import shown_path
    from cae.data.listing import left_out_lines

    for line in left_out_lines({shown_path(path, root): reason for path, reason in skipped.items()}):
        warn(line)


def print_missing(paths: Sequence[str], fate: str = "left out") -> None:
    """Say which pictures are no longer where they were, the first few by name, and what is done with them."""
    if paths:
        warn(f"{counted(len(paths), 'picture')} missing and {fate} ({few(paths, SHOWN)}); moved? give --images DIR")


def print_added(rows: Sequence[Mapping[str, Any]], news: FolderDiff) -> None:
    """Where new pictures went, and which of them fit nowhere."""
    table = _table()
    table.add_column("added to", style="cyan")
    table.add_column("pictures", justify="right")
    table.add_column("fit it badly", justify="right")
    sizes, outliers = Counter(row["name"] for row in rows), Counter(row["name"] for row in rows if row["outlier"])
    for name, size in sizes.most_common():
        table.add_row(name, f"{size:,}", f"{outliers[name]:,}" if outliers[name] else "")
    if rows:
        out.print(table)
    out.print(f"{counted(len(rows), 'picture')} added, {news.known:,} there already", highlight=False)
    if outliers:
        count = counted(outliers.total(), "picture")
        out.print(f"{count} unlike any group, with outlier = true in the assignments", highlight=False)
        for row in [row for row in rows if row["outlier"]][:SHOWN]:
            out.print(f"  {row['path']} (nearest: {row['name']})", highlight=False, soft_wrap=True)


def print_changed(paths: Sequence[str]) -> None:
    """Say which pictures hold something else than what was clustered."""
    if paths:
        count = counted(len(paths), "picture")
        warn(f"{count} changed since; the assignments speak of what was there before ({few(paths, SHOWN)})")


def print_refit(reasons: Sequence[str]) -> None:
    """Say when a result is out of date."""
    for reason in reasons:
        warn(f"a refit is due, run `cae cluster` again: {reason}")


def print_comparison(comparison: Comparison) -> None:
    """Clusters of two results beside each other, and what moved between those that are no match."""
    table = _table()
    for result in ("A", "B"):
        table.add_column(f"in {result}", style="cyan")
        table.add_column("size", justify="right")
    table.add_column("in both", justify="right")
    for pair in comparison.pairs:
        cells = [(group.name, f"{group.size:,}") if group else ("", "") for group in (pair.a, pair.b)]
        table.add_row(*cells[0], *cells[1], f"{pair.shared:,}")
    out.print(table)
    if comparison.moves:
        table = _table()
        table.add_column("moved", justify="right")
        table.add_column("from", style="cyan")
        table.add_column("to", style="cyan")
        for move in comparison.moves[:MOVES]:
            table.add_row(f"{move.size:,}", move.a.name, move.b.name)
        out.print(table)
        if len(comparison.moves) > MOVES:
            rest = sum(move.size for move in comparison.moves[MOVES:])
            out.print(f"and {rest:,} more in smaller moves; --json lists them", highlight=False)
    alone = f"{comparison.only_a:,} in A alone, {comparison.only_b:,} in B alone"
    out.print(f"{counted(comparison.n_images, 'picture')} in both, {alone}", highlight=False)
    out.print(f"agreement in percent: ARI {comparison.ari:.1f}, NMI {comparison.nmi:.1f}", highlight=False)


def print_hits(hits: Sequence[Hit]) -> None:
    """What a search found, best first."""
    table = _table()
    table.add_column("cosine", justify="right")
    table.add_column("group", style="cyan")
    table.add_column("picture", overflow="fold")
    for hit in hits:
        table.add_row(f"{hit.similarity:.3f}", hit.name, hit.path)
    out.print(table)


def print_duplicates(found: Duplicates) -> None:
    """Groups of copies, each with its best one first."""
    table = _table()
    table.add_column("copies")
    table.add_column("pixels", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("bits off", justify="right")
    table.add_column("picture", overflow="fold")
    for group in found.groups:
        for i, copy in enumerate(group.copies):
            size, off = f"{copy.width} × {copy.height}", str(copy.distance) if i else "best"
            table.add_row("" if i else group.kind, size, f"{copy.bytes:,}", off, copy.path)
    if found.groups:
        out.print(table)
    groups, copies = counted(len(found.groups), "group"), counted(len(found.rows), "picture")
    out.print(f"{groups} of copies in {counted(found.n_images, 'picture')}; {copies} besides the best", highlight=False)


def print_edits(result: SavedResult) -> None:
    """The clusters of a result as its edits show them, and the edits."""
    table = _table()
    table.add_column("#", justify="right")
    table.add_column("name", style="cyan")
    table.add_column("size", justify="right")
    table.add_column("typical nouns")
    for record in result.edited.clusters:
        row = (str(record["id"]), record["name"], f"{record['size']:,}", ", ".join(record["nouns"]))
        table.add_row(*row)
    out.print(table)
    for number, edit in enumerate(result.edits, 1):
        out.print(f"{number}. {edit}", highlight=False, soft_wrap=True)
    print_unmatched_edits(result)


def print_unmatched_edits(result: SavedResult) -> None:
    """Name the edits that do not fit the result any more."""
    for line in result.unmatched_edits:
        warn(f"edit not applied: {line}")


def warn(message: str) -> None:
    """A line that should not be missed but stops nothing."""
    err.print(message, style="yellow", highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """A line about what is being done, beside the results."""
    err.print(message, highlight=False, soft_wrap=True)


def note_loading(*, quiet: bool) -> None:
    """Say what takes seconds before the first bar or result; call it before anything that needs torch is imported."""
    if not quiet:
        note("loading PyTorch …")


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False)
