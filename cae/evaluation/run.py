"""The whole of `cae evaluate`: a data set and methods by name, results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from cae import pipeline
from cae.encoders import load_encoder
from cae.evaluation.datasets import DatasetError, Split, load_dataset
from cae.evaluation.methods import parse_method
from cae.evaluation.study import conditions, embed, load_banks, make_problem, run_study
from cae.evaluation.tables import plot_tsne, write_study
from cae.stopwatch import Reporter


def evaluate(
    dataset: str,
    methods: Sequence[str],
    out: Path,
    *,
    encoder: str,
    encoder_weights: Path | None = None,
    nouns: str = "imagenet22k",
    captions: str = "glosses",
    seeds: Sequence[int] = range(5),
    fit_on: Literal["test", "train"] = "test",
    root: Path | None = None,
    labels: Path | None = None,
    class_names: Path | None = None,
    tsne: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    workers: int = 2,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Score methods on a data set and write results.json, results.md and plots.

    Args:
        dataset: as `cae.evaluation.load_dataset` takes it.
        methods: as `cae.evaluation.run_method` takes them. `zero-shot` is left out where the classes have no names.
        out: where the results go.
        encoder: a spec for `cae.encoders.load_encoder`.
        encoder_weights: a local weights file for `open_clip` encoders.
        nouns: corpus of nouns, see `cae.text.load_corpus`.
        captions: corpus of captions.
        seeds: one run of each method for each.
        fit_on: `train` selects texts on the training split, as TAC does; the test split is clustered and scored.
        root: where named data sets lie.
        labels: classes of a .npy file of embeddings.
        class_names: a text file, one name a line in the order of the sorted classes, for zero-shot.
        tsne: draw Figure 5 for the defaults, which takes a minute.
        device: where the work is done.
        batch_size: pictures encoded at once.
        workers: processes that read pictures.
        reporter: called with what is going on; returns what takes its progress as (done, total).

    Returns:
        The records of `cae.evaluation.run_study`.

    Raises:
        DatasetError, TextError, EncoderError, ValueError: what cannot be had or is unknown, before anything runs.
    """
    if not methods or not seeds:
        raise ValueError("name at least one method (methods, --methods) and one seed")
    if tsne and find_spec("matplotlib") is None:
        raise ValueError("drawing embeddings needs matplotlib: pip install 'cae-clustering[plots]'")
    for method in methods:
        parse_method(method, 2)
    splits: tuple[Split, ...] = ("test",) if fit_on == "test" else ("test", "train")
    data = [load_dataset(dataset, split=split, root=root, labels=labels) for split in splits]
    names = _lines(class_names) if class_names else None
    loaded = load_encoder(encoder, weights=encoder_weights, device=device)
    banks = load_banks(methods, loaded, nouns=nouns, captions=captions, reporter=reporter)
    embedded = [
        embed(
            part,
            loaded,
            device=device,
            batch_size=batch_size,
            workers=workers,
            progress=reporter(f"{split} set") if reporter else None,
        )
        for part, split in zip(data, splits, strict=True)
    ]
    scored = embedded[0]
    problem = make_problem(
        scored, loaded, banks, device=device, class_names=names, select_on=None if fit_on == "test" else embedded[1]
    )
    if problem.class_texts is None:
        methods = [method for method in methods if parse_method(method, 2)[0].kind != "zero-shot"]
    results = run_study(problem, methods, seeds, reporter("runs") if reporter else None)
    write_study(results, conditions(problem, scored, loaded, seeds, fit_on), out)
    if tsne:
        _, config = parse_method("default", problem.n_clusters)
        # Few restarts: the panels show the embeddings, not the clusters.
        fitted, _ = pipeline.fit(problem.x, banks, replace(config, n_init=1), select_on=problem.select_on)
        plot_tsne(pipeline.representations(problem.x, fitted), scored.labels, out)
    return results


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the class names in {file} cannot be read: {error}") from error
