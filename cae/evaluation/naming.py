"""How well names of clusters fit classes that people named, by WordNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cae.method.names import MIXED
from cae.text.corpora import ensure_wordnet
from cae.text.taxonomy import bare

STEPS = 2
"""Hypernyms that may lie between a name and the class: "Siamese" or "feline" for cats."""

ANY = 99
"""More hypernyms than lie between any two nouns of WordNet."""


class NamedCluster(NamedTuple):
    """A cluster's name beside the class that most of its images have.

    Attributes:
        label: the majority class.
        purity: its share of the cluster.
        name: the cluster's name.
        depth: the fewest hypernyms from the name's first sense up to "entity"; -1 for what is not in WordNet.
        true: the share of its images whose class is the name or a kind of it, at however many hypernyms.
        nouns: its most typical nouns, best first.
        exact: whether the name is the class, or a synonym.
        special: whether the name is the class or at most `STEPS` hypernyms below it.
        general: whether the name is the class or at most `STEPS` hypernyms above it.
        among: whether the name is special, or one of the nouns is the class or a synonym.
    """

    label: str
    purity: float
    name: str
    depth: int
    true: float
    nouns: list[str]
    exact: bool
    special: bool
    general: bool
    among: bool

    @property
    def fits(self) -> bool:
        """Whether the name is the class or at most `STEPS` hypernyms away from it."""
        return self.special or self.general


def name_clusters(
    clusters: Tensor, labels: Tensor, classes: Sequence[str], names: Sequence[str], nouns: Sequence[Sequence[str]]
) -> list[NamedCluster]:
    """Compare the names of K clusters with the classes of their images; clusters without images are left out.

    The name of a mixed cluster fits no class.

    Args:
        clusters: (N,) int64 in [0, K).
        labels: (N,) int64 true classes.
        classes: their names, as people call folders: plural, with underscores.
        names: K names.
        nouns: K lists of typical nouns.

    Raises:
        TextError: WordNet can neither be found nor downloaded.
    """
    ensure_wordnet()
    table = []
    for k, (name, typical) in enumerate(zip(names, nouns, strict=True)):
        inside = labels[clusters == k]
        if not len(inside):
            continue
        majority = int(inside.mode().values)
        label = classes[majority]
        named = not name.startswith(MIXED)
        exact, special = (named and is_a(name, label, steps) for steps in (0, STEPS))
        general = named and is_a(label, name, STEPS)
        among = special or any(is_a(noun, label, 0) for noun in typical)
        purity = float((inside == majority).to(torch.float32).mean())
        true = true_share(name, inside, classes) if named else 0.0
        depth = name_depth(name) if named else -1
        table.append(NamedCluster(label, purity, name, depth, true, list(typical), exact, special, general, among))
    return table


def true_share(name: str, labels: Tensor, classes: Sequence[str]) -> float:
    """The share of N images, of classes `labels` (N,) int64, whose class is the name or a kind of it."""
    found, counts = labels.unique(return_counts=True)
    true = torch.tensor([is_a(classes[label], name, ANY) for label in found.tolist()])
    return float(counts[true].sum() / counts.sum())


def name_depth(noun: str) -> int:
    """The fewest hypernyms from a noun's first, most frequent sense up to "entity"; -1 for what is not in WordNet."""
    senses = _senses(noun)
    return senses[0].min_depth() if senses else -1


def is_a(noun: str, label: str, steps: int) -> bool:
    """Whether some sense of a noun is one of the label's, or at most so many hypernyms below it."""
    wanted, reached = set(_senses(label)), set(_senses(noun))
    for _ in range(steps + 1):
        if wanted & reached:
            return True
        reached = {above for sense in reached for above in (*sense.hypernyms(), *sense.instance_hypernyms())}
    return False


@cache
def _senses(text: str) -> tuple[Any, ...]:
    """Noun synsets of a word or phrase in any number, the most frequent first.

    Of a phrase that WordNet does not know, those of its last word.
    """
    from nltk.corpus import wordnet

    words = bare(text.replace("_", " ")).split()
    for phrase in ("_".join(words), words[-1] if words else ""):
        found = tuple(wordnet.synsets(phrase, "n"))
        if found:
            return found
    return ()
