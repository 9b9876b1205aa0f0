"""Predictions in the groups of a result as edited: where its edits have images that it does not hold.

The edits decide by the result's own images which groups they mean, and where the parts of a split lie; the other
images follow. So a prediction is what `cae update` would show of the image, and does not depend on what is beside it.
An image that the result holds, by its bytes, is where the result has it: what a person moved stays moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cae.results.edits import EditedView
from cae.results.folder import FolderResult, Groups
from cae.results.saved import SavedResult


@dataclass(frozen=True)
class _Together:
    """The images of a result, and after them others, which edits do not know."""

    root: Path
    assignments: pa.Table
    clusters: list[dict[str, Any]]
    embeddings: Tensor


def groups_as_edited(found: FolderResult, result: SavedResult) -> Groups:
    """The groups that predicted images are in once the edits of the result are applied.

    Args:
        found: predictions for N images by the result's own model.
        result: the result without edits applied.
    """
    groups, n, m = found.groups, len(result.assignments), len(found.embeddings)
    others = {
        "path": found.names,
        "cluster": groups.cluster.numpy(),
        "runner_up": groups.runner_up,
        "sha256": [None] * m,  # by which edits would know an image
        # What makes names and texts of groups; those are the result's.
        "name": [""] * m,
        "top_nouns": [[]] * m,
        "top_caption": [""] * m,
    }
    own = result.assignments.select(list(others))
    table = pa.concat_tables([own, pa.table(others, schema=own.schema)])
    embeddings = torch.cat([result.embeddings.float(), found.embeddings])
    view = EditedView(_Together(result.root, table, result.clusters, embeddings)).apply(result.edits)
    held = dict(zip(own["sha256"].to_pylist(), view.labels.tolist(), strict=False))
    for row, sha256 in enumerate(found.sha256, n):
        if sha256 is not None and sha256 in held:
            view.labels[row] = held[sha256]
    here = set(view.labels.tolist())
    return Groups(
        cluster=torch.from_numpy(view.labels[n:].copy()),
        runner_up=view.assignments()["runner_up"].slice(n).combine_chunks(),
        records={id: record for id, record in result.view.clusters.items() if id in here},
    )
