"""A simulator of CLIP's geometry: SIMULATION, for studying the mechanism where no CLIP weights can be had.

CLIP's image and text embeddings lie in two cones some way apart, an image carries style that no noun tells (medium,
lighting, background), and a text bank rarely holds the class names themselves. Each of these is one term here:

    x = unit(concept · c_y + gap · δ + hub · η + style · s + noise · ε)

with c_y the centred, unit text vector of the class's noun; δ and η one direction each for all images, outside and
inside the span of the nouns; s a point in a few random directions outside that span; ε isotropic. The bank of nouns is
the same vectors without the class names and their synonyms; a caption is a mixture of a few of them. Noun vectors may
come from a file of real CLIP text vectors or from any encoder. Nothing measured here is a result on images: show it as
simulation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.evaluation import Problem
from cae.text import Corpus, TextBank

NOUN_VECTORS = Path(__file__).parents[1] / "../shared/data/clip_text/vit_b32_noun_text_vectors.npy"
"""2,146 unit text vectors of nouns by CLIP ViT-B/32, (2146, 512) float16."""

SPAN = 0.999
"""Share of the nouns' variance whose principal directions count as their span."""

SYNONYM = 0.9
"""Nouns whose centred cosine with a class name is at least this are taken out of the bank together with the name."""

DISTINCT = 0.4
"""Largest centred cosine between two class names."""


@dataclass(frozen=True)
class Severity:
    """How long each term of an image is before it is brought to unit length.

    Attributes:
        concept: of the class's noun, which texts and images share.
        gap: of the offset between images and texts, outside the noun span.
        hub: of the offset inside it, which brings some nouns close to all images.
        style: of the nuisance outside the noun span, on average.
        style_dims: directions of the nuisance; the fewer, the more it looks like clusters of its own.
        habit: share of the style's variance that belongs to the class rather than to the image: the sea behind ships.
        noise: of the isotropic rest, on average.
        caption_nouns: nouns that a caption mixes.
        caption_noise: length of the isotropic part of a caption.
    """

    concept: float
    gap: float
    hub: float
    style: float
    style_dims: int
    habit: float
    noise: float
    caption_nouns: int = 3
    caption_noise: float = 0.2


SEVERITIES = {
    "mild": Severity(concept=0.5, gap=0.8, hub=0.3, style=0.9, style_dims=4, habit=0.3, noise=0.4),
    "default": Severity(concept=0.5, gap=0.8, hub=0.3, style=1.2, style_dims=4, habit=0.2, noise=0.4),
    "severe": Severity(concept=0.5, gap=0.8, hub=0.3, style=1.4, style_dims=4, habit=0.1, noise=0.4),
    "hubs": Severity(concept=0.5, gap=0.8, hub=1.2, style=1.2, style_dims=4, habit=0.2, noise=0.4),
}


def load_noun_vectors(path: str | os.PathLike[str] = NOUN_VECTORS) -> Tensor:
    """(T, D) float32 unit rows from a .npy file of text vectors.

    Raises:
        FileNotFoundError: no such file.
    """
    return normalize(torch.from_numpy(np.load(path, allow_pickle=False)).float(), dim=1)


def simulate(
    nouns: Tensor,
    severity: Severity,
    *,
    n_classes: int = 10,
    n_images: int = 2000,
    n_captions: int = 4000,
    seed: int = 0,
) -> Problem:
    """Images, labels and banks with known geometry.

    Args:
        nouns: (T, D) float32 unit text vectors, T well over `n_classes`.
        severity: lengths of the terms.
        n_classes: K.
        n_images: N, spread evenly over the classes.
        n_captions: captions in the bank.
        seed: of everything random.

    Returns:
        A clustering problem; its class texts are the true names, for the zero-shot row.

    Raises:
        ValueError: the nouns hold fewer than `n_classes` distinct concepts.
    """
    generator = torch.Generator().manual_seed(seed)
    centred = normalize(nouns - nouns.mean(dim=0), dim=1)
    classes = _distinct_concepts(centred, n_classes, generator)
    labels = torch.arange(n_images) % n_classes

    style = _outside_span(torch.randn(severity.style_dims, nouns.shape[1], generator=generator), nouns)
    habits = torch.randn(n_classes, severity.style_dims, generator=generator)
    chance = torch.randn(n_images, severity.style_dims, generator=generator)
    coordinates = severity.habit**0.5 * habits[labels] + (1 - severity.habit) ** 0.5 * chance
    gap = _outside_span(torch.randn(1, nouns.shape[1], generator=generator), nouns)
    hub = normalize(torch.randn(1, len(nouns), generator=generator) @ centred, dim=1)
    x = normalize(
        severity.concept * centred[classes][labels]
        + severity.gap * gap
        + severity.hub * hub
        + severity.style * coordinates @ style / severity.style_dims**0.5
        + severity.noise * _isotropic(n_images, nouns.shape[1], generator),
        dim=1,
    )

    known = nouns[(centred @ centred[classes].T).amax(dim=1) < SYNONYM]
    mixed = torch.randint(len(known), (n_captions, severity.caption_nouns), generator=generator)
    noise = severity.caption_noise * _isotropic(n_captions, nouns.shape[1], generator)
    share = 1 / torch.arange(1, severity.caption_nouns + 1).square()
    captions = normalize((share[:, None] * known[mixed]).sum(dim=1) / share.sum() + noise, dim=1)
    banks = {"noun": _bank("noun", known), "caption": _bank("caption", captions)}
    return Problem(x, banks, n_classes, labels=labels, class_texts=nouns[classes])


def _distinct_concepts(centred: Tensor, n_classes: int, generator: torch.Generator) -> Tensor:
    """(K,) random rows of `centred` no two of which are near-synonyms."""
    chosen: list[int] = []
    for i in torch.randperm(len(centred), generator=generator).tolist():
        if not chosen or float((centred[chosen] @ centred[i]).max()) < DISTINCT:
            chosen.append(i)
        if len(chosen) == n_classes:
            return torch.tensor(chosen)
    raise ValueError(f"only {len(chosen)} of {len(centred)} nouns are distinct concepts; {n_classes} classes asked for")


def _outside_span(directions: Tensor, nouns: Tensor) -> Tensor:
    """Unit directions (R, D) orthogonal to the span of the nouns."""
    _, singular, basis = torch.linalg.svd(nouns - nouns.mean(dim=0), full_matrices=False)
    variance = singular.square().cumsum(dim=0) / singular.square().sum()
    basis = basis[: int((variance < SPAN).sum()) + 1]
    return normalize(directions - directions @ basis.T @ basis, dim=1)


def _isotropic(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Gaussian rows of length 1 on average."""
    return torch.randn(rows, width, generator=generator) / width**0.5


def _bank(kind: str, vectors: Tensor) -> TextBank:
    texts = [f"{kind} {i}" for i in range(len(vectors))]
    corpus = Corpus(kind, "simulated", texts, None, source_rows=len(texts))  # type: ignore[arg-type]
    return TextBank(corpus, vectors.half(), prompt="{}", encoder="simulated", fingerprint="simulated")
