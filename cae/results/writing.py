"""Writing a result: all its files take their places together (`cae.utils.files.committing`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from cae.method.fitted import FittedCAE
from cae.method.hierarchy import Placement
from cae.results.layout import (
    ASSIGNMENTS,
    ASSIGNMENTS_CSV,
    CLUSTERS,
    EMBEDDINGS,
    FORMAT_VERSION,
    MODEL_FOLDER,
    PLACEMENT,
    RUN,
    checksums,
    holds_result,
    recorded_checksums,
    require,
)
from cae.utils.files import committing, dump_json, hold, tidy
from cae.utils.names import is_utf_8

if TYPE_CHECKING:  # brings Lightning, which takes seconds to import
    from cae.results.folder import FolderResult


LOCK = ".lock"
"""File that who changes a result holds meanwhile."""
MAKING_LOCK = ".making"
"""File that who makes a result holds from the first image to the last file. The result before can still be changed."""


class OutputError(OSError):
    """Results cannot be written where they were asked for."""


def check_writable(out: Path) -> None:
    """Check early whether results can be written.

    Raises:
        OutputError: `out` is a file, nothing can be written there, or its name is no UTF-8, as Parquet's library takes.
    """
    if not is_utf_8(os.fspath(out)):
        raise OutputError(f"cannot write to {out}: its name is no UTF-8; choose another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _try_to_write(out)
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error


def check_place_of_result(out: Path) -> None:
    """Check early whether a result can be written, in the place of an earlier one at most.

    Raises:
        OutputError: as `check_writable`, or something that is no result would be overwritten.
    """
    check_writable(out)
    tidy(out)
    names = (RUN, ASSIGNMENTS, ASSIGNMENTS_CSV, CLUSTERS, EMBEDDINGS, PLACEMENT, MODEL_FOLDER)
    taken = [name for name in names if (out / name).exists()]
    if not taken or holds_result(out):
        return
    files = ", ".join(taken)
    if _is_emptied(out):
        raise OutputError(
            f"{out / RUN}, by which a result is known, is empty, so that what is in {out} may be anybody's: to have a "
            f"result made there again, remove {files}; else choose another folder with --out"
        )
    belong, them = (f"{out / files} belongs", "it") if len(taken) == 1 else (f"{files} in {out} belong", "them")
    raise OutputError(
        f"{belong} to no result and would be overwritten; move {them} away, or choose another folder with --out"
    )


def check_place_of_predictions(out: Path) -> None:
    """Check early whether assignments alone can be written.

    Raises:
        OutputError: as `check_writable`, or `out` holds a result, which would be left with the assignments of others.
    """
    check_writable(out)
    if holds_result(out) or _is_emptied(out):
        raise OutputError(f"{out} holds a result, whose assignments would be overwritten; choose another with --out")


def _is_emptied(folder: Path) -> bool:
    """Whether `run.json` is empty, as a full disk leaves it: whose it is cannot be known any more."""
    record = folder / RUN
    return record.is_file() and not record.stat().st_size


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def changing(folder: Path, patience: float = -1) -> Iterator[None]:
    """Hold a result while it is read, changed and written: changes by two processes at once come one after the other.

    Args:
        folder: the result folder.
        patience: most seconds to wait for another process; -1 for as long as it takes.

    Raises:
        ResultError: no result.
        OutputError: its folder cannot be written, or another process is still at work in it.
    """
    tidy(folder)
    require(folder, RUN)
    try:
        _try_to_write(folder)  # the lock may be there, and be writable where its folder is not
        lock = hold(folder / LOCK, patience)
    except TimeoutError as error:
        raise OutputError(
            f"another program, such as `cae update`, is at work in {folder}: try again once it has ended"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be changed: {error.strerror or error}; make it writable, or copy it and take the copy"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def making(out: Path) -> Iterator[None]:
    """Hold a folder while what is to be written there is computed, which may take hours: one at a time.

    Args:
        out: an existing folder.

    Raises:
        OutputError: another process computes something for the same folder.
        OSError: the lock cannot be made.
    """
    try:
        lock = hold(out / MAKING_LOCK, 0)
    except TimeoutError as error:
        raise OutputError(
            f"another run of `cae` is at work on {out} and will write its result there: wait until it has ended, or "
            "choose another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV, with lists of strings joined by '; '."""
    for i, column in enumerate(table.schema):
        if pa.types.is_list(column.type):
            texts = table[column.name].cast(pa.list_(pa.string()))  # a column of empty lists knows no type
            table = table.set_column(i, column.name, pc.binary_join(texts, "; "))
    pacsv.write_csv(table, path)


def write_assignments(table: pa.Table, out: Path) -> None:
    """Write `assignments.parquet` and `.csv`."""
    with committing(out) as draft:
        _write_assignments(table, draft)


def _write_assignments(table: pa.Table, out: Path) -> None:
    pq.write_table(table, out / ASSIGNMENTS)
    write_csv(table, out / ASSIGNMENTS_CSV)


def write_result(result: FolderResult, out: Path, run: dict[str, Any]) -> None:
    """Write all files of a clustering run; they take their places together (`cae.utils.files.committing`).

    Args:
        result: the result of the run.
        out: an existing folder.
        run: method, scores and timings of the run; provenance and settings are added.

    Examples:
        >>> from cae import CAE, SavedResult
        >>> from cae.results import run_source
        >>> module = CAE(3, nouns="nouns.txt", captions="captions.txt", return_embeddings=True)
        >>> found = run_source(module, Path("photos"), device=torch.device("cpu"), batch_size=8, workers=0)
        >>> Path("another-result").mkdir()
        >>> write_result(found, Path("another-result"), run={})
        >>> len(SavedResult.load("another-result").clusters)
        3
    """
    run = {
        "root": os.fspath(result.root.absolute()),
        **_from_here(result.root, out),
        **result.source,
        "images": len(result.embeddings),
        # Images by their weight of each modality, in tenths from 0 to 1.
        "beta_histogram": {
            modality: torch.histc(weight.float(), bins=10, min=0, max=1).int().tolist()
            for modality, weight in result.weights().items()
        },
        "beta_mean": {modality: round(float(weight.mean()), 4) for modality, weight in result.weights().items()},
        "skipped": {result.relative(path): reason for path, reason in result.skipped.items()},
        "config": asdict(result.fitted.config),
        **result.fitted.provenance,
        **run,
    }
    with committing(out) as draft:
        result.fitted.save(draft / MODEL_FOLDER)
        write_vectors(draft, result.embeddings, result.placement())
        write_tables(draft, result.assignments(), result.clusters(), run, result.fitted)
    if result.fitted.hierarchy is None:
        (out / PLACEMENT).unlink(missing_ok=True)  # of an earlier run; nobody reads it


def _from_here(root: Path, out: Path) -> dict[str, str]:
    """Where the images lie as seen from the result, so that both may move together."""
    try:
        return {"root_from_here": os.path.relpath(root, out)}
    except ValueError:  # on another drive of Windows
        return {}


def write_vectors(out: Path, embeddings: Tensor, placement: Placement | None) -> None:
    """Write `embeddings.safetensors`, and `placement.safetensors` where there is a tree.

    Args:
        out: a draft of the result folder.
        embeddings: (N, D) float unit rows.
        placement: where the N images are in the tree.
    """
    save_file({"embedding": embeddings.half().contiguous()}, out / EMBEDDINGS)
    if placement is not None:
        write_placement(out, placement)


def write_placement(out: Path, placement: Placement) -> None:
    """Write `placement.safetensors`. The leaves are in the assignments."""
    save_file({name: value for name, value in placement._asdict().items() if name != "leaf"}, out / PLACEMENT)


def write_tables(
    out: Path, assignments: pa.Table, clusters: list[dict[str, Any]], run: dict[str, Any], fitted: FittedCAE
) -> None:
    """Write assignments, clusters and, with the checksums of all that is in the draft by now, `run.json`.

    Args:
        out: a draft of the result folder. Files that are not in it stay as they are, with their checksums in `run`.
        assignments: N rows.
        clusters: one record per cluster.
        run: the contents of `run.json` besides the format version.
        fitted: the model, which knows the tree of groups if there is one.
    """
    _write_assignments(assignments, out)
    dump_json({"clusters": clusters, "tree": _tree(assignments, fitted)}, out / CLUSTERS)
    kept, run = recorded_checksums(run), {**run, "format_version": FORMAT_VERSION}
    written = [name for name in (ASSIGNMENTS, EMBEDDINGS, PLACEMENT, CLUSTERS) if (out / name).is_file()]
    dump_json({**run, "sha256": {**kept, **checksums(out, written, run)}}, out / RUN)


def _tree(assignments: pa.Table, fitted: FittedCAE) -> list[dict[str, Any]]:
    """The groups of all levels, coarse ones before their parts; `parent` is null for the coarsest."""
    if fitted.hierarchy is None or "leaf" not in assignments.column_names:
        return []
    tree = fitted.hierarchy
    sizes = tree.contains(tree.leaves) @ np.bincount(assignments["leaf"].to_numpy(), minlength=len(tree.leaves))
    return [
        {
            "id": node.id,
            "parent": tree.parents[node.id],
            "name": node.name,
            "gloss": node.gloss,
            "size": int(sizes[node.id]),
        }
        for node in fitted.nodes
    ]
