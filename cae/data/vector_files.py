"""Vectors made elsewhere, read from files of many forms.

| source                | vectors                          | classes, paths, texts                                |
|-----------------------|----------------------------------|------------------------------------------------------|
| .npy                  | (N, D), mapped into memory       | classes in STEM.labels.npy                           |
| .safetensors          | a tensor of `NAMES`              | a tensor `labels`; texts as a JSON list in metadata  |
| .parquet, data frames | a column of `NAMES`              | columns of `LABELS`, `PATHS`, `TEXTS`                |
| clip-retrieval folder | img_emb/*.npy or text_emb/*.npy  | columns of metadata/*.parquet                        |
| `store=` folder       | in the order of their images     |                                                      |

Several sources are one: their rows follow each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from cae.data.embedding_store import is_store, read_store
from cae.data.labels import as_classes
from cae.utils.checksums import parse_json

Of = Literal["images", "texts"]
"""Whether vectors of images or of texts are wanted: a table may hold both."""

NAMES: dict[Of, tuple[str, ...]] = {
    "images": ("embedding", "embeddings", "image_embedding", "image_embeddings"),
    "texts": ("embedding", "embeddings", "text_embedding", "text_embeddings"),
}
"""Columns and tensors that are read as vectors, the first that is there."""

LABELS = ("label", "labels")
PATHS = ("path", "image_path", "file_name", "filename", "filepath")
TEXTS = ("text", "texts", "caption", "captions", "noun", "nouns", "name", "names")

CLIP_RETRIEVAL: dict[Of, str] = {"images": "img_emb", "texts": "text_emb"}
"""Folders of vectors as clip-retrieval writes them, beside the folder `metadata`."""

SMALLEST = 1e-12
"""Rows shorter than this count as zero: they have no direction."""

BLOCK_ROWS = 65_536


class EmbeddingError(ValueError):
    """A file cannot be used as embeddings; the message says why."""


@dataclass(frozen=True)
class Vectors:
    """N vectors and what their source says of each.

    Attributes:
        x: (N, D) floating-point numbers.
        labels: (N,) classes, whole numbers or strings; None where there are none.
        paths: N paths of images as the source has them; None where there are none.
        texts: N texts, None in place of one that is missing; None where there are none at all.
        parts: the files behind the rows in their order, with the number of rows of each.
    """

    x: np.ndarray
    labels: np.ndarray | None
    paths: list[str] | None
    texts: list[str | None] | None
    parts: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The source, as messages call it."""
        first = self.parts[0][0]
        return first if len(self.parts) == 1 else f"{first} and {len(self.parts) - 1} more"

    def place(self, row: int) -> str:
        """`row 17 of FILE`, counted from 0 as NumPy does."""
        for name, rows in self.parts:
            if row < rows:
                return f"row {row} (the first is 0) of {name}"
            row -= rows
        raise IndexError("there is no such row")

    def unit_rows(self) -> Tensor:
        """(N, D) float32 unit rows.

        Raises:
            EmbeddingError: a row is not finite or zero; the message names the file and the row.
        """
        rows = torch.empty(self.x.shape, dtype=torch.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = torch.from_numpy(np.array(self.x[start : start + BLOCK_ROWS], dtype=np.float32))
            refuse_broken_rows(block, lambda row, start=start: self.place(start + row))  # type: ignore[misc]
            rows[start : start + len(block)] = normalize(block, dim=1)
        return rows


def refuse_broken_rows(rows: Tensor, place: Callable[[int], str]) -> None:
    """Refuse vectors (B, D) without a direction; `place` says where a row comes from.

    Raises:
        EmbeddingError: a row holds NaN or infinity, or is zero.
    """
    length = torch.linalg.vector_norm(rows.float(), dim=1)
    for bad, why in ((~length.isfinite(), "holds NaN or infinity"), (length < SMALLEST, "is zero")):
        if count := int(bad.sum()):
            where = place(int(bad.nonzero()[0]))
            others = f", and {count - 1:,} more" if count > 1 else ""
            raise EmbeddingError(f"{where} {why}{others}: leave such rows out, or compute them again")


def holds_vectors(source: str | os.PathLike[str], of: Of) -> bool:
    """Whether a source is called like a file of vectors, or is a folder of some; they may still be damaged."""
    path = Path(source)
    if path.suffix in READERS or any((path / CLIP_RETRIEVAL[of]).glob("*.npy")):
        return True
    return of == "images" and is_store(path)


def read_vectors(source: Any, of: Of = "images", *, labels: Path | None = None) -> Vectors:
    """Read vectors of images or of texts.

    Args:
        source: a file or folder of the table above, a pandas or Arrow table, a `datasets.Dataset`, or a list of files.
        of: kind of vectors to take where a source holds both.
        labels: a .npy file of N classes in place of those in the source; by default for a .npy file STEM.labels.npy, if
            there is one.

    Raises:
        EmbeddingError: no such file, of another kind, or without what is needed.
    """
    if isinstance(source, list | tuple):
        if not source:
            raise EmbeddingError("there are no files in the list: name at least one")
        return _with_labels(_joined([read_vectors(part, of) for part in source]), labels)
    if not isinstance(source, str | os.PathLike):
        return _with_labels(_read_table(_as_table(source), of, "the table"), labels)
    path = Path(source)
    if path.is_dir():
        return _with_labels(_read_folder(path, of), labels)
    if path.suffix not in READERS:
        raise EmbeddingError(f"{path} is none of {', '.join(READERS)}, the files that embeddings are read from")
    if not path.is_file():
        raise EmbeddingError(f"no such file: {path}")
    beside = path.with_suffix(".labels.npy")
    if labels is None and of == "images" and path.suffix == ".npy" and beside.is_file():
        labels = beside
    return _with_labels(_checked(lambda: READERS[path.suffix](path, of), str(path)), labels)


def _with_labels(vectors: Vectors, file: Path | None) -> Vectors:
    """The vectors with classes of another file, if there is one."""
    if file is None:
        return vectors
    try:
        labels = as_classes(_array(file).reshape(-1))
    except (OSError, EOFError, ValueError) as error:
        raise EmbeddingError(f"{file} cannot be used as labels: {error}") from error
    if len(labels) != len(vectors.x):
        raise EmbeddingError(f"{vectors.name} holds {len(vectors.x)} embeddings, but there are {len(labels)} labels")
    return replace(vectors, labels=labels)


def _checked(read: Callable[[], Vectors], name: str) -> Vectors:
    try:
        found = read()
    except EmbeddingError:
        raise
    except (OSError, EOFError, ValueError, TypeError, pa.ArrowException, SafetensorError) as error:
        raise EmbeddingError(f"{name} cannot be used as embeddings: {error}") from error
    x = found.x
    if x.ndim != 2 or not len(x) or not x.shape[1] or not np.issubdtype(x.dtype, np.floating):
        raise EmbeddingError(f"{name} holds {x.dtype} of shape {x.shape}, not embeddings (N, D)")
    if found.labels is not None and len(found.labels) != len(x):
        raise EmbeddingError(f"{name} holds {len(x)} embeddings, but there are {len(found.labels)} labels")
    return found


def _joined(parts: Sequence[Vectors]) -> Vectors:
    """Several sources as one. What they say of their rows must be said by all or none."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if part.x.shape[1] != first.x.shape[1]:
            raise EmbeddingError(
                f"{part.name} holds vectors of width {part.x.shape[1]}, {first.name} of width {first.x.shape[1]}"
            )
        for what in ("labels", "paths", "texts"):
            if (getattr(part, what) is None) != (getattr(first, what) is None):
                with_, without = (part, first) if getattr(first, what) is None else (first, part)
                raise EmbeddingError(f"{with_.name} has {what}, {without.name} has none: all files must, or none")
    return Vectors(
        np.concatenate([part.x for part in parts]),
        None if first.labels is None else np.concatenate([part.labels for part in parts]),
        None if first.paths is None else list(chain.from_iterable(part.paths or () for part in parts)),
        None if first.texts is None else list(chain.from_iterable(part.texts or () for part in parts)),
        tuple(chain.from_iterable(part.parts for part in parts)),
    )


def _npy(path: Path, of: Of) -> Vectors:
    # Copy on write, as torch wants writable memory; nothing is written.
    x = _array(path, mmap_mode="c")
    return Vectors(readable_by_torch(x), None, None, None, ((str(path), len(x) if x.ndim else 0),))


def readable_by_torch(x: np.ndarray) -> np.ndarray:
    """Floats in a dtype that torch has: in the machine's own order of bytes, and of at most eight bytes."""
    if np.issubdtype(x.dtype, np.floating) and (not x.dtype.isnative or x.dtype.itemsize > 8):
        return x.astype(np.float64 if x.dtype.itemsize >= 8 else np.float32)
    return x


def _array(path: Path, **options: Any) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False, **options)
    except ValueError as error:
        if "pickle" in str(error):  # NumPy would have them loaded, and code run
            raise ValueError("it holds Python objects, or no array") from error
        raise
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive of arrays under the ending of one")
    return found


def _safetensors(path: Path, of: Of) -> Vectors:
    with safe_open(path, "pt") as file:
        names, metadata = list(file.keys()), file.metadata() or {}
        name = next((name for name in NAMES[of] if name in names), None)
        if name is None:
            raise ValueError(f"expected a tensor `embeddings`, found {', '.join(names)}; rename the one that is meant")
        x = file.get_tensor(name)
        label = next((name for name in LABELS if name in names), None)
        classes = None if label is None else as_classes(file.get_tensor(label).numpy().reshape(-1))
    # numpy has no bfloat16
    x = x.float() if x.dtype == torch.bfloat16 else x
    texts = next((_json_texts(metadata[name], name) for name in TEXTS if name in metadata), None)
    return Vectors(x.numpy(), classes, None, texts, ((str(path), len(x) if x.ndim else 0),))


def _json_texts(text: str, name: str) -> list[str | None]:
    found = parse_json(text)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"its metadata `{name}` must be a JSON list of strings")
    return list(found)


def _parquet(path: Path, of: Of) -> Vectors:
    # Only the columns that are needed: a table of crawled images may have many.
    wanted = _columns(pq.read_schema(path), of)
    return _read_table(pq.read_table(path, columns=[name for name in wanted.values() if name]), of, str(path))


def _as_table(source: Any) -> pa.Table:
    """A table in memory as an Arrow table.

    Raises:
        EmbeddingError: a dict of splits, or no table at all.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, dict):
        raise EmbeddingError(f"a {type(source).__name__} of {', '.join(map(str, source))}: choose one of them")
    try:
        # Only a Dataset of Hugging Face has formats, and only a data frame can be read as one.
        return source.with_format("arrow")[:] if hasattr(source, "with_format") else pa.Table.from_pandas(source)
    except (TypeError, AttributeError, ValueError, pa.ArrowException) as error:
        raise EmbeddingError(
            f"a {type(source).__name__} is no source of embeddings ({error}); give an array (N, D), a file "
            f"({', '.join(READERS)}), a list of files, or a table with a column `embedding`"
        ) from error


def _columns(schema: pa.Schema, of: Of) -> dict[str, str | None]:
    """Which column holds what; None for what there is none of."""
    names = schema.names
    known = {"x": NAMES[of], "labels": LABELS, "paths": PATHS, "texts": TEXTS}
    found = {what: next((name for name in usual if name in names), None) for what, usual in known.items()}
    if found["x"] is None:
        raise ValueError(f"expected a column `embedding`, found {', '.join(names)}; rename the one that is meant")
    strings = [field.name for field in schema if _is_string(field.type)]
    if found["texts"] is None and of == "texts" and len(strings) == 1:
        found["texts"] = strings[0]
    if of == "texts":
        found["labels"] = found["paths"] = None
    else:
        found["texts"] = None
    return found


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _read_table(table: pa.Table, of: Of, name: str) -> Vectors:
    def read() -> Vectors:
        wanted = _columns(table.schema, of)
        x = _matrix(table[wanted["x"]], wanted["x"] or "", name)
        labels, paths, texts = (
            None if column is None else table[column].to_pylist()
            for column in (wanted["labels"], wanted["paths"], wanted["texts"])
        )
        if paths is not None and None in paths:
            raise ValueError(f"row {paths.index(None)} (the first is 0) of its column `{wanted['paths']}` is empty")
        classes = None if labels is None else as_classes(np.asarray(labels))
        return Vectors(x, classes, None if paths is None else list(map(str, paths)), texts, ((name, len(x)),))

    return _checked(read, name)


def _matrix(column: pa.ChunkedArray, called: str, name: str) -> np.ndarray:
    """A column of lists as (N, D) float32."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ValueError(f"column `{called}` holds {kind}, not lists of numbers")
    row, width = 0, len(column[0]) if len(column) and column[0].is_valid else 0
    x = np.empty((len(column), width), dtype=np.float32)
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        if chunk.null_count or len(values) != len(chunk) * width:
            lengths = [len(each) if each.is_valid else 0 for each in chunk]
            bad = next((i for i, length in enumerate(lengths) if length != width), 0)
            where = f"row {row + bad} (the first is 0)"
            raise ValueError(f"column `{called}` has rows that are not {width} numbers, as {where}")
        x[row : row + len(chunk)] = values.reshape(len(chunk), width)
        row += len(chunk)
    return x


def _read_folder(folder: Path, of: Of) -> Vectors:
    """A folder that clip-retrieval wrote, or that we did."""
    if of == "images" and is_store(folder):
        return _checked(lambda: _store(folder), str(folder))
    return _clip_retrieval(folder, of)


def _store(folder: Path) -> Vectors:
    rows, _ = read_store(folder)
    return Vectors(rows.numpy(), None, None, None, ((str(folder), len(rows)),))


def _clip_retrieval(folder: Path, of: Of) -> Vectors:
    """Shards of vectors, and of tables that say what they are of."""
    place = folder / CLIP_RETRIEVAL[of]
    if not place.is_dir():
        raise EmbeddingError(
            f"{folder} holds no embeddings of {of}: expected clip-retrieval's folders {CLIP_RETRIEVAL[of]} and metadata"
        )
    shards = sorted(place.glob("*.npy"), key=_number)
    if not shards:
        raise EmbeddingError(f"{place} is empty: expected {CLIP_RETRIEVAL[of]}_0.npy and so on")
    tables = {_number(path): path for path in (folder / "metadata").glob("*.parquet")}
    return _joined([_shard(path, tables.get(_number(path)), of) for path in shards])


def _number(path: Path) -> int:
    """The number at the end of a shard's name: 10 comes after 9."""
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits[1]) if digits else 0


def _shard(path: Path, table: Path | None, of: Of) -> Vectors:
    vectors = _checked(lambda: _npy(path, of), str(path))
    if table is None:
        return vectors
    usual = PATHS if of == "images" else TEXTS
    try:
        name = next((name for name in usual if name in pq.read_schema(table).names), None)
        values = None if name is None else pq.read_table(table, columns=[name])[name].to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise EmbeddingError(f"{table} cannot be read: {error}") from error
    if values is not None and len(values) != len(vectors.x):
        raise EmbeddingError(f"{table} has {len(values)} rows, but {path} has {len(vectors.x)} vectors")
    if of == "texts":
        return Vectors(vectors.x, None, None, values, vectors.parts)
    if values is not None and None in values:
        raise EmbeddingError(f"row {values.index(None)} (the first is 0) of `{name}` in {table} is empty")
    return Vectors(vectors.x, vectors.labels, values, None, vectors.parts)


READERS: dict[str, Callable[[Path, Of], Vectors]] = {
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
