"""A study: methods times seeds on one data set, embedded once, with time, memory and provenance."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from cae import text
from cae.config import DEFAULT_BATCH_SIZE, DEFAULT_WORKERS, Modality
from cae.data import ImageData, Images
from cae.encoders import Encoder
from cae.encoders.deferred import is_loaded
from cae.evaluation.datasets import DatasetError, LabelledEmbeddings, LabelledImages
from cae.evaluation.methods import Problem, parse_method, run_method
from cae.method.provenance import provenance
from cae.metrics.functional import clustering_scores, silhouette_score, stability
from cae.models.embedder import embed_images
from cae.text import TextBank
from cae.text.vectors import Source, text_sources
from cae.utils.progress import Progress, Reporter, stopwatch

METRICS = ("nmi", "acc", "ari")


def embed(
    data: LabelledImages | LabelledEmbeddings,
    encoder: Encoder,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = DEFAULT_BATCH_SIZE,
    workers: int = DEFAULT_WORKERS,
    progress: Progress | None = None,
) -> LabelledEmbeddings:
    """The embeddings of a data set, from the cache where the same images met the same encoder before.

    Images that cannot be read are left out, together with their labels.

    Args:
        data: images; embeddings are handed back as they are.
        encoder: encodes the images.
        device: device to encode on.
        batch_size: images encoded at once.
        workers: processes that read images.
        progress: called with the number of images embedded so far and in all.

    Raises:
        DatasetError: no image can be read.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> from cae.evaluation import load_dataset
        >>> data = embed(load_dataset("photos"), load_encoder("open_clip:ViT-B-32/openai"), workers=0)
        >>> data.x.shape, data.class_names
        (torch.Size([30, 48]), ['blue', 'green', 'red'])
    """
    if isinstance(data, LabelledEmbeddings):
        return data
    images = Images(data.read, [str(i) for i in range(len(data.labels))], identity=data.identity)
    x, index = embed_images(
        ImageData(images, batch_size=batch_size, num_workers=workers), encoder, device=device, progress=progress
    )
    if not len(x):
        raise DatasetError(f"none of the {len(data.labels)} pictures of {data.name} can be read")
    return LabelledEmbeddings(data.name, x, data.labels[index], data.class_names, data.identity)


def load_banks(
    methods: Sequence[str],
    encoder: Encoder,
    *,
    nouns: Source | None,
    captions: Source | None,
    reporter: Reporter | None = None,
) -> dict[str, TextBank]:
    """The text banks that some of the methods need; of `cae.text.load_banks`.

    Raises:
        TextError: a corpus cannot be had.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> encoder = load_encoder("open_clip:ViT-B-32/openai")
        >>> banks = load_banks(["kmeans", "tac"], encoder, nouns="nouns.txt", captions=None)
        >>> sorted(banks)  # TAC uses nouns alone
        ['noun']
    """
    needed: set[Modality] = set()
    for name in methods:
        method, config = parse_method(name, 2)
        if method.needs_texts:
            needed.update(config.modalities)
    in_order = [kind for kind in get_args(Modality) if kind in needed]
    return text.load_banks(in_order, text_sources(nouns, captions), lambda: encoder, reporter)


def make_problem(
    data: LabelledEmbeddings,
    encoder: Encoder,
    banks: Mapping[str, TextBank],
    *,
    device: torch.device | str = "cpu",
    class_names: Sequence[str] | None = None,
    class_texts: Tensor | None = None,
    select_on: LabelledEmbeddings | None = None,
) -> Problem:
    """Put together what the methods are given.

    Args:
        data: embeddings and classes.
        encoder: says the class names.
        banks: texts.
        device: device to work on.
        class_names: names in place of the data set's own, in the order of its labels. The data set's own are encoded
            only if the encoder is loaded by now.
        class_texts: (C, D) float32 unit vectors of `class_names`; by default the encoder makes them.
        select_on: the training split, where texts are to be selected there.

    Raises:
        DatasetError: class names that are not as many as the classes.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> from cae.evaluation import load_dataset
        >>> encoder = load_encoder("open_clip:ViT-B-32/openai")
        >>> data = embed(load_dataset("photos"), encoder, workers=0)
        >>> problem = make_problem(data, encoder, banks={}, class_names=data.class_names)
        >>> problem.n_clusters, problem.class_texts.shape
        (3, torch.Size([3, 48]))
    """
    names = list(class_names) if class_names is not None else data.class_names
    n_classes = int(data.labels.max()) + 1 if data.class_names is None else len(data.class_names)
    if names is not None and len(names) != n_classes:
        raise DatasetError(
            f"{len(names)} class names for the {n_classes} classes of {data.name}: give one for each "
            "(class_names, --class-names)"
        )
    said = class_texts
    if said is None and names is not None and (class_names is not None or is_loaded(encoder)):
        said = encoder.encode_texts([encoder.prompt.replace("{}", name) for name in names])
    if said is not None and said.shape[1] != data.x.shape[1]:
        raise DatasetError(
            f"the vectors of the class names have width {said.shape[1]}, the embeddings of {data.name} "
            f"{data.x.shape[1]}: both must come from the same encoder"
        )
    return Problem(
        data.x.to(device),
        banks,
        # As many clusters as there are classes in the split: a class without images cannot be found.
        len(data.labels.unique()),
        data.labels,
        None if said is None else said.to(device),
        None if select_on is None else select_on.x.to(device),
    )


@dataclass(frozen=True)
class Run:
    """One method with one seed."""

    seed: int
    labels: Tensor
    scores: dict[str, float]
    seconds: dict[str, float]


def run_study(
    problem: Problem | Sequence[Problem],
    methods: Sequence[str],
    seeds: Sequence[int],
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Score methods over seeds.

    Args:
        problem: embeddings, banks and classes; or one such for each seed, where the data are drawn at random as well.
        methods: names of methods, see `cae.evaluation.run_method`.
        seeds: seeds of the runs, one run for each.
        progress: called with the number of runs done and in all.

    Returns:
        A record per method, as plain values: `method`, `about`, `config`; `nmi`, `acc`, `ari` with mean and standard
        deviation over seeds in percent; `seconds`, the mean of each stage and in `total`; `silhouette` in image space
        and `stability` over seeds on the same data, which need no labels; and its `runs`.

    Raises:
        ValueError: an unknown method or setting, before anything runs.

    Examples:
        >>> from cae.evaluation import Problem
        >>> x = torch.eye(4)[:2].repeat_interleave(10, dim=0)
        >>> problem = Problem(x, banks={}, n_clusters=2, labels=torch.arange(2).repeat_interleave(10))
        >>> (record,) = run_study(problem, ["kmeans"], seeds=[0, 1])
        >>> record["acc"]
        {'mean': 100.0, 'std': 0.0}
    """
    problems = [problem] * len(seeds) if isinstance(problem, Problem) else list(problem)
    for name in methods:
        parse_method(name, problems[0].n_clusters)
    results = []
    for i, name in enumerate(methods):
        runs = []
        for j, (each, seed) in enumerate(zip(problems, seeds, strict=True)):
            runs.append(_run(name, each, seed))
            if progress:
                progress(i * len(seeds) + j + 1, len(methods) * len(seeds))
        results.append(_record(name, problems, runs))
    return results


def _run(name: str, problem: Problem, seed: int) -> Run:
    start = time.perf_counter()
    with stopwatch() as stages:
        labels = run_method(name, problem, seed)
    seconds = {**stages, "total": time.perf_counter() - start}
    return Run(seed, labels, clustering_scores(labels, problem.labels), seconds)


def _record(name: str, problems: Sequence[Problem], runs: Sequence[Run]) -> dict[str, Any]:
    method, config = parse_method(name, problems[0].n_clusters)
    same_images = len(runs) > 1 and all(problem is problems[0] for problem in problems)
    totals: Counter[str] = Counter()
    for run in runs:
        totals.update(run.seconds)
    return {
        "method": name,
        "about": method.about,
        "config": asdict(config) if method.needs_texts else {},
        **{metric: _spread([run.scores[metric] for run in runs]) for metric in METRICS},
        "seconds": {stage: total / len(runs) for stage, total in totals.items()},
        "silhouette": statistics.fmean(
            silhouette_score(problem.x, run.labels) for problem, run in zip(problems, runs, strict=True)
        ),
        "stability": stability([run.labels for run in runs]) if same_images else None,
        "runs": [{"seed": run.seed, **run.scores, "seconds": run.seconds} for run in runs],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def conditions(
    problem: Problem, data: LabelledEmbeddings, encoder: Encoder, seeds: Sequence[int], fit_on: str
) -> dict[str, Any]:
    """What a result was made from and on: data, encoder, corpora, seeds, command, versions, machine, peak memory.

    Examples:
        >>> from cae.encoders import load_encoder
        >>> from cae.evaluation import LabelledEmbeddings, Problem
        >>> labels = torch.arange(2).repeat_interleave(10)
        >>> data = LabelledEmbeddings("two", torch.eye(4)[labels], labels, None, identity="two")
        >>> problem = Problem(data.x, banks={}, n_clusters=2, labels=labels)
        >>> conditions(problem, data, load_encoder("lite"), seeds=[0], fit_on="test")["dataset"]["images"]
        20
    """
    return {
        "dataset": {
            "name": data.name,
            "images": len(data.labels),
            "classes": problem.n_clusters,
            "identity": data.identity,
            "texts_selected_on": fit_on,
        },
        **provenance(encoder, problem.banks),
        "seeds": list(seeds),
        "command": command(),
        "machine": machine(),
        "peak_memory_bytes": peak_memory(),
    }


def command() -> str:
    """How the program was called."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """The hardware in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def peak_memory() -> dict[str, int]:
    """The most memory this process had at a time, on the host where the system tells, and on the GPU."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak
