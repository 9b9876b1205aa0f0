"""What the page shows of a result: its groups, and for all images a column for each fact.

The page numbers images by group, and within a group from the most typical on: a group is a range of numbers, its
representatives come first, and what a page of the gallery shows lies on few sheets of thumbnails.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cae.method.blocks import CHUNK_ROWS
from cae.method.pipeline import representations
from cae.report.kept import THUMBNAILS
from cae.report.thumbnails import COLUMNS, PER_SHEET
from cae.results.compare import Comparison
from cae.results.representatives import representatives
from cae.results.saved import SavedResult
from cae.results.update import outliers

N_DOUBTFUL = 4
"""Borderline images of a group, and odd ones out."""
PAGE_FILES = "report_files"
"""Folder beside the page."""
_TYPES = ("uint8", "int8", "uint16", "int16", "int32")
"""Of packed columns, the smallest first."""


@dataclass(frozen=True)
class ClusterSection:
    """A cluster as its section of the page shows it. Images are numbered as the page numbers them.

    Attributes:
        id: its label in the result.
        name: its name in the result, edits included.
        gloss: definition of the name; may be empty.
        size: its images.
        nouns: typical ones, best first.
        captions: typical ones, best first.
        cohesion: mean cosine of its images to their centre, where they were clustered; 1 if all are alike.
        first: number of its most typical image; the others follow.
        representatives: the images nearest to its centre, of equal files only the original.
        borderline: the least sure of the others: nearly in another group.
        odd: those of the remaining that the image encoder alone, texts aside, finds least like the rest of the group.
    """

    id: int
    name: str
    gloss: str
    size: int
    nouns: list[str]
    captions: list[str]
    cohesion: float
    first: int
    representatives: list[int]
    borderline: list[int]
    odd: list[int]


def fused(result: SavedResult) -> Tensor:
    """What was clustered of each image, as unit rows (N, D) float32."""
    blocks = result.embeddings.float().split(CHUNK_ROWS)
    return torch.cat([normalize(representations(block, result.fitted)["fused"], dim=1) for block in blocks])


class Arranged(NamedTuple):
    """The images of a cluster in the order in which its section shows them.

    Attributes:
        members: (n,) rows, the representatives first, then the others from the most typical on.
        n_representatives: number of representatives.
        cohesion: see `ClusterSection`.
        borderline: positions in `members`; see `ClusterSection`.
        odd: the same.
    """

    members: Tensor
    n_representatives: int
    cohesion: float
    borderline: Tensor
    odd: Tensor


def describe_groups(
    result: SavedResult, z: Tensor, known: dict[bytes, Arranged] | None = None
) -> tuple[list[ClusterSection], NDArray[np.int64]]:
    """The groups, largest first, and the order in which the page numbers images.

    Args:
        result: N images; a cluster without images has no section.
        z: (N, D) unit rows from `fused`.
        known: kept from one call to the next, spares what has not changed since.

    Returns:
        The groups; and (N,) the row of the assignments behind each number.
    """
    labels = torch.from_numpy(result.assignments["cluster"].to_numpy().copy())
    confidence = torch.from_numpy(result.assignments["confidence"].to_numpy().copy())
    groups: list[ClusterSection] = []
    order: list[Tensor] = []
    known, before = {} if known is None else known, dict(known or {})
    known.clear()
    members_of = {record["id"]: (labels == record["id"]).nonzero().squeeze(1) for record in result.clusters}
    for record in sorted(result.clusters, key=lambda record: -len(members_of[record["id"]])):
        members = members_of[record["id"]]
        if not len(members):
            continue
        key = members.numpy().tobytes()
        known[key] = arranged = before.get(key) or _arrange(members, z, result, confidence)
        first = sum(map(len, order))
        order.append(arranged.members)
        groups.append(
            ClusterSection(
                **{field: record[field] for field in ("id", "name", "gloss", "nouns", "captions")},
                size=len(members),
                cohesion=arranged.cohesion,
                first=first,
                representatives=list(range(first, first + arranged.n_representatives)),
                borderline=(first + arranged.borderline).tolist(),
                odd=(first + arranged.odd).tolist(),
            )
        )
    return groups, torch.cat(order).numpy()


def _arrange(members: Tensor, z: Tensor, result: SavedResult, confidence: Tensor) -> Arranged:
    centrality = _cosine_to_mean(z[members])
    members = members[centrality.argsort(descending=True, stable=True)]
    table = result.assignments.select(["path", "sha256"]).take(members.numpy())
    hashes = table["sha256"].to_pylist()
    shown = representatives(range(len(members)), table["path"].to_pylist(), hashes)
    copied = {hashes[i] for i in shown} - {None}
    others = sorted(set(range(len(members))) - set(shown))
    doubtful = torch.tensor([j for j, i in enumerate(others, len(shown)) if hashes[i] not in copied], dtype=torch.int64)
    members = members[shown + others]
    borderline = doubtful[confidence[members[doubtful]].argsort(stable=True)[:N_DOUBTFUL]]
    left = doubtful[~torch.isin(doubtful, borderline)]
    likeness = _cosine_to_mean(normalize(result.embeddings[members].float(), dim=1))
    odd = left[likeness[left].argsort(stable=True)[:N_DOUBTFUL]]
    return Arranged(members, len(shown), float(centrality.mean()), borderline, odd)


def describe_edited(result: SavedResult, z: Tensor, known: dict[bytes, Arranged]) -> dict[str, Any]:
    """What edits change on a page that is open: its groups, and for each row of the assignments where it is.

    Args:
        result: N images, with the edits applied.
        z: (N, D) unit rows from `fused`.
        known: as in `describe_groups`.

    Returns:
        `groups`: records with `id`, `name`, `gloss`, `size`, `nouns`, `captions`, `cohesion`, and rows for `typical`,
        `borderline` and `odd`; `group` and `runnerUp`: by row, a position in `groups` (-1: none), packed.
    """
    groups, order = describe_groups(result, z, known)
    position = {group.id: i for i, group in enumerate(groups)}
    of_row = np.empty(len(order), dtype=np.int64)
    of_row[order] = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    fields = ("id", "name", "gloss", "size", "nouns", "captions", "cohesion")
    return {
        "groups": [
            {
                **{field: getattr(group, field) for field in fields},
                "typical": order[group.representatives].tolist(),
                "borderline": order[group.borderline].tolist(),
                "odd": order[group.odd].tolist(),
            }
            for group in groups
        ],
        "group": packed(of_row),
        "runnerUp": packed(np.array([position.get(k, -1) for k in result.assignments["runner_up"].to_pylist()])),
    }


def packed(column: Any) -> Any:
    """A list of strings as it is; an array as the smallest type that holds it, little-endian in base64."""
    if isinstance(column, list):
        return column
    low, high = column.min(initial=0), column.max(initial=0)
    smallest = next(name for name in _TYPES if np.iinfo(name).min <= low and high <= np.iinfo(name).max)
    little = np.ascontiguousarray(column, dtype=np.dtype(smallest).newbyteorder("<"))
    return {"type": smallest, "base64": base64.b64encode(little.tobytes()).decode("ascii")}


def _cosine_to_mean(rows: Tensor) -> Tensor:
    """(n,) of unit rows (n, D)."""
    return rows @ normalize(rows.mean(dim=0), dim=0)


def columns(
    result: SavedResult,
    groups: Sequence[ClusterSection],
    order: NDArray[np.int64],
    comparison: Comparison | None = None,
) -> dict[str, Any]:
    """One column per fact, for `order` of the assignments: arrays, lists of strings, and indices into lists.

    Args:
        result: N images.
        groups: sections from `describe_groups`.
        order: order of the rows, from `describe_groups` as well.
        comparison: comparison with another result, this one the second.

    Returns:
        `path`; `group` and `runnerUp`, positions in `groups` (-1: none); `confidence` and `weights` (N, 3) of image,
        noun and caption in hundredths; `nounNames` and `nouns` (N, 3) into it, `captionTexts` and `caption` into it
        (-1: none); `outlier`, 1 for images that fit no group; `move`, position in the comparison's moves (-1: none);
        `row`, of the assignments.
    """
    table = result.assignments.take(order)
    position = {group.id: i for i, group in enumerate(groups)}
    nouns = [[*row, "", "", ""][:3] for row in table["top_nouns"].to_pylist()]
    noun_names, noun_indices = _index([noun for row in nouns for noun in row])
    caption_texts, caption_indices = _index(table["top_caption"].to_pylist())
    moves = np.full(len(result.assignments), -1)
    for i, move in enumerate(comparison.moves if comparison else ()):
        moves[move.rows] = i
    weights = np.stack([table[f"beta_{modality}"].to_numpy() for modality in ("image", "noun", "caption")], axis=1)
    return {
        "path": table["path"].to_pylist(),
        "group": np.repeat(np.arange(len(groups)), [group.size for group in groups]),
        "runnerUp": np.array([position.get(k, -1) for k in table["runner_up"].to_pylist()]),
        "confidence": _hundredths(table["confidence"].to_numpy()),
        "weights": _hundredths(weights),
        "nounNames": noun_names,
        "nouns": noun_indices.reshape(-1, 3),
        "captionTexts": caption_texts,
        "caption": caption_indices,
        "outlier": outliers(result)[order].astype(np.int64),
        "move": moves[order],
        "row": order,
    }


def _index(texts: Sequence[str | None]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts, and for each text its place among them; -1 for an empty one."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(filter(None, texts)))}
    return list(distinct), np.array([distinct.get(text, -1) if text else -1 for text in texts], dtype=np.int64)


def _hundredths(shares: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.nan_to_num(shares * 100).round().astype(np.int64)


def page_data(
    result: SavedResult,
    groups: Sequence[ClusterSection],
    order: NDArray[np.int64],
    facts: Mapping[str, Any],
    tree: dict[str, Any] | None,
    comparison: Comparison | None,
    out: Path,
) -> dict[str, Any]:
    """What `data.js` holds.

    Args:
        result: N images.
        groups: sections from `describe_groups`.
        order: order of the rows, from `describe_groups` as well.
        facts: columns in this order: those of `columns`, and what has been drawn.
        tree: the tree of groups, from `tree_of`.
        comparison: comparison with another result, this one the second.
        out: the report's folder.
    """
    return {
        "count": len(order),
        "groups": [{"name": group.name, "first": group.first, "size": group.size} for group in groups],
        "movedFrom": [move.a.name for move in comparison.moves] if comparison else [],
        "sheet": {"columns": COLUMNS, "places": PER_SHEET, "folder": f"{PAGE_FILES}/{THUMBNAILS}/"},
        "roots": _roots(result.root, out),
        "links": _links([result.image_paths[row] for row in order], facts["path"]),
        "columns": {name: packed(column) for name, column in facts.items()},
        "tree": tree,
    }


def tree_of(result: SavedResult, order: NDArray[np.int64]) -> dict[str, Any] | None:
    """The tree of groups as `pictures.js` reads it, with the leaf of each image; None for a result without one."""
    fitted = result.fitted
    if fitted.hierarchy is None or "leaf" not in result.assignments.column_names:
        return None
    return {
        "cut": fitted.config.n_clusters,
        "fewest": fitted.hierarchy.levels[0],
        "most": fitted.hierarchy.levels[-1],
        "roots": fitted.hierarchy.roots,
        "splits": fitted.hierarchy.splits,
        "leaves": fitted.hierarchy.leaves,
        "names": [node.name for node in fitted.nodes],
        "glosses": [node.gloss for node in fitted.nodes],
        "leaf": packed(result.leaves.numpy()[order]),
    }


def _roots(root: Path, out: Path) -> list[str]:
    """URLs of the images' folder to try in turn: as far from the report as it is now, and where it is now."""
    absolute = root.absolute()
    urls = [absolute.as_uri() + "/"]
    try:
        relative = os.fsencode(os.path.relpath(absolute, out.absolute()).replace(os.sep, "/"))
    except ValueError:  # on another drive of Windows
        return urls
    return [quote(relative) + "/", *urls]


def _links(paths: Sequence[Path | None], shown: Sequence[str]) -> dict[int, str]:
    """URLs of the images whose place does not follow from the path that is shown: bytes lost, or another root."""
    return {
        number: path.absolute().as_uri()
        for number, (path, name) in enumerate(zip(paths, shown, strict=True))
        if path is not None and ("\ufffd" in name or PurePath(name).is_absolute())
    }
