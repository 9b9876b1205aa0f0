"""Take a result away: the edited view of it, in the form that the next tool reads.

| target | what is written |
| --- | --- |
| `folders` | a folder a cluster, called after it, with its images; nested, inside the coarse groups of the tree |
| `csv`, `parquet` | `assignments` and `clusters`, a row each |
| `json` | `result.json`: clusters, images, and the run they come from |
| `hf` | an image folder with `metadata.jsonl`, for `datasets.load_dataset(OUT)` |
| `fiftyone` | a `FiftyOneImageClassificationDataset`: `data/` and `labels.json` |
| `coco` | `annotations.json`: a category a cluster, an annotation an image without a box |

A target is a function from a result to a plan, which file goes where; `cae.results.export.tree` carries it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from cae.results.export import coco, fiftyone, folders, huggingface, tables
from cae.results.export.tree import ExportError, PlaceError, Placing, Plan, carry_out
from cae.results.saved import SavedResult
from cae.utils.progress import Reporter, silent

__all__ = ["TARGETS", "ExportError", "Exported", "PlaceError", "Placing", "Target", "export"]

Target = Literal["folders", "csv", "parquet", "json", "hf", "fiftyone", "coco"]
TARGETS: dict[Target, Callable[[SavedResult], Plan]] = {
    "folders": folders.plan,
    "csv": tables.plan_csv,
    "parquet": tables.plan_parquet,
    "json": tables.plan_json,
    "hf": huggingface.plan,
    "fiftyone": fiftyone.plan,
    "coco": coco.plan,
}
assert tuple(TARGETS) == get_args(Target)


class Exported(NamedTuple):
    """What an export did.

    Attributes:
        written: files written, placed or found in place.
        removed: files of an earlier export that no longer belong.
        missing: paths of images that are no longer there and so were left out.
        changed: paths of images that were placed, but hold other bytes than those that were clustered.
    """

    written: int
    removed: int
    missing: list[str]
    changed: list[str]


def export(
    result: SavedResult,
    target: Target,
    out: Path,
    *,
    by: Placing = "copy",
    nested: bool = False,
    without: Collection[int] = (),
    reporter: Reporter = silent,
) -> Exported:
    """Write a result, as its edits show it, for another tool.

    The same export again changes nothing; after edits it brings `out` up to date. Interrupted, it leaves whole files
    only, and goes on from there when it is run again. The original images are never moved or changed.

    Args:
        result: the result to export.
        target: a key of `TARGETS`.
        out: a folder, made if need be. What is in it and not of an earlier export to the same target is left alone.
        by: way to place images: `copy`, `hardlink` (same disk; changing one changes the original) or `symlink`.
        nested: with `folders`, put each cluster's folder into that of the coarse group that it is part of.
        without: rows of the assignments to leave out, as `find_duplicates(result).rows`.
        reporter: makes the progress callback of each step.

    Raises:
        ExportError: an unknown target; nested, and not folders or without a tree of groups; there are no images to take
            along; or `out` holds another export, files in the way or the originals, or cannot hold links.

    Examples:
        >>> from cae import SavedResult
        >>> export(SavedResult.load("cae-result"), "folders", Path("groups")).written
        30
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
    if not result.has_images and target not in ("csv", "parquet", "json"):
        raise ExportError(
            f"the result in {result.folder} was made from embeddings that name no pictures: export it as csv, parquet "
            "or json"
        )
    if nested and target != "folders":
        raise ExportError(f"only folders can be nested, not {target}; leave out --nested, or export --to folders")
    result = _without(result.edited, without) if without else result.edited
    plan = (folders.plan_nested if nested else TARGETS[target])(result)
    placed = any(isinstance(content, Path) for content in plan.values())
    if placed and any(place.resolve().is_relative_to(result.root.resolve()) for place in _tops(plan, out)):
        raise PlaceError(f"{out} would mix with the original pictures")
    removed = carry_out(plan, out, target=target, by=by, progress=reporter("files"))
    paths = result.assignments["path"].to_pylist()
    return Exported(
        written=len(plan),
        removed=removed,
        missing=result.missing() if placed or target == "coco" else [],
        changed=[paths[row] for row in result.changed(reporter("hashes"))] if placed else [],
    )


def _without(result: SavedResult, rows: Collection[int]) -> SavedResult:
    """A result as far as plans look at it, assignments and clusters, but for some rows; without its embeddings."""
    left = result.assignments.filter(pa.array(~np.isin(np.arange(len(result.assignments)), list(rows))))
    sizes, paths = Counter(left["cluster"].to_pylist()), set(left["path"].to_pylist())
    clusters = [
        {
            **record,
            "size": sizes[record["id"]],
            "representatives": [path for path in record["representatives"] if path in paths],
        }
        for record in result.clusters
        if sizes[record["id"]]
    ]
    return replace(result, assignments=left, clusters=clusters)


def _tops(plan: Plan, out: Path) -> set[Path]:
    """`out` and what the plan has directly in it, which may be links to anywhere."""
    return {out, *(out / name.partition("/")[0] for name in plan)}
