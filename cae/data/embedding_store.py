"""Image embeddings as they come, in memory or on disk.

On disk a store is a folder with three files that only grow:

    embeddings.bin   rows, as they lie in memory
    index.bin        their images' numbers, int64
    blocks.jsonl     what the rows are of, then one line per block: its number of rows and the checksum of its data

The line of a block is written after its rows. After a kill, the run goes on after the last valid block; everything from
the first damaged block on is discarded.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cae.utils.checksums import parse_json
from cae.utils.files import hold, replacing

logger = logging.getLogger(__name__)

JOURNAL = "blocks.jsonl"
FORMAT = 1
"""Version of the files. Change it with their layout."""

BLOCK = 1024
"""Rows written at a time, and so the most that a kill loses; a block ends with a batch and may be somewhat larger."""


class StoreError(OSError):
    """Embeddings cannot be written or read where they were asked for."""


class EmbeddingStore:
    """N rows of width D with the number of the image behind each; see the module for the files.

    Attributes:
        index: (N,) int64, the number of the image behind each of `rows`.
        last: the largest number that was appended, -1 if there is none.

    Args:
        dim: width D of the rows.
        dtype: float32 or float16.
        folder: folder for the rows; None keeps them in memory. Held by one process at a time; a second one waits.
        identity: plain values that say what the rows are of (data, encoder, settings). Rows of another identity are
            dropped.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(
        self,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        folder: str | os.PathLike[str] | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.dim, self.dtype = dim, dtype
        self.folder = None if folder is None else Path(folder)
        self._blocks: list[tuple[Tensor, Tensor]] = []  # not on disk yet
        self._waiting = 0  # rows in them
        self.index = torch.empty(0, dtype=torch.int64)
        self._order: Tensor | None = None  # sorts the index; made at the first `find`
        self._rows = torch.empty(0, dim, dtype=dtype)
        self.last = -1
        if self.folder is not None:
            self._open(self.folder, {"format": FORMAT, "dim": dim, "dtype": str(dtype), **(identity or {})})

    def append(self, index: Tensor, rows: Tensor) -> None:
        """Add a batch; rows whose image the store had when it was opened are skipped.

        Args:
            index: (B,) int64 numbers of the images.
            rows: (B, D), of any float dtype on any device.
        """
        index = index.cpu()
        new = self.find(index) < 0
        self._blocks.append((index[new], rows.detach()[new.to(rows.device)].to("cpu", self.dtype)))
        self._waiting += int(new.sum())
        self.last = max(self.last, int(index.max())) if len(index) else self.last
        if self.folder is not None and self._waiting >= BLOCK:
            self._write()

    def finish(self) -> None:
        """Write everything appended so far to disk, and show it in `rows` and `index`."""
        if self.folder is not None:
            self._write()
            self._map()
            return
        blocks, self._blocks = self._blocks[::-1], []
        index, rows, self._waiting = [self.index], self._rows.new_empty(len(self._rows) + self._waiting, self.dim), 0
        rows[: (end := len(self._rows))] = self._rows
        while blocks:  # freed one by one, so that the rows are never in memory twice
            number, block = blocks.pop()
            rows[end : (end := end + len(block))] = block
            index.append(number)
        self.index, self._rows, self._order = torch.cat(index), rows, None

    def keep_up_to(self, last: int) -> None:
        """Drop all rows from the first on whose image has a number above `last`, before anything is appended."""
        above = (self.index > last).nonzero()
        if not len(above):
            return
        left = int(above[0])
        self.last = int(self.index[:left].max()) if left else -1
        if self.folder is None:
            self.index, self._rows, self._order = self.index[:left], self._rows[:left], None
            return
        header, *blocks = self._lines()
        lines, start = [header], 0
        for block in blocks:
            stop = min(start + int(str(block["rows"])), left)
            if stop > start:
                rows, index = (part[start:stop].numpy().tobytes() for part in (self._rows, self.index))
                lines.append({"rows": stop - start, "crc32": _checksum(rows, index)})
            start = stop
        self._write_journal(lines)
        self._cut(left)
        self._map()

    def close(self) -> None:
        """Write what is not on disk yet, and release the folder for other processes. `rows` stays mapped."""
        if self.folder is not None and self._lock.is_locked:
            try:
                self._write()
            finally:
                self._lock.release()

    @property
    def rows(self) -> Tensor:
        """(N, D) the rows up to the last `finish`, mapped from the disk if the store has a folder."""
        return self._rows

    def find(self, index: Tensor) -> Tensor:
        """(B,) int64 positions in `rows` of images by number (B,), -1 for one that is not there, or not yet."""
        if not len(self.index):
            return torch.full_like(index, -1)
        if self._order is None:
            self._order = self.index.argsort()
            self._sorted = self.index[self._order]
        at = torch.searchsorted(self._sorted, index).clamp_max(len(self._sorted) - 1)
        return torch.where(self._sorted[at] == index, self._order[at], -1)

    def _open(self, folder: Path, header: dict[str, object]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(folder / ".lock")
            lines = self._lines()
            if not lines or lines[0] != header:
                if lines:
                    old = {key for key in {*lines[0], *header} if lines[0].get(key) != header.get(key)}
                    logger.warning("the embeddings in %s are of another %s: embedding again", folder, ", ".join(old))
                lines = [header]
            whole = self._whole(lines[1:])
            if whole < len(lines) - 1:
                logger.warning("the embeddings in %s are damaged from block %d on: embedding from there", folder, whole)
            rows = sum(int(str(line["rows"])) for line in lines[1 : 1 + whole])
            self._write_journal(lines[: 1 + whole])
            self._cut(rows)
            self._map()
        except OSError as error:
            raise StoreError(f"embeddings cannot be kept in {folder} ({error}); choose a folder with room") from error
        self.last = int(self.index.max()) if len(self.index) else -1

    def _write_journal(self, lines: list[dict[str, object]]) -> None:
        assert self.folder is not None
        with replacing(self.folder / JOURNAL) as journal:
            journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def _cut(self, rows: int) -> None:
        """Cut both files off after this many rows."""
        for path, width in self._files():
            with path.open("ab") as file:
                file.truncate(rows * width)

    def _files(self) -> tuple[tuple[Path, int], tuple[Path, int]]:
        """Both files, with their bytes per row."""
        assert self.folder is not None
        return (self.folder / "embeddings.bin", self.dim * self.dtype.itemsize), (self.folder / "index.bin", 8)

    def _lines(self) -> list[dict[str, object]]:
        """The journal up to a line that was torn, empty where there is none."""
        assert self.folder is not None
        try:
            text = (self.folder / JOURNAL).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        lines = []
        for line in text.splitlines():
            try:
                lines.append(dict(parse_json(line)))
            except (ValueError, TypeError):
                break
        return lines

    def _whole(self, blocks: list[dict[str, object]]) -> int:
        """How many of the journal's blocks are on disk as they were written, up to the first that is not."""
        (rows_file, width), (index_file, _) = self._files()
        if not (rows_file.is_file() and index_file.is_file()):
            return 0
        left = min(index_file.stat().st_size // 8, rows_file.stat().st_size // width)
        with rows_file.open("rb") as rows, index_file.open("rb") as index:
            for i, block in enumerate(blocks):
                n = block.get("rows")
                if not isinstance(n, int) or not 0 < n <= left:
                    return i
                if _checksum(rows.read(width * n), index.read(8 * n)) != block.get("crc32"):
                    return i
                left -= n
        return len(blocks)

    def _write(self) -> None:
        """A block of everything that waits: first its rows, then its line."""
        assert self.folder is not None
        if not self._waiting:
            return
        numbers, blocks = zip(*self._blocks, strict=True)
        rows, index = (torch.cat(column).numpy().tobytes() for column in (blocks, numbers))
        line = json.dumps({"rows": self._waiting, "crc32": _checksum(rows, index)}) + "\n"
        (rows_file, _), (index_file, _) = self._files()
        files = {rows_file: rows, index_file: index, self.folder / JOURNAL: line.encode()}
        try:
            for path, content in files.items():
                with path.open("ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder} ({error}); choose a folder with room") from error
        self._blocks, self._waiting = [], 0

    def _map(self) -> None:
        (rows, width), (index, _) = self._files()
        n = rows.stat().st_size // width
        self.index, self._order = torch.from_numpy(np.fromfile(index, dtype=np.int64)), None
        # An empty file cannot be mapped. Copy on write, since torch wants writable memory; nothing is written.
        self._rows = torch.empty(0, self.dim, dtype=self.dtype)
        if n:
            dtype = np.float16 if self.dtype == torch.float16 else np.float32
            self._rows = torch.from_numpy(np.memmap(rows, dtype=dtype, mode="c", shape=(n, self.dim)))


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, or the `store=` of a module, which has one for each process."""
    return bool(_stores(folder))


def read_store(folder: Path) -> tuple[Tensor, Tensor]:
    """What a store or all stores of a module hold, whoever writes to them; nothing is held or changed.

    Args:
        folder: a folder for which `is_store` holds.

    Returns:
        (N, D) rows, each image once and in the images' order, and (N,) int64 numbers of the images. The rows of one
        store that was filled in that order stay on the disk and are mapped.

    Raises:
        StoreError: damaged, unreadable, of several widths, or of runs with several numbers of processes.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> store = EmbeddingStore(2, folder=folder)
        >>> store.append(torch.tensor([4, 3]), torch.eye(2))
        >>> store.close()
        >>> read_store(folder)
        (tensor([[0., 1.],
                [1., 0.]]), tensor([3, 4]))
    """
    stores = _stores(folder)
    if len({store.name.rpartition("-of-")[2] for store in stores}) > 1:
        raise StoreError(f"{folder} holds {', '.join(store.name for store in stores)}: name one of them")
    parts = [_read(store) for store in stores]
    if len({rows.shape[1] for rows, _ in parts}) > 1:
        raise StoreError(f"the embeddings of the processes in {folder} differ in width: name one of them")
    rows, index = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
    if bool((index.diff() > 0).all()):
        return rows, index
    numbers, first = np.unique(index.numpy(), return_index=True)  # a sampler may have dealt an image to two processes
    return rows[torch.from_numpy(first)], torch.from_numpy(numbers)


def _stores(folder: Path) -> list[Path]:
    """The folder itself, or those of the processes in it."""
    return sorted(journal.parent for journal in (*folder.glob(JOURNAL), *folder.glob(f"*-of-*/{JOURNAL}")))


def _read(folder: Path) -> tuple[Tensor, Tensor]:
    try:
        store = EmbeddingStore(1)
        store.folder = folder  # without opening it, which would repair it
        header, *blocks = store._lines() or [{}]
        dtypes = {str(dtype): dtype for dtype in (torch.float32, torch.float16)}
        dim, dtype = header.get("dim"), dtypes.get(str(header.get("dtype")))
        if header.get("format") != FORMAT or dtype is None or type(dim) is not int or dim < 1:
            raise StoreError(f"{folder / JOURNAL} does not begin as version {FORMAT} of these files does")
        store.dim, store.dtype = dim, dtype
        n = sum(int(str(block["rows"])) for block in blocks[: store._whole(blocks)])
        store._map()
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error}") from error
    return store.rows[:n], store.index[:n]


def _checksum(rows: bytes, index: bytes) -> int:
    return zlib.crc32(index, zlib.crc32(rows))
