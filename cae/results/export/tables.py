"""The assignments and clusters as tables, for spreadsheets, data frames and scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cae.results.export.tree import Plan
from cae.results.saved import SavedResult
from cae.results.writing import write_csv
from cae.utils.files import dump_json


def plan_csv(result: SavedResult) -> Plan:
    """`assignments.csv` and `clusters.csv`; lists are joined by '; '."""
    return _tables(result, "csv", write_csv)


def plan_parquet(result: SavedResult) -> Plan:
    """`assignments.parquet` and `clusters.parquet`."""
    return _tables(result, "parquet", pq.write_table)


def plan_json(result: SavedResult) -> Plan:
    """`result.json`: `clusters`, `pictures` and `run`."""
    document = {"clusters": result.clusters, "pictures": result.assignments.to_pylist(), "run": result.run}
    return {"result.json": lambda path: dump_json(document, path)}


def _tables(result: SavedResult, ending: str, write: Callable[[pa.Table, Path], None]) -> Plan:
    clusters = pa.Table.from_pylist(result.clusters)
    return {
        f"assignments.{ending}": lambda path: write(result.assignments, path),
        f"clusters.{ending}": lambda path: write(clusters, path),
    }
