"""Add new images to a result by the model it holds; existing assignments do not change.

An image *fits no cluster*, and is an outlier, when it is less like its nearest fitted images than nearly every
fitted image is like its own: when the mean cosine of its image embedding to its `NEIGHBOURS` nearest is below the
lowest `OUTLIER_QUANTILE` of the fitted ones' (Sun et al. 2022, arXiv 2204.06507, with the mean of k neighbours in place
of the k-th). That share is to be expected of images like those of the fit. Similarity to the fused centroid would not
do: whatever an image shows, its counterparts are made of the texts that the fit selected. Measured with the `lite`
encoder on a fit of 450 photographs of scenes: of 450 more, 2% are outliers (by the centroid 2%); of 100 images of
CIFAR-10, 51% (1%); of 300 drawings, 100% (4%).

*A refit is due* when more than `MAX_OUTLIER_SHARE` of the images added since the fit are outliers, so that what comes
in is no longer what was clustered, or when those added, with those whose files have changed, are more than
`MAX_NEW_SHARE` of the fitted ones, so that they would shape the clusters.

Images are known by the hash of their bytes: one that is already in the result, under whatever name, is not added
again, and one that has changed under its old name keeps its row and is reported.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.data.images import shown_path
from cae.data.listing import check_not_empty, list_folder
from cae.kernels import nearest
from cae.method.hierarchy import Placement
from cae.results.saved import SavedResult
from cae.results.writing import write_tables, write_vectors
from cae.utils.checksums import content_hashes
from cae.utils.files import absolute, committing
from cae.utils.progress import Progress

if TYPE_CHECKING:  # brings Lightning
    from cae.results.folder import FolderResult

OUTLIER_QUANTILE = 0.01
NEIGHBOURS = 5
REFERENCE = 5000
"""Fitted images, drawn at random, on which the quantile is taken."""
MAX_OUTLIER_SHARE = 0.1
MAX_NEW_SHARE = 0.5
MIN_ADDED = 10
"""Fewer added images are too few to judge by their share of outliers."""

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class FolderDiff:
    """The difference between a folder and a result.

    Attributes:
        paths: images with new content.
        known: number of images with content that is already in the result, or in another of `paths`.
        changed: paths, as in the assignments, of images that hold other bytes than those that were clustered.
        left_out: files that look like an image but cannot be used, with the reason.
    """

    paths: list[Path]
    known: int
    changed: list[str]
    left_out: dict[Path, str]


@dataclass(frozen=True)
class Update:
    """What `cae.Result.update` did.

    Attributes:
        diff: what the folder had that the result had not.
        skipped: files that look like images but could not be used, with the reason.
        refit_reasons: why it is time to fit again; none if it is not.
    """

    diff: FolderDiff
    skipped: dict[Path, str]
    refit_reasons: list[str]


def diff_folder(result: SavedResult, folder: Path, progress: Progress | None = None) -> FolderDiff:
    """Compare a folder with a result, by content.

    Args:
        result: an existing result.
        folder: images, old and new; the result's own folder or another.
        progress: called with (done, total) files.

    Raises:
        ImageError: no such folder, or no image in it.
    """
    listing = list_folder(folder)
    check_not_empty(folder, listing)
    paths = listing.images
    rows = result.assignments.select(["path", "sha256"]).to_pylist()
    hash_of = {row["path"]: row["sha256"] for row in rows}
    seen = {row["sha256"] for row in rows}
    new: list[Path] = []
    changed: list[str] = []
    for path, sha256 in zip(paths, content_hashes(paths, progress), strict=True):
        place = _place_in(result, path)
        if place in hash_of:
            if hash_of[place] != sha256:
                changed.append(place)
        elif sha256 is None or sha256 not in seen:  # unreadable files are reported when they are encoded
            new.append(path)
            seen.add(sha256)
    return FolderDiff(new, len(paths) - len(new) - len(changed), changed, listing.left_out)


def check_vectors(result: SavedResult) -> None:
    """Read what `add_images` adds to, so that damage is told before new images are embedded.

    Raises:
        ResultError: embeddings or placement are damaged.
    """
    _ = result.embeddings
    if result.fitted.hierarchy is not None:
        _ = result.placement


def add_images(result: SavedResult, found: FolderResult) -> None:
    """Append the predictions for new images to a result, on disk.

    The rows that were there stay as they are; all rows get a column `outlier`, false for the fitted ones.

    Args:
        result: the result as the fit and earlier updates left it, without edits applied.
        found: predictions by the result's own model for images that are not in it.
    """
    assignments, n_fitted = result.assignments, result.fitted.n_images
    if "outlier" not in assignments.column_names:
        assignments = assignments.append_column("outlier", pa.array(np.zeros(len(assignments), dtype=bool)))
    outlier = is_outlier(found.embeddings, result.embeddings[:n_fitted])
    new = found.assignments().append_column("outlier", pa.array(outlier))
    new = new.set_column(0, "path", pa.array([_place_in(result, path) for path in found.paths], pa.string()))
    table = pa.concat_tables([assignments, new.select(assignments.column_names).cast(assignments.schema)])
    sizes = Counter(table["cluster"].to_pylist())
    skipped = {_place_in(result, path): reason for path, reason in found.skipped.items()}
    update = {"folder": os.fspath(found.root.absolute()), "added": len(new), "outliers": int(outlier.sum())}
    run = {
        **result.run,
        "images": len(table),
        "skipped": {**result.run.get("skipped", {}), **skipped},
        "updates": [*result.run.get("updates", []), update],
    }
    placement = found.placement()
    if placement is not None:
        placement = Placement(*map(torch.cat, zip(result.placement, placement, strict=True)))
    clusters = [{**record, "size": sizes[record["id"]]} for record in result.clusters]
    with committing(result.folder) as draft:
        write_vectors(draft, torch.cat([result.embeddings, found.embeddings.half()]), placement)
        write_tables(draft, table.combine_chunks(), clusters, run, result.fitted)


def is_outlier(x: Tensor, fitted: Tensor) -> Flags:
    """Which images are outliers.

    Args:
        x: (B, D) float image embeddings, unit rows.
        fitted: (N, D) of the fitted images, N at least 2.

    Returns:
        (B,) booleans.
    """
    if not len(x):
        return np.zeros(0, dtype=bool)
    fitted = normalize(fitted.float(), dim=1)
    k = min(NEIGHBOURS, len(fitted) - 1)
    drawn = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))[:REFERENCE]
    # The nearest of a fitted image is itself.
    usual = nearest(fitted[drawn], fitted, k=k + 1).similarity.reshape(-1, k + 1)[:, 1:].mean(dim=1)
    similarity = nearest(x, fitted, k=k).similarity.reshape(-1, k).mean(dim=1)
    return (similarity < float(np.quantile(usual.numpy(), OUTLIER_QUANTILE))).numpy()


def outliers(result: SavedResult) -> Flags:
    """Which images of a result fit no cluster, (N,) booleans; none of those that were fitted on."""
    if "outlier" not in result.assignments.column_names:
        return np.zeros(len(result.assignments), dtype=bool)
    return result.assignments["outlier"].to_numpy()


def refit_reasons(result: SavedResult, n_changed: int) -> list[str]:
    """Reasons to cluster again, none if there are none.

    Args:
        result: the result after its updates.
        n_changed: number of its images that hold other bytes than those that were clustered.
    """
    reasons, n_fitted = [], result.fitted.n_images
    outlier = outliers(result)[n_fitted:]
    if len(outlier) >= MIN_ADDED and outlier.mean() > MAX_OUTLIER_SHARE:
        reasons.append(f"{outlier.mean():.0%} of the added pictures are unlike any group")
    if len(outlier) + n_changed > MAX_NEW_SHARE * n_fitted:
        reasons.append(f"{len(outlier) + n_changed:,} pictures are new or changed since {n_fitted:,} were clustered")
    return reasons


def _place_in(result: SavedResult, path: Path) -> str:
    """A path as the assignments have it: below the folder of the result's images, or absolute."""
    path, root = absolute(path), absolute(result.root)
    return shown_path(path, root if path.is_relative_to(root) else None)
