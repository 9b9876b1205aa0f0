"""Checks that the files of a result are what they should be, and of the same run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from cae.method.fitted import CLUSTER_FIELDS
from cae.results.layout import ASSIGNMENTS, CLUSTERS, RUN, checksums, damaged, has_checksums, recorded_checksums
from cae.utils.checksums import check_kinds, content_hash

logger = logging.getLogger(__name__)

_TEXTS = pa.list_(pa.string())
_COLUMNS = {
    "path": pa.string(),
    "cluster": pa.int64(),
    "name": pa.string(),
    "confidence": pa.float32(),
    "similarity": pa.float32(),
    "runner_up": pa.int64(),
    "beta_image": pa.float32(),
    "beta_noun": pa.float32(),
    "beta_caption": pa.float32(),
    "top_nouns": _TEXTS,
    "top_caption": pa.string(),
    "sha256": pa.string(),
}
_MAY_BE_NULL = ("runner_up", "sha256")
_RECORD = {**CLUSTER_FIELDS, "representatives": list[str]}
_RUN_KINDS = {  # each of them may be missing
    "root": str,
    "root_from_here": str,
    "encoder": dict,
    "corpora": dict,
    "skipped": dict,
    "updates": list,
    "embeddings": list[str],
    "rows_are": str,
}


def check_consistent(folder: Path, assignments: pa.Table, clusters: Any, run: dict[str, Any]) -> None:
    """Refuse files that are not what they should be, or not of the same run."""
    try:
        names = assignments.column_names
    except UnicodeDecodeError as error:  # the bytes of names are read no earlier
        raise damaged(folder, ASSIGNMENTS, f"name of a column: {error}") from error
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise damaged(folder, ASSIGNMENTS, f"no column {', '.join(missing)}")
    for name, kind in _COLUMNS.items():
        column = assignments[name]
        if column.type != kind or (column.null_count and name not in _MAY_BE_NULL):
            raise damaged(folder, ASSIGNMENTS, f"column {name} holds something else than {kind}")
    if not isinstance(clusters, list) or not all(
        isinstance(record, dict) and set(_RECORD) <= set(record) for record in clusters
    ):
        raise damaged(folder, CLUSTERS, f"expected records with {', '.join(_RECORD)} under `clusters`")
    if not isinstance(run.get("root"), str):
        raise damaged(folder, RUN, "it does not say where the pictures are")
    try:
        name = CLUSTERS
        for record in clusters:
            check_kinds(record, _RECORD)
            if not all(0 <= record[key] < 2**31 for key in ("id", "size")):
                raise ValueError(f"{record['id']} is no number, or {record['size']} no size of a cluster")
        if len({record["id"] for record in clusters}) < len(clusters):
            raise ValueError("two clusters have the same number")
        name = RUN
        check_kinds(run, {key: kind for key, kind in _RUN_KINDS.items() if key in run})
        if has_checksums(run):
            check_kinds(run, {"sha256": dict})
    except ValueError as error:
        raise damaged(folder, name, error) from error
    if run.get("images") != len(assignments):
        raise damaged(folder, RUN, f"it speaks of {run.get('images')} pictures, {ASSIGNMENTS} of {len(assignments)}")
    unknown = set(assignments["cluster"].unique().to_pylist()) - {record["id"] for record in clusters}
    if unknown:
        raise damaged(folder, CLUSTERS, f"no record of cluster {', '.join(map(str, sorted(unknown)))}")


def check_unchanged(folder: Path, name: str, run: dict[str, Any]) -> None:
    """Refuse a file that is not the one that was written with `run.json`."""
    if has_checksums(run) and content_hash(folder / name) != recorded_checksums(run).get(name):
        raise damaged(folder, name, f"its checksum is not the one in {RUN}")


def warn_of_changes(folder: Path, run: dict[str, Any]) -> None:
    """Warn about JSON that has been changed since it was written; people may have had reasons to."""
    if not has_checksums(run):
        return
    for name, sha256 in checksums(folder, (CLUSTERS,), run).items():
        if recorded_checksums(run).get(name) != sha256:
            logger.warning("%s was changed or damaged since cae wrote it; what it says may be wrong", folder / name)
