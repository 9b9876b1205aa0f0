"""What the command line can, from Python: `cluster` makes a `Result`, which is looked at, changed and taken away.

result = cae.cluster("photos", 12)
result.rename("hook", "ice creams").report()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from cae.config import DEFAULT_BATCH_SIZE, DEFAULT_ENCODER, DEFAULT_WORKERS, Preset
from cae.data.on_disk import places_on_disk
from cae.results import make_edits
from cae.results.compare import Comparison, compare
from cae.results.defaults import LIMIT, NEAR
from cae.results.edits import Edit, EditedView
from cae.results.edits_file import History, load_edits, save_edits
from cae.results.layout import MODEL_FOLDER
from cae.results.saved import SavedResult
from cae.results.update import Update, add_images, check_vectors, diff_folder, refit_reasons
from cae.results.writing import OutputError, changing, check_place_of_result
from cae.utils.console import progress_bars

if TYPE_CHECKING:  # brings Lightning, which takes seconds to import
    from cae.results.duplicates import Duplicates
    from cae.results.export import Exported, Placing, Target
    from cae.results.folder import FolderResult
    from cae.results.search import Hit, Searcher

DEFAULT_OUT = "cae-result"

Source = str | os.PathLike[str] | Any
"""A folder of images, a file of embeddings, or what `cae.data.on_disk` writes down as one of them."""


def cluster(
    source: Source,
    n_clusters: int | Literal["auto"] = "auto",
    *,
    out: str | os.PathLike[str] | None = None,
    method: Literal["cae", "tac-heads", "cae-heads", "mca"] = "cae",
    preset: Preset = "auto",
    encoder: str = DEFAULT_ENCODER,
    encoder_weights: str | os.PathLike[str] | None = None,
    nouns: str | os.PathLike[str] | None = None,
    captions: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
    workers: int = DEFAULT_WORKERS,
    progress: bool = True,
) -> Result:
    """Sort images, or embeddings of images, into named groups: `cae cluster`.

    Where images have known classes, by sub-folder or label, the result holds scores against them, beside those of
    k-means on the images.

    Args:
        source: a folder of images; a file of embeddings, or a folder of clip-retrieval; (N, D) embeddings as a tensor
            or array; a Hugging Face data set of images; or a torchvision data set. The last three are written into
            `out`.
        n_clusters: K, at least 2, or `auto`.
        out: folder for the result, in the place of any that is there; by default `cae-result`, where only a result of
            the same source is replaced.
        method: `cae` trains nothing; the others do.
        preset: preset of `CAEConfig`, for the method `cae`.
        encoder: a spec for `cae.encoders.load_encoder`.
        encoder_weights: a local weights file for `open_clip` encoders.
        nouns: corpus of nouns, see `cae.text.load_corpus`, or vectors of nouns.
        captions: corpus of captions, or vectors of captions.
        seed: seed of every random choice.
        device: device to work on: `auto`, `cpu`, `cuda`, …
        batch_size: images encoded at once.
        workers: processes that read images.
        progress: whether progress is shown, on the error stream.

    Raises:
        OutputError: `out` cannot be written to, holds files of others under the names of a result's, another process
            makes a result there, or `cae-result` holds that of another source and `out` was not given.
        ImageError, EmbeddingError, EncoderError, TextError, ValueError: what cannot be read, had or used, by name.

    Examples:
        >>> import cae
        >>> result = cae.cluster("photos", 3, nouns="nouns.txt", captions="captions.txt", out="mine", progress=False)
        >>> len(result.labels), len(result.clusters), sorted(result.scores)
        (30, 3, ['CAE', 'image k-means'])
    """
    from cae.models.cae import CAE
    from cae.models.trained import TRAINED
    from cae.results.run import fit_source

    methods: dict[str, type[CAE]] = {CAE.method: CAE, **TRAINED}
    if method not in methods:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(methods)}")
    if method != "cae" and preset != "auto":
        raise ValueError(f"preset (--preset) is for the method cae; {method} has settings of its own: leave it out")
    named, out = out is not None, Path(DEFAULT_OUT if out is None else out)
    check_place_of_result(out)
    if not named:
        _check_same_source(out, source)
    load_edits(out)  # if they cannot be read, now is the time to say so
    settings = {
        "n_clusters": n_clusters,
        **({"preset": preset} if method == "cae" else {}),
        "encoder": encoder,
        "encoder_weights": encoder_weights,
        "nouns": nouns,
        "captions": captions,
        "seed": seed,
    }
    module = methods[method](**settings, return_embeddings=True)  # type: ignore[arg-type]
    with progress_bars(quiet=not progress) as reporter:
        found = fit_source(
            module, source, out, device=device, batch_size=batch_size, workers=workers, reporter=reporter
        )
    return Result(out, found=found)


def _check_same_source(out: Path, source: Source) -> None:
    """Refuse to replace the result of another source, where nobody has said that it may be.

    Raises:
        OutputError: names both sources, and the ways out.
    """
    try:
        before = SavedResult.load(out)
    except ValueError:  # none, or a damaged one, of which a new one is what it needs
        return
    if isinstance(source, str | os.PathLike):
        same = before.is_of(Path(source))
    else:
        same = any(before.is_of(place) for place in places_on_disk(out))
    if not same:
        made_from = ", ".join(before.run.get("embeddings", ())) or before.root
        raise OutputError(
            f"{out} holds the result of {made_from}, which would be lost: choose another folder with --out, or, to "
            f"replace it, say so with --out {out}"
        )


class Result:
    """A result folder, and all that can be done with it. Methods that change it return it.

    Clusters are meant by name or number, as in `cae edit`.

    Args:
        folder: what `cluster` or `cae cluster` wrote.
        images: folder that the images lie in now, if they have moved.
        found: the run that has just ended, if there was one.

    Raises:
        ResultError, EditError: no result, or one that is damaged; the message says why.

    Examples:
        >>> result = Result("cae-result")
        >>> name = result.clusters[0]["name"]
        >>> result.rename(name, "ice creams").clusters[0]["name"]
        'ice creams'
        >>> result.undo().clusters[0]["name"] == name
        True
        >>> result.report(progress=False).name
        'index.html'
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        images: str | os.PathLike[str] | None = None,
        found: FolderResult | None = None,
    ) -> None:
        self.folder, self.images, self.found = Path(folder), images, found
        self.saved = SavedResult.load(self.folder, images=images)
        self._searchers: dict[tuple[object, ...], Searcher] = {}

    def __repr__(self) -> str:
        return f"Result({os.fspath(self.folder)!r}: {len(self.assignments)} rows, {len(self.clusters)} clusters)"

    @property
    def assignments(self) -> pa.Table:
        """One row per image, with the edits applied; see `SavedResult`."""
        return self.saved.edited.assignments

    @property
    def clusters(self) -> list[dict[str, Any]]:
        """One record per cluster, with the edits applied: `id`, `name`, `gloss`, `size`, `nouns`, `captions`."""
        return self.saved.edited.clusters

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64 ids of the clusters."""
        return self.assignments["cluster"].to_numpy()

    @property
    def names(self) -> list[str]:
        """N names: of the cluster of each image."""
        return self.assignments["name"].to_pylist()

    @property
    def embeddings(self) -> Tensor:
        """(N, D) float16 image embeddings."""
        return self.saved.embeddings

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """NMI, ACC and ARI in percent by method, as the fit left them; empty without known classes."""
        return self.saved.run.get("scores", {})

    # Look, compare and export.

    def report(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        compare_with: Result | str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Path:
        """Draw the page, `cae report`; returns the file to open. By default it lies in the result.

        Args:
            out: folder for the page.
            compare_with: another result, or its folder: the page says what lies elsewhere there.
            progress: whether progress is shown, on the error stream.

        Raises:
            OutputError, ResultError: `out` cannot be written to, or the result knows of no images.
        """
        from cae.report import REPORT_FOLDER, write_report

        comparison = None if compare_with is None else compare(_opened(compare_with).saved, self.saved)
        with progress_bars(quiet=not progress) as reporter:
            place = self.folder / REPORT_FOLDER if out is None else Path(out)
            return write_report(self.saved, place, reporter, comparison=comparison)

    def export(
        self,
        to: Target,
        out: str | os.PathLike[str] | None = None,
        *,
        by: Placing = "copy",
        nested: bool = False,
        without: Collection[int] = (),
        progress: bool = True,
    ) -> Exported:
        """Take the result away, `cae export`; see `cae.results.export.export`. By default into `cae-export/TO`."""
        from cae.results.export import export

        with progress_bars(quiet=not progress) as reporter:
            place = Path("cae-export") / to if out is None else Path(out)
            return export(self.saved, to, place, by=by, nested=nested, without=without, reporter=reporter)

    def search(
        self,
        query: str | None = None,
        *,
        like: str | os.PathLike[str] | None = None,
        limit: int = LIMIT,
        encoder: str | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        announce: Callable[[str], None] = lambda line: None,
    ) -> list[Hit]:
        """The images that show what a text says, or that are like another image, best first. `cae search`.

        Args:
            query: what they should show; or give `like`.
            like: a file, or a path as in the assignments.
            limit: largest number of hits.
            encoder: spec of the encoder, where the result was made from embeddings and does not say.
            encoder_weights: a local weights file for `open_clip` encoders.
            device: device that the query is encoded on.
            announce: called with a line for people before the encoder is loaded, once for all searches.

        Raises:
            SearchError: neither a text nor an image, or both.
            EncoderError, ModelError, ImageError, ResultError: what cannot be had, used or read, by name.

        Examples:
            >>> hits = Result("cae-result").search(like="photos/red/0.png", limit=3)
            >>> [hit.similarity > 0.9 for hit in hits]
            [True, True, True]
        """
        from cae.results.search import Searcher, SearchError

        settings = (encoder, encoder_weights, device)
        if settings not in self._searchers:
            self._searchers[settings] = Searcher(
                self.saved, encoder=encoder, encoder_weights=encoder_weights, device=device, announce=announce
            )
        searcher = self._searchers[settings]
        searcher.result = self.saved  # edits may have come since
        if (query is None) == (like is None):
            raise SearchError("give either a text or a picture (--like, like=) to search by")
        return searcher.text(query, limit) if query is not None else searcher.like(like, limit)  # type: ignore[arg-type]

    def duplicates(self, *, near: int | None = NEAR, progress: bool = True) -> Duplicates:
        """The images that are there more than once, best copy first; nothing is deleted. `cae duplicates`.

        See `cae.results.duplicates.find_duplicates`, also for errors.
        """
        from cae.results.duplicates import find_duplicates

        with progress_bars(quiet=not progress) as reporter:
            return find_duplicates(self.saved, near=near, reporter=reporter)

    def compare(self, other: Result | str | os.PathLike[str]) -> Comparison:
        """How far another result agrees with this one; moves go from this one to the other. `cae compare`."""
        return compare(self.saved, _opened(other).saved)

    def predict(
        self,
        source: str | os.PathLike[str],
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        workers: int = DEFAULT_WORKERS,
        progress: bool = True,
    ) -> FolderResult:
        """Sort other images into the groups as edited, without keeping them. `cae predict`.

        `assignments()` and `clusters()` of what is returned have the edits applied (`cae.results.predictions`);
        `prediction` is the model's, without edits.
        """
        from cae.results.run import predict_as_edited

        self._reload()  # of the model's groups, which another program may have cut since
        with progress_bars(quiet=not progress) as reporter:
            return predict_as_edited(
                self.saved,
                Path(source),
                encoder_weights=encoder_weights,
                device=device,
                batch_size=batch_size,
                workers=workers,
                reporter=reporter,
            )

    # Change.

    def update(
        self,
        folder: str | os.PathLike[str],
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        workers: int = DEFAULT_WORKERS,
        progress: bool = True,
    ) -> Update:
        """Add the new images of a folder; what was assigned stays. `cae update`."""
        from cae.results.run import predict_source

        with changing(self.folder), progress_bars(quiet=not progress) as reporter:
            self._reload()
            diff = diff_folder(self.saved, Path(folder), reporter("hashes"))
            skipped = diff.left_out
            if diff.paths:
                check_vectors(self.saved)
                found = predict_source(
                    self.folder / MODEL_FOLDER,
                    Path(folder),
                    encoder_weights=encoder_weights,
                    device=device,
                    batch_size=batch_size,
                    workers=workers,
                    reporter=reporter,
                    paths=diff.paths,
                )
                skipped = {**diff.left_out, **found.skipped}
                add_images(self.saved, replace(found, skipped=skipped))
                self._reload()
            return Update(diff, skipped, refit_reasons(self.saved, len(diff.changed)))

    def cut(self, n_clusters: int) -> Self:
        """Show another level of the tree of groups, coarser or finer, without a new fit; edits stay. `cae cut`.

        Raises:
            ResultError: the tree does not hold so many groups, or there is none.
        """
        from cae.results.cut import cut

        with changing(self.folder):
            self._reload()
            cut(self.saved, n_clusters)
        self._reload()
        return self

    def rename(self, cluster: str | int, name: str) -> Self:
        """Call a cluster something else."""
        return self._edit(lambda view: [make_edits.rename(view, cluster, name)])

    def merge(self, clusters: Sequence[str | int], name: str | None = None) -> Self:
        """Make several clusters one, by default under the first one's name.

        Raises:
            EditError: fewer than two clusters, or one that there is not.
        """
        return self._edit(lambda view: [make_edits.merge(view, clusters, name)])

    def split(self, cluster: str | int, into: int = 2) -> Self:
        """Take a cluster apart by what its images look like."""
        return self._edit(lambda view: [make_edits.split(view, cluster, into)])

    def pin(self, *clusters: str | int) -> Self:
        """Keep the images and the names of clusters, whatever the next fit finds.

        Raises:
            EditError: no cluster, or one that there is not.
        """
        return self._edit(lambda view: make_edits.pin(view, clusters))

    def move(self, paths: Sequence[str | os.PathLike[str]], to: str | int) -> Self:
        """Put single images into another cluster; paths are those of the assignments, or on disk."""
        return self._edit(lambda view: [make_edits.move(view, make_edits.find_images(view, paths), to)])

    def undo(self) -> Self:
        """Take the last edit back.

        Raises:
            EditError: there is none.
        """
        return self._change(History.undo)

    def redo(self) -> Self:
        """Make the edit again that was taken back last.

        Raises:
            EditError: none was, or another edit was made since.
        """
        return self._change(History.redo)

    def _reload(self) -> None:
        self.saved = SavedResult.load(self.folder, images=self.images)

    def _edit(self, make: Callable[[EditedView], Sequence[Edit]]) -> Self:
        return self._change(lambda history: history.add(make(self.saved.view)))

    def _change(self, step: Callable[[History], History]) -> Self:
        """Change the edits of the result as it is now, which nobody else changes meanwhile."""
        with changing(self.folder):
            self._reload()
            history = step(self.saved.history)
            save_edits(history.edits, self.folder, history.undone)
            self.saved = replace(self.saved, history=history)
        return self


def _opened(result: Result | str | os.PathLike[str]) -> Result:
    return result if isinstance(result, Result) else Result(result)
