"""The files of a result: what they are called, and how one that is missing or damaged is reported.

OUT/assignments.parquet, .csv   one row per image
OUT/embeddings.safetensors      `embedding` (N, D) float16 unit rows, in the order of the assignments
OUT/placement.safetensors       where the images are on all levels of the tree of groups, for `cae cut`: `similarity`,
                                `confidence` and `runner_up` of `cae.method.hierarchy.Placement`; only with a tree
OUT/clusters.json               one record per cluster, under `clusters`; one per group of the tree, under `tree`
OUT/model/                      the fitted state (`cae.method.fitted`), for `cae predict`
OUT/run.json                    format version, settings, provenance, scores, what was skipped, checksums of all files
OUT/edits.json                  what people changed by hand since, if they did (`cae.results.edits`)

The images themselves stay where they are. A result knows each by its path below the folder it was found in, and by
the SHA-256 of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cae.utils.checksums import content_hash, json_hash, load_json

FORMAT_VERSION = 2
"""Version 2 added checksums."""
MODEL_FOLDER = "model"
ASSIGNMENTS, ASSIGNMENTS_CSV = "assignments.parquet", "assignments.csv"
EMBEDDINGS = "embeddings.safetensors"
PLACEMENT = "placement.safetensors"
CLUSTERS = "clusters.json"
RUN = "run.json"
SIGNS = ("beta_histogram", "beta_mean")
"""Keys of every `run.json` of ours since the first version, by which it is known from those of other programs."""


class ResultError(ValueError):
    """A result folder cannot be used; the message says why and what to do."""


def checksums(folder: Path, names: Sequence[str], run: Mapping[str, Any]) -> dict[str, str | None]:
    """Checksums of files beside `run.json`, and of the contents of `run.json` itself."""
    said = {key: value for key, value in run.items() if key != "sha256"}
    return {**{name: content_hash(folder / name) for name in names}, RUN: json_hash(said)}


def has_checksums(run: Mapping[str, Any]) -> bool:
    """Whether `run.json` must have checksums of files; not before version 2, nor where no version is set yet."""
    return run.get("format_version", 1) > 1


def recorded_checksums(run: Mapping[str, Any]) -> Mapping[str, str | None]:
    """The checksums that `run.json` has of files; none before version 2.

    A record of version 2 may have been emptied, and then vouches for no file: ask `has_checksums` for the difference.
    """
    return run["sha256"] if has_checksums(run) else {}


def holds_result(folder: Path) -> bool:
    """Whether `run.json` of a folder is one of ours, whole or damaged: other programs write files of that name, too."""
    try:
        said = (folder / RUN).read_bytes()
    except OSError:
        return False
    return all(f'"{sign}"'.encode() in said for sign in SIGNS)  # not parsed: a damaged one is ours as well


def require(folder: Path, name: str) -> None:
    """Refuse a folder that lacks a file.

    Raises:
        ResultError: no such folder or file; the message says whether the folder is a result at all.
    """
    if not folder.is_dir():
        raise ResultError(f"no such folder: {folder}")
    if (folder / name).is_file():
        return
    if holds_result(folder):
        raise ResultError(f"{folder} is incomplete: {name} is missing; run `cae cluster` with --out {folder}")
    raise no_result(folder, f"{name} is missing")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a result.

    Raises:
        ResultError: missing, damaged, or something else than an object.
    """
    require(folder, name)
    try:
        value = load_json(folder / name)
    except (ValueError, OSError) as error:
        raise damaged(folder, name, error) from error
    if not isinstance(value, dict):
        raise damaged(folder, name, "it holds no object")
    return value


def no_result(folder: Path, why: str) -> ResultError:
    """The error for a folder that `cae cluster` did not write."""
    # No hint at --out {folder}: it may be the folder of the images.
    return ResultError(f"{folder} is no result of `cae cluster`: {why}; give a folder that it wrote, as cae-result")


def damaged(folder: Path, name: str, why: object) -> ResultError:
    """The error for a file that is not as it was written."""
    if name == RUN and not holds_result(folder):  # `cae cluster` would refuse to write over it
        return no_result(folder, f"{RUN} is damaged or of another program ({why})")
    return ResultError(f"{folder / name} is damaged ({why}); run `cae cluster` again")
