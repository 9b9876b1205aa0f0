"""Choosing names for groups of images out of a whole bank of nouns.

A name has to be a word that people would use, and the selected nouns are as often "barnacle goose" as "bird". So names
come out of the whole bank: what sets the group apart, plus how common the noun is, plus how typical its kind is of the
group. With m_k the mean image of group k and m the mean of those,

    score(k, j) = u_j.(m_k - m) / s + COMMONNESS log(1 + f_j) + KIND typicality(k, kinds of j),

s the standard deviation of the products and f_j the number of captions (or glosses) with noun j in them. The last term
is the typicality (`cae.method.typicality`) of all texts that are noun j or a kind of it (`cae.text.taxonomy`), taken as
one text. It finds the level of a name: of a hundred breeds each has a hundredth of the mass and "dog" has all of it;
where all is one breed, other groups have their share of "dog", but not of the breed.

A name holds for a group if at least `HOLDS` of its mass (`spread_mass`) goes to the noun and to kinds of it, and either
most of it or more than of the average group's: where groups are animals by a third, none is "animal". Of synonyms the
commonest alone is a name. Names are the one-to-one choice of nouns that hold and score above 0 with the largest total
score (Hungarian method), so no two groups share one. A group that gets none is "mixed: …", after nouns that hold for
parts of it. Where shares of the mass are not known, none is called mixed and any noun is better than none.
benchmarks/results/naming.md measures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from cae.method.blocks import BLOCK_ROWS, CHUNK_ROWS
from cae.method.fitted import SelectedTexts
from cae.method.typicality import typicality
from cae.text import TextBank
from cae.text.corpora import load_corpus
from cae.text.taxonomy import Taxonomy, bare

COMMONNESS = 0.2
"""Standard deviations of likeness that a noun e times as common makes up for. The best of 0.1, 0.2 and 0.4 on the demo
and on the scenes with the lite encoder; CIFAR-10 was not looked at for it."""

KIND = 0.7
"""Standard deviations of likeness for a nat of typicality of a noun's kinds. With CLIP ViT-B/32, names of Caltech-101's
classes and of 25 coarse groups of ImageNet's get better up to 0.7 and stay so up to 1; above 0.7 the lite encoder's
names for the demo become too general."""

HOLDS = 0.2
"""Least share of a group's transport mass for its name. Of 0.15, 0.2, 0.25 and 0.3 the one at which most
names of clusters fit, with CLIP ViT-B/32 on Caltech-101 and ImageNet. With the lite encoder the
demo agrees, and CIFAR-10 would have 0.1."""

ABOVE_AVERAGE = 1.1
"""How many times the average group's share a name has at least. Any value up to 2 names the same sets alike but for a
group or two; what all groups have in common should not be told apart by rounding."""

MOSTLY = 0.5
"""Share from which on a name holds even if the average group has as much of it: what all groups are is better than what
hardly any image is. The 239 motorbikes of Caltech-101 in two clusters (CLIP ViT-B/32, seed 0) are "dirt bike" and
"Vehicle", in place of "dirt bike" and "mixed: impala, …"; all of Caltech-101 and kinds of ImageNet keep their names."""

HOLDS_IN_PART = HOLDS / 4
"""Least share for what is named as a part of a mixed group."""

LEAST_PART = HOLDS / 20
"""The same where there are not two such parts."""

PARTS = 3
"""Most parts in the name of a mixed group."""

MIXED = "mixed: "
"""What the name of a group that no noun holds for begins with."""

CANDIDATES = 50
"""Nouns of each group among which names are chosen; the best choice is among them for up to so many groups."""

SHORTEST = 3
"""Minimum length of a noun that is counted. Shorter nouns, such as "a" and "or", are other words in most texts."""

_NAMELESS = 0.0
"""What a group without a name adds to the total: one gives its noun up only to another that it fits better. Where
shares are not known it is less than any score."""

_WORD = re.compile(r"\w+(?:['-]\w+)*")


class GroupName(NamedTuple):
    """What a group is called.

    Attributes:
        parts: the noun that holds for it; of a mixed group, the nouns that hold for parts of it, the best first.
        mixed: whether it is called after its parts.

    Examples:
        >>> str(GroupName(("dog", "oak, holly"), mixed=True))
        'mixed: dog, oak, holly'
        >>> str(GroupName(("dog",), mixed=True))  # no word holds for the rest
        'mixed: dog, …'
    """

    parts: tuple[str, ...]
    mixed: bool = False

    def __str__(self) -> str:
        more = ("…",) if self.mixed and len(self.parts) == 1 else ()
        return MIXED * self.mixed + ", ".join(self.parts + more)


class NameScores(NamedTuple):
    """How well T nouns name K groups.

    Attributes:
        score: (K, T) float32, score(k, j) of the module's rule.
        share: (K, T) float32, the share of each group's transport mass that goes to the noun and to kinds of it, 0 if
            it is neither above average nor most, or if a commoner noun means the same; 1 where no nouns were selected,
            and so nothing is known against any.
    """

    score: Tensor
    share: Tensor

    @property
    def known(self) -> bool:
        """Whether the shares are known."""
        return bool((self.share < 1).any())


def name_scores(
    images: Tensor,
    bank: TextBank,
    captions: TextBank | None,
    mass: Tensor | None = None,
    selected: SelectedTexts | None = None,
    n: int | None = None,
) -> NameScores:
    """Score all nouns of a bank as names of K groups.

    Args:
        images: (K, D) float32, the mean image of each group; NaN for one without images.
        bank: T nouns.
        captions: the caption bank, if there is one.
        mass: (K, M) `spread_mass` of the selected nouns, if some were selected.
        selected: these nouns.
        n: compare with the first n groups only; with all by default.

    Returns:
        Scores and shares on the CPU.
    """
    images = images.cpu().nan_to_num()
    contrast = images - images[:n].mean(dim=0)
    score = torch.empty(len(images), len(bank.texts), dtype=torch.float32)
    for part, rows in zip(score.split(CHUNK_ROWS, dim=1), bank.embeddings.split(CHUNK_ROWS), strict=True):
        part.copy_(contrast @ rows.float().T)
    score /= score[:n].std().clamp_min(torch.finfo(score.dtype).tiny)
    counts = commonness(bank, captions)
    score += COMMONNESS * counts.log1p()
    if mass is None or selected is None:
        return NameScores(score, torch.ones_like(score))
    typical, share = kind_typicality(mass, selected, bank, n)
    scores = NameScores(score.add_(typical, alpha=KIND), share)
    if scores.known:
        scores.share[:, rarer_synonyms(bank.texts, counts)] = 0
    return scores


def kind_typicality(
    mass: Tensor, selected: SelectedTexts, bank: TextBank, n: int | None = None
) -> tuple[Tensor, Tensor]:
    """Typicality and share of the kinds of each noun: its own mass and that of all below it, in its best sense.

    Args:
        mass: (K, M) `spread_mass`.
        selected: the M nouns that it is of. The mass of one that means several things is shared out equally.
        bank: T nouns.
        n: as in `typicality`.

    Returns:
        Typicality (K, T) float32 on the CPU, 0 for nouns that the taxonomy does not know; and their share of the mass,
        (K, T) float32, at least a noun's own, or 0 if it is neither above average nor most. Where the taxonomy knows
        less than half of the selected nouns, as of another language, kinds are unknown and every share is 1.
    """
    mass = mass.cpu()
    below, nouns = Taxonomy.of(selected.texts), Taxonomy.of(bank.texts).senses
    n_senses = np.maximum(below.senses.sum(axis=1), 1).astype(np.float32)
    of_kinds = torch.from_numpy(mass.numpy() / n_senses @ below.senses @ below.above)
    typical = _of_best_sense(typicality(of_kinds, n), nouns)
    if 2 * np.count_nonzero(np.diff(below.senses.indptr)) < len(selected.texts):
        return typical, torch.ones_like(typical)
    column = {text: i for i, text in enumerate(selected.texts)}
    own = _places(column, bank.texts)
    share = _of_best_sense(of_kinds, nouns)
    share[:, own] = share[:, own].maximum(mass[:, [column[bank.texts[j]] for j in own]])
    least = (ABOVE_AVERAGE * share[:n].mean(dim=0)).clamp_max(MOSTLY)
    return typical, share.masked_fill_(share < least, 0)


def _of_best_sense(of_synsets: Tensor, senses: csr_array) -> Tensor:
    """(K, S) values of synsets to (K, T), the largest among the senses of each noun; 0 for nouns without."""
    known = np.flatnonzero(np.diff(senses.indptr))
    found = torch.zeros(len(of_synsets), senses.shape[0], dtype=torch.float32)
    if len(known):
        for part, values in zip(found.split(BLOCK_ROWS), of_synsets.split(BLOCK_ROWS), strict=True):
            of_senses = values.numpy()[:, senses.indices]
            part.numpy()[:, known] = np.maximum.reduceat(of_senses, senses.indptr[:-1][known], axis=1)
    return found


def commonness(bank: TextBank, captions: TextBank | None) -> Tensor:
    """f_j: in how many captions each noun occurs, in singular or plural.

    Args:
        bank: T nouns. Nouns of more than two words are not counted.
        captions: the caption bank; where there is none the nouns' own glosses are counted in, or else ImageNet-22k's.

    Returns:
        (T,) float32.
    """
    nouns = [bare(noun) for noun in bank.texts]
    counted = {noun for noun in nouns if len(noun) >= SHORTEST}
    found: Counter[str] = Counter()
    texts = captions.texts if captions else list(chain.from_iterable(bank.glosses or ()))
    for text in texts or load_corpus("caption", "glosses").texts:
        words = _WORD.findall(text.lower())
        phrases = {*words, *(" ".join(pair) for pair in pairwise(words))}
        found.update(counted & (phrases | {phrase.removesuffix("s") for phrase in phrases}))
    return torch.tensor([found[noun] for noun in nouns], dtype=torch.float32)


def rarer_synonyms(nouns: Sequence[str], counts: Tensor) -> list[int]:
    """The nouns that mean exactly what a commoner one of them means; of equally common ones the first stays.

    Args:
        nouns: T nouns.
        counts: (T,), how common each is.

    Examples:
        >>> rarer_synonyms(["artefact", "artifact", "dog", "blue jay"], torch.tensor([1, 3, 9, 2]))
        [0]
    """
    senses = Taxonomy.of(nouns).senses
    starts, synsets = senses.indptr.tolist(), senses.indices.tolist()
    meanings, rarer = set(), []
    for j in (-counts).argsort(stable=True).tolist():
        meaning = frozenset(synsets[starts[j] : starts[j + 1]])
        if meaning in meanings:
            rarer.append(j)
        elif meaning:
            meanings.add(meaning)
    return rarer


def choose(score: Tensor) -> Tensor:
    """One noun for each group, no noun twice, the total of `score` (K, T) as large as possible.

    Returns:
        (K,) int64, -1 for groups that no noun is left for.
    """
    candidates = score.topk(min(CANDIDATES, score.shape[1])).indices.unique()
    groups, chosen = linear_sum_assignment(score[:, candidates].numpy(), maximize=True)
    found = torch.full((len(score),), -1)
    found[groups] = candidates[chosen]
    return found


def name_groups(scores: NameScores, nouns: Sequence[str], taken: Collection[str] = ()) -> list[str | None]:
    """A noun that holds for each of K groups, none twice and none of those taken; None where no noun is left."""
    holds = scores.share >= HOLDS
    holds[:, _places(taken, nouns)] = False
    nameless = _NAMELESS if scores.known else float(scores.score.numpy().min(initial=_NAMELESS)) - 1
    score = scores.score.where(holds, nameless).clamp_min_(nameless)
    chosen = choose(score).tolist()
    return [nouns[j] if j >= 0 and score[k, j] > nameless else None for k, j in enumerate(chosen)]


def cluster_names(scores: NameScores, nouns: Sequence[str]) -> list[GroupName]:
    """K names, all different: nouns that hold; else "mixed: …", or "cluster k" where no noun holds for a part."""
    chosen = name_groups(scores, nouns)
    taken = {noun for noun in chosen if noun}
    names = []
    for k, noun in enumerate(chosen):
        names.append(GroupName((noun,)) if noun else _name_of_rest(scores, k, nouns, taken))
        taken.update(names[-1].parts)
    return names


def _name_of_rest(scores: NameScores, k: int, nouns: Sequence[str], taken: Collection[str]) -> GroupName:
    """The name of a group that no noun was chosen for."""
    own = NameScores(*(each[k] for each in scores))
    parts = parts_of_group(own, nouns, taken)
    if not parts:
        return GroupName((f"cluster {k}",))
    if own.share[nouns.index(parts[0])] >= HOLDS:
        return GroupName(parts[:1])  # less alike than most nouns are, and so not chosen; but the best that is left
    return GroupName(parts, mixed=True)


def parts_of_group(scores: NameScores, nouns: Sequence[str], taken: Collection[str]) -> tuple[str, ...]:
    """Up to `PARTS` nouns that hold for parts of a group, the best first, none a kind of another and none taken.

    Where there are not two with `HOLDS_IN_PART` of the mass, those with `LEAST_PART`.

    Args:
        scores: score and share of T nouns, (T,) each.
        nouns: the nouns.
        taken: nouns that others are called.
    """
    share = scores.share.clone()
    share[_places(taken, nouns)] = 0
    holds = share >= HOLDS_IN_PART
    if holds.sum() < 2:
        holds = share >= LEAST_PART
    best = scores.score.masked_fill(~holds, -torch.inf).topk(min(CANDIDATES, len(nouns))).indices
    candidates = [nouns[j] for j in best[holds[best]].tolist()]
    taxonomy = Taxonomy.of(candidates)
    kinds = (taxonomy.senses @ taxonomy.above @ taxonomy.senses.T).toarray()
    related = (kinds + kinds.T) > 0
    parts: list[int] = []
    for i in range(len(candidates)):
        if len(parts) < PARTS and not related[i, parts].any():
            parts.append(i)
    return tuple(candidates[i] for i in parts)


def _places(some: Collection[str], nouns: Sequence[str]) -> list[int]:
    return [j for j, noun in enumerate(nouns) if noun in some]
