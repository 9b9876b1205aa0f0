"""The whole of `cae evaluate`: a data set and methods by name, results on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cae.config import DEFAULT_BATCH_SIZE, DEFAULT_WORKERS, Modality
from cae.encoders import Encoder, load_encoder
from cae.encoders.deferred import deferred
from cae.evaluation.datasets import DatasetError, LabelledEmbeddings, LabelledImages, Split, load_dataset
from cae.evaluation.methods import Problem, parse_method
from cae.evaluation.study import conditions, embed, load_banks, make_problem, run_study
from cae.evaluation.tables import plot_tsne, write_study
from cae.method import pipeline
from cae.text.corpora import normalise, read_lines
from cae.text.vectors import Source, check_width, is_vectors, limit_modalities, read_text_vectors, text_sources
from cae.utils.progress import Progress, Reporter

logger = logging.getLogger(__name__)


def evaluate(
    dataset: str,
    methods: Sequence[str],
    out: Path,
    *,
    encoder: str,
    encoder_weights: Path | None = None,
    nouns: Source | None = None,
    captions: Source | None = None,
    seeds: Sequence[int] = range(5),
    fit_on: Literal["test", "train"] = "test",
    root: Path | None = None,
    labels: Path | None = None,
    class_names: Path | None = None,
    tsne: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = DEFAULT_BATCH_SIZE,
    workers: int = DEFAULT_WORKERS,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Score methods on a data set and write results.json, results.md and plots.

    Args:
        dataset: name or folder, see `cae.evaluation.load_dataset`.
        methods: names of methods, see `cae.evaluation.run_method`. What cannot run is left out with a warning:
            `zero-shot` where the classes have no names, methods of nouns where there are captions alone.
        out: folder for the results.
        encoder: a spec for `cae.encoders.load_encoder`.
        encoder_weights: a local weights file for `open_clip` encoders.
        nouns: corpus of nouns, see `cae.text.load_corpus`, or vectors of nouns, see `cae.text.load_vectors`. On
            embeddings with vectors no encoder is loaded.
        captions: corpus or vectors of captions, likewise. Where one of the two is vectors and the other is not given,
            methods run without the other, as `default:modalities=noun`.
        seeds: seeds; each method runs once with each.
        fit_on: `train` selects texts on the training split, as TAC does; the test split is clustered and scored.
        root: folder that named data sets lie in.
        labels: classes of a .npy file of embeddings.
        class_names: names for zero-shot: a text file, one name per line in the order of the sorted classes, or vectors
            of the names with their texts.
        tsne: draw Figure 5 for the defaults, which takes a minute.
        device: device to work on.
        batch_size: images encoded at once.
        workers: processes that read images.
        reporter: called with what is going on; returns what takes its progress as (done, total).

    Returns:
        The records of `cae.evaluation.run_study`.

    Raises:
        DatasetError, TextError, EncoderError, ValueError: what cannot be had or is unknown, before anything runs.

    Examples:
        >>> (record,) = evaluate("photos", ["kmeans"], Path("scores"), encoder="lite", seeds=[0], workers=0)
        >>> record["acc"]["mean"]
        100.0
        >>> sorted(path.name for path in Path("scores").glob("results.*"))
        ['results.json', 'results.md']
    """
    if not methods or not seeds:
        raise ValueError("name at least one method (methods, --methods) and one seed")
    if tsne and find_spec("matplotlib") is None:
        raise ValueError("drawing embeddings needs matplotlib: pip install 'cae-clustering[plots]'")
    sources = text_sources(nouns, captions)
    methods = _with_texts(methods, sources)
    splits: tuple[Split, ...] = ("test",) if fit_on == "test" else ("test", "train")
    data = {split: load_dataset(dataset, split=split, root=root, labels=labels) for split in splits}
    names, class_texts = _class_names(class_names) if class_names else (None, None)
    loaded = _encoder_for(data["test"], encoder, encoder_weights, device, given=dataset)
    banks = load_banks(methods, loaded, nouns=nouns, captions=captions, reporter=reporter)
    check_width(banks, sources, loaded.dim, dataset)
    embed_split = partial(embed, encoder=loaded, device=device, batch_size=batch_size, workers=workers)
    embedded = {split: embed_split(part, progress=_progress(part, split, reporter)) for split, part in data.items()}
    scored = embedded["test"]
    if names is None and _asks_for_names(methods) and not any(map(is_vectors, sources.values())):
        names = scored.class_names  # by the encoder that the texts are for, too
    problem = make_problem(
        scored,
        loaded,
        banks,
        device=device,
        class_names=names,
        class_texts=class_texts,
        select_on=embedded.get("train"),
    )
    if problem.class_texts is None:
        methods = _without_names(methods, dataset, scored)
    results = run_study(problem, methods, seeds, reporter("runs") if reporter else None)
    write_study(results, conditions(problem, scored, loaded, seeds, fit_on), out)
    if tsne:
        _plot_spaces(problem, scored.labels, out)
    return results


def _encoder_for(
    data: LabelledImages | LabelledEmbeddings, spec: str, weights: Path | None, device: torch.device | str, given: str
) -> Encoder:
    """The encoder; where the data set holds embeddings, one that is loaded only if something is to be encoded."""
    if isinstance(data, LabelledEmbeddings):
        return deferred(spec, weights=weights, dim=data.x.shape[1], given=given).to(device)
    return load_encoder(spec, weights=weights, device=device)


def _progress(data: LabelledImages | LabelledEmbeddings, split: Split, reporter: Reporter | None) -> Progress | None:
    """The progress callback of embedding a split; None where there is nothing to embed, or no reporter."""
    return None if reporter is None or isinstance(data, LabelledEmbeddings) else reporter(f"{split} set")


def _asks_for_names(methods: Sequence[str]) -> bool:
    """Whether a method is told the names of the classes."""
    return any(parse_method(method, 2)[0].kind == "zero-shot" for method in methods)


def _plot_spaces(problem: Problem, labels: Tensor, out: Path) -> None:
    """Figure 5: the spaces that the defaults make of the images with the texts there are, coloured by class."""
    if not problem.banks:
        logger.warning("the embeddings are not drawn: none of the methods needs texts")
        return
    # Few restarts: the panels show the embeddings, not the clusters.
    _, config = parse_method("default", problem.n_clusters, n_init=1)
    config = limit_modalities(config, problem.banks)
    fitted, _ = pipeline.fit(problem.x, problem.banks, config, select_on=problem.select_on)
    plot_tsne(pipeline.representations(problem.x, fitted), labels, out)


def _with_texts(methods: Sequence[str], sources: Mapping[Modality, Source]) -> list[str]:
    """The methods on the kinds of texts that there are, without those that have none left."""
    possible = []
    for name in methods:
        method, config = parse_method(name, 2)
        left = [modality for modality in config.modalities if modality in sources]
        if not method.needs_texts or len(left) == len(config.modalities):
            possible.append(name)
        elif left:
            possible.append(f"{name}:modalities={'+'.join(left)}")
        else:
            missing = " and ".join(f"{modality}s" for modality in config.modalities)
            logger.warning("%s is left out: it needs %s, and none are given beside the vectors", name, missing)
    if not possible:
        raise ValueError(f"no method is left to run: {', '.join(methods)} need texts of another kind (nouns, captions)")
    return possible


def _without_names(methods: Sequence[str], dataset: str, data: LabelledEmbeddings) -> list[str]:
    """The methods that need no vectors of the class names."""
    possible = [name for name in methods if parse_method(name, 2)[0].kind != "zero-shot"]
    if len(possible) < len(methods):
        why = (
            f"the classes of {dataset} have no names"
            if data.class_names is None
            else f"nothing says which encoder to embed the class names of {dataset} with"
        )
        hint = "give their names or the vectors of these (class_names, --class-names)"
        if not possible:
            raise DatasetError(f"zero-shot cannot run: {why}; {hint}")
        logger.warning("zero-shot is left out: %s; %s", why, hint)
    return possible


def _class_names(file: Path) -> tuple[list[str], Tensor | None]:
    """Names of classes, and their vectors if the file holds them."""
    if is_vectors(file):
        return read_text_vectors(file)
    return [name for line in read_lines(file) if (name := normalise(line))], None
