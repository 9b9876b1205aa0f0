"""The files of a result.

OUT/assignments.parquet, .csv   a row a picture
OUT/clusters.json               a record a cluster, under `clusters`
OUT/model/                      the fitted state (`cae.state`), for `cae predict`
OUT/run.json                    settings, provenance, scores and what was skipped
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cae.files import replacing
from cae.folder import FolderResult

MODEL_FOLDER = "model"


class OutputError(OSError):
    """Results cannot be written where they were asked for."""


def check_writable(out: Path) -> None:
    """Find out before the work whether results can be written.

    Raises:
        OutputError: `out` is a file, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error


def write_assignments(table: pa.Table, out: Path) -> None:
    """Write `assignments.parquet` and `.csv`; in the CSV, lists are joined by '; '."""
    top_nouns = table.column_names.index("top_nouns")
    flat = table.set_column(
        top_nouns, "top_nouns", pa.array(["; ".join(nouns) for nouns in table["top_nouns"].to_pylist()])
    )
    with replacing(out / "assignments.parquet", out / "assignments.csv") as (parquet, text):
        pq.write_table(table, parquet)
        pacsv.write_csv(flat, text)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file, readable by people."""
    with replacing(path) as (target,):
        target.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_result(result: FolderResult, out: Path, run: dict[str, Any]) -> None:
    """Write all files of a clustering run.

    Args:
        result: what was found.
        out: an existing folder.
        run: scores, timings and command of the run; provenance and settings are added.
    """
    write_assignments(result.assignments(), out)
    write_json({"clusters": result.clusters()}, out / "clusters.json")
    result.fitted.save(out / MODEL_FOLDER)
    write_json(
        {
            "root": os.fspath(result.root.absolute()),
            "images": len(result.paths),
            "beta_mean": {modality: round(float(weight.mean()), 4) for modality, weight in result.weights().items()},
            "skipped": {result.relative(path): reason for path, reason in result.skipped.items()},
            "config": asdict(result.fitted.config),
            **result.fitted.provenance,
            **run,
        },
        out / "run.json",
    )
