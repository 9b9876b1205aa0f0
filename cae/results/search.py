"""Images of a result by what they show: for a text, or like another image, over the stored embeddings.

Both are ranked by the cosine to the embedding of what was asked for. A text, or an image that is not in the result, is
embedded by the encoder that made the result, which is loaded once, when the first such query comes; for an image of
the result the stored embedding does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.data.images import ImageError, read_image, shown_path
from cae.encoders.base import Encoder, EncoderError
from cae.encoders.deferred import NO_ENCODER, load_matching
from cae.method.blocks import CHUNK_ROWS
from cae.method.provenance import check_encoder, encoder_of
from cae.results.defaults import LIMIT
from cae.results.saved import SavedResult
from cae.utils.checksums import content_hash
from cae.utils.devices import find_device
from cae.utils.files import absolute


class SearchError(ValueError):
    """A search cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        row: its row of the assignments.
        path: its path as in the assignments.
        file: its place now; None if it is gone, or if the result knows embeddings alone.
        similarity: cosine to what was asked for.
        cluster: id of its group, with the edits applied.
        name: name of that group.
    """

    row: int
    path: str
    file: Path | None
    similarity: float
    cluster: int
    name: str


class Searcher:
    """Searches a result any number of times, and loads its encoder at most once.

    Args:
        result: the result, whose edits are applied. After an edit, set `searcher.result` to the new view.
        encoder: spec of the encoder; by default the one that the result names.
        encoder_weights: a local weights file for `open_clip` encoders.
        device: device that queries are encoded on.
        announce: called with a line for people before the encoder is loaded.

    Examples:
        >>> searcher = Searcher(SavedResult.load("cae-result"), announce=print)
        >>> [hit.path for hit in searcher.like("photos/red/0.png", limit=2)]  # of the result: no encoder is needed
        ['red/...png', 'red/...png']
        >>> hits = searcher.text("red car on snow", limit=3)
        loading the encoder fake …
        >>> len(hits), hits[0].similarity >= hits[1].similarity
        (3, True)
    """

    def __init__(
        self,
        result: SavedResult,
        *,
        encoder: str | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.result = result
        self._spec, self._weights, self._device, self._announce = encoder, encoder_weights, device, announce

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that made the result, loaded at first use.

        Raises:
            EncoderError: the result does not say which, it cannot be loaded, or it makes vectors of another width.
            ModelError: it is not the one that the result was made with.
        """
        fitted = self.result.fitted
        spec = self._spec or encoder_of(fitted)[0]
        if spec != NO_ENCODER:
            self._announce(f"loading the encoder {spec} …")
        try:
            encoder = load_matching(
                spec,
                weights=None if self._weights is None else Path(self._weights),
                device=find_device(self._device),
                dim=self.result.embeddings.shape[1],
                given=str(self.result.folder),
                instead="name it with --encoder (encoder)",
            )
        except EncoderError as error:
            raise EncoderError(
                f"a search by text, or by a picture from elsewhere, takes the encoder of the result, which cannot be "
                f"had: {error}. By a picture of the result, --like (like), it takes none"
            ) from error
        check_encoder(fitted, encoder)
        return encoder

    def text(self, query: str, limit: int = LIMIT) -> list[Hit]:
        """The images whose embeddings lie nearest to that of a text, best first.

        Args:
            query: what the images should show, in the words of a caption.
            limit: largest number of hits.

        Raises:
            SearchError: the text is empty, or the limit below 1.
            ResultError: the result has no embeddings, or damaged ones.
            EncoderError, ModelError: as `encoder` raises them.
        """
        if not query.strip():
            raise SearchError("nothing to search for: the text is empty; say what the pictures should show")
        _check_limit(limit)
        with torch.inference_mode():
            return self._nearest(self.encoder.encode_texts([query.strip()])[0], limit)

    def like(self, image: str | os.PathLike[str], limit: int = LIMIT) -> list[Hit]:
        """The images most like another, best first; that one itself, if it is in the result, is left out.

        Args:
            image: a file; or a path, or the number of a row, as in the assignments.
            limit: largest number of hits.

        Raises:
            ImageError: neither in the result nor a file that can be read.
            SearchError: the limit is below 1.
            ResultError: the result has no embeddings, or damaged ones.
            EncoderError, ModelError: as `encoder` raises them.
        """
        _check_limit(limit)
        place = Path(image)
        row = self._row_of(place)
        if row is not None:
            return self.like_row(row, limit)
        # Check before the encoder is loaded, which takes longer.
        if not place.is_file():
            raise ImageError(f"{place} is neither a picture of {self.result.folder} nor a file; give one of them")
        try:
            opened = read_image(place, self.encoder.image_size)
        except ImageError as error:
            raise ImageError(f"{place} cannot be read ({error}); give a picture with --like (like)") from error
        with torch.inference_mode():
            batch = self.encoder.preprocess(opened)[None].to(find_device(self._device))
            return self._nearest(self.encoder.encode_images(batch)[0], limit)

    def like_row(self, row: int, limit: int = LIMIT) -> list[Hit]:
        """The images most like that of a row of the assignments, which is left out itself; needs no encoder.

        Raises:
            SearchError: no such row, or the limit is below 1.
            ResultError: the result has no embeddings, or damaged ones.
        """
        _check_limit(limit)
        if not 0 <= row < len(self.result.assignments):
            raise SearchError(f"no row {row}: {self.result.folder} has rows 0 to {len(self.result.assignments) - 1}")
        hits = self._nearest(self.result.embeddings[row], limit + 1)
        return [hit for hit in hits if hit.row != row][:limit]

    def _row_of(self, path: Path) -> int | None:
        """The row of an image of the result, by its content or else by its path; None if it is not in the result."""
        table, root = self.result.assignments, absolute(self.result.root)
        sha256 = content_hash(path)
        if sha256 is not None:
            row = pc.index(table["sha256"], sha256).as_py()
            return row if row >= 0 else None
        row = pc.index(table["path"], shown_path(path)).as_py()
        if row < 0 and path.is_relative_to(root):
            row = pc.index(table["path"], shown_path(path, root)).as_py()
        return row if row >= 0 else None

    def _nearest(self, query: Tensor, limit: int) -> list[Hit]:
        """The rows of largest cosine to a query (D,) of any length; equal ones in the order of the result."""
        query = normalize(query.float().cpu(), dim=0)
        # Block by block: in float32 the rows of a million images would take gigabytes.
        blocks = self.result.embeddings.split(CHUNK_ROWS)
        similarity = torch.cat([query.new_empty(0), *(normalize(block.float(), dim=1) @ query for block in blocks)])
        # The last bits of a product depend on where in a block a row lies: equal images should stay in order.
        values, rows = similarity.round(decimals=6).sort(descending=True, stable=True)
        return self._hits(rows[:limit].tolist(), values[:limit].tolist())

    def _hits(self, rows: Sequence[int], similarities: Sequence[float]) -> list[Hit]:
        edited = self.result.edited
        # Look for the files of the hits only: looking at every file takes longer than the search.
        found = replace(edited, assignments=edited.assignments.take(rows))
        files = found.image_paths if edited.has_images else [None] * len(rows)
        records: list[dict[str, Any]] = found.assignments.select(["path", "cluster", "name"]).to_pylist()
        return [
            Hit(row=row, file=file, similarity=similarity, **record)
            for row, file, similarity, record in zip(rows, files, similarities, records, strict=True)
        ]


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise SearchError(f"limit (--limit) must be at least 1, got {limit}")
